"""llm_worker_begin, llm_worker_weights, llm_worker_shard, llm_worker_gradients: arguments from another server's run, checked."""

import json
from typing import Any

from ...errors import require
from ..entry import entry
from ..training import shard_work


def _read(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists
        raise shard_work.unexpected(name) from None


@entry
def begin(run: str) -> str:
    """The environment, and how many weights are awaited."""
    require(run=run)
    return json.dumps(shard_work.begin(_read(run, "run")))


@entry
def weights(first: int, sent: str) -> int:
    """Place after the last of them."""
    require(first=first, sent=sent)
    return shard_work.current().take(first, sent)


@entry
def shard(shard: str) -> list[float]:
    """The loss of the shard; of a step of a replica the norm of its gradient, too."""
    require(shard=shard)
    return shard_work.current().compute(_read(shard, "shard"))


@entry
def gradients(first: int, count: int) -> str:
    """Some of the gradients of the last shard, as text."""
    require(first=first, count=count)
    return shard_work.current().gradients(first, count)
