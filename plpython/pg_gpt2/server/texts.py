"""Prompts on their way to text: one of them token by token, or several that share passes, with the model and vocabulary that the
statement sees."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import fsum
from typing import Any, NamedTuple

from ..errors import InvalidParameter
from ..generation import batch
from ..generation.generate import TextStream, Token, tokens
from ..generation.options import BatchTexts, Drafting, ManyTexts, TextGeneration
from ..generation.rooms import MOST_TOGETHER
from ..generation.sampling import Sampling, is_mostly_decisive
from ..generation.stops import Stops
from . import db, vocabularies
from .drafts import draft_of
from .prompts import check_prompt, encode_prompt, prompt_ids
from .resolving import require_cache, resolved
from .storage import weights


class TextJob:
    """One prompt, a text or its ids, on its way to text. The prompt is already processed when this is made, so that errors come
    with the call."""

    def __init__(
        self,
        prompt: str | list[int],
        asked: TextGeneration,
        sampling: Sampling,
        drafting: Drafting,
        logprobs: bool = False,
    ) -> None:
        stops = Stops(asked.stop)
        model = weights.load(asked.model_name)
        self.tokenizer = vocabularies.tokenizer_of(model.name)
        options = replace(resolved(asked, sampling, model, self.tokenizer), logprobs=logprobs)
        if isinstance(prompt, str):
            ids, shown = encode_prompt(prompt, model, self.tokenizer), prompt
        else:
            ids = check_prompt(prompt, model)
            shown = db.storable(self.tokenizer.decode(prompt)) if asked.echo else ""
        require_cache(model, [len(ids)], options.max_tokens)
        options = replace(options, draft=draft_of(model, drafting, len(ids) + options.max_tokens))
        self.prefix = shown if asked.echo else ""
        self.text = TextStream(self.tokenizer, stops, options.eos, options.also_ends)
        self.tokens = tokens(model.decoder_weights, model.config, ids, options, self.text.add)

    def finish(self) -> str:
        """All the text, when no token is left."""
        self.text.finish()
        return self.prefix + self.text.text()

    def rows(self) -> Iterator[tuple[Any, ...]]:
        for step, token in enumerate(self.tokens, 1):
            if token.finish:
                self.text.finish()
            shown = self.prefix + self.text.shown()
            done = token.finish is not None
            piece = db.storable(self.tokenizer.decode([token.id]))
            yield step, token.id, piece, shown, done, token.logprob, token.finish


class Text(NamedTuple):
    """A new text of several, and how it ended."""

    text: str
    finish: str
    n_tokens: int
    logprob: float | None


class TextsJob:
    """Several prompts on their way to `n` texts each: what a call asks for, with model, vocabulary and seed resolved."""

    def __init__(self, asked: ManyTexts, sampling: Sampling) -> None:
        self.n, self.echo = asked.n, asked.echo
        self._stops = Stops(asked.stop)
        self.model = weights.load(asked.model_name)
        self.tokenizer = vocabularies.tokenizer_of(self.model.name)
        options = resolved(asked, sampling, self.model, self.tokenizer)
        options.walk()  # too few max_tokens are refused with the call, before a prompt comes
        self._options = replace(options, logprobs=isinstance(asked, BatchTexts) and asked.logprobs)
        self._batch = batch.Batch(self.model.decoder_weights, self.model.config, self._most())
        self._texts: dict[tuple[int, int], TextStream] = {}  # that have not ended

    def _most(self) -> int:
        """How many texts go on together: one, where most of what they said would have to be computed once more, alone."""
        together = self.model.decoder_weights.exact or is_mostly_decisive(self._options.sampling)
        return MOST_TOGETHER if together else 1

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt, however many; the end-of-text token for an empty one."""
        return prompt_ids(prompt, self.model, self.tokenizer)

    def add(self, number: int, ids: Sequence[int]) -> None:
        """Ask for the texts of the prompt that has this number in the call, from 0."""
        options = self._options
        for sample in range(self.n):
            text = TextStream(self.tokenizer, self._stops, options.eos, options.also_ends)
            self._texts[number, sample] = text
            seeded = replace(options, seed=options.seed + number * self.n + sample)
            self._batch.add((number, sample), ids, seeded, text.add)

    def __len__(self) -> int:
        """How many texts have not ended."""
        return len(self._batch)

    @property
    def is_full(self) -> bool:
        """Whether further texts would only wait for those that are there."""
        return self._batch.is_full

    def step(self) -> Iterator[tuple[int, int, Text | InvalidParameter]]:
        """Have each text go on: (number of the prompt, sample from 0, new text or why there is none) of those that ended."""
        for key, outcome in self._batch.step():
            text = self._texts.pop(key)
            text.finish()
            yield *key, outcome if isinstance(outcome, InvalidParameter) else self._told(outcome, text.text())

    def _told(self, said: Sequence[Token], text: str) -> Text:
        """A text with what is told of its tokens. One without any was complete, unless none was asked for."""
        finish = (said[-1].finish if said else None) or ("stop" if self._options.max_tokens else "length")
        return Text(text, finish, len(said), fsum(t.logprob or 0.0 for t in said) if self._options.logprobs else None)
