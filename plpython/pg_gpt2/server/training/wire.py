"""Numbers as text, on their way to another server and back: dblink carries no other.

Six bits a character, as in base64, and in 16 / 3 characters a number. But array operations make them: of each byte of a float32
the low six bits are a character by themselves, and the four pairs of bits that are left are a byte, which goes as base64.
"""

import binascii

import numpy as np

from ...tensor import FLOAT32

# Characters are those from 0 to o: no quote, no dollar.
LOW, PAIRS, FIRST = (np.uint32(one) for one in (0x3F3F3F3F, 0x03030303, 0x30303030))
REST = ~LOW


def to_text(values: np.ndarray) -> str:  # float32 [n]
    """ASCII without quotes and dollars."""
    words = values.view(np.uint32)
    low = words & LOW
    low += FIRST
    high = words >> np.uint32(6)
    high &= PAIRS
    high |= high >> np.uint32(6)
    high |= high >> np.uint32(12)
    pairs = binascii.b2a_base64(high.astype(np.uint8).tobytes(), newline=False)
    return (low.tobytes() + pairs).decode("ascii")


def from_text(text: str) -> np.ndarray:  # float32 [n]
    """The numbers. ValueError where that is no text of `to_text`."""
    data, n = text.encode("ascii"), 3 * len(text) // 16
    pairs = binascii.a2b_base64(data[4 * n :])  # which passes over whatever is none of its letters
    if len(pairs) != n or len(data) != 4 * (n + -(-n // 3)):
        raise ValueError("characters that are missing, or too many")
    words = np.frombuffer(data, np.uint32, n) - FIRST
    if (words & REST).any():
        raise ValueError("a character that is not from 0 to o")
    high = np.frombuffer(pairs, np.uint8).astype(np.uint32)
    high |= high << np.uint32(12)
    high |= high << np.uint32(6)
    high &= PAIRS
    high <<= np.uint32(6)
    words |= high
    return words.view(FLOAT32)


def read(text: str, out: np.ndarray) -> None:  # float32 [n]
    """Write the numbers into `out`. ValueError, too, where they are fewer or more."""
    values = from_text(text)
    if values.size != out.size:
        raise ValueError(f"{values.size} numbers in the place of {out.size}")
    out[...] = values
