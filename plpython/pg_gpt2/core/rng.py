"""Counter-based random numbers: a draw is addressed by (seed, step, site, row, tick), never by what was drawn before.

Philox4x64 (Salmon et al. 2011) is a function of a 128-bit key and a 256-bit counter. The key is (seed, purpose), the
counter (tick, row, site, step): masks are the same bits for any number of threads, and can be drawn again.
"""

from collections.abc import Iterator

import numpy as np  # which loads numpy.random at its first use, in a tenth of a first call: generating needs none of it

WORD = (1 << 64) - 1
DROPOUT, INIT, ORDER, ADAPTER = 1, 2, 3, 4  # purposes: the second key word keeps their streams apart
ROUNDS = 10
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B  # what the words of the key are raised by after a round
VALUES_PER_TICK = 16  # one step of the counter gives 4 words, 16 values of 16 bits


def philox(seed: int, purpose: int, *, step: int = 0, site: int = 0, row: int = 0, tick: int = 0) -> "np.random.Philox":
    """A generator that starts at that address."""
    counter = np.array([tick & WORD, row & WORD, site & WORD, step & WORD], np.uint64)
    return np.random.Philox(key=np.array([seed & WORD, purpose], np.uint64), counter=counter)


def words(seed: int) -> Iterator[int]:
    """The words of 64 bits of `numpy.random.Philox(key=seed)`, for callers that need only a few: four take 6 us."""
    counter = 0
    while True:
        counter += 1
        yield from _block(counter, seed & WORD)


def _block(counter: int, key: int) -> tuple[int, int, int, int]:
    """Philox4x64-10 of a counter and a key whose other words are 0 (Salmon et al. 2011)."""
    a, b, c, d = counter & WORD, counter >> 64, 0, 0
    first, second = key, 0
    for _ in range(ROUNDS):
        high, low = divmod(MULTIPLIERS[0] * a, WORD + 1)
        top, bottom = divmod(MULTIPLIERS[1] * c, WORD + 1)
        a, b, c, d = top ^ b ^ first, bottom, high ^ d ^ second, low
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return a, b, c, d


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
