"""The optimizer of a run: AdamW, clipping, schedule, their domains checked; by `fast` or, where that is off, by `core`."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from ..core import adamw as plain
from ..core.adamw import lr_schedule as lr_schedule
from ..core.op import is_fast
from ..errors import InvalidParameter
from ..fast import adamw as fast
from ..fast import threads


def check_adamw(lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int) -> None:
    """Refuse (22023) a hyperparameter that is outside its domain."""
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


def adamw(w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, **hyper: Any) -> None:
    """One step on flat arrays, in place in w, m and v; hyperparameters are those of `core.adamw`."""
    if is_fast():
        threads.for_rows(w.size, fast.PIECE, lambda part: fast.adamw(w[part], g[part], m[part], v[part], **hyper))
    else:
        plain.adamw(w, g, m, v, **hyper)


def step_all(
    weights: Mapping[str, np.ndarray],
    grads: Mapping[str, np.ndarray],
    m: Mapping[str, np.ndarray],
    v: Mapping[str, np.ndarray],
    steps: Mapping[str, int],
    *,
    weight_decay: float,
    **hyper: Any,
) -> None:
    """AdamW on every parameter in `grads`; decay on tensors of two or more dimensions. `steps` are those being made."""
    if is_fast():
        fast.step_all(weights, grads, m, v, steps, weight_decay=weight_decay, **hyper)
        return
    for name, grad in grads.items():
        decay = weight_decay if grad.ndim >= 2 else 0.0
        plain.adamw(weights[name], grad, m[name], v[name], step=steps[name], weight_decay=decay, **hyper)


def global_norm(grads: Sequence[np.ndarray]) -> float:
    """Euclidean norm of all gradients together."""
    return fast.global_norm(grads) if is_fast() else plain.global_norm(grads)


def clip_scale(norm: float, clip: float | None) -> float:
    """What to multiply gradients with so that their norm is at most `clip`; 1 without a clip."""
    if clip is not None and not clip > 0:
        raise InvalidParameter(f"grad_clip must be positive, not {clip}", hint="NULL turns clipping off.")
    return plain.clip_scale(norm, clip)


def run_lr(step: int, n_steps: int, warmup: int, lr_max: float, min_lr: float = 0.0, schedule: str = "cosine") -> float:
    """Learning rate of step 1 .. n of a run, with the warm-up cut to n / 10; lr_max when n is 1.

    With min_lr 0 it is lr_max times what transformers' get_cosine_, get_linear_ and get_constant_schedule_with_warmup give
    for the same step. These count the first step 0 and so never reach the end, which is here the last step.
    """
    if n_steps == 1:
        return lr_max
    warmup = min(warmup, n_steps // 10)
    if schedule == "cosine":
        return lr_schedule(step, warmup, n_steps, lr_max, min_lr)
    if step < warmup:
        return lr_max * step / warmup
    if schedule == "constant":
        return lr_max
    left = max(0.0, (n_steps - step) / (n_steps - warmup))
    return min_lr + (lr_max - min_lr) * left
