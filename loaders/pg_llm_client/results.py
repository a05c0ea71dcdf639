"""What the client returns where a string or a number is not enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StreamEvent:
    """One generated token, as it arrives."""

    step: int
    """1 for the first."""
    token_id: int
    token: str
    """The token alone; a part of a character shows as U+FFFD."""
    text: str
    """Everything so far, from the prompt on unless `echo` is false; never ends inside a character."""
    is_complete: bool
    """True on the last event."""
    logprob: float
    """Log-probability of the token under the model's plain distribution."""
    finish_reason: str | None
    """'stop' or 'length' on the last event."""


@dataclass(frozen=True)
class BatchText:
    """A text generated for one of several prompts, and how it ended."""

    n: int
    """The prompt, from 1."""
    text: str
    """Prompt and completion, or with `echo=False` the completion."""
    sample: int
    """From 1 to n."""
    finish_reason: str
    """'stop' or 'length'."""
    n_tokens: int
    """New tokens, an end-of-text token included."""
    logprob: float | None
    """Log-probability of the new tokens under the model's plain distribution, where `logprobs` asked for it."""


@dataclass(frozen=True)
class TextRow:
    """A text generated for a row of a query."""

    key: str | None
    text: str | None
    """None where the prompt was, or cannot be continued."""
    sample: int
    """From 1 to n."""


@dataclass(frozen=True)
class PerplexityRow:
    """The perplexity of a text of a query."""

    key: str | None
    perplexity: float | None
    """None of None, and of a text that is too short."""
    tokens: int | None
    """How many were scored."""


@dataclass(frozen=True)
class EmbeddingRow:
    """The embedding of a text of a query."""

    key: str | None
    embedding: list[float] | None
    """None of None, and of an empty text."""


@dataclass(frozen=True)
class Beam:
    """A continuation that beam search found."""

    rank: int
    """1 for the best."""
    score: float
    """Sum of log-probabilities over length ** length_penalty."""
    text: str | None
    """The new text; None for a model without a vocabulary."""
    token_ids: list[int]
    """The new ids, a final end-of-text token included."""


@dataclass(frozen=True)
class Choice:
    """A text among others, as what follows a prompt."""

    rank: int
    """1 for the best."""
    choice: str
    logprob: float
    """Log-probability of its tokens after the prompt."""
    probability: float
    """Its share of what is compared, among the choices."""
    tokens: int


@dataclass(frozen=True)
class ChosenRow:
    """What was chosen for a row of a query."""

    key: str | None
    choice: str | None
    """None where the prompt was NULL, or could not be answered."""
    probability: float | None


@dataclass(frozen=True)
class Confused:
    """How often a choice was chosen where an answer was expected."""

    expected: str
    chosen: str | None
    """None where there was no result."""
    n: int


@dataclass(frozen=True)
class ChoiceEvaluation:
    """How often a model chooses what is expected."""

    accuracy: float | None
    """The share of rows for which `choose_rows` gives the answer; None of no rows."""
    accuracy_norm: float | None
    """The same where log-probabilities are divided by the number of characters: acc_norm of lm-evaluation-harness."""
    n: int
    confusion: list[Confused]


def evaluation_of(rows: Sequence[Sequence[Any]]) -> ChoiceEvaluation:
    """Of the rows of `Statements.evaluation`."""
    accuracy, accuracy_norm, n = rows[0][:3]
    confusion = [Confused(*row[3:6]) for row in rows if row[5] is not None]
    return ChoiceEvaluation(accuracy, accuracy_norm, n, confusion)
