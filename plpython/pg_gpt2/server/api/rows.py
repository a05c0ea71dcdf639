"""llm_generate_rows, llm_perplexity_rows, llm_embedding_rows: texts of a query, with keys, in shared passes.

Rows come back in the query's order, a pass or a few after they were read, so that a million take the memory of some hundreds.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

from ... import host
from ...errors import InvalidParameter, NullNotAllowed, require
from ...generation import packing, scoring
from ...generation.decode import check_ids
from ...tokenizer.bpe import Tokenizer
from .. import db, resources, vocabularies
from ..caller_query import Keyed, keyed_texts
from ..entry import entry
from ..prompts import end_of_text
from ..storage import weights
from .generation import MOST_TEXTS, TextsJob

MOST_TOGETHER = (
    256  # rows that are read before the first of them is given, where passes of all their tokens are not full
)
PASSES = 4  # of which the rows are read before the first of them is given: some for each core
FIRST_TEXTS = 16  # that are generated before the first of them is given; then more at a time, up to MOST_TEXTS
MOST_EMPTY = 8  # times as many rows, where most of them have no text
MOST_CHARACTERS = 1 << 22  # of prompts that are read before the first of their texts is given
LONGER = (  # a NOTICE about one prompt, and about several
    "1 prompt is longer than the {window}-token window; only its end was used",
    "{count:,} prompts are longer than the {window}-token window; only their ends were used",
)


class Row(NamedTuple):
    """A row of the source; `ids` of its text, None where it is NULL or has no result."""

    key: str | None
    text: str | None
    ids: list[int] | None


class Report:
    """What NOTICEs tell at the end: which rows have no result, for reasons of their own, and how many prompts were cut, in the
    words `about_cut` for one and for several. `called`: what rows go by; `so`: what follows for those without a result."""

    def __init__(
        self, about_cut: tuple[str, str] = LONGER, called: str = "key", so: tuple[str, str] = ("", "")
    ) -> None:
        self.cut = 0
        self._about_cut, self._called, self._so = about_cut, called, so
        self._failed, self._first = 0, ""

    def failed(self, key: str | None, error: InvalidParameter | NullNotAllowed) -> None:
        """The row with this key has no result because of `error`."""
        self._failed += 1
        self._first = self._first or f"{self._called} {'NULL' if key is None else key}: {error.message}"

    def tell(self, window: int) -> None:
        """NOTICEs, where there is something to tell."""
        if self._failed == 1:
            db.notice(f"1 row has no result{self._so[0]} ({self._first})")
        elif self._failed:
            db.notice(f"{self._failed:,} rows have no result{self._so[1]}; first: {self._first}")
        if self.cut:
            db.notice(self._about_cut[self.cut > 1].format(count=self.cut, window=window))


def _encoded(source: Iterator[Keyed], encode: Callable[[str], list[int]], report: Report) -> Iterator[Row]:
    for key, text in source:
        ids = None
        if text is not None:
            try:
                ids = encode(text)
            except InvalidParameter as error:
                report.failed(key, error)
        yield Row(key, text, ids)


# --- scoring -----------------------------------------------------------------------------------------------------------


@entry
def perplexity_rows(
    source: str, model_name: str | None, from_start: bool, source_path: str
) -> Iterator[tuple[str | None, float | None, int | None]]:
    """Rows (key, perplexity, tokens)."""
    require(source=source, from_start=from_start, source_path=source_path)
    model = weights.load(model_name)
    tokenizer = vocabularies.tokenizer_of(model.name)
    start = [end_of_text(model, tokenizer, "from_start")] if from_start else []
    resources.require_memory(scoring.bytes_of_passes(model.config), "scoring several texts at once")
    return _perplexities(model, _in_passes(keyed_texts(source, source_path), model, tokenizer), start)


def _perplexities(
    model: weights.Model, passes: Iterator[list[Row]], start: list[int]
) -> Iterator[tuple[str | None, float | None, int | None]]:
    progress, done = host.Progress("scoring", "rows"), 0
    for rows in passes:
        texts = [start + row.ids for row in rows if row.ids is not None]
        found = iter(scoring.scores_of_several(model.decoder_weights, model.config, texts, ranked=False))
        for key, _, ids in rows:
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
    resources.require_memory(scoring.bytes_of_passes(model.config), "embedding several texts at once")
    return _embeddings(model, _in_passes(keyed_texts(source, source_path), model, tokenizer), layer, pooling)


def _embeddings(
    model: weights.Model, passes: Iterator[list[Row]], layer: int | None, pooling: str
) -> Iterator[tuple[str | None, list[float] | None]]:
    progress, done = host.Progress("embedding", "rows"), 0
    for rows in passes:
        texts = [row.ids for row in rows if row.ids]
        found = iter(scoring.embeddings(model.decoder_weights, model.config, texts, layer, pooling) if texts else ())
        for key, _, ids in rows:
            yield key, next(found).tolist() if ids else None
        progress.at(done := done + len(rows))


def _in_passes(source: Iterator[Keyed], model: weights.Model, tokenizer: Tokenizer) -> Iterator[list[Row]]:
    """Rows in order, those together that fill some passes of the model."""

    def encode(text: str) -> list[int]:
        ids = tokenizer.encode(text)
        check_ids(ids, model.config, model.name)
        return ids

    report, tokens = Report(), 0
    together: list[Row] = []
    for row in _encoded(source, encode, report):
        size = len(row.ids or ())
        if together and (tokens + size > PASSES * packing.ROWS or len(together) == MOST_TOGETHER):
            yield together
            together, tokens = [], 0
        together.append(row)
        tokens += size
    if together:
        yield together
    report.tell(model.config.n_positions)


# --- generating --------------------------------------------------------------------------------------------------------


@entry
def generate_rows(source: str, **given: Any) -> Iterator[tuple[str | None, str | None, int]]:
    """Rows (key, text, sample), sample from 1."""
    require(source=source, source_path=given["source_path"])
    return _texts(TextsJob(given), keyed_texts(source, given["source_path"]))


def _texts(job: TextsJob, source: Iterator[Keyed]) -> Iterator[tuple[str | None, str | None, int]]:
    report, window = Report(), job.model.config.n_positions
    progress, done, numbers = host.Progress("generating", "rows"), 0, count()

    def encode(prompt: str) -> list[int]:
        ids = job.encode(prompt)
        report.cut += len(ids) > window
        return ids[-window:]

    for rows in _in_waves(_encoded(source, encode, report), job.n):
        for key, text, sample in _of_wave(job, rows, [next(numbers) for _ in rows], report):
            yield key, text, sample
            if sample == job.n:
                progress.at(done := done + 1)
    report.tell(window)


def _in_waves(rows: Iterator[Row], n: int) -> Iterator[list[Row]]:
    """Rows in order, those together whose texts are generated before the next ones are read: more and more, so that the first
    come soon and the processor is busy later."""
    together: list[Row] = []
    most, texts, characters = FIRST_TEXTS, 0, 0
    for row in rows:
        together.append(row)
        texts += n if row.ids is not None else 0
        characters += len(row.text or "")
        if texts >= most or n * len(together) >= MOST_EMPTY * most or characters >= MOST_CHARACTERS:
            yield together
            together, texts, characters = [], 0, 0
            most = min(2 * most, MOST_TEXTS)
    if together:
        yield together


def _of_wave(
    job: TextsJob, rows: list[Row], numbers: list[int], report: Report
) -> Iterator[tuple[str | None, str | None, int]]:
    """Rows of the result in order, each as soon as it and those before it are there."""
    places = [place for place, row in enumerate(rows) if row.ids is not None]
    texts: dict[tuple[int, int], str | None] = {
        (place, sample): None for place, row in enumerate(rows) if row.ids is None for sample in range(job.n)
    }
    waiting = ((place, sample) for place in range(len(rows)) for sample in range(job.n))
    following = next(waiting, None)
    ended = job.texts([row.ids for row in rows if row.ids is not None], [numbers[place] for place in places])
    while following is not None:
        while following in texts:
            yield rows[following[0]].key, texts.pop(following), following[1] + 1
            following = next(waiting, None)
        if following is None:
            return
        place, sample, found = next(ended)
        row = rows[places[place]]
        if isinstance(found, InvalidParameter):
            report.failed(row.key, found)
            texts[places[place], sample] = None
        else:
            texts[places[place], sample] = (row.text or "" if job.echo else "") + found.text
