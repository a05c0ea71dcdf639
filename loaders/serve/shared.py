"""Answers for several viewers: whoever asks for what another asked for a moment ago gets the same, which is computed once."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any

SECONDS = 1.0  # that an answer serves others, from when its statement began


@dataclass
class _Answer:
    """An answer on its way, or there."""

    task: "asyncio.Task[bytes]"
    began: float = field(default_factory=time.monotonic)
    waiting: int = 0
    """Who wants it."""
    given_up: bool = False
    """Whether nobody did, before it was there."""

    @property
    def serves(self) -> bool:
        """Whether one more may have it."""
        if self.given_up or not self.task.done():
            return not self.given_up
        return time.monotonic() - self.began < SECONDS and not self.task.cancelled() and self.task.exception() is None


class Shared:
    """Answers by what they depend on."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, _Answer] = {}

    async def get(self, key: Hashable, compute: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """The answer for `key`, which `compute` gives where nobody has asked for it lately."""
        answer = self._answers.get(key)
        if answer is None or not answer.serves:
            self._answers = {old: each for old, each in self._answers.items() if each.serves}
            answer = self._answers[key] = _Answer(asyncio.ensure_future(compute()))
        answer.waiting += 1
        try:
            return await asyncio.shield(answer.task)
        finally:
            answer.waiting -= 1
            if not answer.waiting and not answer.task.done():
                answer.given_up = answer.task.cancel()
