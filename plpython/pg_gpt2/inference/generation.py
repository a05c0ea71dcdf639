"""Text from a model, token by token: the loop around Decoder and sampling, and how tokens become text.

Past the window, the last half of it is fed again and generation goes on. Nothing here touches the server.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from ..config import GPT2Config
from ..errors import InvalidParameter, NullNotAllowed
from ..storage.layout import Arranged
from ..tokenizer.bpe import StreamDecoder, Tokenizer
from .decode import Decoder, checked
from .lookup import Drafts
from .sampling import Draws, Sampling, choose, log_softmax


@dataclass(frozen=True)
class Options:
    """What a call asks for beside its prompt; `eos` None = no end-of-text token."""

    max_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    eos: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    _: KW_ONLY
    look_up: bool = True  # guess what follows from what was seen, where that cannot change a token
    logprobs: bool = False  # whether tokens come with their log-probabilities, some 3 % of a batch's time

    def __post_init__(self) -> None:
        if self.max_tokens is None:
            raise NullNotAllowed("max_tokens must not be null", hint="Leave it out to get 64.")
        if self.max_tokens < 0:
            raise InvalidParameter(
                f"max_tokens must be 0 or more, not {self.max_tokens}",
                hint="It is the most that is generated; the default is 64.",
            )
        if any(not stop for stop in self.stop):
            raise InvalidParameter(
                "a stop string must not be empty or null", hint="stop => ARRAY[E'\\n\\n'] ends at an empty line."
            )

    def logprob(self, logits: np.ndarray, token: int) -> float | None:
        """Log-probability of `token`, where it is wanted."""
        return log_softmax(logits, token) if self.logprobs else None


@dataclass(frozen=True)
class Token:
    """One generated token; `finish` is 'stop' or 'length' on the last."""

    id: int
    logprob: float | None
    finish: str | None


def tokens(
    params: Arranged,
    config: GPT2Config,
    prompt: Sequence[int],
    options: Options,
    stopped: Callable[[int], bool] = lambda token: False,
) -> Iterator[Token]:
    """Generate after `prompt`, which has at least one id. The prompt is processed by this call, before the first `next`."""
    decoder = Decoder(params, config, len(prompt) + options.max_tokens)
    draws = Draws(options.seed)
    seen = list(prompt)
    logits = decoder.feed(seen[-config.n_positions :]) if options.max_tokens else None

    def generate(logits: np.ndarray) -> Iterator[Token]:
        left = options.max_tokens
        drafts = Drafts() if decoder.exact and options.look_up else None
        for rows, draft in _passes(decoder, drafts, seen, logits, options):
            for row, drafted in zip(rows, [*draft, None]):
                token = choose(checked(row), options.sampling, draws.next(), seen)
                logprob = options.logprob(row, token)
                seen.append(token)
                left -= 1
                if token == options.eos or stopped(token):
                    yield Token(token, logprob, "stop")
                    return
                yield Token(token, logprob, None if left else "length")
                if token != drafted:
                    break
            if not left:
                return

    return generate(logits) if logits is not None else iter(())


def _passes(
    decoder: Decoder, drafts: Drafts | None, seen: list[int], logits: np.ndarray, options: Options
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Logits after `seen` and after each token of a draft of what follows, and the draft; the caller appends to `seen`."""
    config = decoder.config
    end = len(seen) + options.max_tokens
    yield logits[None], []
    while True:
        if decoder.length == config.n_positions:
            decoder.rewind(0)
            yield decoder.feed(kept_window(seen, config))[None], []
            continue
        most = min(config.n_positions - decoder.length, end - len(seen)) - 1
        draft = drafts.propose(seen, most) if drafts else []
        before, length = len(seen), decoder.length
        yield decoder.feed_all([seen[-1], *draft]), draft
        accepted = len(seen) - before - 1
        decoder.rewind(length + 1 + accepted)
        if drafts:
            drafts.report(len(draft), accepted)


def kept_window(seen: list[int], config: GPT2Config) -> list[int]:
    """What generation goes on from when the window is full: its last half, so that a pass over it is paid seldom."""
    return seen[-max(1, config.n_positions // 2) :]


class TextStream:
    """Collects the text of new tokens; shows only what later tokens cannot change.

    Bytes of an unfinished character are held back, and so is an end that might become a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], eos: int | None) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop = tuple(stop)
        self._eos = eos
        self._text = ""
        self.stopped = False

    def add(self, token: int) -> bool:
        """Take a token; True when a stop string is complete, and the text then ends before it."""
        if token == self._eos:
            return False
        start = max(0, len(self._text) - max(map(len, self._stop), default=0))
        self._text += self._decoder.push(token)
        return self._cut(start)

    def finish(self) -> None:
        """No token follows: unfinished bytes become U+FFFD."""
        if not self.stopped:
            self._text += self._decoder.finish()
            self._cut(0)

    def _cut(self, start: int) -> bool:
        found = [place for stop in self._stop if (place := self._text.find(stop, start)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True
        return self.stopped

    def text(self) -> str:
        """All that is certain; after `finish` all there is."""
        return self._text

    def shown(self) -> str:
        """The text without an end that could grow into a stop string."""
        if self.stopped:
            return self._text
        held = max(
            (size for stop in self._stop for size in range(1, len(stop)) if self._text.endswith(stop[:size])), default=0
        )
        return self._text[: len(self._text) - held]
