"""Which of several texts a model expects to follow a prompt, by their log-probabilities.

Prompt and choice become tokens together, and are split as lm-evaluation-harness does (`TemplateLM._encode_pair`): blanks at the
prompt's end belong to the choice, and past the window the prompt loses its beginning. The choices' tokens form a tree, each token
of which is read once. No choice is left out for being improbable so far.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import host
from ..core.config import GPT2Config
from ..errors import OF_A_TEXT, InvalidParameter, NullNotAllowed, PgGpt2Error
from ..fast.layout import DecoderWeights
from ..tokenizer.bpe import Tokenizer
from .decode import check_ids
from .slots import Question, Slots
from .softmax import softmax
from .trees import CHECKED, Trie

NORMALIZATIONS = ("none", "tokens", "bytes", "prior")
MOST_PRIORS = 16  # kept: one for each kind of blanks at the end of a prompt
SHOWN = 40  # characters of a choice in a message
BYTES_A_TEXT, BYTES_A_BYTE, BYTES_A_TOKEN = 400, 16, 100  # of memory, for choices as texts and for their tokens

Key = TypeVar("Key")
Refused = Callable[[Any, PgGpt2Error], None]


class Scores(NamedTuple):
    """What a model says about choices, each [n] in their order."""

    logprobs: np.ndarray
    tokens: np.ndarray  # how many each has
    normalized: np.ndarray
    per_character: np.ndarray  # log-probability of a character: what acc_norm of lm-evaluation-harness compares
    cut: int  # tokens of the prompt's beginning that the window had no room for, before the longest of them

    def best(self) -> int:
        """The number of the best choice, of equal ones the first."""
        return int(self.normalized.argmax())

    def ranking(self) -> np.ndarray:
        """Numbers of the choices, best first; of equal ones the first comes first."""
        return np.argsort(-self.normalized, kind="stable")

    def probabilities(self) -> np.ndarray:
        """The softmax of the normalized scores."""
        return softmax(self.normalized)


class _Encoded(NamedTuple):
    """The tokens of the choices after a prompt of some ending."""

    tokens: list[list[int]]
    counts: np.ndarray
    trie: Trie


class Asked(NamedTuple):
    """One question, or where the window cuts a prompt differently for choices of different lengths, several."""

    questions: list[Question]
    numbers: Sequence[np.ndarray | slice]  # of the choices that each is about
    counts: np.ndarray  # tokens of each choice
    cut: int


class Choices:
    """Texts to choose from, as tokens of one vocabulary."""

    def __init__(
        self,
        texts: Sequence[str | None],
        tokenizer: Tokenizer,
        config: GPT2Config,
        model: str,
        start: Callable[[str], int],
    ) -> None:
        """`start` gives the token that texts begin after, or raises an error that says what needs one."""
        for place, text in enumerate(texts, 1):
            if text is None:
                raise NullNotAllowed(f"choice {place} is null", hint="Leave nulls out: array_remove(choices, null).")
            if not text:
                raise InvalidParameter(
                    f"choice {place} is empty",
                    hint="Leave it out: array_remove(choices, ''), or in a query WHERE body <> ''.",
                )
        self.texts: list[str] = list(texts)  # type: ignore[arg-type]  # no null is left
        sizes = [len(text.encode("utf-8", "surrogatepass")) for text in self.texts]
        self.sizes = np.array(sizes, np.int64)  # in bytes
        self.characters = np.array([len(text) for text in self.texts], np.int64)
        self.priors: dict[str, np.ndarray] = {}  # log-probabilities at the beginning of a text, after blanks
        host.require_memory(BYTES_A_TEXT * len(sizes) + BYTES_A_BYTE * sum(sizes), f"{len(sizes)} choices")
        self._tokenizer, self._config, self._model, self._start = tokenizer, config, model, start
        self._ending: tuple[str, str] | None = None
        self._encoded: _Encoded | None = None
        self.after("", "")  # what is never right is refused before any prompt is looked at

    def __len__(self) -> int:
        return len(self.texts)

    def asked(self, prompt: str) -> Asked:
        """What to ask the model after `prompt`."""
        context, ending, blanks = self._context(prompt)
        tokens, counts, trie = self.after(ending, blanks)
        lacking = np.maximum(len(context) + counts - 1 - self._config.n_positions, 0)
        if not lacking.any():
            return Asked([Question(context, trie)], [slice(None)], counts, 0)
        cuts = np.unique(lacking).tolist()
        numbers = [np.flatnonzero(lacking == cut) for cut in cuts]
        questions = [
            Question(context[cut:], Trie([tokens[number] for number in some])) for cut, some in zip(cuts, numbers)
        ]
        return Asked(questions, numbers, counts, cuts[-1])

    def unconditional(self, blanks: str) -> Question:
        """The question which of the choices begins a text, after blanks."""
        return Question([self._start("normalize 'prior'")], self.after("", blanks).trie)

    def _context(self, prompt: str) -> tuple[list[int], str, str]:
        """The prompt's tokens, the words at its end that a choice may change, and the blanks after them."""
        text = prompt.rstrip()
        blanks = prompt[len(text) :]
        if not text:
            return [self._start("an empty prompt")], "", blanks
        cut = self._tokenizer.last_cut(text)
        ids = self._tokenizer.encode(text[:cut]) + self._tokenizer.encode(text[cut:])
        check_ids(ids, self._config, self._model)
        return ids, text[cut:], blanks

    def after(self, ending: str, blanks: str) -> _Encoded:
        """The choices after a prompt of that ending; kept, since prompts mostly end alike."""
        if self._encoded is None or self._ending != (ending, blanks):
            self._encoded = None
            self._encoded, self._ending = self._encode(ending, blanks), (ending, blanks)
        return self._encoded

    def _encode(self, ending: str, blanks: str) -> _Encoded:
        length = len(self._tokenizer.encode(ending))
        tokens: list[list[int]] = []
        for place, text in enumerate(self.texts):
            if place % CHECKED == 0:
                host.check_interrupts()
            tokens.append(self._tokenizer.encode(ending + blanks + text)[length:])
            self._check(tokens[-1], text, ending)
        counts = np.array([len(each) for each in tokens], np.int64)
        host.require_memory(BYTES_A_TOKEN * int(counts.sum()), f"{len(tokens)} choices of {counts.sum()} tokens")
        trie = Trie(tokens)
        check_ids(np.unique(trie.tokens).tolist(), self._config, self._model)
        return _Encoded(tokens, counts, trie)

    def _check(self, tokens: list[int], text: str, ending: str) -> None:
        """Refuse (22023) a choice that is longer than the window, or has no token of its own."""
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        if len(tokens) > self._config.n_positions:
            raise InvalidParameter(
                f"choice '{shown}' has {len(tokens)} tokens, more than the window of {self._config.n_positions}",
                hint="A choice must fit the model's window (n_positions).",
            )
        if not tokens:
            raise InvalidParameter(
                f"choice '{shown}' has no token of its own after a prompt that ends in '{ending[-SHOWN:]}'",
                hint="Its characters become one token with those before: end the prompt where a word ends.",
            )


