"""gelu in the tanh form GPT-2 uses (Hendrycks & Gimpel 2016), and softmax over the last axis."""

from typing import Any

import numpy as np

from ..core.op import Grads, replace
from ..core.ops import SQRT_2_OVER_PI
from . import buffers, threads
from .elementwise import block_rows, contiguous, for_blocks

CUBIC = 0.044715


def _gelu_gate(x: np.ndarray, out: np.ndarray) -> None:
    """out = 0.5 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): what gelu multiplies x with."""
    np.multiply(x, x, out=out)
    out *= SQRT_2_OVER_PI * CUBIC
    out += SQRT_2_OVER_PI
    out *= x
    np.tanh(out, out=out)
    out += 1.0
    out *= 0.5


def gelu(x: np.ndarray) -> np.ndarray:  # [..] -> [..]
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    y = buffers.empty(x.shape, x.dtype)
    for_blocks(gelu_into, contiguous(x), y)
    return y


def gelu_into(x: np.ndarray, y: np.ndarray) -> None:
    """y = gelu(x), not the same memory."""
    _gelu_gate(x, y)
    y *= x


def gelu_saving(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [..] -> 2 x [..]
    """gelu, and what x was multiplied with."""

    def block(x: np.ndarray, y: np.ndarray, gate: np.ndarray) -> None:
        _gelu_gate(x, gate)
        np.multiply(gate, x, out=y)

    y, gates = buffers.empty(x.shape, x.dtype), buffers.empty(x.shape, x.dtype)
    for_blocks(block, contiguous(x), y, gates)
    return y, gates


def gelu_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, saved: np.ndarray | None = None) -> Grads:
    """dx = dy * s (1 + (1 - s) 2 sqrt(2/pi) (x + 3 * 0.044715 x^3)), s the factor of x in gelu."""

    def block(dy: np.ndarray, x: np.ndarray, dx: np.ndarray, gate: np.ndarray | None = None) -> None:
        inner = buffers.scratch("gelu", x.shape, x.dtype)
        if gate is None:
            gate = buffers.scratch("gelu_gate", x.shape, x.dtype)
            _gelu_gate(x, gate)
        np.multiply(x, x, out=inner)
        inner *= 6.0 * SQRT_2_OVER_PI * CUBIC
        inner += 2.0 * SQRT_2_OVER_PI
        inner *= x
        np.subtract(1.0, gate, out=dx)
        dx *= inner
        dx += 1.0
        dx *= gate
        dx *= dy

    dx = buffers.empty(x.shape, x.dtype)
    for_blocks(block, contiguous(dy), contiguous(x), dx, *(() if saved is None else (saved,)))
    return (dx,)


replace("gelu", gelu, gelu_backward, saving=gelu_saving)


def _for_row_blocks(work: Any, *arrays: np.ndarray) -> None:
    """Call `work(*blocks)` on blocks of whole rows of arrays [.., n]."""
    n = arrays[0].shape[-1]
    rows = [array.reshape(-1, n) for array in arrays]
    threads.for_rows(len(rows[0]), block_rows(len(rows[0]), n), lambda block: work(*(array[block] for array in rows)))


def softmax(x: np.ndarray) -> np.ndarray:  # [.., n] -> [.., n]
    """exp(x) / sum(exp(x)) over the last axis."""

    def block(x: np.ndarray, y: np.ndarray) -> None:
        np.subtract(x, x.max(axis=-1, keepdims=True), out=y)  # so that nothing overflows
        np.exp(y, out=y)
        y /= y.sum(axis=-1, keepdims=True)

    y = buffers.empty(x.shape, x.dtype)
    _for_row_blocks(block, contiguous(x), y)
    return y


def softmax_backward(dy: np.ndarray, y: np.ndarray | None, x: np.ndarray) -> Grads:
    """dx = y * (dy - sum(y * dy))."""

    def block(dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        np.subtract(dy, np.einsum("ij,ij->i", y, dy)[:, None], out=dx)
        dx *= y

    dx = buffers.empty(dy.shape, dy.dtype)
    _for_row_blocks(block, contiguous(dy), contiguous(softmax(x) if y is None else y), dx)
    return (dx,)


replace("softmax", softmax, softmax_backward)
