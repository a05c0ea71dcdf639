"""What the client returns where a string or a number is not enough."""

from dataclasses import dataclass


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
