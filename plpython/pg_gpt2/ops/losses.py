"""Mean cross entropy: on logits, and fused with the tied output projection so that all logits never exist at once.

Both take logsumexp(z) - z[target]. The fused form walks over groups of rows; within a group each slice of the
vocabulary is projected, exponentiated and used for both gradients by one thread.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import threads
from ..errors import InvalidParameter
from . import buffers
from .activations import softmax
from .blas import add_product
from .elementwise import BLOCK
from .embedding import add_rows, checked_ids
from .op import Sink, misfit, register
from .products import gradient_buffer, run_all

Grads = tuple[np.ndarray | None, ...]

GROUP_LOGITS = 1 << 24  # logits held at a time: 64 MiB
LARGEST_SLICE, TURN = 4096, 4  # of the vocabulary; slices between looks for an interrupt


def _targets(op: str, target: Any, n_rows: int, vocab: int) -> np.ndarray:
    """One class a row; 22023 when the number or a value does not fit."""
    classes = checked_ids(op, target, vocab).reshape(-1)
    if classes.size != n_rows or not n_rows:
        raise InvalidParameter(f"{op}: {classes.size} targets for {n_rows} rows", hint="There is one target a row.")
    return classes


def cross_entropy(logits: np.ndarray, *, target: Any) -> np.ndarray:  # [.., V] -> []
    """Mean over rows of logsumexp(z) - z[target]."""
    if not logits.ndim:
        raise misfit("cross_entropy", "logits are [.., V]", logits=logits.shape)
    rows = logits.reshape(-1, logits.shape[-1])
    classes = _targets("cross_entropy", target, *rows.shape)
    top = rows.max(axis=-1)
    total = np.exp(rows - top[:, None]).sum(axis=-1, dtype=np.float64)
    losses = np.log(total) + top - rows[np.arange(len(rows)), classes]
    return np.asarray(losses.mean(dtype=np.float64), logits.dtype)


def cross_entropy_backward(
    dy: np.ndarray, y: Any, logits: np.ndarray, *, target: Any, saved: Any = None, sinks: Any = ()
) -> Grads:
    """dlogits = dy (softmax(z) - onehot) / rows."""
    dlogits = softmax(logits)
    rows = dlogits.reshape(-1, logits.shape[-1])
    rows[np.arange(len(rows)), _targets("cross_entropy", target, *rows.shape)] -= 1.0
    dlogits *= logits.dtype.type(float(dy) / len(rows))
    return (dlogits,)


register("cross_entropy", cross_entropy, cross_entropy_backward, "logits", reads=(0,))


def group_rows(n_rows: int, vocab: int) -> int:
    """How many rows are projected at a time: groups of one size, as few as hold GROUP_LOGITS each."""
    n_groups = -(-n_rows // max(64, GROUP_LOGITS // vocab))
    return -(-n_rows // n_groups)


def vocab_slice(vocab: int) -> int:
    """How many rows of wte a thread takes at a time."""
    n_slices = TURN * -(-vocab // (TURN * LARGEST_SLICE))  # whole turns, so that no core waits in the last
    return -(-vocab // (n_slices * 64)) * 64


class _Group:
    """Logits of a group of rows, as exponentials of each slice of the vocabulary relative to that slice's maximum."""

    def __init__(self, x: np.ndarray, wte: np.ndarray, classes: np.ndarray) -> None:
        self.x, self.wte, self.classes = x, wte, classes
        self.slices = threads.pieces(len(wte), vocab_slice(len(wte)))
        self.exps = [buffers.empty((len(x), s.stop - s.start), x.dtype) for s in self.slices]
        self.tops, self.sums = np.empty((2, len(self.slices), len(x)), x.dtype)
        self.picked = np.empty(len(x), x.dtype)
        run_all([lambda i=i: self._project(i) for i in range(len(self.slices))], at_once=TURN)  # type: ignore[misc]
        self.top = self.tops.max(axis=0)
        self.total = (self.sums * np.exp(self.tops - self.top)).sum(axis=0, dtype=np.float64)

    def _project(self, i: int) -> None:
        z, part = self.exps[i], self.slices[i]
        np.matmul(self.x, self.wte[part].T, out=z)
        here = np.flatnonzero((self.classes >= part.start) & (self.classes < part.stop))
        self.picked[here] = z[here, self.classes[here] - part.start]
        ones = np.ones(z.shape[1], z.dtype)
        for r in threads.pieces(len(z), max(1, BLOCK // z.shape[1])):  # what stays in a core's cache
            rows = z[r]
            self.tops[i, r] = rows.max(axis=1)
            rows -= self.tops[i, r, None]
            np.matmul(np.exp(rows, out=rows), ones, out=self.sums[i, r])

    def losses(self) -> np.ndarray:
        """logsumexp - z[target] of each row, in float64."""
        return np.log(self.total) + self.top - self.picked

    def grads(self, weight: float, dx: np.ndarray, dwte: np.ndarray, add: bool) -> None:
        """dx = weight (p - onehot) wte, dwte (+)= weight (p - onehot)' x.

        p is never formed: what the exponentials lack is a factor a row, which scales x and the products instead.
        """
        factors = (np.exp(self.tops - self.top) * (weight / self.total)).astype(self.x.dtype)
        parts = buffers.empty((len(self.slices), *dx.shape), dx.dtype)

        def work(i: int) -> None:
            part, z = self.slices[i], self.exps[i]
            np.matmul(z, self.wte[part], out=parts[i])
            parts[i] *= factors[i][:, None]
            scaled = np.multiply(self.x, factors[i][:, None], out=buffers.scratch("head_x", self.x.shape, self.x.dtype))
            if add:
                add_product(z.T, scaled, dwte[part])
            else:
                np.matmul(z.T, scaled, out=dwte[part])

        run_all([lambda i=i: work(i) for i in range(len(self.slices))], at_once=TURN)  # type: ignore[misc]
        parts.sum(axis=0, out=dx)
        dx -= self.wte[self.classes] * dx.dtype.type(weight)
        add_rows(dwte, self.classes, self.x * self.x.dtype.type(-weight))


def _head(x: np.ndarray, wte: np.ndarray, target: Any, dy: float | None, sink: Sink | None) -> tuple[np.ndarray, Grads]:
    """The loss and, when dy is given, both gradients, in one walk over groups of rows."""
    if not x.ndim or wte.ndim != 2 or x.shape[-1] != wte.shape[1]:
        raise misfit("lm_head_loss", "x is [.., D], wte is [V, D]", x=x.shape, wte=wte.shape)
    rows = x.reshape(-1, x.shape[-1])
    classes = _targets("lm_head_loss", target, len(rows), len(wte))
    dx = dwte = None
    add = False
    if dy is not None:
        dx = buffers.empty(x.shape, x.dtype)
        dwte, add = gradient_buffer(sink, wte.shape, x.dtype)
    loss = 0.0
    for r in threads.pieces(len(rows), group_rows(len(rows), len(wte))):
        group = _Group(rows[r], wte, classes[r])
        loss += float(group.losses().sum())
        if dx is not None and dwte is not None and dy is not None:
            group.grads(dy / len(rows), dx.reshape(rows.shape)[r], dwte, add)
            add = True
    return np.asarray(loss / len(rows), x.dtype), (dx, dwte)


def lm_head_loss(x: np.ndarray, wte: np.ndarray, *, target: Any) -> np.ndarray:  # [.., D], [V, D] -> []
    """cross_entropy(x @ wte')."""
    return _head(x, wte, target, None, None)[0]


def lm_head_loss_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    wte: np.ndarray,
    *,
    target: Any,
    saved: Any = None,
    sinks: Sequence[Sink | None] = (None, None),
) -> Grads:
    """dx, dwte: the walk of the forward pass again, with gradients."""
    return _head(x, wte, target, float(dy), sinks[1])[1]


def lm_head_loss_and_grads(
    dy: np.ndarray, x: np.ndarray, wte: np.ndarray, *, target: Any, sinks: Sequence[Sink | None] = (None, None)
) -> tuple[np.ndarray, Grads]:
    """Loss and gradients in one walk: what a training step uses, the same bits as forward and then backward."""
    return _head(x, wte, target, float(dy), sinks[1])


register("lm_head_loss", lm_head_loss, lm_head_loss_backward, "x wte", reads=(0, 1), fused=lm_head_loss_and_grads)
