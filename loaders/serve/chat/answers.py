"""POST /v1/chat/completions: what OpenAI's chat completions give, whole and as a stream."""

import re
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import islice
from typing import Any

from pg_gpt2.generation.options import CONSTRAINTS
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .. import parameters
from ..database import Connection, Database
from ..likely import Logprobs
from ..models import Model, model_of
from ..openai import DONE
from ..prompts import Prompt
from ..streaming import Event, EventStream, unless_closed
from ..writing import Piece, Usage, Writer
from .asked import DECLARED, ChatAsked
from .prompt import encoded, template_of
from .renderer import Renderer, TemplateFailed


def routes(database: Database, renderer: Renderer) -> list[BaseRoute]:
    """The path of chats."""
    return [Route("/v1/chat/completions", Chats(database, renderer).handle, methods=["POST"])]


class ChatWriter(Writer):
    """Writes answers to a chat, which begin after token ids."""

    def __init__(
        self, database: Database, conn: Connection, model: Model, asked: ChatAsked, ids: Sequence[int], usage: Usage
    ) -> None:
        rest = {"max_tokens": max(1, model.window - len(ids))}
        super().__init__(database, conn, model, replace(asked, options=rest | asked.options))
        self._ids, self.usage = ids, usage

    async def _read(self) -> list[Prompt]:
        """The chat."""
        if not self._ids:
            raise TemplateFailed("it makes an empty text")
        self._require_window(len(self._ids), "messages")
        self.usage.prompt = len(self._ids)
        return [Prompt("", self._ids, spelled=False)]


class Chats:
    """The handler, over one database."""

    def __init__(self, database: Database, renderer: Renderer) -> None:
        self._database, self._renderer = database, renderer

    async def handle(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        asked = ChatAsked.of(await parameters.read(request, *DECLARED))
        if asked.stream:
            return EventStream(self._streamed(request, asked))
        return await unless_closed(request.receive, self._completed(request, asked))

    async def _completed(self, request: Request, asked: ChatAsked) -> Response:
        texts, usage = [Piece() for _ in range(asked.n)], Usage()
        async with aclosing(self._pieces(request, asked, usage)) as pieces:
            async for number, piece in pieces:
                texts[number].add(piece)
        choices = [_choice(number, text, asked.logprobs) for number, text in enumerate(texts)]
        head = _head(asked, "chat.completion")
        return JSONResponse({**head, "choices": choices, "usage": usage.described()})

    async def _streamed(self, request: Request, asked: ChatAsked) -> AsyncGenerator[Event, None]:
        head: dict[str, Any] = _head(asked, "chat.completion.chunk") | ({"usage": None} if asked.with_usage else {})
        begun: set[int] = set()
        usage = Usage()
        async with aclosing(self._pieces(request, asked, usage)) as pieces:
            async for number, piece in pieces:
                if number not in begun:
                    begun.add(number)
                    yield {**head, "choices": [_delta(number, {"role": "assistant", "content": ""})]}
                if piece.text or piece.logprobs:
                    told = _told(piece.logprobs, asked.logprobs)
                    yield {**head, "choices": [_delta(number, {"content": piece.text}, logprobs=told)]}
                if piece.finish:
                    yield {**head, "choices": [_delta(number, {}, finish_reason=piece.finish)]}
        if asked.with_usage:
            yield {**head, "choices": [], "usage": usage.described()}
        yield DONE

    async def _pieces(
        self, request: Request, asked: ChatAsked, usage: Usage
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces of the answers. The template is rendered before a session for generating is waited for."""
        async with self._database.session(request) as conn:
            model = await model_of(self._database, conn, asked.model)
            template = await template_of(self._database, conn, model.name)
        values = {**template.values, "add_generation_prompt": True}
        chat = await self._renderer.render(template.text, asked.messages, template.special.values(), values)
        if template.ends is not None:
            asked = _ending(asked, template.ends)
        async with self._database.session(request, generating=True) as conn:
            ids = await encoded(self._database, conn, model.name, chat, template.special)
            writer = ChatWriter(self._database, conn, model, asked, ids, usage)
            async with aclosing(writer.texts()) as pieces:
                async for number, piece in pieces:
                    yield number, piece


def _ending(asked: ChatAsked, end: str) -> ChatAsked:
    """With the text of a token that ends an answer, too, unless the request says what does."""
    if "eos_token" in asked.options or any(name in asked.options for name in CONSTRAINTS):
        return asked
    stop = asked.options.get("stop", [])
    return replace(asked, options={**asked.options, "stop": [*([stop] if isinstance(stop, str) else stop), end]})


def _head(asked: ChatAsked, kind: str) -> dict[str, Any]:
    """What every part of an answer begins with."""
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": asked.model}


def _choice(number: int, text: Piece, most: int | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text.text, "refusal": None}
    return {"index": number, "message": message, "logprobs": _told(text.logprobs, most), "finish_reason": text.finish}


def _delta(number: int, delta: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **more}


def _told(logprobs: Logprobs | None, most: int | None) -> dict[str, Any] | None:
    """Log-probabilities in the form of chats: an object a token, with its bytes and the `most` likely ones."""
    if logprobs is None:
        return None
    content = [
        {**_token(token, logprob), "top_logprobs": [_token(*each) for each in islice((top or {}).items(), most)]}
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs)
    ]
    return {"content": content, "refusal": None}


def _token(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": [*_bytes(token)]}


def _bytes(token: str) -> bytes:
    """Of a token as likely.py names it: bytes:\\x.. where it is a part of a character."""
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", token):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()
