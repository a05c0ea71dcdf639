"""Asynchronous objects used as if they were not, so that one test serves both clients."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Iterator
from typing import Any


class Driven:
    """A connection, client, cursor or transaction of the asynchronous kind, whose coroutines run at once, on `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Any) -> None:
        vars(self).update(loop=loop, target=target)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        return (lambda *args, **kwargs: self._given(value(*args, **kwargs))) if callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "autocommit":  # an asynchronous connection has no such property to set
            self.set_autocommit(value)
        else:
            setattr(self.target, name, value)

    def __enter__(self) -> Any:
        return self._given(self.target.__aenter__())

    def __exit__(self, *error: Any) -> Any:
        return self._given(self.target.__aexit__(*error))

    def _given(self, found: Any) -> Any:
        """What a call gave, of the synchronous kind."""
        if inspect.isasyncgen(found):
            return self._events(found)
        if inspect.isawaitable(found):
            found = self.loop.run_until_complete(found)
        return Driven(self.loop, found) if hasattr(found, "__aenter__") else found

    def _events(self, events: AsyncGenerator[Any, None]) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self.loop.run_until_complete(anext(events))
                except StopAsyncIteration:
                    return
        finally:
            self.loop.run_until_complete(events.aclose())
