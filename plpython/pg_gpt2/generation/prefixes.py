"""What a session has read: keys and values of the beginnings of recent texts, which a call that begins alike goes on from.

For whoever feeds a text to a model:

    decoder = take(params, config, ids, room)    it has read ids[:decoder.length], never all of them
    decoder, logits = begin(...)                 it has read them all; the logits of what follows
    ... feed, feed_all, rewind, copy ...
    give(decoder)                                for later calls; the caller does not touch it any more

    decoders = decode.several(params, config, rooms)    with nothing read
    logits = begin_together(decoders, texts)     what several texts begin with is read once, whatever the session keeps
    rest = decoder.resume(ids)                   a decoder that goes on to a similar text by itself, without a session

What is taken is gone until it is given, so that nobody else writes to it; where an exception or a closed cursor ends the call,
it is dropped. **Nothing here changes a bit.** Where a row's company does not matter (`Decoder.exact`) any beginning serves.
Elsewhere it is whole passes of WHOLE rows, at whose multiples all passes over a text end, with or without this.

A text belongs to `DecoderWeights.identity`: name, version of the visible rows and configuration, computed under the caller's
rights at every call, and the role. So a changed, rolled back or hidden model finds nothing, nor does another role; without an
identity nothing is kept. How many bytes may be kept, `host` says. Least recently used ones go first.
"""

from array import array
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import host
from ..core.config import GPT2Config
from ..errors import OutOfMemory
from ..fast.layout import DecoderWeights
from .decode import WHOLE, Decoder, Ids, feed_together, kind_of_cache, read_together

LEAST = 16  # tokens in common: fewer are read as quickly as found
MOST_KEPT = 64  # texts; each is compared with
WORTH = 64  # rows that a pass of its own for a common beginning has to save
NO_WEIGHTS = DecoderWeights({})

Key = tuple[Hashable, type]  # identity of the weights, and how keys and values are kept


class _Kept(NamedTuple):
    """A text: whose it is, its first tokens, and a decoder that has read it, which does not hold the weights."""

    key: Key
    first: bytes
    decoder: Decoder
    nbytes: int


class Usage(NamedTuple):
    """What is kept of one model."""

    identity: Any
    entries: int
    nbytes: int
    saved: int  # tokens that calls did not have to read


