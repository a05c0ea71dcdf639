"""AdamW (Loshchilov & Hutter 2019), global-norm clipping, and the learning rate's schedule, as torch computes them.

Everything works in place on fixed pieces, so that a step needs little memory beside the arrays.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import cos, isfinite, pi, sqrt
from typing import Any

import numpy as np

from ..errors import InvalidParameter
from ..fast import buffers, threads
from ..fast.blas import add_scaled

PIECE = 1 << 20  # scalars: smaller ones stay in a core's cache, but more calls want the interpreter
SMALL = 1 << 14  # scalars of a tensor that is taken together with others
NORM_PIECE = 1 << 18  # the norm's bits depend on it
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


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


def check_adamw(lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int) -> None:
    """22023 when a hyperparameter is outside its domain."""
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not (isfinite(value) and value >= 0):
            raise InvalidParameter(
                f"{name} must be a finite number of at least 0, not {value}",
                hint="torch's defaults are lr 1e-3, eps 1e-8 and weight_decay 0.01.",
            )
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise InvalidParameter(
                f"{name} must be at least 0 and below 1, not {value}",
                hint="torch's defaults are beta1 0.9 and beta2 0.999.",
            )
    if step < 1:
        raise InvalidParameter(f"step must be at least 1, not {step}", hint="AdamW counts its steps from 1.")


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
        check_adamw(lr, beta1, beta2, eps, decay, step)
        flat = [_flat(array) for array in (weights[name], grad, m[name], v[name])]
        if grad.size < SMALL:
            gathered.setdefault((decay, step), []).append(flat)
        else:
            for part in threads.pieces(grad.size, PIECE):
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
    parts = [(grad.reshape(-1), part) for grad in grads for part in threads.pieces(grad.size, NORM_PIECE)]
    squares = np.zeros(len(parts))

    def square(i: int) -> None:
        flat, part = parts[i]
        squares[i] = np.dot(flat[part], flat[part])

    threads.run([lambda i=i: square(i) for i in range(len(parts))])  # type: ignore[misc]
    return sqrt(squares.sum())


def clip_scale(norm: float, clip: float | None) -> float:
    """What to multiply gradients with so that their norm is at most `clip`; 1 without a clip."""
    if clip is None:
        return 1.0
    if not clip > 0:
        raise InvalidParameter(f"grad_clip must be positive, not {clip}", hint="NULL turns clipping off.")
    return min(1.0, clip / (norm + CLIP_EPS))


def lr_schedule(step: int, warmup: int, total: int, lr_max: float, min_lr: float = 0.0) -> float:
    """Linear warm-up to lr_max, then half a cosine to min_lr at `total`, and min_lr from there on."""
    if step < warmup:
        return lr_max * step / warmup
    progress = min(1.0, (step - warmup) / (total - warmup)) if total > warmup else 1.0
    return min_lr + 0.5 * (lr_max - min_lr) * (1.0 + cos(pi * progress))


def run_lr(step: int, n_steps: int, warmup: int, lr_max: float, min_lr: float = 0.0) -> float:
    """Learning rate of step 1 .. n of a run: `lr_schedule` with the warm-up cut to n / 10; lr_max when n is 1."""
    if n_steps == 1:
        return lr_max
    return lr_schedule(step, min(warmup, n_steps // 10), n_steps, lr_max, min_lr)
