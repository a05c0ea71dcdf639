"""Many ids as text: each in decimal with a comma after it, as an array of SQL is written."""

import numpy as np

from .. import host
from ..fast import slices

AT_ONCE = 1 << 18
COMMA, ZERO = map(ord, ",0")


class Decimals:
    """Texts of the ids of a vocabulary, [n] ascending."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = None if ids[-1] == len(ids) - 1 else ids  # which are their own places
        width = 8 if ids[-1] < 10**7 else 16  # bytes that are copied as one
        text = np.zeros((len(ids), width), np.uint8)
        text[:, -1] = COMMA
        text[:, -2] = ids % 10 + ZERO
        for place in range(width - 3, width - 2 - len(str(ids[-1])), -1):
            ids = ids // 10
            text[:, place] = np.where(ids > 0, ids % 10 + ZERO, 0)
        self._texts = text.view(f"V{width}")[:, 0]

    def of(self, ids: np.ndarray | list[int]) -> str:
        """The text of these ids."""
        parts = []
        for part in slices.pieces(len(ids), AT_ONCE):
            host.check_interrupts()
            places = np.asarray(ids[part])
            if self._ids is not None:
                places = np.searchsorted(self._ids, places)
            parts.append(self._texts.take(places).tobytes().translate(None, b"\0").decode())
        return "".join(parts)


def few(ids: list[int]) -> str:
    """The text of ids of a short text."""
    return str(ids)[1:-1].replace(" ", "") + "," if ids else ""
