"""The texts of a request for completions, piece by piece as the database computes them."""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from pg_llm_client import AsyncPGLLMClient, StreamEvent

from .asked import Asked
from .database import Connection, Database
from .errors import ApiError
from .likely import Logprobs, Places, Scorer
from .models import Model
from .prompts import Prompt, read

TOGETHER = 16  # tokens whose alternatives are looked up in one pass


@dataclass
class Usage:
    """Tokens read and written."""

    prompt: int = 0
    completion: int = 0

    def described(self) -> dict[str, int]:
        """As the API has it."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


@dataclass
class Piece:
    """A part of a text, or several of them put together."""

    text: str = ""
    logprobs: Logprobs | None = None
    finish: str | None = None
    """'stop' or 'length' in the last part."""
    logprob: float = 0.0
    """Of all its tokens."""
    tokens: int = 0

    def add(self, next_one: "Piece") -> None:
        """Append what follows."""
        self.text += next_one.text
        self.finish = next_one.finish
        self.logprob += next_one.logprob
        self.tokens += next_one.tokens
        if next_one.logprobs:
            self.logprobs = self.logprobs or Logprobs()
            self.logprobs.extend(next_one.logprobs)

    @property
    def quality(self) -> float:
        """Log-probability of a token, on average: what best_of compares."""
        return self.logprob / self.tokens if self.tokens else -math.inf


class Writer:
    """Continues the prompts of a request in one session of the database."""

    def __init__(self, database: Database, conn: Connection, model: Model, asked: Asked) -> None:
        self._database, self._conn, self._model, self._asked = database, conn, model, asked
        self._client = AsyncPGLLMClient(conn, model=model.name)
        self._scorer = Scorer(database, conn, model, asked.logprobs or 0)
        self.usage = Usage()

    async def texts(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces of all texts with their numbers, best_of for each prompt: as whole texts that were written together, or one text
        after the other."""
        prompts = await self._read()
        written = self._together if self._shares_passes(prompts) else self._in_turn
        async with aclosing(written(prompts)) as pieces:
            async for number, piece in pieces:
                self.usage.completion += piece.tokens
                yield number, piece

    async def _read(self) -> list[Prompt]:
        """The prompts."""
        prompts = await read(self._database, self._conn, self._model.name, self._asked.prompts)
        for prompt in prompts:
            self._require_window(len(prompt.ids) or 1)
            self.usage.prompt += len(prompt.ids)
        return prompts

    def _shares_passes(self, prompts: Sequence[Prompt]) -> bool:
        """Whether texts are written together: there are several, nothing is wanted of a single token, no model drafts them, and
        one call takes the prompts, which are texts or the ids of only one."""
        if self._asked.stream or self._scores or "draft_model" in self._asked.options:
            return False
        one_call = len(prompts) == 1 or all(prompt.spelled for prompt in prompts)
        return one_call and len(prompts) * self._asked.best_of > 1

    async def _together(self, prompts: Sequence[Prompt]) -> AsyncGenerator[tuple[int, Piece], None]:
        best_of, echo = self._asked.best_of, self._asked.echo
        options = {**self._asked.options, "n": best_of, "echo": echo, "logprobs": best_of > self._asked.n}
        with _refusing("generate_texts"):
            if prompts[0].spelled:
                texts = await self._client.generate_texts([prompt.text for prompt in prompts], **options)
            else:
                texts = await self._client.generate_texts(prompt_ids=prompts[0].ids, **options)
        for number, each in enumerate(texts):
            yield number, Piece(each.text, None, each.finish_reason, each.logprob or 0.0, each.n_tokens)

    async def _in_turn(self, prompts: Sequence[Prompt]) -> AsyncGenerator[tuple[int, Piece], None]:
        seed = self._asked.options.get("seed")
        for number in range(len(prompts) * self._asked.best_of):
            options = self._asked.options if seed is None else {**self._asked.options, "seed": _following(seed, number)}
            async with aclosing(self._text(prompts[number // self._asked.best_of], options)) as pieces:
                async for piece in pieces:
                    yield number, piece

    def _require_window(self, length: int, param: str = "prompt") -> None:
        """ApiError for a prompt whose beginning the model would not see, or for alternatives of tokens that it does not."""
        window, most = self._model.window, self._asked.options.get("max_tokens", 0)
        if length > window:
            what = f"the prompt has {length} tokens"
        elif self._asked.logprobs and length + most > window + 1:
            what, param = (
                f"logprobs above 0 need prompt and text within the window; they may have {length} + {most} tokens",
                "logprobs",
            )
        else:
            return
        raise ApiError(
            f"{what}, and the model's longest context is {window}", param=param, code="context_length_exceeded"
        )

    async def _text(self, prompt: Prompt, options: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """Pieces of a text that follows `prompt`."""
        places, ids = Places(), prompt.ids
        if self._asked.echo:
            yield Piece(prompt.text, await self._scorer.scored(ids, len(ids), places) if self._scores and ids else None)
        given = {"prompt": prompt.text} if prompt.spelled else {"prompt_ids": ids}
        seen, shown, finish = await self._scorer.begun(ids), "", None
        with _refusing("stream"):
            events = self._client.stream(**given, echo=False, **options)
        async with aclosing(events):
            async for some in _grouped(events, TOGETHER if self._asked.logprobs else 1):
                seen += [event.token_id for event in some]
                text, finish = some[-1].text[len(shown) :], some[-1].finish_reason
                shown = some[-1].text
                yield Piece(
                    text, await self._told(some, seen, places), finish, sum(event.logprob for event in some), len(some)
                )
        if finish is None:  # no token was asked for, or nothing was missing
            yield Piece(finish="length" if options.get("max_tokens") == 0 else "stop")

    @property
    def _scores(self) -> bool:
        return self._asked.logprobs is not None

    async def _told(self, events: Sequence[StreamEvent], seen: Sequence[int], places: Places) -> Logprobs | None:
        """What is told of the last tokens of `seen`, if anything is wanted."""
        if not self._scores:
            return None
        ids = [event.token_id for event in events]
        if not self._asked.logprobs:
            return await self._scorer.chosen(ids, [event.logprob for event in events], places)
        return await self._scorer.scored(seen, len(ids), places)


def _following(seed: int, number: int) -> int:
    """seed + number, where the greatest of bigint is followed by the least, as for llm_generate_batch."""
    return (seed + number + (1 << 63)) % (1 << 64) - (1 << 63) if number else seed


@contextmanager
def _refusing(method: str) -> Iterator[None]:
    """ApiError for what a method of the client refuses: an option under two names, or beside one that contradicts it."""
    try:
        yield
    except TypeError as error:
        raise ApiError(str(error).removeprefix(f"{method}() got "), code="invalid_value") from None


async def _grouped(events: AsyncIterator[StreamEvent], size: int) -> AsyncIterator[list[StreamEvent]]:
    """`size` at a time, the last ones as they are."""
    some: list[StreamEvent] = []
    async for event in events:
        some.append(event)
        if len(some) == size or event.is_complete:
            yield some
            some = []
