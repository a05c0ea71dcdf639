"""Several prompts at once: one pass of the model a step for all of them, and the tokens that each would get alone.

With weights in rows, a row of a product may differ in its last bits from the same row computed alone. Where that could decide
about a token, the plain path does: the prompt is decoded alone up to there. This is rare, and it makes the result independent of
the batch. With weights in panels there is no such difference.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from .. import host
from ..core.config import GPT2Config
from ..errors import InvalidParameter
from ..fast import slices
from ..fast.layout import DecoderWeights
from .decode import Decoder, feed_together, several, step_together
from .generate import Options, Token, kept_window
from .prefixes import begin_together
from .sampling import Draws, choose, choose_surely

Stopped = Callable[[int], bool]
Outcome = list[Token] | InvalidParameter
MOST_TOGETHER = 64  # streams: more are hardly faster, and each has keys and values of its own


class Stream:
    """One prompt of a batch: what it has said, and its decoders, the shared pass's and, where needed, the plain one."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int], options: Options, stopped: Stopped) -> None:
        self.history = options.history(prompt)
        self.unread: list[int] = []  # what it has said and its decoder has not read
        self.tokens: list[Token] = []
        self.error: InvalidParameter | None = None  # why it says no more
        self.options = options
        self.decoder = decoder
        self._stopped = stopped
        self._draws = Draws(options.seed)
        self._exact = True  # whether all that the decoder holds has the bits of the plain path
        self._plain: Decoder | None = None
        self._alone: Sequence[int] = []  # what the decoder began with
        self._read = 0  # how many of the seen tokens the plain decoder has read

    @property
    def seen(self) -> Sequence[int]:
        """The prompt, and what it has said."""
        return self.history.ids

    def begin(self, ids: Sequence[int]) -> Sequence[int]:
        """Forget all: what is read next is `ids`, the prompt or what remains of a full window."""
        self.decoder.rewind(0)
        self.unread = []
        self._alone, self._read, self._exact, self._plain = ids, len(self.seen), True, None
        return ids

    def shared(self, others: int) -> None:
        """What it said was read in one pass with `others`."""
        self.unread = []
        self._exact = self._exact and (self.decoder.exact or not others)

    def take(self, logits: np.ndarray) -> bool:
        """Choose a token; True while the stream goes on."""
        host.check_interrupts()
        draw = self._draws.next()
        sampling = self.options.sampling
        token = None if self._exact else choose_surely(logits, sampling, draw, self.history)
        if token is None:
            logits = logits if self._exact else self._plain_logits()
            token = choose(logits, sampling, draw, self.history)
        self._say(token, self.options.logprob(logits, token))
        if self.history.walk and not self.ended and not self.options.logprobs:
            self._say_ahead()
        return not self.ended

    def _say_ahead(self) -> None:
        """Say what is known without the model, if it is all that comes, or can be read in one pass."""
        assert self.history.walk
        tokens, complete = self.history.walk.ahead()
        if not complete:
            room = self.decoder.config.n_positions - self.decoder.length - len(self.unread)
            tokens = tokens[: max(0, room)] if self.decoder.exact else []
        for token in tokens:
            self._draws.next()
            self._say(token, None)

    def _say(self, token: int, logprob: float | None) -> None:
        self.history.append(token)
        self.unread.append(token)
        ended = self.history.ends(token) or self._stopped(token) or self.history.over
        full = len(self.tokens) + 1 == self.options.max_tokens
        self.tokens.append(Token(token, logprob, "stop" if ended else "length" if full else None))

    @property
    def ended(self) -> bool:
        """Whether all is said."""
        return bool(self.tokens and self.tokens[-1].finish)

    def _plain_logits(self) -> np.ndarray:
        """Logits of the next token from a decoder of this prompt alone, caught up step by step."""
        if self._plain is None:
            host.require_memory(self.decoder.nbytes, "a prompt that is decoded once more, alone,")
            self._plain = self.decoder.copy()
            self._plain.feed(self._plain.resume(self._alone))
        for token in self.seen[self._read :]:
            logits = self._plain.feed([token])
        self._read = len(self.seen)
        return logits