class Prefixes:
    """The texts of a session, least recently used first."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []
        self._saved: dict[Hashable, int] = {}

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        return sum(kept.nbytes for kept in self._kept)

    def usage(self) -> list[Usage]:
        """Of each model of which there is something, the next to be given up first."""
        identities = dict.fromkeys(kept.key[0] for kept in self._kept)
        return [self._usage(identity) for identity in identities]

    def _usage(self, identity: Hashable) -> Usage:
        sizes = [kept.nbytes for kept in self._kept if kept.key[0] == identity]
        return Usage(identity, len(sizes), sum(sizes), self._saved.get(identity, 0))

    def clear(self) -> None:
        """Give up everything."""
        self._kept.clear()
        self._saved.clear()

    def fit(self, room: int) -> None:
        """Give up what `room` bytes do not hold."""
        total, gone = self.nbytes, 0
        while gone < len(self._kept) and (total > room or len(self._kept) - gone > MOST_KEPT):
            total -= self._kept[gone].nbytes
            gone += 1
        if not gone:
            return
        del self._kept[:gone]
        known = {kept.key[0] for kept in self._kept}
        for identity in [identity for identity in self._saved if identity not in known]:
            del self._saved[identity]

    def longest(self, key: Key, ids: np.ndarray, scored: bool = False) -> tuple[Decoder | None, int]:
        """The kept text that begins like `ids` for longest, now the last to be given up, and for how long; `scored` as for
        Decoder.usable_for."""
        best, length, first = None, LEAST - 1, _first(ids)
        for place, kept in enumerate(self._kept):
            if kept.first == first and kept.key == key and (usable := kept.decoder.usable_for(ids, scored)) > length:
                best, length = place, usable
        if best is None:
            return None, 0
        self._kept.append(self._kept.pop(best))
        return self._kept[-1].decoder, length

    def remove(self, decoder: Decoder) -> None:
        """Let go of a text."""
        self._kept = [kept for kept in self._kept if kept.decoder is not decoder]

    def count(self, identity: Hashable, saved: int) -> None:
        """Note that so many tokens were not read again."""
        self._saved[identity] = self._saved.get(identity, 0) + saved

    def put(self, key: Key, decoder: Decoder, room: int) -> None:
        """Keep a text in the place of those that it begins with, within `room` bytes."""
        decoder.params = NO_WEIGHTS
        ids, first = decoder.ids, _first(decoder.ids)
        self._kept = [
            kept
            for kept in self._kept
            if kept.first != first or kept.key != key or kept.decoder.ids != ids[: kept.decoder.length]
        ]
        self._kept.append(_Kept(key, first, decoder, decoder.nbytes + decoder.scores.nbytes + 8 * decoder.length))
        self.fit(room)

    def has(self, key: Key, decoder: Decoder, length: int) -> bool:
        """Whether a kept text, now the last to be given up, begins with the first `length` tokens of `decoder` and knows their
        scores as well."""
        first, scores = _first(decoder.ids), min(decoder.scores.shape[1], length - 1)
        for place, (other, begin, kept, _) in enumerate(self._kept):
            is_alike = begin == first and other == key and kept.ids[:length] == decoder.ids[:length]
            if is_alike and kept.scores.shape[1] >= scores:
                self._kept.append(self._kept.pop(place))
                return True
        return False


def _first(ids: array | np.ndarray) -> bytes:
    """The tokens without which nothing is in common."""
    return ids[:LEAST].tobytes()


session = Prefixes()


def take(params: DecoderWeights, config: GPT2Config, ids: Ids, room: int, scored: bool = False) -> Decoder:
    """A decoder with room for `room` positions that has read the longest beginning of `ids` that is kept, never all of them.
    `scored`: of which the scores are known, with that of the next token: `Decoder.scores` [2, length]."""
    key = _key(params, kind_of_cache(params))
    found, length = (
        (None, 0) if key is None or len(ids) <= LEAST else session.longest(key, np.asarray(ids, np.int64), scored)
    )
    if found is None:
        return Decoder(params, config, room)
    session.count(params.identity, length)
    scores = found.scores[:, :length]
    decoder = None
    if 2 * length >= found.length:  # mostly the same: a copy would only fill the memory with what is alike
        session.remove(found)
        if found.cache.room >= min(room, config.n_positions):
            decoder, found.params, found.room = found, params, min(room, config.n_positions)
            found.rewind(length)
    if decoder is None:
        decoder = Decoder(params, config, room)
        found.copy_to(decoder, length)
    if scored:
        decoder.scores = scores
    return decoder


def begin(params: DecoderWeights, config: GPT2Config, ids: Ids, room: int) -> tuple[Decoder, np.ndarray]:  # -> [V]
    """A decoder with room for `room` positions that has read `ids`, and the logits of what follows them."""
    decoder = take(params, config, ids, room)
    return decoder, decoder.feed(ids[decoder.length :])


def begin_together(decoders: Sequence[Decoder], texts: Sequence[Ids]) -> np.ndarray:  # -> [len(decoders), V]
    """Let several streams of one model that have read nothing read a text each; logits of what follows. Together they read once
    what texts have in common, and keep it for later calls."""
    ids = [np.asarray(text, np.int64) for text in texts]
    places: dict[bytes, int] = {}
    same = [places.setdefault(some.tobytes(), place) for place, some in enumerate(ids)]
    different = [place for _, place in sorted(places.items())]
    families = _families(ids, different, decoders[0].boundary)
    for level, some_families in enumerate(families):
        _read_families(decoders, ids, some_families, keep=not level)
    for place in different:
        _fetch(decoders[place], ids[place])
    some = [decoders[place] for place in different]
    logits = feed_together(some, [ids[place][decoders[place].length :] for place in different])
    if len(different) == 1:
        _keep(some[0], some[0].reusable, own=False)
    if len(different) == len(ids) and different == sorted(different):
        return logits
    for place, original in enumerate(same):
        if place != original:
            decoders[original].copy_to(decoders[place], decoders[original].length)
            host.check_interrupts()
    rows = {place: row for row, place in enumerate(different)}
    return logits[[rows[original] for original in same]]


class _Family(NamedTuple):
    """Texts that have a beginning of some length in common."""

    places: list[int]
    length: int


def _families(ids: Sequence[np.ndarray], places: list[int], boundary: Callable[[int], int]) -> list[list[_Family]]:
    """The families, whose beginnings are worth a pass of their own, of different texts at `places` that are in order: the
    widest, then those within them, and so on."""
    levels: list[list[_Family]] = []

    def divide(places: list[int], alike: list[int], start: int, level: int) -> None:
        """`start`: what all have read by then; `alike`: how many tokens each has in common with the next."""
        if not alike:
            return
        least = min(alike)
        length = boundary(min(least, *(len(ids[place]) - 1 for place in places)))
        if len(alike) * (length - start) >= WORTH:
            levels.extend([] for _ in range(level + 1 - len(levels)))
            levels[level].append(_Family(places, length))
            start, level = length, level + 1
        ends = [place + 1 for place, common in enumerate(alike) if common == least]
        for first, end in pairwise([0, *ends, len(places)]):
            divide(places[first:end], alike[first : end - 1], start, level)

    divide(places, [alike(ids[a], ids[b]) for a, b in pairwise(places)], 0, 0)
    return levels


def alike(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def _read_families(decoders: Sequence[Decoder], ids: Sequence[np.ndarray], families: list[_Family], keep: bool) -> None:
    """Let the first of each family read its common beginning, and the others copy that."""
    for places, length in families:
        _fetch(decoders[places[0]], ids[places[0]][: length + 1])
    behind = [(decoders[p[0]], ids[p[0]][decoders[p[0]].length : length]) for p, length in families]
    behind = [(decoder, rest) for decoder, rest in behind if len(rest)]
    if behind:
        read_together([decoder for decoder, _ in behind], [rest for _, rest in behind])
    for places, length in families:
        first = decoders[places[0]]
        for place in places[1:]:
            first.copy_to(decoders[place], length)
            host.check_interrupts()
        if keep:
            _keep(first, length, own=False)


def _fetch(decoder: Decoder, ids: np.ndarray) -> None:
    """Let `decoder`, which has read a beginning of `ids` or nothing, have read what the session has read of them, if more."""
    key = _key(decoder.params, type(decoder.cache))
    if key is None or len(ids) <= LEAST:
        return
    found, length = session.longest(key, ids)
    if found is not None and length >= decoder.length + LEAST:
        session.count(decoder.params.identity, length - decoder.length)
        found.copy_to(decoder, length)


def give(decoder: Decoder) -> None:
    """Keep what `decoder` has read for later calls; its taker does not use it any more."""
    _keep(decoder, decoder.reusable, own=not decoder.cache.shares)


def _keep(decoder: Decoder, length: int, own: bool) -> None:
    """Keep the first `length` positions of `decoder`: in place where it is our `own` and not much larger, else a copy."""
    key = _key(decoder.params, type(decoder.cache)) if length >= LEAST else None
    if key is None or session.has(key, decoder, length):
        return
    room = host.prefix_room()
    fitting = _fitting(decoder, length, room)
    if fitting < LEAST:
        return
    small = decoder.room_bytes(fitting)
    if own and fitting == length and decoder.nbytes <= min(room, 2 * small):
        decoder.rewind(length)
    else:
        session.fit(room - small)
        try:
            host.require_memory(small, "a text that is kept")
        except OutOfMemory:
            return
        copy = Decoder(decoder.params, decoder.config, fitting)
        decoder.copy_to(copy, fitting)
        decoder = copy
    session.put(key, decoder, room)


def _fitting(decoder: Decoder, length: int, room: int) -> int:
    """How many of the first `length` positions fit into `room` bytes."""
    while length > 0 and decoder.room_bytes(length) > room:
        length -= WHOLE if length % WHOLE == 0 else length % WHOLE
    return length


def _key(params: DecoderWeights, kind: type) -> Key | None:
    """Whose texts of these weights are that caches of a `kind` hold; None where nothing is kept."""
    if params.identity is None:
        return None
    room = host.prefix_room()
    session.fit(room)
    return (params.identity, kind) if room else None
