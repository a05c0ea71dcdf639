"""llm_generate_rows, llm_perplexity_rows, llm_embedding_rows: texts of a query, with keys, in shared passes.

Rows come back in the query's order, a pass or a few after they were read, so that a million take the memory of some hundreds.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ... import host
from ...errors import OF_A_TEXT, InvalidParameter, require
from ...generation import packing, scoring
from ...generation.decode import check_ids
from ...generation.options import ManyTexts, gather
from ...generation.sampling import Sampling
from ...tokenizer.bpe import Tokenizer
from .. import resources, vocabularies
from ..caller_query import Keyed, keyed_texts
from ..entry import entry
from ..prompts import end_of_text
from ..report import Report
from ..storage import weights
from ..texts import TextsJob

MOST_TOGETHER = 256  # rows that are read before the first of them is given, where all their tokens do not fill a pass
PASSES = 4  # of which the rows are read before the first of them is given: some for each core
FIRST_TEXTS = 16  # that go on together until as many have ended; then more
MOST_TEXTS = 512  # of rows that were read and not given: texts that have ended wait for one before them
MOST_CHARACTERS = 1 << 22  # of prompts that are read before the first of their texts is given


class Row(NamedTuple):
    """A row of the source; `ids` of its text, None where it is NULL or has no result."""

    key: str | None
    text: str | None
    ids: list[int] | None


def _encoded(source: Iterator[Keyed], encode: Callable[[str], list[int]], report: Report) -> Iterator[Row]:
    for key, text in source:
        ids = None
        if text is not None:
            try:
                ids = encode(text)
            except OF_A_TEXT as error:
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
    start = [end_of_text(model.name, model.config, tokenizer, "from_start")] if from_start else []
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
    return _texts(TextsJob(*gather(given, ManyTexts, Sampling)), keyed_texts(source, given["source_path"]))


def _texts(job: TextsJob, source: Iterator[Keyed]) -> Iterator[tuple[str | None, str | None, int]]:
    report, window = Report(), job.model.config.n_positions
    progress, done = host.Progress("generating", "rows"), 0

    def encode(prompt: str) -> list[int]:
        ids = job.encode(prompt)
        report.cut += len(ids) > window
        return ids[-window:]

    ahead, rows = _Ahead(job, report), _encoded(source, encode, report)
    at_end = False
    while not at_end or len(job):
        if at_end or ahead.is_enough:
            ahead.step()
        elif (row := next(rows, None)) is not None:
            ahead.read(row)
        else:
            at_end = True
        for result in ahead.complete():
            yield result
            if result[2] == job.n:
                progress.at(done := done + 1)
    report.tell(window)


class _Ahead:
    """Rows that were read and whose results were not given yet, in order, and their texts as these end."""

    def __init__(self, job: TextsJob, report: Report) -> None:
        self._job, self._report = job, report
        self._rows: deque[Row] = deque()
        self._first = 0  # number of the first of them
        self._texts: dict[tuple[int, int], str | None] = {}  # by number and sample
        self._following = 0  # sample of the first row that is given next
        self._characters = 0
        self._ended, self._most = 0, FIRST_TEXTS

    @property
    def is_enough(self) -> bool:
        """Whether no further row is to be read now. The more texts have ended, the more may go on at a time: the first come soon,
        and the processor is busy later."""
        return (
            len(self._job) >= self._most
            or self._job.is_full
            or len(self._rows) * self._job.n >= MOST_TEXTS
            or self._characters >= MOST_CHARACTERS
        )

    def read(self, row: Row) -> None:
        """Take the next row, and have its texts generated."""
        number = self._first + len(self._rows)
        self._rows.append(row)
        self._characters += len(row.text or "")
        if row.ids is not None:
            self._job.add(number, row.ids)
        else:
            self._texts |= {(number, sample): None for sample in range(self._job.n)}

    def step(self) -> None:
        """Have each text go on."""
        for number, sample, found in self._job.step():
            row = self._rows[number - self._first]
            self._ended += 1
            if isinstance(found, InvalidParameter):
                self._report.failed(row.key, found)
                self._texts[number, sample] = None
            else:
                self._texts[number, sample] = (row.text or "" if self._job.echo else "") + found.text
        if self._ended >= self._most:
            self._most *= 2

    def complete(self) -> Iterator[tuple[str | None, str | None, int]]:
        """Rows of the result, those that are there and no other comes before."""
        while (self._first, self._following) in self._texts:
            text, sample = self._texts.pop((self._first, self._following)), self._following + 1
            key = self._rows[0].key
            self._following = sample % self._job.n
            if not self._following:
                self._characters -= len(self._rows.popleft().text or "")
                self._first += 1
            yield key, text, sample
