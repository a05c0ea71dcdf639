"""What GPT-2's relatives have in the place of gelu between the two layers of a block's network, by the names of transformers.

As in ops.py, each with its gradient. gelu in the exact form is gelu_exact here; the form that GPT-2 has is in ops.py.
Source: Hendrycks & Gimpel 2016.
"""

import math
from math import pi, sqrt
from typing import Any

import numpy as np

from .op import Grads, register


def erf(x: np.ndarray) -> np.ndarray:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x; NumPy has none, Python has it for one number."""
    return np.fromiter(map(math.erf, x.flat), x.dtype, x.size).reshape(x.shape)


def gelu_exact(x: np.ndarray) -> np.ndarray:
    """x Phi(x), Phi(x) = 0.5 (1 + erf(x / sqrt(2))) the distribution function of the standard normal: gelu as it is defined."""
    return np.asarray(0.5 * x * (1.0 + erf(x / sqrt(2.0))), x.dtype)


def gelu_exact_backward(dy: np.ndarray, y: Any, x: np.ndarray) -> Grads:
    """dy (Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi))."""
    cdf, pdf = 0.5 * (1.0 + erf(x / sqrt(2.0))), np.exp(-0.5 * x**2) / sqrt(2.0 * pi)
    return (np.asarray(dy * (cdf + x * pdf), x.dtype),)


register("gelu_exact", gelu_exact, gelu_exact_backward, "x", reads=(0,))


def relu(x: np.ndarray) -> np.ndarray:
    """x where that is positive, else 0."""
    return np.maximum(x, x.dtype.type(0))


def relu_backward(dy: np.ndarray, y: Any, x: np.ndarray) -> Grads:
    """dy where x is positive, else 0."""
    return (dy * (x > 0),)


register("relu", relu, relu_backward, "x", reads=(0,))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), by a logarithm that does not overflow."""
    return np.exp(-np.logaddexp(x.dtype.type(0), -x))


def silu(x: np.ndarray) -> np.ndarray:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def silu_backward(dy: np.ndarray, y: Any, x: np.ndarray) -> Grads:
    """dy s (1 + x (1 - s)), s = sigmoid(x)."""
    s = sigmoid(x)
    return (dy * s * (1.0 + x * (1.0 - s)),)


register("silu", silu, silu_backward, "x", reads=(0,))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """x sigmoid(1.702 x): close to gelu."""
    return x * sigmoid(x * x.dtype.type(1.702))


def quick_gelu_backward(dy: np.ndarray, y: Any, x: np.ndarray) -> Grads:
    """dy s (1 + 1.702 x (1 - s)), s = sigmoid(1.702 x)."""
    k = x.dtype.type(1.702)
    s = sigmoid(k * x)
    return (dy * s * (1.0 + k * x * (1.0 - s)),)


register("quick_gelu", quick_gelu, quick_gelu_backward, "x", reads=(0,))


def tanh(x: np.ndarray) -> np.ndarray:
    """The hyperbolic tangent."""
    return np.tanh(x)


def tanh_backward(dy: np.ndarray, y: np.ndarray | None, x: np.ndarray) -> Grads:
    """dy (1 - y^2)."""
    y = tanh(x) if y is None else y
    return (dy * (1.0 - y**2),)


register("tanh", tanh, tanh_backward, "x", reads=("y",))
