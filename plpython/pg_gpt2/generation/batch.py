"""Several prompts at once: one pass of the model a step for all of them, and the tokens that each would get alone.

Where one text ends, the next that waits begins, so that passes stay full.

With weights in rows, a row of a product may differ in its last bits from the same row computed alone. Where that could decide
about a token, the plain path does: the prompt is decoded alone up to there. This is rare, and it makes the result independent of
the batch. With weights in panels there is no such difference.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from .. import host
from ..core.config import GPT2Config
from ..errors import InvalidParameter
from ..fast.layout import DecoderWeights
from .decode import Decoder, feed_together, step_together
from .generate import Options, Token, kept_window
from .prefixes import begin_together
from .rooms import MOST_TOGETHER, Rooms
from .sampling import Draws, choose, choose_surely

Stopped = Callable[[int], bool]
Outcome = list[Token] | InvalidParameter


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
        self._begun = 0  # positions that the decoder began with, read by itself
        self._read = 0  # how many of the seen tokens the plain decoder has read

    @property
    def seen(self) -> Sequence[int]:
        """The prompt, and what it has said."""
        return self.history.ids

    def begin(self, ids: Sequence[int], read: int = 0) -> Sequence[int]:
        """Forget all but `read` tokens, with which `ids` begin, the prompt or what remains of a full window; it is read next."""
        self.decoder.rewind(read)
        self.unread = []
        self._begun, self._read, self._exact, self._plain = len(ids), len(self.seen), True, None
        return ids

    def shared(self, others: int) -> None:
        """What it said was read in one pass with `others`."""
        self.unread = []
        self._exact = self._exact and (self.decoder.exact or not others)

    def take(self, logits: np.ndarray) -> None:
        """Choose a token."""
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

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes, be it for an error or for want of anything to say."""
        return self.ended or self.error is not None or not self.options.max_tokens or self.history.over

    def _plain_logits(self) -> np.ndarray:
        """Logits of the next token from a decoder of this prompt alone, caught up step by step."""
        if self._plain is None:
            host.require_memory(self.decoder.nbytes, "a prompt that is decoded once more, alone,")
            self._plain = self.decoder.copy()
            self._plain.rewind(self._begun)
        *before, last = self.seen[self._read :]
        for token in before:
            self._plain.read([token])
        self._read = len(self.seen)
        return self._plain.feed([last])


class _Asked(NamedTuple):
    """A text that is asked for: what its asker knows it by, and what it is to be."""

    key: Any
    prompt: Sequence[int]
    options: Options
    stopped: Stopped

    @property
    def positions(self) -> int:
        """For how many there must be room."""
        return len(self.prompt) + self.options.max_tokens


class _Sampled(NamedTuple):
    """A prompt of which more samples follow: the logits after it, and decoders that have read it, and perhaps more since."""

    prompt: Sequence[int]
    logits: np.ndarray
    decoders: list[Decoder]


