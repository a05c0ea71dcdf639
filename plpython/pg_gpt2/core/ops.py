"""The ops, plainly: each a function of arrays and beside it its gradient, in NumPy, as the papers write them.

Read from the top: what all networks have, then what makes a transformer. dy is the gradient of the loss by y; a gradient returns
one array for each input. y is there for those that need it; `reads` names what a gradient looks at, for tapes that free memory.
Weights are (in, out), as in GPT-2's checkpoints: y = x w + b. `[.., T, D]` is any number of leading
dimensions. Sources: Vaswani et al. 2017 (attention), Ba et al. 2016 (layernorm), Hendrycks & Gimpel 2016 (gelu), Srivastava
et al. 2014 (dropout).
"""

from collections.abc import Sequence
from math import pi, prod, sqrt
from typing import Any

import numpy as np

from . import activations, rng  # noqa: F401  (activations are entered, too)
from .op import Grads, register

CHUNK = 64  # query rows of attention at a time, in the form that computes it in pieces


def rows_of(x: np.ndarray) -> np.ndarray:  # [.., n] -> [m, n]
    """All leading dimensions as one."""
    return x.reshape(-1, x.shape[-1])


# --- elementwise, with NumPy's broadcasting --------------------------------------------------------------------------


def unbroadcast(dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum dy over the axes along which an input of that shape was repeated."""
    kept = dy.ndim - len(shape)
    axes = tuple(range(kept)) + tuple(kept + i for i, n in enumerate(shape) if n == 1)
    return dy.sum(axis=axes).reshape(shape)


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b."""
    return np.asarray(a + b)


def add_backward(dy: np.ndarray, y: Any, a: np.ndarray, b: np.ndarray) -> Grads:
    """dy for both."""
    return unbroadcast(dy, a.shape), unbroadcast(dy, b.shape)


register("add", add, add_backward, "a b")


def mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a * b."""
    return np.asarray(a * b)


def mul_backward(dy: np.ndarray, y: Any, a: np.ndarray, b: np.ndarray) -> Grads:
    """dy b, dy a."""
    return unbroadcast(dy * b, a.shape), unbroadcast(dy * a, b.shape)


register("mul", mul, mul_backward, "a b", reads=(0, 1))


def scale(x: np.ndarray, *, factor: float) -> np.ndarray:
    """x * factor."""
    return np.asarray(x * x.dtype.type(factor))


def scale_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, factor: float) -> Grads:
    """dy * factor."""
    return (scale(dy, factor=factor),)


register("scale", scale, scale_backward, "x")


def ones_like(x: np.ndarray) -> np.ndarray:
    """Ones of the shape of x."""
    return np.ones(x.shape, x.dtype)


def zeros_like(x: np.ndarray) -> np.ndarray:
    """Zeros of the shape of x."""
    return np.zeros(x.shape, x.dtype)


def no_gradient(dy: np.ndarray, y: Any, x: np.ndarray) -> Grads:
    """None: the result does not depend on the values of x."""
    return (None,)


register("ones_like", ones_like, no_gradient, "x")
register("zeros_like", zeros_like, no_gradient, "x")

SQRT_2_OVER_PI = sqrt(2.0 / pi)


def gelu(x: np.ndarray) -> np.ndarray:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the form that GPT-2 has."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3))), x.dtype)


def gelu_backward(dy: np.ndarray, y: Any, x: np.ndarray) -> Grads:
    """dy (0.5 (1 + t) + 0.5 x (1 - t^2) u'), t = tanh(u), u as in gelu."""
    t = np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3))
    du = SQRT_2_OVER_PI * (1.0 + 3 * 0.044715 * x**2)
    return (np.asarray(dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t**2) * du), x.dtype),)


register("gelu", gelu, gelu_backward, "x", reads=(0,))


def dropout(x: np.ndarray, *, p: float, seed: int = 0, step: int = 0, site: int = 0) -> np.ndarray:
    """x * mask / (1 - p): a mask is addressed by (seed, step, site), so that the gradient draws the same one again."""
    mask = rng.keep_mask(p, x.size, seed=seed, step=step, site=site).reshape(x.shape)
    return np.asarray(x * mask * x.dtype.type(1.0 / (1.0 - p)))


def dropout_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, *, p: float, seed: int = 0, step: int = 0, site: int = 0
) -> Grads:
    """dy * mask / (1 - p)."""
    return (dropout(dy, p=p, seed=seed, step=step, site=site),)


