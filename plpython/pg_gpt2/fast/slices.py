"""Work cut into pieces that depend on the problem's size only, so that results are the same bits at any number of threads."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any


def parts(shape: Sequence[int], size: int) -> Iterator[tuple[Any, ...]]:
    """Indices that cut an array of that shape into parts of at most `size` elements, in row-major order; each gives a view."""
    inner = prod(shape[1:])
    if prod(shape) <= size:
        yield (...,)
    elif inner <= size:
        yield from ((rows,) for rows in pieces(shape[0], size // inner))
    else:
        yield from ((i, *rest) for i in range(shape[0]) for rest in parts(shape[1:], size))


def pieces(total: int, size: int) -> list[slice]:
    """Cut `total` items into slices of at most `size`, by size only."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