class Batch:
    """Texts of one model that go on together, `most` of them at most. Whoever wants some adds them, at any time, and takes steps
    while there are any.

    Texts begin in the order in which they were added; those of prompts that are one object and follow each other are samples, for
    which it is read once.
    """

    def __init__(self, params: DecoderWeights, config: GPT2Config, most: int = MOST_TOGETHER) -> None:
        self._config, self._most = config, most
        self._rooms = Rooms(params, config, most)
        self._waiting: deque[_Asked] = deque()
        self._keys: dict[Stream, Any] = {}  # of the texts that go on
        self._sampled: _Sampled | None = None
        self._has_room = True  # whether one more may begin, as far as is known

    def add(self, key: Any, prompt: Sequence[int], options: Options, stopped: Stopped) -> None:
        """Ask for a text after `prompt`, which has at least one id."""
        self._waiting.append(_Asked(key, prompt, options, stopped))

    def __len__(self) -> int:
        """How many texts were asked for and have not ended."""
        return len(self._keys) + len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether more would only wait."""
        return len(self) >= self._most

    def step(self) -> list[tuple[Any, Outcome]]:
        """Let each text that goes on say something, and those that wait begin where there is room; key and outcome of those that
        ended."""
        for stream, logits in [*self._read_on(), *self._begin()]:
            _take(stream, logits)
        ended = [stream for stream in self._keys if stream.is_over]
        for stream in ended:
            self._rooms.take_back(stream.decoder)
        self._has_room |= bool(ended)
        return [(self._keys.pop(stream), stream.error or stream.tokens) for stream in ended]

    def _read_on(self) -> list[tuple[Stream, np.ndarray]]:
        """Texts that go on, and the logits of what follows each."""
        window = self._config.n_positions
        full = [stream for stream in self._keys if stream.decoder.length == window]
        rest = [stream for stream in self._keys if stream.decoder.length < window]
        if self._sampled:
            forgotten = {stream.decoder for stream in full}
            kept = [decoder for decoder in self._sampled.decoders if decoder not in forgotten]
            self._sampled = self._sampled._replace(decoders=kept) if kept else None
        results = _read_anew(full, [kept_window(stream.seen, self._config) for stream in full], feed_together)
        if rest:
            results += zip(rest, _read(rest))
        for stream in rest:
            stream.shared(len(rest) - 1)
        return results

    def _begin(self) -> list[tuple[Stream, np.ndarray]]:
        """Texts that begin, and the logits of what follows the prompt of each."""
        if not (self._waiting and self._has_room):
            return []
        begun: list[tuple[Stream, Sequence[int]]] = []
        for decoder in self._rooms.lend([asked.positions for asked in islice(self._waiting, self._most)]):
            asked = self._waiting.popleft()
            stream = Stream(decoder, asked.prompt, asked.options, asked.stopped)
            self._keys[stream] = asked.key
            if not stream.is_over:
                begun.append((stream, asked.prompt))
        self._has_room = not self._waiting
        known = self._sampled and self._sampled.prompt
        results = self._begin_samples([stream for stream, prompt in begun if prompt is known])
        new = [stream for stream, prompt in begun if prompt is not known]
        results += _read_anew(new, [self._end_of(stream.seen) for stream in new], begin_together)
        self._expect_samples(begun, results)
        return results

    def _begin_samples(self, streams: Sequence[Stream]) -> list[tuple[Stream, np.ndarray]]:
        """The same for further samples of a prompt, from a decoder that has read it."""
        if not (streams and self._sampled):
            return []
        _, logits, decoders = self._sampled
        for stream in streams:
            text = self._end_of(stream.seen)
            if stream.decoder not in decoders:
                decoders[0].copy_to(stream.decoder, len(text))
                decoders.append(stream.decoder)
                host.check_interrupts()
            stream.begin(text, read=len(text))
        return [(stream, logits) for stream in streams]

    def _expect_samples(
        self, begun: Sequence[tuple[Stream, Sequence[int]]], results: Sequence[tuple[Stream, np.ndarray]]
    ) -> None:
        """Keep what further samples of the last prompt begin with, where some wait."""
        following = self._waiting[0].prompt if self._waiting else None
        if self._sampled and self._sampled.prompt is following:
            return
        decoders = [stream.decoder for stream, prompt in begun if prompt is following]
        self._sampled = _Sampled(following, results[-1][1].copy(), decoders) if following and decoders else None

    def _end_of(self, prompt: Sequence[int]) -> Sequence[int]:
        """What is read of a prompt: as much as the window holds."""
        return prompt[-self._config.n_positions :]


def _take(stream: Stream, logits: np.ndarray) -> None:
    """Let the stream choose a token. What is wrong with one stream ends that one only."""
    try:
        stream.take(logits)
    except InvalidParameter as error:
        stream.error = error


def _read(streams: Sequence[Stream]) -> np.ndarray:
    """Logits of what follows, after each stream's decoder read what the stream said."""
    decoders = [stream.decoder for stream in streams]
    if any(len(stream.unread) > 1 for stream in streams):
        return feed_together(decoders, [stream.unread for stream in streams])
    return step_together(decoders, [stream.unread[0] for stream in streams])


def _read_anew(
    streams: Sequence[Stream], texts: Sequence[Sequence[int]], read: Callable[..., np.ndarray]
) -> list[tuple[Stream, np.ndarray]]:
    """Logits of what follows each text, after its stream `read` it."""
    if not streams:
        return []
    ids = [stream.begin(text) for stream, text in zip(streams, texts)]
    return list(zip(streams, read([stream.decoder for stream in streams], ids)))
