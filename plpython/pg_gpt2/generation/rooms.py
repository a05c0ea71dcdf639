"""Decoders for the texts of a batch, which have them one after the other: as many as MOST_CACHED and the memory there is allow.

They are made some at a time, as texts come that need them. With panels those of a lot lie side by side (fast/cache.py), so that
their memory is free when nobody has any of them. What is free is given up where it stands in the way of a larger one.
"""

from collections.abc import Sequence

from .. import host
from ..core.config import GPT2Config
from ..errors import OutOfMemory
from ..fast.cache import BlockCache
from ..fast.layout import DecoderWeights
from .decode import Decoder, bytes_of_several, several

MOST_TOGETHER = 64  # texts: more are hardly faster, and each has keys and values of its own
MOST_CACHED = 1 << 30  # bytes of keys and values of all
LOT = 8  # decoders that are made at a time, at least, where there is memory: one alone is not attended to together with others
ROOM = 64  # positions: rooms are multiples, and mostly serve the next text as well


class _Lot:
    """Decoders that share memory, and those of them that nobody has."""

    def __init__(self, decoders: list[Decoder], nbytes: int) -> None:
        self.decoders, self.free, self.nbytes = decoders, decoders[:], nbytes

    @property
    def lent(self) -> int:
        """How many somebody has."""
        return len(self.decoders) - len(self.free)


class Rooms:
    """Lends decoders of one model."""

    def __init__(self, params: DecoderWeights, config: GPT2Config, most: int = MOST_TOGETHER) -> None:
        self._params, self._config, self._most = params, config, most
        self._lots: list[_Lot] = []

    def lend(self, wanted: Sequence[int]) -> list[Decoder]:
        """Decoders for the first of some texts, which need so many positions each; at least one where none is lent, or 53200."""
        lent = sum(lot.lent for lot in self._lots)
        wanted = [min(positions, self._config.n_positions) for positions in wanted[: self._most - lent]]
        found: list[Decoder] = []
        for place, positions in enumerate(wanted):
            decoder = self._take(positions)
            if decoder is None and self._make([_rounded(each) for each in wanted[place:]]):
                decoder = self._take(positions)
            if decoder is None:
                break
            found.append(decoder)
        return found

    def take_back(self, decoder: Decoder) -> None:
        """Have back what was lent."""
        next(lot for lot in self._lots if decoder in lot.decoders).free.append(decoder)

    def _take(self, positions: int) -> Decoder | None:
        """The smallest free decoder that has room for so many positions."""
        fitting = [(lot, each) for lot in self._lots for each in lot.free if each.cache.room >= positions]
        if not fitting:
            return None
        lot, decoder = min(fitting, key=lambda one: one[1].cache.room)
        lot.free.remove(decoder)
        decoder.room = positions
        return decoder

    def _make(self, rooms: Sequence[int]) -> bool:
        """Make decoders of the first of these rooms, as many as there is memory for; whether there is for one."""
        count, least = len(rooms), min(LOT, self._most)
        while not self._have_made([*rooms[:count], *[max(rooms[:count])] * (least - count)]):
            idle = next((lot for lot in self._lots if not lot.lent), None)
            if idle is not None:
                self._lots.remove(idle)
            elif count > 1:
                count -= count // 4 or 1
            else:
                return self._have_made(rooms[:1])
        return True

    def _have_made(self, rooms: Sequence[int]) -> bool:
        """Make decoders of these rooms, unless that is too much. 53200 where not even one alone is possible."""
        held, wanted = sum(lot.nbytes for lot in self._lots), self._bytes(rooms)
        is_only = len(rooms) == 1 and not self._lots
        if held + wanted > MOST_CACHED and not is_only:
            return False
        count, positions = len(rooms) + sum(len(lot.decoders) for lot in self._lots), sum(rooms)
        try:
            host.require_memory(
                held + wanted + 4 * self._config.vocab * count,
                f"logits of {count} texts, and keys and values of {positions} positions",
            )
        except OutOfMemory:
            if is_only:
                raise
            return False
        lots: dict[object, list[Decoder]] = {}
        for decoder in several(self._params, self._config, rooms):
            lots.setdefault(decoder.cache.arena if isinstance(decoder.cache, BlockCache) else decoder, []).append(
                decoder
            )
        self._lots += [_Lot(some, self._bytes([each.cache.room for each in some])) for some in lots.values()]
        return True

    def _bytes(self, rooms: Sequence[int]) -> int:
        return bytes_of_several(self._params, self._config, rooms)


def _rounded(positions: int) -> int:
    return -(-positions // ROOM) * ROOM
