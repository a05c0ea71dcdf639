"""llm_logprobs, llm_perplexity, llm_text_embedding."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from ...errors import require
from ...generation import scoring
from ...generation.decode import check_ids
from ...tokenizer.bpe import Tokenizer
from .. import db, resources, vocabularies
from ..entry import entry
from ..prompts import end_of_text
from ..storage import weights


def _prepare(text: str, model_name: str | None, from_start: bool = False) -> tuple[weights.Model, Tokenizer, list[int]]:
    """Model, vocabulary and ids; with `from_start` the end-of-text token is before them."""
    model = weights.load(model_name)
    tokenizer = vocabularies.tokenizer_of(model.name)
    start = [end_of_text(model.name, model.config, tokenizer, "from_start")] if from_start else []
    ids = tokenizer.encode(text)
    check_ids(ids, model.config, model.name)
    resources.require_memory(scoring.bytes_of_passes(model.config, len(ids)), f"reading {len(ids):,} tokens")
    return model, tokenizer, start + ids


@entry
def logprobs(text: str | None, model_name: str | None, from_start: bool) -> Iterator[tuple[Any, ...]]:
    """Rows (position, token_id, token, logprob, rank); without `from_start` the first token has neither of the two."""
    if not text:
        return iter(())
    require(from_start=from_start)
    model, tokenizer, ids = _prepare(text, model_name, from_start)
    scores, ranks = scoring.token_scores(model.decoder_weights, model.config, ids)
    known: Iterator[tuple[Any, Any]] = zip(scores.tolist(), ranks.tolist())
    if from_start:
        del ids[0]
    else:
        known = chain([(None, None)], known)
    return (
        (place, token, db.storable(tokenizer.decode([token])), *score)
        for place, (token, score) in enumerate(zip(ids, known))
    )


@entry
def perplexity(text: str | None, model_name: str | None, from_start: bool) -> float | None:
    """exp of the mean negative log-probability; None for a text without a token that is predicted."""
    if text is None:
        return None
    require(from_start=from_start)
    model, _, ids = _prepare(text, model_name, from_start)
    if len(ids) < 2:
        return None
    scores, _ = scoring.token_scores(model.decoder_weights, model.config, ids, ranked=False)
    return scoring.perplexity(scores)


@entry
def text_embedding(text: str | None, layer: int | None, pooling: str, model_name: str | None) -> list[float] | None:
    """Hidden state [D]; None for a text without tokens."""
    if text is None:
        return None
    require(pooling=pooling)
    model, _, ids = _prepare(text, model_name)
    return scoring.embedding(model.decoder_weights, model.config, ids, layer, pooling).tolist() if ids else None
