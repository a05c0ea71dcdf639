"""What a block's network may have between its two layers, and softmax over the last axis.

Most are x times a gate: gelu in the tanh form that GPT-2 uses and in the exact one, silu, quick_gelu (Hendrycks & Gimpel 2016).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from ..core.op import Grads, replace
from ..core.ops import SQRT_2_OVER_PI
from . import buffers, threads
from .elementwise import block_rows, contiguous, for_blocks
from .erf import erf_into

CUBIC = 0.044715
Into = Callable[[np.ndarray, np.ndarray], None]  # (x, y): y = f(x), not the same memory


@dataclass(frozen=True)
class Gated:
    """y = x gate(x). `gate(x, out)`; `slope(x, gate, out)` gives the derivative of y, where out is not the same memory."""

    gate: Into
    slope: Callable[[np.ndarray, np.ndarray, np.ndarray], None]

    def into(self, x: np.ndarray, y: np.ndarray) -> None:
        """y = x gate(x), not the same memory."""
        self.gate(x, y)
        y *= x

    def __call__(self, x: np.ndarray) -> np.ndarray:  # [..] -> [..]
        """x gate(x)."""
        return _mapped(self.into, x)

    def saving(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [..] -> 2 x [..]
        """x gate(x), and the gate."""

        def block(x: np.ndarray, y: np.ndarray, gate: np.ndarray) -> None:
            self.gate(x, gate)
            np.multiply(gate, x, out=y)

        y, gates = buffers.empty(x.shape, x.dtype), buffers.empty(x.shape, x.dtype)
        for_blocks(block, contiguous(x), y, gates)
        return y, gates

    def backward(self, dy: np.ndarray, y: Any, x: np.ndarray, *, saved: np.ndarray | None = None) -> Grads:
        """dy times the derivative; saved is the gate."""

        def block(dy: np.ndarray, x: np.ndarray, dx: np.ndarray, gate: np.ndarray | None = None) -> None:
            if gate is None:
                gate = buffers.scratch("gate", x.shape, x.dtype)
                self.gate(x, gate)
            self.slope(x, gate, dx)
            dx *= dy

        dx = buffers.empty(x.shape, x.dtype)
        for_blocks(block, contiguous(dy), contiguous(x), dx, *(() if saved is None else (saved,)))
        return (dx,)


def _mapped(into: Into, x: np.ndarray) -> np.ndarray:
    y = buffers.empty(x.shape, x.dtype)
    for_blocks(into, contiguous(x), y)
    return y


def _tanh_gate(x: np.ndarray, out: np.ndarray) -> None:
    """0.5 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), as 1 / (1 + exp(-2u)): an exponential takes half the time."""
    np.multiply(x, x, out=out)
    out *= -2.0 * SQRT_2_OVER_PI * CUBIC
    out -= 2.0 * SQRT_2_OVER_PI
    out *= x
    with np.errstate(over="ignore"):  # 1 / infinity is the right 0
        np.exp(out, out=out)
    out += 1.0
    np.divide(1.0, out, out=out)


def _tanh_slope(x: np.ndarray, gate: np.ndarray, out: np.ndarray) -> None:
    """s (1 + (1 - s) 2 sqrt(2/pi) (x + 3 * 0.044715 x^3)), s the gate."""
    inner = buffers.scratch("slope", x.shape, x.dtype)
    np.multiply(x, x, out=inner)
    inner *= 6.0 * SQRT_2_OVER_PI * CUBIC
    inner += 2.0 * SQRT_2_OVER_PI
    inner *= x
    np.subtract(1.0, gate, out=out)
    out *= inner
    out += 1.0
    out *= gate


def _normal_gate(x: np.ndarray, out: np.ndarray) -> None:
    """0.5 (1 + erf(x / sqrt(2)))."""
    scaled = buffers.scratch("scaled", x.shape, x.dtype)
    np.multiply(x, sqrt(0.5), out=scaled)
    erf_into(scaled, out)
    out += 1.0
    out *= 0.5


def _normal_slope(x: np.ndarray, gate: np.ndarray, out: np.ndarray) -> None:
    """s + x exp(-x^2 / 2) / sqrt(2 pi), s the gate."""
    np.multiply(x, x, out=out)
    out *= -0.5
    np.exp(out, out=out)
    out *= x
    out *= 0.5 * SQRT_2_OVER_PI
    out += gate


def _sigmoid(k: float) -> Gated:
    """x sigmoid(k x), with the derivative s (1 + k x (1 - s)), s the gate."""

    def gate(x: np.ndarray, out: np.ndarray) -> None:
        np.multiply(x, -k, out=out)
        with np.errstate(over="ignore"):  # 1 / infinity is the right 0
            np.exp(out, out=out)
        out += 1.0
        np.divide(1.0, out, out=out)

    def slope(x: np.ndarray, gate: np.ndarray, out: np.ndarray) -> None:
        np.subtract(1.0, gate, out=out)
        out *= x
        out *= k
        out += 1.0
        out *= gate

    return Gated(gate, slope)


def _relu_into(x: np.ndarray, y: np.ndarray) -> None:
    np.maximum(x, 0.0, out=y)


def relu(x: np.ndarray) -> np.ndarray:  # [..] -> [..]
    """x where that is positive, else 0."""
    return _mapped(_relu_into, x)


def relu_backward(dy: np.ndarray, y: Any, x: np.ndarray) -> Grads:
    """dy where x is positive, else 0."""
    dx = buffers.empty(x.shape, x.dtype)
    for_blocks(lambda dy, x, dx: np.multiply(dy, x > 0.0, out=dx), contiguous(dy), contiguous(x), dx)
    return (dx,)


def _tanh_into(x: np.ndarray, y: np.ndarray) -> None:
    np.tanh(x, out=y)


def tanh(x: np.ndarray) -> np.ndarray:  # [..] -> [..]
    """The hyperbolic tangent."""
    return _mapped(_tanh_into, x)


def tanh_backward(dy: np.ndarray, y: np.ndarray | None, x: np.ndarray) -> Grads:
    """dy (1 - y^2)."""

    def block(dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        np.multiply(y, y, out=dx)
        np.subtract(1.0, dx, out=dx)
        dx *= dy

    dx = buffers.empty(dy.shape, dy.dtype)
    for_blocks(block, contiguous(dy), contiguous(tanh(x) if y is None else y), dx)
    return (dx,)


gelu = Gated(_tanh_gate, _tanh_slope)
GATED = {
    "gelu": gelu,
    "gelu_exact": Gated(_normal_gate, _normal_slope),
    "silu": _sigmoid(1.0),
    "quick_gelu": _sigmoid(1.702),
}
for name, form in GATED.items():
    replace(name, form, form.backward, saving=form.saving)
replace("relu", relu, relu_backward)
replace("tanh", tanh, tanh_backward)
# What a block's network may have between its two layers, by the name of the op.
INTO: dict[str, Into] = {name: form.into for name, form in GATED.items()} | {"relu": _relu_into, "tanh": _tanh_into}


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
