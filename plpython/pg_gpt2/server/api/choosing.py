"""llm_choose and its family: which of several texts follows a prompt, for one prompt or for the rows of a query."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ... import host
from ...errors import OF_A_TEXT, InvalidParameter, NullNotAllowed, PgGpt2Error, require
from ...generation.choosing import SHOWN, Choices, Chooser, Scores, check_normalization
from ...generation.tally import Tally
from ...limits import MOST_IDS
from .. import db, resources, vocabularies
from ..arrays import not_one_dimension
from ..caller_query import Keyed, Labelled, keyed_texts, labelled, source_texts
from ..entry import entry
from ..prompts import end_of_text
from ..report import Report
from ..storage import weights

BYTES_A_TEXT, BYTES_A_CHARACTER = 100, 4  # of memory, at most, for a text of a query
TOO_LONG = (  # a NOTICE about one prompt, and about several
    "1 prompt did not fit the {window}-token window together with a choice; its beginning was dropped",
    "{count:,} prompts did not fit the {window}-token window together with a choice; their beginnings were dropped",
)

WRONG = (" and counts as wrong", " and count as wrong")

Texts = list[str | None]


@entry
def choose(prompt: str | None, choices: Texts | None, normalize: str, model_name: str | None) -> Iterator[Any]:
    """Rows (rank, choice, logprob, probability, tokens), best first."""
    if prompt is None or not choices:
        return iter(())
    return _ranked(choices, _scores(prompt, choices, normalize, model_name))


@entry
def classify(prompt: str | None, choices: Texts | None, normalize: str, model_name: str | None) -> str | None:
    """The best of the choices."""
    if prompt is None or not choices:
        return None
    return choices[_scores(prompt, choices, normalize, model_name).best()]


@entry
def choose_from(
    prompt: str | None, source: str, normalize: str, model_name: str | None, source_path: str
) -> Iterator[Any]:
    """As `choose`, among the rows of a query."""
    if prompt is None:
        return iter(())
    require(source=source, source_path=source_path)
    choices = _collected(source_texts(source, source_path))
    return _ranked(choices, _scores(prompt, choices, normalize, model_name)) if choices else iter(())


@entry
def choose_rows(
    source: str, choices: Texts | None, normalize: str, model_name: str | None, source_path: str
) -> Iterator[tuple[str | None, str | None, float | None]]:
    """Rows (key, choice, probability), in the order of the query."""
    require(source=source, source_path=source_path)
    rows = keyed_texts(source, source_path)
    if not choices:
        return ((key, None, None) for key, _ in rows)
    return _chosen(choices, _chooser(choices, normalize, model_name), rows)


def _chosen(choices: Texts, chooser: Chooser, rows: Iterator[Keyed]) -> Iterator[Any]:
    progress, report = host.Progress("choosing", "rows"), Report(TOO_LONG)
    for done, (key, scores) in enumerate(chooser.choose_each(rows, report.failed), 1):
        if scores is None:
            yield key, None, None
        else:
            best = scores.best()
            report.cut += scores.cut > 0
            yield key, choices[best], float(scores.probabilities()[best])
        progress.at(done)
    report.tell(chooser.config.n_positions)


class _Row(NamedTuple):
    """A row of the source of an evaluation, by its number from 1."""

    number: int
    answer: str
    texts: Texts


@entry
def evaluate_choices(
    source: str, choices: Texts | None, normalize: str, model_name: str | None, source_path: str
) -> list[tuple[float | None, float | None, int, list[tuple[str, str | None, int]]]]:
    """One row (accuracy, accuracy_norm, n, confusion)."""
    require(source=source, normalize=normalize, source_path=source_path)
    check_normalization(normalize)
    model = weights.load(model_name)
    evaluation = _Evaluation(_encoder(model), choices or None)
    chooser = Chooser(model.decoder_weights, model.config, evaluation.choices, normalize)
    tally = evaluation.made(chooser, labelled(source, source_path, with_choices=not choices))
    return [(tally.accuracy, tally.accuracy_by_character, tally.n, list(tally.confusion()))]


class _Evaluation:
    """Prompts with the answers that are expected, put to a model. `texts`: the choices of rows that have none of their own."""

    def __init__(self, encode: Callable[[Texts], Choices], texts: Texts | None) -> None:
        self._encode, self._texts = encode, texts
        self.choices = encode(texts) if texts else None
        self._own: tuple[Texts, Choices] | None = None  # of the row before, since rows often have the same
        self._report = Report(TOO_LONG, "row", WRONG)
        self._skipped = self._foreign = 0
        self._first_foreign = ""

    def made(self, chooser: Chooser, rows: Iterator[Labelled]) -> Tally:
        """Its counts; NOTICEs say what is not as it was given."""
        tally, progress = Tally(), host.Progress("evaluating", "rows")
        for row, scores in chooser.choose_each_among(self._asked(rows), self._refused):
            tally.add(row.answer, row.texts, scores)
            self._report.cut += scores is not None and scores.cut > 0
            progress.at(tally.n)
        self._tell(chooser.config.n_positions)
        return tally

    def _asked(self, rows: Iterator[Labelled]) -> Iterator[tuple[_Row, str | None, Choices | None]]:
        for number, (prompt, answer, own) in enumerate(rows, 1):
            texts = own or self._texts
            if prompt is None or answer is None or not texts:
                self._skipped += 1
                host.check_interrupts()
                continue
            row = _Row(number, answer, texts)
            try:
                choices = self._choices(texts)
            except (*OF_A_TEXT, NullNotAllowed) as error:
                self._refused(row, error)
                choices = None
            else:
                self._compare(row)
            yield row, prompt, choices

    def _choices(self, texts: Texts) -> Choices | None:
        if texts is self._texts:
            return self.choices
        if self._own is None or self._own[0] != texts:
            if isinstance(texts[0], list):
                raise not_one_dimension("choices")
            self._own = texts, self._encode(texts)
        return self._own[1]

    def _refused(self, row: _Row, error: PgGpt2Error) -> None:
        self._report.failed(str(row.number), error)

    def _compare(self, row: _Row) -> None:
        """Note an answer that cannot be chosen."""
        if row.answer not in row.texts:
            self._foreign += 1
            shown = row.answer if len(row.answer) <= SHOWN else f"{row.answer[:SHOWN]}..."
            self._first_foreign = self._first_foreign or f"row {row.number}: '{shown}'"

    def _tell(self, window: int) -> None:
        if self._skipped:
            count = "1 row" if self._skipped == 1 else f"{self._skipped:,} rows"
            db.notice(f"skipped {count} with a NULL or without choices")
        if self._foreign == 1:
            db.notice(f"the answer of 1 row is none of its choices and counts as wrong ({self._first_foreign})")
        elif self._foreign:
            db.notice(
                f"the answers of {self._foreign:,} rows are none of their choices and count as wrong; first:"
                f" {self._first_foreign}"
            )
        self._report.tell(window)


def _scores(prompt: str, choices: Texts, normalize: str, model_name: str | None) -> Scores:
    """The scores of the choices after one prompt; a NOTICE where that is too long for the window."""
    scores = _chooser(choices, normalize, model_name).choose(prompt)
    if scores.cut:
        db.notice(f"the prompt is too long for the model's window: its first {scores.cut} tokens are left out")
    return scores


def _chooser(choices: Texts, normalize: str, model_name: str | None) -> Chooser:
    require(normalize=normalize)
    check_normalization(normalize)  # first: a model's name in its place would be an error about another model
    model = weights.load(model_name)
    return Chooser(model.decoder_weights, model.config, _encoder(model)(choices), normalize)


def _encoder(model: weights.Model) -> Callable[[Texts], Choices]:
    """What makes choices of texts: tokens of the model's vocabulary."""
    tokenizer = vocabularies.tokenizer_of(model.name)

    def start(what: str) -> int:
        return end_of_text(model.name, model.config, tokenizer, what)

    return lambda texts: Choices(texts, tokenizer, model.config, model.name, start)


def _ranked(choices: Texts, scores: Scores) -> Iterator[tuple[int, str | None, float, float, int]]:
    """Rows (rank, choice, logprob, probability, tokens)."""
    probabilities = scores.probabilities()
    for rank, number in enumerate(scores.ranking().tolist(), 1):
        yield (
            rank,
            choices[number],
            float(scores.logprobs[number]),
            float(probabilities[number]),
            int(scores.tokens[number]),
        )


def _collected(texts: Iterator[str]) -> Texts:
    """The texts of a query, for which memory is asked as they come. 22023 for more than an array takes."""
    found: Texts = []
    wanted, asked = 0, resources.SMALL
    for text in texts:
        if len(found) == MOST_IDS:
            raise InvalidParameter(
                f"source has more than {MOST_IDS} rows to choose from", hint="Choose among fewer: add a WHERE."
            )
        found.append(text)
        wanted += BYTES_A_TEXT + BYTES_A_CHARACTER * len(text)
        if wanted > asked:
            asked = 2 * wanted
            resources.require_memory(asked, f"{len(found)} choices")
        host.check_interrupts()
    return found
