"""Products: matmul, the linear layer, the tied output layer, and the GPT-2 MLP composed of linear, gelu, linear.

Weights keep the checkpoint's (in, out) orientation: y = x @ w + b.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..core.op import Grads, Sink, replace
from . import buffers, panels, slices, threads, unpack
from .activations import gelu
from .elementwise import contiguous, copy_into, scale, unbroadcast
from .panels import Panels, Table
from .products import as_rows, column_sums, gradient_buffer, least_pieces, product, product_tasks, run_all

MOST_MATRICES = 1 << 17  # multiplied in one call, however small


def matmul(a: np.ndarray, b: np.ndarray | Panels) -> np.ndarray:  # [.., m, k], [.., k, n] -> [.., m, n]
    """a @ b; leading dimensions broadcast. Weights for inference may come in panels."""
    if isinstance(b, Panels):
        return panels.product(as_rows(a), b).reshape(*a.shape[:-1], b.shape[1])
    if b.ndim == 2:
        return product(as_rows(a), b).reshape(*a.shape[:-1], b.shape[-1])
    return _stacked(a, b)


def _stacked(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [.., m, k], [.., k, n] -> [.., m, n]
    """a @ b, a few of the matrices at a time where all would take long, or one in pieces."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = *a.shape[-2:], b.shape[-1]
    count = prod(lead)
    pieces = max(least_pieces(m * count, k, n), least_pieces(m, k, n * count), -(-count // MOST_MATRICES))
    if pieces <= 1:
        return np.matmul(a, b)
    x, z = np.broadcast_to(a, (*lead, m, k)), np.broadcast_to(b, (*lead, k, n))
    y = buffers.empty((*lead, m, n), np.result_type(a, b))
    for i in slices.parts(lead, max(1, count // pieces)):
        if x[i].ndim == 2 or x[i].size == m * k:
            product(x[i].reshape(m, k), z[i].reshape(k, n), y[i].reshape(m, n))
        else:
            threads.run([partial(np.matmul, x[i], z[i], out=y[i])])
    return y


def matmul_backward(dy: np.ndarray, y: Any, a: np.ndarray, b: np.ndarray) -> Grads:
    """da = dy @ b', db = a' @ dy."""
    if b.ndim == 2:
        rows = as_rows(dy)
        da = buffers.empty(a.shape, dy.dtype)
        db = buffers.empty(b.shape, dy.dtype)
        run_all(
            product_tasks(rows, b.T, as_rows(da), paired=True),
            product_tasks(as_rows(a).T, rows, db, paired=True),
        )
        return da, db
    dy = contiguous(dy)  # NumPy before 2 multiplies a repeated row without BLAS
    da, db = _stacked(dy, b.swapaxes(-1, -2)), _stacked(a.swapaxes(-1, -2), dy)
    return unbroadcast(da, a.shape), unbroadcast(db, b.shape)


replace("matmul", matmul, matmul_backward)


def addmm(
    c: np.ndarray, a: np.ndarray, b: np.ndarray | Panels, *, factor: float = 1.0
) -> np.ndarray:  # [.., n], [.., k], [k, n] -> [.., n]
    """c + factor (a @ b); exactly c where the product is 0. The factor goes into a, which is the smaller for a low rank.
    Weights for inference may come in panels."""
    if isinstance(b, Panels):
        return panels.added(as_rows(c), as_rows(scale(a, factor=factor)), b).reshape(c.shape)
    y = buffers.empty(c.shape, c.dtype)
    copy_into(y, c)
    run_all(product_tasks(as_rows(scale(a, factor=factor)), b, as_rows(y), accumulate=True))
    return y


def addmm_backward(
    dy: np.ndarray, y: Any, c: np.ndarray, a: np.ndarray, b: np.ndarray, *, factor: float = 1.0
) -> Grads:
    """dc = dy, da = factor dy @ b', db = factor a' @ dy."""
    rows, scaled = as_rows(dy), as_rows(scale(a, factor=factor))
    da, db = np.empty(a.shape, dy.dtype), np.empty(b.shape, dy.dtype)
    run_all(
        product_tasks(rows, b.T, as_rows(da), paired=True),
        product_tasks(scaled.T, rows, db, paired=True),
    )
    return dy, scale(da, factor=factor), db


replace("addmm", addmm, addmm_backward)


def linear(x: np.ndarray, w: np.ndarray | Panels, b: np.ndarray) -> np.ndarray:  # [.., k], [k, n], [n] -> [.., n]
    """x @ w + b on the last axis. Weights for inference may come in panels."""
    y = panels.product(as_rows(x), w, b) if isinstance(w, Panels) else product(as_rows(x), w, bias=b)
    return y.reshape(*x.shape[:-1], w.shape[1])


def linear_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    w: np.ndarray | Panels,
    b: np.ndarray,
    *,
    sinks: Sequence[Sink | None] = (None, None, None),
    wanted: Sequence[bool] = (True, True, True),
) -> Grads:
    """dx = dy @ w', dw = x' @ dy, db = column sums of dy. Weights that get no gradient may come in panels."""
    rows = as_rows(dy)
    tasks: list[Callable[[], object]] = []
    dx = dw = db = None
    if wanted[0]:
        dx = buffers.empty(x.shape, dy.dtype)
        tasks += _input_tasks(rows, w, as_rows(dx), paired=wanted[1])
    if wanted[1]:
        dw, add = gradient_buffer(sinks[1], w.shape, dy.dtype)
        tasks += product_tasks(as_rows(x).T, rows, dw, accumulate=add, paired=wanted[0])
    if wanted[2]:
        db = np.empty(b.shape, dy.dtype)
        tasks.append(lambda: column_sums(rows, out=db))
    run_all(tasks)
    return dx, dw, db


def _input_tasks(
    dy: np.ndarray, w: np.ndarray | Panels, dx: np.ndarray, paired: bool
) -> Sequence[Callable[[], object]]:
    """Tasks that together set dx = dy @ w'."""
    if isinstance(w, Panels):
        return unpack.tasks_with_transpose(dy, w, dx)
    return product_tasks(dy, w.T, dx, paired=paired)


replace("linear", linear, linear_backward, sinks=True, apart=((1,), (0,), ()))


def lm_head(x: np.ndarray, wte: np.ndarray | Table) -> np.ndarray:  # [.., D], [V, D] -> [.., V]
    """Logits by the tied embedding: x @ wte'. For inference, wte may come in panels."""
    rows = as_rows(x)
    y = panels.product(rows, wte.T) if isinstance(wte, Table) else product(rows, wte.T)
    return y.reshape(*x.shape[:-1], wte.shape[0])


def lm_head_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    wte: np.ndarray | Table,
    *,
    sinks: Sequence[Sink | None] = (None, None),
    wanted: Sequence[bool] = (True, True),
) -> Grads:
    """dx = dy @ wte, dwte = dy' @ x. A table that gets no gradient may come in panels."""
    rows = as_rows(dy)
    tasks: list[Callable[[], object]] = []
    dx = dwte = None
    if wanted[0]:
        dx = buffers.empty(x.shape, dy.dtype)
        tasks += _input_tasks(rows, wte.T, as_rows(dx), paired=wanted[1])
    if wanted[1]:
        dwte, add = gradient_buffer(sinks[1], wte.shape, dy.dtype)
        tasks += product_tasks(rows.T, as_rows(x), dwte, accumulate=add, paired=wanted[0])
    run_all(tasks)
    return dx, dwte


replace("lm_head", lm_head, lm_head_backward, sinks=True, apart=((1,), (0,)))


def mlp(
    x: np.ndarray, w_fc: np.ndarray, b_fc: np.ndarray, w_proj: np.ndarray, b_proj: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # [.., D], [D, F], [F], [F, D], [D] -> [.., D]
    """linear, gelu, linear; saves the value before gelu."""
    hidden = linear(x, w_fc, b_fc)
    return linear(gelu(hidden), w_proj, b_proj), hidden


def mlp_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    w_fc: np.ndarray,
    b_fc: np.ndarray,
    w_proj: np.ndarray,
    b_proj: np.ndarray,
    *,
    saved: np.ndarray | None = None,
) -> Grads:
    """The backward passes of linear, gelu, linear, in reverse."""
    hidden = linear(x, w_fc, b_fc) if saved is None else saved
    d_act, dw_proj, db_proj = linear_backward(dy, None, gelu(hidden), w_proj, b_proj)
    (d_hidden,) = gelu.backward(d_act, None, hidden)  # type: ignore[arg-type]
    dx, dw_fc, db_fc = linear_backward(d_hidden, None, x, w_fc, b_fc)  # type: ignore[arg-type]
    return dx, dw_fc, db_fc, dw_proj, db_proj


replace("mlp", mlp, mlp_backward, saves=True)
