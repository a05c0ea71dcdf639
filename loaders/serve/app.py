"""The application: routes of the API and of the page, over one `Database`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from . import openai, window
from .chat import answers as chat
from .chat.renderer import Renderer
from .database import Database
from .errors import ApiError, respond
from .middleware import Guard
from .settings import Settings


def create_app(settings: Settings) -> Starlette:
    """An ASGI application; it connects when it starts."""
    database, renderer = Database(settings), Renderer()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await database.open()
        try:
            yield
        finally:
            await renderer.close()
            await database.close()

    return Starlette(
        routes=[*openai.routes(database), *chat.routes(database, renderer), *window.routes(database)],
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers=dict.fromkeys(
            (ApiError, ClientDisconnect, psycopg.Error, HTTPException, Exception), respond
        ),
        lifespan=lifespan,
    )