def generate_batch(
    params: DecoderWeights,
    config: GPT2Config,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options],
    stopped: Sequence[Stopped],
) -> list[list[Token]]:
    """Tokens of each prompt, as `generation.tokens` gives them for that prompt alone."""
    found: dict[int, list[Token]] = {}
    for number, outcome in generate_each(params, config, prompts, options, stopped, MOST_TOGETHER):
        if isinstance(outcome, InvalidParameter):
            raise outcome
        found[number] = outcome
    return [found[number] for number in range(len(prompts))]


def generate_each(
    params: DecoderWeights,
    config: GPT2Config,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options],
    stopped: Sequence[Stopped],
    together: int,
) -> Iterator[tuple[int, Outcome]]:
    """(number, outcome) of each prompt as it ends, so many `together` at most: where one ends, another begins.

    Prompts that are equal and follow each other begin together, and are read once.
    """
    rooms = [len(prompt) + each.max_tokens for prompt, each in zip(prompts, options)]
    order = sorted(range(len(prompts)), key=rooms.__getitem__, reverse=True)  # so that whatever ends leaves room enough
    groups = deque(_alike(order, prompts, together))
    free = several(params, config, [rooms[number] for number in order[:together]])
    numbers: dict[Stream, int] = {}
    results: list[tuple[Stream, np.ndarray]] = []
    window = config.n_positions
    while True:
        begun: list[Stream] = []
        while groups and len(groups[0]) <= len(free):
            for number in groups.popleft():
                stream = Stream(free.pop(0), prompts[number], options[number], stopped[number])
                numbers[stream] = number
                begun.append(stream)
        begun = [s for s in begun if s.options.max_tokens and not s.history.over]
        results += _begin(begun, [s.seen[-window:] for s in begun], begin_together)
        going_on = [stream for stream, logits in results if _takes(stream, logits)]
        for stream in [stream for stream in numbers if stream not in set(going_on)]:
            free.append(stream.decoder)
            yield numbers.pop(stream), stream.error or stream.tokens
        if not numbers and not groups:
            return
        full = [s for s in going_on if s.decoder.length == window]
        rest = [s for s in going_on if s.decoder.length < window]
        results = _begin(full, [kept_window(s.seen, config) for s in full], feed_together)
        if rest:
            results += zip(rest, _read(rest))
        for stream in rest:
            stream.shared(len(rest) - 1)


def _takes(stream: Stream, logits: np.ndarray) -> bool:
    """Let the stream choose a token; True while it goes on. What is wrong with one stream ends that one only."""
    try:
        return stream.take(logits)
    except InvalidParameter as error:
        stream.error = error
        return False


def _alike(order: Sequence[int], prompts: Sequence[Sequence[int]], together: int) -> Iterator[list[int]]:
    """`order` in groups of at most `together` prompts that are one object: samples of one prompt."""
    for _, alike in groupby(order, lambda number: id(prompts[number])):
        numbers = list(alike)
        yield from (numbers[some] for some in slices.pieces(len(numbers), together))


def _read(streams: Sequence[Stream]) -> np.ndarray:
    """Logits of what follows, after each stream's decoder read what the stream said."""
    decoders = [stream.decoder for stream in streams]
    if any(len(stream.unread) > 1 for stream in streams):
        return feed_together(decoders, [stream.unread for stream in streams])
    return step_together(decoders, [stream.unread[0] for stream in streams])


def _begin(
    streams: Sequence[Stream], texts: Sequence[Sequence[int]], read: Callable[..., np.ndarray]
) -> list[tuple[Stream, np.ndarray]]:
    """Logits of what follows each text, after its stream `read` it."""
    if not streams:
        return []
    ids = [stream.begin(text) for stream, text in zip(streams, texts)]
    return list(zip(streams, read([stream.decoder for stream in streams], ids)))
