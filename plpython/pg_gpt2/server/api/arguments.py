"""What the domains llm_texts and llm_bytes check, before PL/Python makes objects of a large argument."""

from ...errors import InvalidParameter, require
from ...limits import MOST_IDS
from .. import resources
from ..entry import entry


@entry
def texts(count: int) -> bool:
    """True, unless an array of so many texts is too large, which is refused (22023)."""
    require(count=count)
    if count > MOST_IDS:
        raise InvalidParameter(
            f"an array of {count} texts; the most is {MOST_IDS}",
            hint="Give a part of them: (texts)[1:1000000], for example.",
        )
    return True


@entry
def data(size: int) -> bool:
    """True, unless there is no memory for PL/Python's copy of so many bytes, which is refused (53200)."""
    require(size=size)
    resources.require_memory(size, f"an argument of {size} bytes")
    return True
