"""AdamW (Loshchilov & Hutter 2019), clipping by the global norm, and the learning rate's schedule, as torch computes them."""

from collections.abc import Sequence
from math import cos, pi, sqrt

import numpy as np

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
    """One step, in place in w and the moments m and v; steps count from 1. The decay acts on the old weight."""
    g = g * w.dtype.type(grad_scale)
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    w[...] = w - lr * weight_decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)


def global_norm(grads: Sequence[np.ndarray]) -> float:
    """Euclidean norm of all gradients together."""
    return sqrt(sum(float(np.square(grad, dtype=np.float64).sum()) for grad in grads))


def clip_scale(norm: float, clip: float | None) -> float:
    """What to multiply gradients with so that their norm is at most `clip`; 1 without a clip."""
    return 1.0 if clip is None else min(1.0, clip / (norm + CLIP_EPS))


def lr_schedule(step: int, warmup: int, total: int, lr_max: float, min_lr: float = 0.0) -> float:
    """Linear warm-up to lr_max, then half a cosine to min_lr at `total`, the last step, and min_lr from there on."""
    if step < warmup:
        return lr_max * step / warmup
    progress = min(1.0, (step - warmup) / (total - warmup)) if total > warmup else 1.0
    return min_lr + 0.5 * (lr_max - min_lr) * (1.0 + cos(pi * progress))
