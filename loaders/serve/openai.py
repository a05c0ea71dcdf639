"""OpenAI's API: models, completions, embeddings."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .database import Database


def routes(database: Database) -> list[BaseRoute]:
    """The paths under /v1."""

    async def models(request: Request) -> Response:
        async with database.session(request) as conn:
            cursor = await conn.execute("SELECT 1")
            return JSONResponse({"data": [str(row) for row in await cursor.fetchall()]})

    return [Route("/v1/models", models)]
