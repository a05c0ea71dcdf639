"""Counter-based random numbers: a draw is addressed by (seed, step, site, row, tick), never by what was drawn before.

Philox4x64 (Salmon et al. 2011) is a function of a 128-bit key and a 256-bit counter. The key is (seed, purpose), the
counter (tick, row, site, step): masks are the same bits for any number of threads, and can be drawn again.
"""

import numpy as np  # which loads numpy.random at its first use: a greedy call needs none of it

WORD = (1 << 64) - 1
DROPOUT, INIT, ORDER, ADAPTER = 1, 2, 3, 4  # purposes: the second key word keeps their streams apart
VALUES_PER_TICK = 16  # one step of the counter gives 4 words, 16 values of 16 bits


def philox(seed: int, purpose: int, *, step: int = 0, site: int = 0, row: int = 0, tick: int = 0) -> "np.random.Philox":
    """A generator that starts at that address."""
    counter = np.array([tick & WORD, row & WORD, site & WORD, step & WORD], np.uint64)
    return np.random.Philox(key=np.array([seed & WORD, purpose], np.uint64), counter=counter)


def uint16(source: "np.random.Philox", n_ticks: int) -> np.ndarray:
    """16 * n_ticks uniform 16-bit integers."""
    return source.random_raw(4 * n_ticks).astype("<u8", copy=False).view("<u2")


def drop_threshold(p: float) -> int:
    """Values below it are dropped: p to within 2^-17."""
    return round(p * 65536)


def keep_mask(
    p: float,
    n: int,
    *,
    seed: int,
    step: int = 0,
    site: int = 0,
    row: int = 0,
    start: int = 0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Booleans [n]: elements start .. start + n of that row of masks; start is a multiple of VALUES_PER_TICK."""
    source = philox(seed, DROPOUT, step=step, site=site, row=row, tick=start // VALUES_PER_TICK)
    return np.greater_equal(uint16(source, -(-n // VALUES_PER_TICK))[:n], drop_threshold(p), out=out)