def check_normalization(name: str) -> None:
    """Refuse (22023) what is no way of comparing choices."""
    if name not in NORMALIZATIONS:
        raise InvalidParameter(
            f"normalize must be {', '.join(map(repr, NORMALIZATIONS[:-1]))} or 'prior', not '{name}'",
            hint="none compares log-probabilities, tokens and bytes divide them by a choice's length, prior subtracts those"
            " that choices have at the beginning of a text.",
        )


class Chooser:
    """Scores choices after prompts; each prompt's beginning is read once, where the one before began alike."""

    def __init__(self, params: DecoderWeights, config: GPT2Config, choices: Choices | None, normalize: str) -> None:
        """`choices`: those of all prompts; None where each prompt comes with its own."""
        check_normalization(normalize)
        self._params, self.config, self._choices, self._normalize = params, config, choices, normalize
        if normalize == "prior" and choices is not None:
            self._prior(choices, "")

    def choose(self, prompt: str) -> Scores:
        """The scores after one prompt."""
        ((_, scores),) = self.choose_each([("", prompt)])
        assert scores is not None
        return scores

    def choose_each(
        self, prompts: Iterable[tuple[Key, str | None]], refused: Refused | None = None
    ) -> Iterator[tuple[Key, Scores | None]]:
        """The scores after each prompt, in order, by its key; None after a prompt that is None. One that cannot be answered goes
        to `refused` with its error, and gets None; without `refused` the error is raised."""
        return self.choose_each_among(((key, prompt, self._choices) for key, prompt in prompts), refused)

    def choose_each_among(
        self, prompts: Iterable[tuple[Key, str | None, Choices | None]], refused: Refused | None = None
    ) -> Iterator[tuple[Key, Scores | None]]:
        """The same where each prompt comes with its choices; None where they are."""
        slots = Slots(self._params, self.config)
        for (key, prompt, choices, asked), found in slots.answers(self._asked(prompts, refused)):
            yield key, None if asked is None or choices is None else self._scores(prompt, choices, asked, found)
        slots.give()

    def _asked(
        self, prompts: Iterable[tuple[Key, str | None, Choices | None]], refused: Refused | None
    ) -> Iterator[tuple[tuple[Key, str, Choices | None, Asked | None], list[Question]]]:
        for key, prompt, choices in prompts:
            asked = None
            try:
                asked = None if prompt is None or choices is None else choices.asked(prompt)
            except OF_A_TEXT as error:
                if refused is None:
                    raise
                refused(key, error)
            yield (key, prompt or "", choices, asked), [] if asked is None else asked.questions

    def _scores(self, prompt: str, choices: Choices, asked: Asked, found: list[np.ndarray]) -> Scores:
        """Log-probabilities beside what is made of them."""
        logprobs = np.empty(len(choices))
        for numbers, some in zip(asked.numbers, found):
            logprobs[numbers] = some
        values = logprobs
        if self._normalize == "tokens":
            values = logprobs / asked.counts
        elif self._normalize == "bytes":
            values = logprobs / choices.sizes
        elif self._normalize == "prior":
            values = logprobs - self._prior(choices, prompt)
        return Scores(logprobs, asked.counts, values, logprobs / choices.characters, asked.cut)

    def _prior(self, choices: Choices, prompt: str) -> np.ndarray:
        """Log-probabilities of the choices at the beginning of a text."""
        blanks = prompt[len(prompt.rstrip()) :]
        if blanks not in choices.priors:
            if len(choices.priors) >= MOST_PRIORS:
                choices.priors.clear()
            question = choices.unconditional(blanks)
            (choices.priors[blanks],) = Slots(self._params, self.config).answer([question])
        return choices.priors[blanks]
