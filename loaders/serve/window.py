"""The page in a browser: its files, and the data that its pictures show, each with the statement that gave them."""

import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from datetime import datetime
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any

from psycopg import AsyncServerCursor
from psycopg.rows import dict_row
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ..charts import DIRECTORY as CHARTS
from .database import Connection, Database
from .errors import ApiError
from .parameters import json_object
from .pictures import PICTURES, WRITE, Picture, shown
from .shared import Shared
from .streaming import EventStream, unless_closed

STATIC = Path(__file__).parent / "static"
MOST = 1 << 20  # bytes of a request


def routes(database: Database) -> list[BaseRoute]:
    """The page, what it loads, and under /api/ the data that it asks for."""
    shared = Shared()

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def settings(request: Request) -> Response:
        return _response(_encoded({"allow_training": database.settings.allow_training}))

    async def picture(request: Request) -> Response:
        chosen = PICTURES.get(request.path_params["name"])
        if chosen is None:
            raise ApiError(f"there is no picture {request.path_params['name']}; there are {', '.join(PICTURES)}")
        values = chosen.given(await json_object(request, MOST))

        def draw() -> Coroutine[Any, Any, bytes]:
            return _drawn(database, request, chosen, values)

        async def answer() -> Response:
            if chosen.generating or chosen.writing:
                return _response(await draw())
            key = chosen.sql, tuple(values.values()), database.role(request)
            return _response(await shared.get(key, draw))

        return await unless_closed(request.receive, answer())

    async def write(request: Request) -> Response:
        values = WRITE.given(await json_object(request, MOST))
        return EventStream(_written(database, request, values))

    return [
        Route("/", page),
        Mount("/static", StaticFiles(directory=STATIC)),
        Mount("/charts", StaticFiles(directory=CHARTS)),
        Route("/api/settings", settings),
        Route("/api/write", write, methods=["POST"]),
        Route("/api/pictures/{name}", picture, methods=["POST"]),
    ]


async def _drawn(database: Database, request: Request, picture: Picture, values: Mapping[str, Any]) -> bytes:
    async with database.session(request, generating=picture.generating, writing=picture.writing) as conn:
        query = database.query(picture.sql)
        cursor = conn.cursor(row_factory=dict_row)
        await cursor.execute(query, values)
        rows = await cursor.fetchall()
        return _encoded({**_told(query.as_string(conn), values), "rows": rows})


async def _written(
    database: Database, request: Request, values: Mapping[str, Any]
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The statement, then a token at a time, with what it adds to the text, and whether that stands for all tokens up to it."""
    async with database.session(request, generating=True) as conn:
        query = database.query(WRITE.sql)
        yield _told(query.as_string(conn), values)
        text, written, has_special = "", b"", False
        async with aclosing(_rows(conn, query, values)) as rows:
            async for row in rows:
                piece, text = row["text"][len(text) :], row["text"]
                written += row["bytes"]
                has_special |= row["special"]
                yield {
                    "token_id": row["token_id"],
                    "token": row["token"],
                    "piece": piece,
                    "is_text": not has_special and _is_text(written),
                    "logprob": row["logprob"],
                    "finish_reason": row["finish_reason"],
                }


def _is_text(data: bytes) -> bool:
    """Whether the database has it as a text, which has no U+0000."""
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


async def _rows(conn: Connection, query: Any, values: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Rows as the server computes them."""
    async with AsyncServerCursor(conn, "page", row_factory=dict_row) as cursor:
        await cursor.execute(query, values)
        while row := await cursor.fetchone():
            yield row


def _told(text: str, values: Mapping[str, Any]) -> dict[str, Any]:
    sql, parameters = shown(text, values)
    return {"sql": sql, "parameters": parameters}


def _response(content: bytes) -> Response:
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})


def _encoded(value: Any) -> bytes:
    """As JSON."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
    return text.encode()


def _finite(value: Any) -> Any:
    """With null for numbers that JSON does not have: NaN and infinity."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
