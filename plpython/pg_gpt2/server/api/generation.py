"""llm_generate and its family: options from SQL, the model and vocabulary at this version, text back."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from ... import host
from ...bytea_ops import require_room
from ...core import gpt2
from ...core.config import GPT2Config
from ...errors import InvalidParameter, OutOfMemory, require, require_positive
from ...generation import batch, beam, prefixes
from ...generation.decode import bytes_of_several, check_ids
from ...generation.generate import Options, TextStream, Token, tokens
from ...generation.options import BeamSearch, Call, Generation, TextGeneration, all_options, gather
from ...generation.processors import softmax
from ...generation.sampling import Sampling
from ...generation.stops import Stops
from ...options import manual
from ...tensor import to_bytes
from ...tokenizer.bpe import Tokenizer
from .. import db, resources, vocabularies
from ..arrays import received
from ..entry import entry
from ..prompts import check_prompt, draw_seed, encode_prompt
from ..storage import store, weights
from ..tape import recording

MAX_BYTEA = (1 << 30) - (1 << 16)


@entry
def generate(prompt: str | None, **given: Any) -> str | None:
    """Prompt (unless echo is false) and completion."""
    if prompt is None:
        return None
    job = _TextJob(prompt, *gather(given, TextGeneration, Sampling))
    for _ in job.tokens:
        host.check_interrupts()
    return job.finish()


@entry
def stream(prompt: str | None, **given: Any) -> Iterator[tuple[Any, ...]]:
    """Rows (step, token_id, token, text, is_complete, logprob, finish_reason) as they are computed."""
    if prompt is None:
        return iter(())
    asked, sampling = gather(given, TextGeneration, Sampling)
    return _TextJob(prompt, asked, sampling, logprobs=True).rows()


class _TextJob:
    """One prompt on its way to text. The prompt is already processed when this is made, so that errors come with the call."""

    def __init__(self, prompt: str, asked: TextGeneration, sampling: Sampling, logprobs: bool = False) -> None:
        stops = Stops(asked.stop)
        model = weights.load(asked.model_name)
        self.tokenizer = vocabularies.tokenizer_of(model.name)
        options = replace(_options(asked, sampling, model, self.tokenizer), logprobs=logprobs)
        ids = encode_prompt(prompt, model, self.tokenizer)
        _require_cache(model, [len(ids)], options.max_tokens)
        self.prefix = prompt if asked.echo else ""
        self.text = TextStream(self.tokenizer, stops, options.eos)
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
    eos = _eos(asked, model.config, tokenizer)
    return Options(asked.max_tokens, _in_ids(sampling, model), eos, seed, look_up=resources.prompt_lookup())


def _eos(asked: Call, config: GPT2Config, tokenizer: Tokenizer | None) -> int | None:
    """The end-of-text token, if any. 22023 for one that the model does not have."""
    if asked.eos_token is None:
        return config.eos_token_id if config.eos_token_id is not None or tokenizer is None else tokenizer.eos_token_id
    if asked.eos_token >= config.vocab:
        raise InvalidParameter(
            f"eos_token {asked.eos_token} is not in 0..{config.vocab - 1}",
            hint="Give a token id, null for the model's, or -1 for none.",
        )
    return None if asked.eos_token == -1 else asked.eos_token


def _in_ids(sampling: Sampling, model: weights.Model) -> Sampling:
    """`sampling` with its texts as ids; 55000 when there are such and the model has no vocabulary."""
    return sampling.in_ids(model.config.vocab, lambda text: vocabularies.tokenizer_of(model.name).encode(text))


def _require_cache(model: weights.Model, lengths: list[int], max_tokens: int) -> None:
    """53200 when keys and values of so many positions, and logits after each text, do not fit."""
    rooms = [length + max_tokens for length in lengths]
    wanted = bytes_of_several(model.decoder_weights, model.config, rooms) + 4 * model.config.vocab * len(rooms)
    positions = sum(min(room, model.config.n_positions) for room in rooms)
    resources.require_memory(wanted, f"logits of {len(rooms)} texts, and keys and values of {positions} positions")


@entry
def generate_batch(prompts: list[str | None] | None, **given: Any) -> list[tuple[int, str | None]]:
    """Rows (n, text), n from 1; the text of a null prompt is null."""
    if not prompts:
        return []
    asked, sampling = gather(given, TextGeneration, Sampling)
    stops = Stops(asked.stop)
    model = weights.load(asked.model_name)
    tokenizer = vocabularies.tokenizer_of(model.name)
    options = _options(asked, sampling, model, tokenizer)
    ids = {n: array("i", encode_prompt(p, model, tokenizer)) for n, p in enumerate(prompts) if p is not None}
    while ids:
        numbers = list(islice(ids, batch.MOST_TOGETHER))
        prompt_ids = [ids.pop(n) for n in numbers]
        _require_cache(model, list(map(len, prompt_ids)), options.max_tokens)
        each = [replace(options, seed=options.seed + n) for n in numbers]
        texts = [TextStream(tokenizer, stops, options.eos) for _ in numbers]
        batch.generate_batch(model.decoder_weights, model.config, prompt_ids, each, [text.add for text in texts])
        for n, text in zip(numbers, texts):
            text.finish()
            prompts[n] = ((prompts[n] or "") if asked.echo else "") + text.text()  # in its place: a prompt may be large
    return list(enumerate(prompts, 1))


@entry
@received(ids="integer")
def generate_tokens(ids: list[int] | None, **given: Any) -> list[int] | None:
    """New ids after `ids`."""
    if ids is None:
        return None
    asked, sampling = gather(given, Generation, Sampling)
    stops = Stops(asked.stop)
    model = weights.load(asked.model_name)
    ids = check_prompt(ids, model)
    tokenizer = vocabularies.tokenizer_of(model.name) if stops else None
    options = _options(asked, sampling, model, tokenizer)
    _require_cache(model, [len(ids)], options.max_tokens)
    text = TextStream(tokenizer, stops, options.eos) if tokenizer else None
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
    beams = beam.Beams(
        width=asked.beam_width,
        max_tokens=asked.max_tokens,
        length_penalty=asked.length_penalty,
        early_stopping=asked.early_stopping,
        eos=_eos(asked, model.config, tokenizer),
        sampling=_in_ids(sampling, model),
    )
    _require_cache(model, [len(ids)] * 2 * beams.width, beams.max_tokens)
    found = beam.beam_search(model.decoder_weights, model.config, ids, beams)
    return [
        (rank, float(each.score), _text_of(each.ids, beams.eos, tokenizer), list(each.ids))
        for rank, each in enumerate(found, 1)
    ]


def _text_of(ids: Sequence[int], eos: int | None, tokenizer: Tokenizer | None) -> str | None:
    """Text of generated ids, without a final end-of-text token."""
    if tokenizer is None:
        return None
    return db.storable(tokenizer.decode(ids[:-1] if ids and ids[-1] == eos else ids))


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
