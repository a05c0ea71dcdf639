"""llm_choose and its family: which of several texts follows a prompt, for one prompt or for the rows of a query."""

from collections.abc import Iterator
from typing import Any

from ... import host
from ...errors import InvalidParameter, require
from ...generation.choosing import Choices, Chooser, Scores
from ...limits import MOST_IDS
from .. import db, resources, vocabularies
from ..caller_query import Keyed, keyed_texts, source_texts
from ..entry import entry
from ..prompts import end_of_text
from ..storage import weights
from .rows import Report

BYTES_A_TEXT, BYTES_A_CHARACTER = 100, 4  # of memory, at most, for a text of a query
TOO_LONG = (  # a NOTICE about one prompt, and about several
    "1 prompt did not fit the {window}-token window together with a choice; its beginning was dropped",
    "{count:,} prompts did not fit the {window}-token window together with a choice; their beginnings were dropped",
)

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


def _scores(prompt: str, choices: Texts, normalize: str, model_name: str | None) -> Scores:
    """The scores of the choices after one prompt; a NOTICE where that is too long for the window."""
    scores = _chooser(choices, normalize, model_name).choose(prompt)
    if scores.cut:
        db.notice(f"the prompt is too long for the model's window: its first {scores.cut} tokens are left out")
    return scores


def _chooser(choices: Texts, normalize: str, model_name: str | None) -> Chooser:
    require(normalize=normalize)
    model = weights.load(model_name)
    tokenizer = vocabularies.tokenizer_of(model.name)

    def start(what: str) -> int:
        return end_of_text(model, tokenizer, what)

    found = Choices(choices, tokenizer, model.config, model.name, start)
    return Chooser(model.decoder_weights, model.config, found, normalize)


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
