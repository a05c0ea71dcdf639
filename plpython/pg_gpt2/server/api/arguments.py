"""What the types of arguments ask, llm_texts and llm_bytes: before PL/Python makes objects of what is large."""

from ...errors import InvalidParameter, require
from ...limits import MOST_IDS
from .. import resources
from ..entry import entry


@entry
def texts(count: int) -> bool:
    """Whether an array may have so many texts; 22023 where it may not."""
    require(count=count)
    if count > MOST_IDS:
        raise InvalidParameter(
            f"an array of {count} texts; the most is {MOST_IDS}",
            hint="Give a part of them: (texts)[1:1000000], for example.",
        )
    return True


@entry
def data(size: int) -> bool:
    """Whether there is memory for PL/Python's copy of so many bytes; 53200 where there is none."""
    require(size=size)
    resources.require_memory(size, f"an argument of {size} bytes")
    return True
