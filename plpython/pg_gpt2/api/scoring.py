"""llm_logprobs, llm_perplexity, llm_text_embedding."""

import math
from typing import Any

from .. import db
from ..db import entry
from ..errors import InvalidParameter, require
from ..inference import scoring
from ..inference.decode import check_ids
from ..storage import weights
from ..tokenizer import vocabularies
from ..tokenizer.bpe import Tokenizer


def _prepare(text: str, model_name: str | None) -> tuple[weights.Model, Tokenizer, list[int]]:
    model = weights.load(model_name)
    tokenizer = vocabularies.load(model.name)
    ids = tokenizer.encode(text)
    check_ids(ids, model.config, model.name)
    return model, tokenizer, ids


@entry
def logprobs(text: str | None, model_name: str | None) -> list[tuple[Any, ...]]:
    """Rows (position, token_id, token, logprob, rank)."""
    if not text:
        return []
    model, tokenizer, ids = _prepare(text, model_name)
    scores, ranks = scoring.token_scores(model.arranged, model.config, ids)
    names = [db.storable(tokenizer.decode([token])) for token in ids]
    known: list[tuple[Any, Any]] = [(None, None), *zip(scores.tolist(), ranks.tolist())]
    return [(place, ids[place], names[place], *known[place]) for place in range(len(ids))]


@entry
def perplexity(text: str | None, model_name: str | None) -> float | None:
    """exp of the mean negative log-probability."""
    if text is None:
        return None
    model, _, ids = _prepare(text, model_name)
    if len(ids) < 2:
        raise InvalidParameter(
            f"perplexity needs a text of at least 2 tokens, and this one has {len(ids)}",
            hint="The first token has nothing before it that could predict it.",
        )
    scores, _ = scoring.token_scores(model.arranged, model.config, ids)
    return math.exp(min(-float(scores.mean()), 700.0))


@entry
def text_embedding(text: str | None, layer: int | None, pooling: str, model_name: str | None) -> list[float] | None:
    """Hidden state [D]."""
    if text is None:
        return None
    require(pooling=pooling)
    model, _, ids = _prepare(text, model_name)
    if not ids:
        raise InvalidParameter("an empty text has no embedding", hint="Leave empty texts out: WHERE body <> ''.")
    return scoring.embedding(model.arranged, model.config, ids, layer, pooling).tolist()
