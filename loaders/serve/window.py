"""The page in a browser."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route

from .database import Database


def routes(database: Database) -> list[BaseRoute]:
    """The page, what it loads, and under /api/ the data that it asks for."""

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("pg_gpt2: the API is at /v1/models\n")

    return [Route("/", page)]
