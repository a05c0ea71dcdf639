"""llm_perplexity_rows, llm_embedding_rows, llm_generate_rows: texts of a query, with keys, in shared passes.

Rows come back in the query's order, a pass or a few after they were read, so that a million take the memory of some hundreds.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ... import host
from ...errors import InvalidParameter, require
from ...generation import packing, scoring
from ...generation.decode import check_ids
from ...tokenizer.bpe import Tokenizer
from .. import db, resources, vocabularies
from ..caller_query import Keyed, keyed_texts
from ..entry import entry
from ..prompts import end_of_text
from ..storage import weights

MOST_TOGETHER = 256  # rows that are read before the first of them is given


class Row(NamedTuple):
    """A row of the source; `ids` of its text, None where it is NULL or has no result."""

    key: str | None
    ids: list[int] | None


class Failures:
    """Rows without a result for reasons of their own, which a NOTICE tells at the end: they do not end the statement."""

    def __init__(self) -> None:
        self._count, self._first = 0, ""

    def add(self, key: str | None, error: InvalidParameter) -> None:
        """The row with this key has no result because of `error`."""
        self._count += 1
        self._first = self._first or f"{'NULL' if key is None else key}: {error.message}"

    def tell(self) -> None:
        """A NOTICE, where there are such rows."""
        if self._count:
            rows = "1 row has" if self._count == 1 else f"{self._count:,} rows have"
            db.notice(f"{rows} no result; the first is that with the key {self._first}")


def _in_passes(source: Iterator[Keyed], model: weights.Model, tokenizer: Tokenizer) -> Iterator[list[Row]]:
    """Rows in order, those together that fill a pass of the model."""
    failures, tokens = Failures(), 0
    together: list[Row] = []
    for key, text in source:
        ids = None
        if text is not None:
            try:
                ids = tokenizer.encode(text)
                check_ids(ids, model.config, model.name)
            except InvalidParameter as error:
                failures.add(key, error)
                ids = None
        if together and (tokens + len(ids or ()) > packing.ROWS or len(together) == MOST_TOGETHER):
            yield together
            together, tokens = [], 0
        together.append(Row(key, ids))
        tokens += len(ids or ())
    if together:
        yield together
    failures.tell()


@entry
def perplexity_rows(
    source: str, model_name: str | None, from_start: bool, source_path: str
) -> Iterator[tuple[str | None, float | None, int | None]]:
    """Rows (key, perplexity, tokens)."""
    require(source=source, from_start=from_start, source_path=source_path)
    model = weights.load(model_name)
    tokenizer = vocabularies.tokenizer_of(model.name)
    start = [end_of_text(model, tokenizer, "from_start")] if from_start else []
    resources.require_memory(scoring.bytes_of_a_pass(model.config), "scoring several texts at once")
    return _perplexities(model, _in_passes(keyed_texts(source, source_path), model, tokenizer), start)


def _perplexities(model: weights.Model, passes: Iterator[list[Row]], start: list[int]) -> Iterator[Any]:
    progress, done = host.Progress("scoring", "rows"), 0
    for rows in passes:
        texts = [start + row.ids for row in rows if row.ids is not None]
        found = iter(scoring.scores_of_several(model.decoder_weights, model.config, texts, ranked=False))
        for key, ids in rows:
            if ids is None:
                yield key, None, None
            else:
                logprobs, _ = next(found)
                yield key, scoring.perplexity(logprobs), len(logprobs)
        progress.at(done := done + len(rows))


@entry
def embedding_rows(
    source: str, layer: int | None, pooling: str, model_name: str | None, source_path: str
) -> Iterator[tuple[str | None, list[float] | None]]:
    """Rows (key, embedding)."""
    require(source=source, pooling=pooling, source_path=source_path)
    model = weights.load(model_name)
    tokenizer = vocabularies.tokenizer_of(model.name)
    scoring.depth_of(layer, model.config)
    scoring.require_pooling(pooling)
    resources.require_memory(scoring.bytes_of_a_pass(model.config), "embedding several texts at once")
    return _embeddings(model, _in_passes(keyed_texts(source, source_path), model, tokenizer), layer, pooling)


def _embeddings(
    model: weights.Model, passes: Iterator[list[Row]], layer: int | None, pooling: str
) -> Iterator[tuple[str | None, list[float] | None]]:
    progress, done = host.Progress("embedding", "rows"), 0
    for rows in passes:
        texts = [row.ids for row in rows if row.ids]
        found = iter(scoring.embeddings(model.decoder_weights, model.config, texts, layer, pooling) if texts else ())
        for key, ids in rows:
            yield key, next(found).tolist() if ids else None
        progress.at(done := done + len(rows))
