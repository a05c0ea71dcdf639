"""Checksums of weights: any one byte counts, and so does the order of pieces of 4 kB, but not how the data arrive."""

import numpy as np
import pytest
from pg_gpt2.server.storage.checksum import RUN_BYTES, SIZE, Checksum


def checksum(*pieces: bytes) -> bytes:
    found = Checksum()
    for piece in pieces:
        found.update(piece)
    return found.digest()


@pytest.mark.parametrize("size", [1, 7, RUN_BYTES - 1, RUN_BYTES, RUN_BYTES + 1, 2 * RUN_BYTES + 9])
def test_any_flipped_bit_shows(size):
    source = np.random.default_rng(size)
    data = source.bytes(size)
    assert len(checksum(data)) == SIZE
    for place in {0, size - 1, *source.integers(0, size, 50).tolist()}:
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            assert checksum(bytes(flipped)) != checksum(data)


def test_pieces_in_another_order_show_and_where_they_were_cut_does_not():
    a, b, c = (np.random.default_rng(seed).bytes(RUN_BYTES) for seed in (1, 2, 3))
    assert checksum(a + b + c[:99]) == checksum(a, b + c[:99]) == checksum(memoryview(a + b), c[:99])
    assert checksum(a + b) != checksum(b + a)
    assert checksum(b"") != checksum(bytes(8)) != checksum(bytes(16))
