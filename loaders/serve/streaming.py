"""Answers that end with their client: server-sent events, and one answer that takes long.

A client that closes its connection cancels the task that works for it, and that ends its statement in the database.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import psycopg
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError, body_of, of_database

T = TypeVar("T")
Event = Mapping[str, Any] | str


async def unless_closed(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled, and waited for, when the client closes its connection: ClientDisconnect.

    The body of the request must have been read.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_closed(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (watcher, task):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Events as they come from a generator: a mapping is sent as JSON, a string as it stands.

    The status is sent with the first event, so that what fails before it is answered as any other error; what fails
    later is an event with OpenAI's error object, the last one.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self.events = events
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            async with aclosing(self.events):
                await self._send_all(send)

        try:
            await unless_closed(receive, work())
        except ClientDisconnect:
            return

    async def _send_all(self, send: Send) -> None:
        started = False
        try:
            async for event in self.events:
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    started = True
                await send({"type": "http.response.body", "body": _encoded(event), "more_body": True})
        except (ApiError, psycopg.Error) as error:
            if not started:
                raise
            told = body_of(of_database(error) if isinstance(error, psycopg.Error) else error)
            await send({"type": "http.response.body", "body": _encoded(told), "more_body": True})
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encoded(event: Event) -> bytes:
    text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
