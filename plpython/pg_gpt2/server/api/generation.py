"""llm_generate and its family: options from SQL, the model and vocabulary at this version, text back."""

from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ... import host
from ...errors import InvalidParameter, require, require_positive
from ...generation import prefixes
from ...generation.generate import TextStream, Token, tokens
from ...generation.options import (
    BatchTexts,
    BeamSearch,
    Drafting,
    Generation,
    OnePrompt,
    TextGeneration,
    all_options,
    gather,
)
from ...generation.sampling import Sampling
from ...generation.softmax import softmax
from ...generation.stops import Stops
from ...options import manual
from ...tokenizer.bpe import Tokenizer
from .. import db, resources, vocabularies
from ..arrays import received
from ..drafts import draft_of
from ..entry import entry
from ..prompts import check_prompt, encode_prompt
from ..resolving import constraint_of, ends_of, in_ids, lacking_of, require_cache, resolved
from ..storage import weights
from ..texts import TextJob, TextsJob

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


def _text_job(prompt: str | None, given: Mapping[str, Any], logprobs: bool = False) -> TextJob | None:
    """What continues a prompt, or the token ids that options have in its place; None where there is neither."""
    if prompt is None and given["options"] is None:
        return None
    asked, sampling, drafting, one = gather(given, TextGeneration, Sampling, Drafting, OnePrompt)
    if prompt is not None and one.prompt_ids is not None:
        raise InvalidParameter("give either prompt or prompt_ids", hint="With prompt_ids in options, prompt is null.")
    start = prompt if one.prompt_ids is None else [*one.prompt_ids]
    return None if start is None else TextJob(start, asked, sampling, drafting, logprobs)


@entry
def generate_batch(prompts: list[str | None] | None, **given: Any) -> list[tuple[Any, ...]]:
    """Rows (n, text, sample, finish_reason, n_tokens, logprob), n and sample from 1; of a null prompt all else is null. The token
    ids that options have in the place of prompts are one prompt."""
    if not prompts and given["options"] is None:
        return []
    asked, sampling, one = gather(given, BatchTexts, Sampling, OnePrompt)
    if one.prompt_ids is None:
        return _texts(TextsJob(asked, sampling), prompts) if prompts else []
    if prompts:
        raise InvalidParameter("give either prompts or prompt_ids", hint="With prompt_ids in options, prompts is null.")
    job = TextsJob(asked, sampling)
    ids = check_prompt([*one.prompt_ids], job.model)
    return _texts(job, [db.storable(job.tokenizer.decode([*one.prompt_ids])) if job.echo else ""], ids)


def _texts(job: TextsJob, prompts: list[str | None], only: list[int] | None = None) -> list[tuple[Any, ...]]:
    """What `generate_batch` gives for prompts; `only` are the ids of the only one, where they are known."""
    resources.require_memory(BYTES_A_ROW * len(prompts) * job.n, f"{job.n} texts for each of {len(prompts)} prompts")
    ids = deque(
        (n, array("i", encode_prompt(p, job.model, job.tokenizer) if only is None else only))
        for n, p in enumerate(prompts)
        if p is not None
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
    tokenizer = None
    if stops or sampling.constraint:
        tokenizer = vocabularies.tokenizer_of(model.name)
    elif asked.eos_token is None and model.config.eos_token_id is None:
        tokenizer = vocabularies.find(model.name)
    options = resolved(asked, sampling, model, tokenizer)
    require_cache(model, [len(ids)], options.max_tokens)
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
    from ...generation import beam  # which no other call needs

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
    lacking = lacking_of(model, tokenizer)
    eos, also_ends = ends_of(asked, model.config, tokenizer, lacking)
    beams = beam.Beams(
        width=asked.beam_width,
        max_tokens=asked.max_tokens,
        length_penalty=asked.length_penalty,
        early_stopping=asked.early_stopping,
        eos=eos,
        sampling=in_ids(sampling, model, lacking),
        constraint=constraint_of(sampling, model, eos, also_ends),
        also_ends=also_ends,
    )
    require_cache(model, [len(ids)] * 2 * beams.width, beams.max_tokens)
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
    require_cache(model, [len(ids)], 0)
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
