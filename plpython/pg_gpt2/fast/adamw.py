"""AdamW and the norm of all gradients, in place on fixed pieces, so that a step needs little memory beside the arrays."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import sqrt
from typing import Any

import numpy as np

from ..fast import buffers, threads
from ..fast.blas import add_scaled
from . import slices

PIECE = 1 << 20  # scalars: smaller ones stay in a core's cache, but more calls want the interpreter
SMALL = 1 << 14  # scalars of a tensor that is taken together with others
NORM_PIECE = 1 << 18  # the norm's bits depend on it


def adamw(
    w: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One step on flat arrays, in place in w, m and v; g stays. The decay acts on the old weight.

    `1 - beta` is taken in the arrays' precision, as the moments themselves are. Every pass over memory counts, so
    grad_scale and the bias corrections are in the constants: w -= lr' m / (sqrt(v) + eps').
    """
    kind = w.dtype.type
    a = buffers.scratch("adamw_a", w.shape, w.dtype)
    correction = sqrt(1.0 - beta2**step)
    np.multiply(g, g, out=a)
    add_scaled(float(kind(1) - kind(beta2)) * grad_scale**2, a, beta2, v)
    add_scaled(float(kind(1) - kind(beta1)) * grad_scale, g, beta1, m)
    np.sqrt(v, out=a)
    a += kind(eps * correction)
    np.divide(m, a, out=a)
    add_scaled(-lr * correction / (1.0 - beta1**step), a, 1.0 - lr * weight_decay, w)


def step_all(
    weights: Mapping[str, np.ndarray],
    grads: Mapping[str, np.ndarray],
    m: Mapping[str, np.ndarray],
    v: Mapping[str, np.ndarray],
    steps: Mapping[str, int],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
) -> None:
    """AdamW on every parameter in `grads`; decay on tensors of two or more dimensions. `steps` are those being made."""
    tasks = []
    gathered: dict[tuple[float, int], list[list[np.ndarray]]] = {}
    for name, grad in grads.items():
        decay, step = weight_decay if grad.ndim >= 2 else 0.0, steps[name]
        flat = [_flat(array) for array in (weights[name], grad, m[name], v[name])]
        if grad.size < SMALL:
            gathered.setdefault((decay, step), []).append(flat)
        else:
            for part in slices.pieces(grad.size, PIECE):
                tasks.append(partial(adamw, *(array[part] for array in flat), weight_decay=decay, step=step))
    for (decay, step), tensors in gathered.items():
        tasks.append(partial(_adamw_together, tensors, weight_decay=decay, step=step))
    rest = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "grad_scale": grad_scale}
    threads.run([partial(task, **rest) for task in tasks])


def _adamw_together(tensors: Sequence[Sequence[np.ndarray]], **hyper: Any) -> None:
    """`adamw` on small tensors (w, g, m, v) as if they were one: copying them is faster than a dozen calls for each."""
    joined = [np.concatenate(arrays) for arrays in zip(*tensors)]
    adamw(*joined, **hyper)
    start = 0
    for w, _, m, v in tensors:
        part = slice(start, start + w.size)
        w[...], m[...], v[...] = joined[0][part], joined[2][part], joined[3][part]
        start = part.stop


def _flat(array: np.ndarray) -> np.ndarray:
    """A flat view; a copy would lose the update."""
    if not array.flags.c_contiguous:
        raise ValueError("parameters and their state must be contiguous")
    return array.reshape(-1)


def global_norm(grads: Sequence[np.ndarray]) -> float:
    """Euclidean norm of all gradients together; dot products of fixed pieces, added in float64."""
    parts = [(grad.reshape(-1), part) for grad in grads for part in slices.pieces(grad.size, NORM_PIECE)]
    squares = np.zeros(len(parts))

    def square(i: int) -> None:
        flat, part = parts[i]
        squares[i] = np.dot(flat[part], flat[part])

    threads.run([lambda i=i: square(i) for i in range(len(parts))])  # type: ignore[misc]
    return sqrt(squares.sum())
