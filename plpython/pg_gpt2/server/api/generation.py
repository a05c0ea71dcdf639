"""llm_generate and its family: options from SQL, the model and vocabulary at this version, text back."""

from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import Any, NamedTuple

import numpy as np

from ... import host
from ...bytea_ops import require_room
from ...core import gpt2
from ...core.config import GPT2Config
from ...errors import InvalidParameter, OutOfMemory, require, require_positive
from ...generation import batch, beam, prefixes
from ...generation.constraints.compiled import compiled
from ...generation.constraints.constraint import Constraint
from ...generation.decode import bytes_of_several, check_ids
from ...generation.generate import Options, TextStream, Token, tokens
from ...generation.options import (
    BatchTexts,
    BeamSearch,
    Call,
    Drafting,
    Generation,
    ManyTexts,
    OnePrompt,
    TextGeneration,
    all_options,
    gather,
)
from ...generation.processors import softmax
from ...generation.rooms import MOST_TOGETHER
from ...generation.sampling import Sampling, is_mostly_decisive
from ...generation.stops import Stops
from ...options import manual
from ...tensor import to_bytes
from ...tokenizer.bpe import Tokenizer
from .. import db, resources, vocabularies
from ..arrays import received
from ..drafts import draft_of
from ..entry import entry
from ..prompts import check_prompt, draw_seed, encode_prompt, eos_of, prompt_ids
from ..storage import store, weights
from ..tape import recording

MAX_BYTEA = (1 << 30) - (1 << 16)
BYTES_A_ROW = 300  # of memory, for a row of a result beside its text


@entry
def generate(prompt: str | None, **given: Any) -> str | None:
    """Prompt (unless echo is false) and completion."""
    job = _text_job(prompt, given)
    if job is None:
        return None
    for _ in job.tokens:
        host.check_interrupts()
    return job.finish()


@entry
def stream(prompt: str | None, **given: Any) -> Iterator[tuple[Any, ...]]:
    """Rows (step, token_id, token, text, is_complete, logprob, finish_reason) as they are computed."""
    job = _text_job(prompt, given, logprobs=True)
    return iter(()) if job is None else job.rows()


def _text_job(prompt: str | None, given: Mapping[str, Any], logprobs: bool = False) -> "TextJob | None":
    """What continues a prompt, or the token ids that options have in its place; None where there is neither."""
    if prompt is None and given["options"] is None:
        return None
    asked, sampling, drafting, one = gather(given, TextGeneration, Sampling, Drafting, OnePrompt)
    if prompt is not None and one.prompt_ids is not None:
        raise InvalidParameter("give either prompt or prompt_ids", hint="With prompt_ids in options, prompt is null.")
    start = prompt if one.prompt_ids is None else [*one.prompt_ids]
    return None if start is None else TextJob(start, asked, sampling, drafting, logprobs)


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
        options = replace(_options(asked, sampling, model, self.tokenizer), logprobs=logprobs)
        if isinstance(prompt, str):
            ids, shown = encode_prompt(prompt, model, self.tokenizer), prompt
        else:
            ids = check_prompt(prompt, model)
            shown = db.storable(self.tokenizer.decode(prompt)) if asked.echo else ""
        _require_cache(model, [len(ids)], options.max_tokens)
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


def _options(asked: Generation, sampling: Sampling, model: weights.Model, tokenizer: Tokenizer | None) -> Options:
    """What generation is asked for, with end-of-text, texts and seed resolved."""
    seed = draw_seed() if asked.seed is None else asked.seed
    eos, also_ends = _ends(asked, model.config, tokenizer)
    constraint = _constraint(sampling, model, eos, also_ends)
    if constraint and asked.stop:
        raise InvalidParameter(
            "stop strings could cut a constrained text", hint="Leave them out: it ends where the constraint says."
        )
    look_up = resources.prompt_lookup()
    within = _in_ids(sampling, model, tokenizer)
    return Options(asked.max_tokens, within, eos, seed, look_up=look_up, constraint=constraint, also_ends=also_ends)


def _constraint(
    sampling: Sampling, model: weights.Model, eos: int | None, also_ends: tuple[int, ...]
) -> Constraint | None:
    """What the text must be, if anything; 55000 for a model without vocabulary."""
    if sampling.constraint is None:
        return None
    return compiled(*sampling.constraint, vocabularies.tokenizer_of(model.name), model.config.vocab, eos, also_ends)


def _ends(asked: Call, config: GPT2Config, tokenizer: Tokenizer | None) -> tuple[int | None, tuple[int, ...]]:
    """The token that ends a text, if any, and others that do, too; without those that the vocabulary lacks, which never come.

    22023 for one that the model does not have.
    """
    if asked.eos_token is None:
        eos = eos_of(config, tokenizer)
        ends = (eos,) if config.stops is None and eos is not None else config.stops or ()
        some = tuple(i for i in dict.fromkeys(ends) if tokenizer is None or i in tokenizer.tokens)
        return (some[0] if some else None), some[1:]
    if asked.eos_token >= config.vocab:
        raise InvalidParameter(
            f"eos_token {asked.eos_token} is not in 0..{config.vocab - 1}",
            hint="Give a token id, null for the model's, or -1 for none.",
        )
    return (None if asked.eos_token == -1 else asked.eos_token), ()