register("dropout", dropout, dropout_backward, "x")


# --- products ---------------------------------------------------------------------------------------------------------


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [.., m, k], [.., k, n] -> [.., m, n]
    """a b; leading dimensions broadcast."""
    return np.matmul(a, b)


def matmul_backward(dy: np.ndarray, y: Any, a: np.ndarray, b: np.ndarray) -> Grads:
    """da = dy b', db = a' dy."""
    return unbroadcast(dy @ b.swapaxes(-1, -2), a.shape), unbroadcast(a.swapaxes(-1, -2) @ dy, b.shape)


register("matmul", matmul, matmul_backward, "a b", reads=(0, 1))


def addmm(
    c: np.ndarray, a: np.ndarray, b: np.ndarray, *, factor: float = 1.0
) -> np.ndarray:  # [.., n], [.., k], [k, n] -> [.., n]
    """c + factor a b."""
    return c + (a @ b) * c.dtype.type(factor)


def addmm_backward(
    dy: np.ndarray, y: Any, c: np.ndarray, a: np.ndarray, b: np.ndarray, *, factor: float = 1.0
) -> Grads:
    """dc = dy, da = factor dy b', db = factor a' dy."""
    k = dy.dtype.type(factor)
    return dy, (dy @ b.T) * k, (rows_of(a).T @ rows_of(dy)) * k


register("addmm", addmm, addmm_backward, "c a b", reads=(1, 2))


