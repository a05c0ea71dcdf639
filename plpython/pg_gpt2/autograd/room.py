"""What an op takes in memory: its result, and what it needs while it works, from shapes and attributes alone.

Both are bounds that hold for two threads; a test measures every op. Where shapes do not fit they say little: the op itself says
what is wrong.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..core.ops import CHUNK, IGNORED
from ..fast.attention import GROUP, MASK_PIECE, MOST_SCORES, mask_shape
from ..fast.elementwise import BLOCK
from ..fast.losses import group_rows

Shape = tuple[int, ...]
ITEM = 4  # bytes of a value
THREADS = 2


def result_bytes(name: str, shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> int:
    """Bytes of the result; 0 where it is small beside an input, or shapes do not fit."""
    try:
        return ITEM * _result(name, shapes, attrs)
    except (ValueError, IndexError, KeyError):
        return 0


def working_bytes(name: str, shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> int:
    """Bytes that a forward pass takes beside its inputs and its result."""
    try:
        return ITEM * _working(name, shapes, attrs)
    except (ValueError, IndexError, KeyError, ZeroDivisionError):
        return 0


def _result(name: str, shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> int:
    """Values of the result."""
    first = shapes[0]
    if name in ("add", "mul"):
        return prod(np.broadcast_shapes(*shapes))
    if name == "matmul":
        a, b = shapes
        return prod(np.broadcast_shapes(a[:-2], b[:-2])) * a[-2] * b[-1]
    if name in ("linear", "mlp"):
        return prod(first[:-1]) * shapes[-1][-1]
    if name == "lm_head":
        return prod(first[:-1]) * shapes[1][0]
    if name == "concat":
        return sum(map(prod, shapes))
    if name == "embedding":
        return np.size(attrs["ids"]) * prod(first[1:])
    if name == "causal_attention":
        return prod(first) // 3
    if name in ("sum", "mean", "cross_entropy", "lm_head_loss"):
        return 0
    return prod(first)


def _working(name: str, shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> int:
    """Values, or as much memory, beside inputs and result."""
    first = shapes[0]
    rows, width = prod(first[:-1]), first[-1] if first else 1
    if name == "mlp":
        return 2 * rows * shapes[1][1]  # hidden units, before and after gelu
    if name == "causal_attention":
        return _attention(first, attrs)
    if name == "attention":
        return 4 * rows * shapes[3][0] + _attention((*first[:-1], shapes[1][1]), attrs)  # q, k, v, and what they give
    if name == "lm_head_loss":
        # The rows that count, and their gradients.
        of_loss = 2 * prod(first) if np.any(np.equal(attrs["target"], IGNORED)) else 0
        return group_rows(rows, shapes[1][0]) * shapes[1][0] + THREADS * BLOCK + of_loss
    if name in ("softmax", "layernorm", "cross_entropy"):
        return 2 * THREADS * min(prod(first), max(width, BLOCK))
    if name == "gelu_exact":
        return 3 * THREADS * min(prod(first), BLOCK)  # the terms of erf
    if name == "dropout":
        return prod(first) // 2  # a mask, of bytes, and the random numbers that it is made of
    return 0


def _attention(qkv: Shape, attrs: Mapping[str, Any]) -> int:
    """Queries, keys and values of a group of heads, their scores twice, norms, and masks."""
    heads, t, values = attrs["n_head"], qkv[-2], prod(qkv)
    b = prod(qkv[:-2])
    chunk = max(1, min(attrs.get("chunk", CHUNK), t, MOST_SCORES // t))
    every = b * heads * chunk * t  # scores of a chunk
    group = min(every, max(2 * GROUP, chunk * t))
    masks = 0
    if attrs.get("p"):
        masks = (prod(mask_shape(b, heads, t)) + 4 * THREADS * min(t * t, MASK_PIECE)) // ITEM
    return values * min(every, THREADS * group) // every + 2 * THREADS * group + 2 * b * heads * t + masks