def _in_ids(sampling: Sampling, model: weights.Model, tokenizer: Tokenizer | None) -> Sampling:
    """`sampling` with its texts as ids, and without ids that the vocabulary lacks, whose rows of weights only pad. 55000 when
    there are texts and the model has no vocabulary."""
    found = sampling.in_ids(model.config.vocab, lambda text: vocabularies.tokenizer_of(model.name).encode(text))
    lacking = tokenizer.lacking(model.config.vocab) if tokenizer else ()
    return replace(found, suppress_tokens=(*found.suppress_tokens, *lacking)) if lacking else found


def _require_cache(model: weights.Model, lengths: list[int], max_tokens: int) -> None:
    """53200 when keys and values of so many positions, and logits after each text, do not fit."""
    rooms = [length + max_tokens for length in lengths]
    wanted = bytes_of_several(model.decoder_weights, model.config, rooms) + 4 * model.config.vocab * len(rooms)
    positions = sum(min(room, model.config.n_positions) for room in rooms)
    resources.require_memory(wanted, f"logits of {len(rooms)} texts, and keys and values of {positions} positions")


class Text(NamedTuple):
    """A new text of several, and how it ended."""

    text: str
    finish: str
    n_tokens: int
    logprob: float | None


class TextsJob:
    """Several prompts on their way to `n` texts each: what a call asks for, with model, vocabulary and seed resolved."""

    def __init__(self, given: Mapping[str, Any], kind: type[ManyTexts] = ManyTexts) -> None:
        asked, sampling = gather(given, kind, Sampling)
        self.n, self.echo = asked.n, asked.echo
        self._stops = Stops(asked.stop)
        self.model = weights.load(asked.model_name)
        self.tokenizer = vocabularies.tokenizer_of(self.model.name)
        options = _options(asked, sampling, self.model, self.tokenizer)
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


@entry
def generate_batch(prompts: list[str | None] | None, **given: Any) -> list[tuple[Any, ...]]:
    """Rows (n, text, sample, finish_reason, n_tokens, logprob), n and sample from 1; of a null prompt all else is null."""
    if not prompts:
        return []
    job = TextsJob(given, BatchTexts)
    resources.require_memory(BYTES_A_ROW * len(prompts) * job.n, f"{job.n} texts for each of {len(prompts)} prompts")
    ids = deque(
        (n, array("i", encode_prompt(p, job.model, job.tokenizer))) for n, p in enumerate(prompts) if p is not None
    )
    rows: list[tuple[Any, ...]] = [
        (n, None, sample, None, None, None) for n in range(1, len(prompts) + 1) for sample in range(1, job.n + 1)
    ]
    while ids or len(job):
        while ids and not job.is_full:
            n, prompt = ids.popleft()
            job.add(n, prompt)
            if not job.echo:
                prompts[n] = None  # it may be large
        for n, sample, found in job.step():
            if isinstance(found, InvalidParameter):
                raise found
            text = ((prompts[n] or "") if job.echo else "") + found.text
            rows[n * job.n + sample] = (n + 1, text, sample + 1, found.finish, found.n_tokens, found.logprob)
    return rows


@entry
@received(ids="integer")
def generate_tokens(ids: list[int] | None, **given: Any) -> list[int] | None:
    """New ids after `ids`."""
    if ids is None:
        return None
    asked, sampling, drafting = gather(given, Generation, Sampling, Drafting)
    stops = Stops(asked.stop)
    model = weights.load(asked.model_name)
    ids = check_prompt(ids, model)
    needed = stops or sampling.constraint
    tokenizer = vocabularies.tokenizer_of(model.name) if needed else vocabularies.find(model.name)
    options = _options(asked, sampling, model, tokenizer)
    _require_cache(model, [len(ids)], options.max_tokens)
    options = replace(options, draft=draft_of(model, drafting, len(ids) + options.max_tokens))
    text = TextStream(tokenizer, stops, options.eos, options.also_ends) if stops and tokenizer else None
    found: list[int] = []
    new: Iterator[Token] = tokens(
        model.decoder_weights, model.config, ids, options, text.add if text else lambda token: False
    )
    for token in new:
        found.append(token.id)
        host.check_interrupts()
    return found


