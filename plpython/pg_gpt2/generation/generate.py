"""Text from a model, token by token: the loop around Decoder and sampling, and how tokens become text.

Past the window, the last half of it is fed again and generation goes on. Nothing here touches the server.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from time import perf_counter

import numpy as np

from ..core.config import GPT2Config
from ..fast.layout import DecoderWeights
from ..tokenizer.bpe import StreamDecoder, Tokenizer
from . import prefixes
from .constraints.constraint import Constraint, Walk
from .decode import Decoder, checked
from .drafting import DraftModel, Guesses, Speaker
from .lookup import Drafts
from .processors import History
from .sampling import Draws, Sampling, choose
from .softmax import log_probability
from .stops import Stops


@dataclass(frozen=True)
class Options:
    """What a call asks for beside its prompt; `eos` None = no end-of-text token. `also_ends`: other tokens that end a text."""

    max_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    eos: int | None = None
    seed: int = 0
    _: KW_ONLY
    look_up: bool = True  # guess what follows from what was seen, where that cannot change a token
    draft: DraftModel | None = None  # lets a smaller model guess, too
    logprobs: bool = False  # whether tokens come with their log-probabilities, some 3 % of a batch's time
    constraint: Constraint | None = None  # what the text must be
    also_ends: tuple[int, ...] = ()

    def history(self, prompt: Sequence[int]) -> History:
        """What a text after `prompt` has read."""
        return History(prompt, self.eos, walk=self.walk(), also_ends=self.also_ends)

    def walk(self) -> Walk | None:
        """A text's way through the constraint; 22023 where max_tokens are too few for any."""
        return self.constraint.begin(self.max_tokens) if self.constraint else None

    def logprob(self, logits: np.ndarray, token: int) -> float | None:
        """Log-probability of `token`, where it is wanted."""
        return log_probability(logits, token) if self.logprobs else None


@dataclass(frozen=True)
class Token:
    """One generated token; `finish` is 'stop' or 'length' on the last."""

    id: int
    logprob: float | None
    finish: str | None


def tokens(
    params: DecoderWeights,
    config: GPT2Config,
    prompt: Sequence[int],
    options: Options,
    stopped: Callable[[int], bool] = lambda token: False,
) -> Iterator[Token]:
    """Generate after `prompt`, which has at least one id. The prompt is processed by this call, before the first `next`."""
    history = options.history(prompt)
    if not options.max_tokens or history.over:
        return iter(())
    draws = Draws(options.seed)
    ids, room = history.ids[-config.n_positions :], len(prompt) + options.max_tokens
    decoder, logits = prefixes.begin(params, config, ids, room)
    lookup = Drafts() if decoder.exact and options.look_up else None
    speaker = Speaker(options.draft, options.sampling, draws, room) if decoder.exact and options.draft else None
    guesses = Guesses(lookup, speaker)

    def take(token: int, logprob: float | None) -> Token:
        history.append(token)
        ended = history.ends(token) or stopped(token) or history.over
        return Token(token, logprob, "stop" if ended else "length" if history.new == options.max_tokens else None)

    def generate() -> Iterator[Token]:
        for rows, draft in _passes(decoder, guesses, history, logits, options):
            for row, drafted in zip(rows, [*draft, None]):
                draw = 0.0 if options.sampling.is_greedy else draws.next()
                token = choose(checked(row), options.sampling, draw, history)
                found = take(token, options.logprob(row, token))
                if found.finish:
                    keep()
                yield found
                if found.finish:
                    return
                if token != drafted:
                    break
            if rest := rest_of(history, options):
                keep()
                yield from (take(token, None) for token in rest)
                return

    def keep() -> None:
        if len(history.ids) <= config.n_positions:  # else it has read the middle of a text
            decoder.rewind(min(decoder.length, len(history.ids) - 1))
            prefixes.give(decoder)
        guesses.keep(history)

    return generate()


def rest_of(history: History, options: Options) -> list[int]:
    """The tokens up to the end, where they are known without the model."""
    if history.walk is None or options.logprobs:
        return []
    tokens, complete = history.walk.ahead()
    return tokens if complete else []


def _passes(
    decoder: Decoder, guesses: Guesses, history: History, logits: np.ndarray, options: Options
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Logits after what was seen and after each token of a draft of what follows, and the draft; the caller appends to `history`.

    What a constraint leaves no choice about is a draft that comes true.
    """
    config, seen, walk = decoder.config, history.ids, history.walk
    end = len(seen) + options.max_tokens
    yield logits[None], []
    while True:
        if decoder.length == config.n_positions:
            decoder.rewind(0)
            yield decoder.feed(kept_window(seen, config))[None], []
            continue
        most = min(config.n_positions - decoder.length, end - len(seen)) - 1
        sure = walk.ahead()[0][:most] if walk and decoder.exact else []
        draft = sure or guesses.propose(history, most)
        before, length, began = len(seen), decoder.length, perf_counter()
        rows, seconds = decoder.feed_all([seen[-1], *draft]), perf_counter() - began
        yield rows, draft
        said = list(seen[before:])
        decoder.rewind(length + len(said))
        if not sure:
            guesses.report(len(draft), said, seconds)


def kept_window(seen: Sequence[int], config: GPT2Config) -> Sequence[int]:
    """What generation goes on from when the window is full: its last half, so that a pass over it is paid seldom."""
    return seen[-max(1, config.n_positions // 2) :]


class TextStream:
    """Collects the text of new tokens, as a text of the server can hold it; shows only what later tokens cannot change.

    Bytes of an unfinished character are held back, and so is an end that might become a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Stops, eos: int | None, also_ends: Sequence[int] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops, self._state = stops, 0
        self._silent = {eos, *also_ends}
        self._parts: list[str] = []
        self._length = 0
        self.stopped = False

    def add(self, token: int) -> bool:
        """Take a token; True when a stop string is complete, and the text then ends before it."""
        if token not in self._silent:
            self._take(self._decoder.push(token))
        return self.stopped

    def finish(self) -> None:
        """No token follows: unfinished bytes become U+FFFD, and nothing is held back any more."""
        if not self.stopped:
            self._take(self._decoder.finish())
        self._state = 0

    def _take(self, new: str) -> None:
        new = new.replace("\0", "\ufffd")  # as db.storable does: a stop string is sought in what is shown
        self._parts.append(new)
        ends = []  # where the text would end for each stop string that is complete
        if self._stops:
            for place, character in enumerate(new, self._length + 1):
                self._state = self._stops.step(self._state, character)
                if found := self._stops.found(self._state):
                    ends.append(place - found)
        self._length += len(new)
        if ends:
            self._parts, self._state, self.stopped = [self.text()[: min(ends)]], 0, True

    def text(self) -> str:
        """All so far; after `finish` all there is."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def shown(self) -> str:
        """The text without an end that could grow into a stop string."""
        text = self.text()
        return text[: len(text) - self._stops.begun(self._state)]
