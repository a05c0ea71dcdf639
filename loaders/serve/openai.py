"""OpenAI's API: models, completions, embeddings. Chats are in chat/.

Fields are those of OpenAI's reference, with what vLLM and llama.cpp's server add. A parameter that is not known here is an
error that names it, since an answer without it would not be what was asked for.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from . import parameters
from .asked import DECLARED, Asked
from .database import Database
from .embeddings import EmbeddingRequest, embeddings
from .models import all_models, model_of
from .streaming import Event, EventStream, unless_closed
from .writing import Piece, Writer

DONE = "[DONE]"


def routes(database: Database) -> list[BaseRoute]:
    """The paths under /v1."""
    api = Api(database)
    return [
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/embeddings", api.embeddings, methods=["POST"]),
    ]


class Api:
    """The handlers, over one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        async with self._database.session(request) as conn:
            found = await all_models(self._database, conn)
        return JSONResponse({"object": "list", "data": [model.described() for model in found]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        async with self._database.session(request) as conn:
            return JSONResponse((await model_of(self._database, conn, request.path_params["name"])).described())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        asked = Asked.of(await parameters.read(request, *DECLARED))
        if asked.stream:
            return EventStream(self._streamed(request, asked))
        return await unless_closed(request.receive, self._completed(request, asked))

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        given: EmbeddingRequest = await parameters.read(request, EmbeddingRequest)  # type: ignore[assignment]

        async def work() -> Response:
            async with self._database.session(request, generating=True) as conn:
                return JSONResponse(await embeddings(self._database, conn, given))

        return await unless_closed(request.receive, work())

    async def _completed(self, request: Request, asked: Asked) -> Response:
        texts = [Piece() for _ in range(len(asked.prompts) * asked.best_of)]
        async with self._database.session(request, generating=True) as conn:
            model = await model_of(self._database, conn, asked.model)
            writer = Writer(self._database, conn, model, asked)
            async with aclosing(writer.texts()) as pieces:
                async for number, piece in pieces:
                    texts[number].add(piece)
        best: list[Piece] = []
        for start in range(0, len(texts), asked.best_of):
            some = texts[start : start + asked.best_of]
            best += sorted(some, key=lambda text: -text.quality)[: asked.n] if asked.best_of > asked.n else some
        choices = [_choice(number, text) for number, text in enumerate(best)]
        return JSONResponse({**_head(asked), "choices": choices, "usage": writer.usage.described()})

    async def _streamed(self, request: Request, asked: Asked) -> AsyncGenerator[Event, None]:
        head: dict[str, Any] = _head(asked) | ({"usage": None} if asked.with_usage else {})
        async with self._database.session(request, generating=True) as conn:
            model = await model_of(self._database, conn, asked.model)
            writer = Writer(self._database, conn, model, asked)
            async with aclosing(writer.texts()) as pieces:
                async for number, piece in pieces:
                    if piece.text or piece.logprobs or piece.finish:
                        yield {**head, "choices": [_choice(number, piece)]}
        if asked.with_usage:
            yield {**head, "choices": [], "usage": writer.usage.described()}
        yield DONE


def _head(asked: Asked) -> dict[str, Any]:
    """What every part of an answer begins with."""
    name = f"cmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": "text_completion", "created": int(time.time()), "model": asked.model}


def _choice(number: int, piece: Piece) -> dict[str, Any]:
    logprobs = piece.logprobs.described() if piece.logprobs else None
    return {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