@entry
@received(prompt_ids="integer")
def beam_search(
    prompt: str | None, prompt_ids: list[int] | None, **given: Any
) -> list[tuple[int, float, str | None, list[int]]]:
    """Rows (rank, score, text, token_ids); text is null for a model without vocabulary."""
    if prompt is None and prompt_ids is None:
        return []
    if prompt is not None and prompt_ids is not None:
        raise InvalidParameter("give either prompt or prompt_ids", hint="prompt_ids works without a vocabulary.")
    asked, sampling = gather(given, BeamSearch, Sampling)
    require_positive(max_tokens=asked.max_tokens)
    model = weights.load(asked.model_name)
    tokenizer = vocabularies.find(model.name)
    if prompt is None:
        ids = check_prompt(prompt_ids, model)
    else:
        ids = encode_prompt(prompt, model, vocabularies.tokenizer_of(model.name))
    eos, also_ends = _ends(asked, model.config, tokenizer)
    beams = beam.Beams(
        width=asked.beam_width,
        max_tokens=asked.max_tokens,
        length_penalty=asked.length_penalty,
        early_stopping=asked.early_stopping,
        eos=eos,
        sampling=_in_ids(sampling, model, tokenizer),
        constraint=_constraint(sampling, model, eos, also_ends),
        also_ends=also_ends,
    )
    _require_cache(model, [len(ids)] * 2 * beams.width, beams.max_tokens)
    found = beam.beam_search(model.decoder_weights, model.config, ids, beams)
    return [
        (rank, float(each.score), _text_of(each.ids, {eos, *also_ends}, tokenizer), list(each.ids))
        for rank, each in enumerate(found, 1)
    ]


def _text_of(ids: Sequence[int], ends: set[int | None], tokenizer: Tokenizer | None) -> str | None:
    """Text of generated ids, without a final token of those that end it."""
    if tokenizer is None:
        return None
    return db.storable(tokenizer.decode(ids[:-1] if ids and ids[-1] in ends else ids))


@entry
def options() -> list[tuple[str, str, str | None, str, str]]:
    """Rows (name, type, default_value, domain, meaning) of the manual of all options."""
    return list(manual(all_options()))


@entry
def next_token(prompt: str | None, n: int, temperature: float, model_name: str | None) -> list[tuple[Any, ...]]:
    """Rows (rank, token_id, token, logit, probability) of the `n` most probable tokens."""
    if prompt is None:
        return []
    require(temperature=temperature)
    require_positive(n=n)
    if not 0 < temperature < float("inf"):
        raise InvalidParameter(
            f"temperature must be above 0 and finite, not {temperature}", hint="1 gives the model's own probabilities."
        )
    model = weights.load(model_name)
    tokenizer = vocabularies.tokenizer_of(model.name)
    ids = encode_prompt(prompt, model, tokenizer)[-model.config.n_positions :]
    _require_cache(model, [len(ids)], 0)
    decoder, logits = prefixes.begin(model.decoder_weights, model.config, ids, len(ids))
    prefixes.give(decoder)
    lacking = tokenizer.lacking(model.config.vocab)
    if lacking:
        logits = logits.copy()
        logits[list(lacking)] = -np.inf
    n = min(n, len(logits) - len(lacking))
    with np.errstate(over="ignore"):  # a temperature next to 0 leaves the best token only
        probabilities = softmax((logits.astype(np.float64) - logits.max()) / temperature)
    rows: list[tuple[Any, ...]] = []
    for rank, token in enumerate(np.argsort(-logits, kind="stable")[:n].tolist(), 1):
        piece = db.storable(tokenizer.decode([token]))
        rows.append((rank, token, piece, float(logits[token]), float(probabilities[token])))
        host.check_interrupts()
    return rows


@entry
@received(token_ids="integer")
def logits(
    token_ids: list[int] | None,
    model_name: str | None,
    n_layer: int | None,
    n_head: int | None,
    d_model: int | None,
    vocab_size: int | None,
) -> bytes | None:
    """Logits [T, vocab] of all positions, as bytes."""
    if token_ids is None:
        return None
    if not token_ids:
        raise InvalidParameter("token_ids must not be empty", hint="llm_encode(text, model) gives ids.")
    model = weights.load(model_name)
    store.check_overrides(model.config, n_layer, n_head, d_model, vocab_size)
    if len(token_ids) > model.config.n_positions:
        raise InvalidParameter(
            f'{len(token_ids)} tokens are more than the {model.config.n_positions} positions of model "{model.name}"',
            hint="Give fewer tokens; llm_generate slides its window instead.",
        )
    check_ids(token_ids, model.config, model.name)
    if 4 * len(token_ids) * model.config.vocab > MAX_BYTEA:
        raise OutOfMemory(
            f"logits of {len(token_ids)} x {model.config.vocab} do not fit a value of 1 GB", hint="Give fewer tokens."
        )
    require_room(3 * 4 * len(token_ids) * model.config.vocab, f"logits of {len(token_ids)} tokens")
    ids = np.asarray([token_ids], np.int64)
    return to_bytes(recording.on_tape(model, lambda run, params: gpt2.logits(run, params, ids, model.config)))