def linear(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:  # [.., k], [k, n], [n] -> [.., n]
    """x w + b."""
    return x @ w + b


def linear_backward(dy: np.ndarray, y: Any, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> Grads:
    """dx = dy w', dw = x' dy, db = the sum of dy over rows."""
    return dy @ w.T, rows_of(x).T @ rows_of(dy), rows_of(dy).sum(axis=0)


register("linear", linear, linear_backward, "x w b", reads=(0, 1))


def mlp(
    x: np.ndarray, w_fc: np.ndarray, b_fc: np.ndarray, w_proj: np.ndarray, b_proj: np.ndarray
) -> np.ndarray:  # [.., D], [D, F], [F], [F, D], [D] -> [.., D]
    """linear, gelu, linear."""
    return linear(gelu(linear(x, w_fc, b_fc)), w_proj, b_proj)


def mlp_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    w_fc: np.ndarray,
    b_fc: np.ndarray,
    w_proj: np.ndarray,
    b_proj: np.ndarray,
) -> Grads:
    """The gradients of the three, in reverse."""
    hidden = linear(x, w_fc, b_fc)
    d_active, dw_proj, db_proj = linear_backward(dy, None, gelu(hidden), w_proj, b_proj)
    (d_hidden,) = gelu_backward(d_active, None, hidden)  # type: ignore[arg-type]
    return *linear_backward(d_hidden, None, x, w_fc, b_fc), dw_proj, db_proj  # type: ignore[arg-type]


register("mlp", mlp, mlp_backward, "x w_fc b_fc w_proj b_proj", reads=(0, 1, 2, 3))


def embedding(table: np.ndarray, *, ids: Any) -> np.ndarray:  # [V, D] -> [*ids.shape, D]
    """table[ids]."""
    return table[np.asarray(ids, np.int64)]


def embedding_backward(dy: np.ndarray, y: Any, table: np.ndarray, *, ids: Any) -> Grads:
    """Each row of dy added to its row of the table."""
    d_table = np.zeros(table.shape, dy.dtype)
    np.add.at(d_table, np.asarray(ids, np.int64), dy)
    return (d_table,)


register("embedding", embedding, embedding_backward, "table")


def lm_head(x: np.ndarray, wte: np.ndarray) -> np.ndarray:  # [.., D], [V, D] -> [.., V]
    """Logits: x wte', the output layer being the token embedding."""
    return x @ wte.T


def lm_head_backward(dy: np.ndarray, y: Any, x: np.ndarray, wte: np.ndarray) -> Grads:
    """dx = dy wte, dwte = dy' x."""
    return dy @ wte, rows_of(dy).T @ rows_of(x)


register("lm_head", lm_head, lm_head_backward, "x wte", reads=(0, 1))


# --- over the last axis -----------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:  # [.., n] -> [.., n]
    """exp(x) / sum(exp(x)), shifted by the largest so that nothing overflows."""
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def softmax_backward(dy: np.ndarray, y: np.ndarray | None, x: np.ndarray) -> Grads:
    """y (dy - sum(y dy))."""
    y = softmax(x) if y is None else y
    return (y * (dy - (y * dy).sum(axis=-1, keepdims=True)),)


register("softmax", softmax, softmax_backward, "x", reads=("y",))


def _normalized(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(x - mean) / sqrt(var + eps), and the root; the variance is the biased one."""
    root = np.sqrt(x.var(axis=-1, keepdims=True) + x.dtype.type(eps))
    return (x - x.mean(axis=-1, keepdims=True)) / root, root


def layernorm(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5
) -> np.ndarray:  # [.., n], [n], [n] -> [.., n]
    """(x - mean) / sqrt(var + eps) * gamma + beta."""
    return _normalized(x, eps)[0] * gamma + beta


def layernorm_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5
) -> Grads:
    """dx = (g - mean(g) - h mean(g h)) / root, g = dy gamma, h the normalised x; dgamma = sum(dy h), dbeta = sum(dy)."""
    h, root = _normalized(x, eps)
    g = dy * gamma
    dx = (g - g.mean(axis=-1, keepdims=True) - h * (g * h).mean(axis=-1, keepdims=True)) / root
    return dx, rows_of(dy * h).sum(axis=0), rows_of(dy).sum(axis=0)


register("layernorm", layernorm, layernorm_backward, "x gamma beta", reads=(0, 1))


# --- attention --------------------------------------------------------------------------------------------------------


def split_heads(x: np.ndarray, n_head: int) -> np.ndarray:  # [.., T, D] -> [.., H, T, D / H]
    """A matrix for each head."""
    return x.reshape(*x.shape[:-1], n_head, x.shape[-1] // n_head).swapaxes(-2, -3)


def merge_heads(x: np.ndarray) -> np.ndarray:  # [.., H, T, d] -> [.., T, H d]
    """The heads side by side again."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def scaled(x: np.ndarray, d: int, factor: float | None) -> np.ndarray:
    """x times `factor`; None = 1 / sqrt(d), d being the width of a head."""
    return x / x.dtype.type(sqrt(d)) if factor is None else x * x.dtype.type(factor)


def attend(
    q: np.ndarray, k: np.ndarray, factor: float | None = None
) -> np.ndarray:  # [.., t, d], [.., T, d] -> [.., t, T]
    """Probabilities softmax(q k' / sqrt(d)): the last of t queries sees all T keys, each earlier one a key less."""
    scores = scaled(q @ k.swapaxes(-1, -2), q.shape[-1], factor)
    t, length = scores.shape[-2:]
    future = np.triu(np.full((t, length), -np.inf, q.dtype), 1 + length - t)
    return softmax(scores + future)


def _dropped(w: np.ndarray, p: float, **address: int) -> np.ndarray:  # [.., T, T] -> [.., T, T]
    """w * mask / (1 - p), where each head has a row of masks."""
    if not p:
        return w
    t = w.shape[-1]
    width = -(-t // rng.VALUES_PER_TICK) * rng.VALUES_PER_TICK
    masks = [rng.keep_mask(p, t * width, row=row, **address) for row in range(prod(w.shape[:-2]))]  # type: ignore[arg-type]
    return np.asarray(w * np.reshape(masks, (*w.shape[:-1], width))[..., :t] * w.dtype.type(1.0 / (1.0 - p)))


def causal_attention(
    qkv: np.ndarray,
    *,
    n_head: int,
    factor: float | None = None,
    chunk: int = CHUNK,
    p: float = 0.0,
    seed: int = 0,
    step: int = 0,
    site: int = 0,
) -> np.ndarray:  # [.., T, 3D] -> [.., T, D]
    """softmax(factor q k') v of each head; position t sees 1 .. t; p drops probabilities. No factor = 1 / sqrt(d). `chunk` is
    for faster forms."""
    q, k, v = (split_heads(part, n_head) for part in np.split(qkv, 3, axis=-1))
    w = attend(q, k, factor)
    return merge_heads(_dropped(w, p, seed=seed, step=step, site=site) @ v)


def causal_attention_backward(
    dy: np.ndarray,
    y: Any,
    qkv: np.ndarray,
    *,
    n_head: int,
    factor: float | None = None,
    chunk: int = CHUNK,
    p: float = 0.0,
    seed: int = 0,
    step: int = 0,
    site: int = 0,
) -> Grads:
    """Through the product with v, dropout, softmax, and the product q k'."""
    q, k, v = (split_heads(part, n_head) for part in np.split(qkv, 3, axis=-1))
    w, dy = attend(q, k, factor), split_heads(dy, n_head)
    dv = _dropped(w, p, seed=seed, step=step, site=site).swapaxes(-1, -2) @ dy
    dw = _dropped(dy @ v.swapaxes(-1, -2), p, seed=seed, step=step, site=site)
    d_scores = scaled(w * (dw - (w * dw).sum(axis=-1, keepdims=True)), q.shape[-1], factor)
    dq, dk = d_scores @ k, d_scores.swapaxes(-1, -2) @ q
    return (np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1),)


register("causal_attention", causal_attention, causal_attention_backward, "qkv", reads=(0,))


def attention(
    x: np.ndarray,
    w_qkv: np.ndarray,
    b_qkv: np.ndarray,
    w_o: np.ndarray,
    b_o: np.ndarray,
    *,
    n_head: int,
    chunk: int = CHUNK,
) -> np.ndarray:  # [.., T, D], [D, 3D], [3D], [D, D], [D] -> [.., T, D]
    """linear, causal_attention, linear."""
    return linear(causal_attention(linear(x, w_qkv, b_qkv), n_head=n_head), w_o, b_o)


def attention_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    w_qkv: np.ndarray,
    b_qkv: np.ndarray,
    w_o: np.ndarray,
    b_o: np.ndarray,
    *,
    n_head: int,
    chunk: int = CHUNK,
) -> Grads:
    """The gradients of the three, in reverse."""
    qkv = linear(x, w_qkv, b_qkv)
    d_mixed, dw_o, db_o = linear_backward(dy, None, causal_attention(qkv, n_head=n_head), w_o, b_o)
    (d_qkv,) = causal_attention_backward(d_mixed, None, qkv, n_head=n_head)  # type: ignore[arg-type]
    return *linear_backward(d_qkv, None, x, w_qkv, b_qkv), dw_o, db_o  # type: ignore[arg-type]


register("attention", attention, attention_backward, "x w_qkv b_qkv w_o b_o", reads=(0, 1, 2, 3))


# --- losses -----------------------------------------------------------------------------------------------------------


IGNORED = -100  # a target that carries no loss, as in torch


def counted(target: Any, weight: Any = None) -> tuple[slice | np.ndarray, np.ndarray, np.ndarray | None]:
    """Which rows carry loss, and of those the classes and the weights; no weights: all count alike.

    `weight` has one for each target, or one for each of its leading dimensions, as for each sequence [B] of targets [B, T].
    """
    classes = np.asarray(target, np.int64)
    if weight is not None:
        weight = np.asarray(weight, np.float64)
        weight = weight.reshape(weight.shape + (1,) * (classes.ndim - weight.ndim))
        weight = np.broadcast_to(weight, classes.shape).reshape(-1)
    classes = classes.reshape(-1)
    rows = np.flatnonzero(classes != IGNORED)
    if rows.size == classes.size:
        return slice(None), classes, weight
    return rows, classes[rows], None if weight is None else weight[rows]


def cross_entropy(logits: np.ndarray, *, target: Any, weight: Any = None) -> np.ndarray:  # [.., V] -> []
    """Weighted mean of logsumexp(z) - z[target] over the rows that carry loss; 0 where none does."""
    rows, classes, weight = counted(target, weight)
    z = rows_of(logits)[rows]
    if not len(z):
        return np.zeros((), logits.dtype)
    top = z.max(axis=-1)
    logsumexp = np.log(np.exp(z - top[:, None]).sum(axis=-1, dtype=np.float64)) + top
    picked = z[np.arange(len(z)), classes]
    return np.asarray(np.average(logsumexp - picked, weights=weight), logits.dtype)


def cross_entropy_backward(dy: np.ndarray, y: Any, logits: np.ndarray, *, target: Any, weight: Any = None) -> Grads:
    """dy (softmax(z) - onehot(target)) times the share of each row, 1 / rows without weights; 0 without loss."""
    rows, classes, weight = counted(target, weight)
    d_logits = np.zeros_like(rows_of(logits))
    d = softmax(rows_of(logits)[rows])
    d[np.arange(len(d)), classes] -= 1.0
    share = float(dy) / max(1, len(d)) if weight is None else float(dy) * (weight / weight.sum())[:, None]
    d_logits[rows] = d * np.asarray(share, logits.dtype)
    return (d_logits.reshape(logits.shape),)


register("cross_entropy", cross_entropy, cross_entropy_backward, "logits", reads=(0,))


def lm_head_loss(
    x: np.ndarray, wte: np.ndarray, *, target: Any, weight: Any = None
) -> np.ndarray:  # [.., D], [V, D] -> []
    """cross_entropy(x wte')."""
    return cross_entropy(lm_head(x, wte), target=target, weight=weight)


def lm_head_loss_backward(
    dy: np.ndarray, y: Any, x: np.ndarray, wte: np.ndarray, *, target: Any, weight: Any = None
) -> Grads:
    """The gradients of both, in reverse."""
    (d_logits,) = cross_entropy_backward(dy, None, lm_head(x, wte), target=target, weight=weight)
    return lm_head_backward(d_logits, None, x, wte)  # type: ignore[arg-type]


register("lm_head_loss", lm_head_loss, lm_head_loss_backward, "x wte", reads=(0, 1))


# --- shapes and sums --------------------------------------------------------------------------------------------------


def transpose(x: np.ndarray, *, axes: Sequence[int] | None = None) -> np.ndarray:  # [.., m, n] -> [.., n, m]
    """The last two axes swapped, or all in the order of `axes`."""
    return x.swapaxes(-1, -2) if axes is None else x.transpose(axes)


def transpose_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, axes: Sequence[int] | None = None) -> Grads:
    """The inverse permutation."""
    if axes is None:
        return (dy.swapaxes(-1, -2),)
    return (dy.transpose(np.argsort([axis % x.ndim for axis in axes])),)


register("transpose", transpose, transpose_backward, "x")


def reshape(x: np.ndarray, *, shape: Sequence[int]) -> np.ndarray:
    """The values of x in row-major order under another shape; one dimension may be -1."""
    return x.reshape(tuple(shape))


def reshape_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, shape: Sequence[int]) -> Grads:
    """The old shape."""
    return (dy.reshape(x.shape),)


register("reshape", reshape, reshape_backward, "x")


def _part(ndim: int, axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None),) * (axis % ndim) + (slice(start, stop),)


def slice_(x: np.ndarray, *, axis: int, start: int, stop: int) -> np.ndarray:
    """start .. stop - 1 along `axis`, counted from 0."""
    return x[_part(x.ndim, axis, start, stop)]


def slice_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int, start: int, stop: int) -> Grads:
    """Zero outside the slice."""
    dx = np.zeros(x.shape, dy.dtype)
    dx[_part(x.ndim, axis, start, stop)] = dy
    return (dx,)


register("slice", slice_, slice_backward, "x")


def concat(*xs: np.ndarray, axis: int = 0) -> np.ndarray:
    """The inputs one after the other along `axis`."""
    return np.concatenate(xs, axis=axis)


def concat_backward(dy: np.ndarray, y: Any, *xs: np.ndarray, axis: int = 0) -> Grads:
    """The part of each input."""
    return tuple(np.split(dy, np.cumsum([x.shape[axis] for x in xs])[:-1], axis=axis))


register("concat", concat, concat_backward, "x", variadic=True)


def sum_(x: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """Sum over `axis`, which disappears; over everything without one."""
    return np.asarray(x.sum(axis=axis))


def sum_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int | None = None) -> Grads:
    """dy for every value that was added."""
    return (np.broadcast_to(dy if axis is None else np.expand_dims(dy, axis), x.shape).copy(),)


register("sum", sum_, sum_backward, "x")


def mean(x: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """Mean over `axis`, which disappears; over everything without one."""
    return np.asarray(x.mean(axis=axis))


def mean_backward(dy: np.ndarray, y: Any, x: np.ndarray, *, axis: int | None = None) -> Grads:
    """dy / n for every value."""
    n = x.size if axis is None else x.shape[axis]
    return sum_backward(np.asarray(dy / dy.dtype.type(n)), None, x, axis=axis)


register("mean", mean, mean_backward, "x")
