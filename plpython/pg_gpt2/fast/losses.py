"""Mean cross entropy: on logits, and fused with the tied output projection so that all logits never exist at once.

Both take logsumexp(z) - z[target]. The fused form walks over groups of rows; within a group each slice of the
vocabulary is projected, exponentiated and used for both gradients by one thread.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..core.op import Grads, Sink, replace
from ..core.ops import counted
from . import buffers, slices, threads, unpack
from .activations import softmax
from .attend import LEAST, MOST
from .blas import add_product
from .elementwise import BLOCK, block_rows, for_blocks
from .embedding import add_rows
from .panels import Table
from .products import column_sums

GROUP_LOGITS = 1 << 25  # logits held at a time: 128 MiB
LARGEST_SLICE, TURN = 4096, 4  # of the vocabulary; slices at a time, each with memory of its own for its part of dx


def cross_entropy(logits: np.ndarray, *, target: Any, weight: Any = None) -> np.ndarray:  # [.., V] -> []
    """Weighted mean of logsumexp(z) - z[target] over the rows that carry loss; 0 where none does."""
    rows = logits.reshape(-1, logits.shape[-1])
    here, classes, weight = counted(target, weight)
    if not len(classes):
        return np.zeros((), logits.dtype)
    targets = _of_all(here, classes, len(rows))
    losses = np.empty(len(rows))

    def block(r: slice) -> None:
        z = rows[r]
        top = z.max(axis=-1)
        total = np.exp(z - top[:, None]).sum(axis=-1, dtype=np.float64)
        losses[r] = np.log(total) + top - z[np.arange(len(z)), targets[r]]

    threads.for_rows(len(rows), block_rows(*rows.shape), block)
    return np.asarray(np.average(losses[here], weights=weight), logits.dtype)


def _of_all(here: slice | np.ndarray, values: np.ndarray, n_rows: int) -> np.ndarray:
    """What the rows `here` have, and 0 for the others."""
    if isinstance(here, slice):
        return values
    found = np.zeros(n_rows, values.dtype)
    found[here] = values
    return found


def cross_entropy_backward(dy: np.ndarray, y: Any, logits: np.ndarray, *, target: Any, weight: Any = None) -> Grads:
    """dlogits = dy (softmax(z) - onehot) times the share of each row, 1 / rows without weights; 0 without loss."""
    dlogits = softmax(logits)
    rows = dlogits.reshape(-1, logits.shape[-1])
    here, classes, weight = counted(target, weight)
    rows[np.arange(len(rows))[here], classes] -= 1.0
    if weight is None and isinstance(here, slice):
        factor = logits.dtype.type(float(dy) / len(rows))
        for_blocks(lambda d: np.multiply(d, factor, out=d), dlogits)
        return (dlogits,)
    share = np.full(len(classes), 1.0) if weight is None else weight
    factors = _of_all(here, (float(dy) * (share / share.sum())).astype(logits.dtype), len(rows))[:, None]

    def block(r: slice) -> None:
        rows[r] *= factors[r]
        rows[r][factors[r, 0] == 0] = 0.0  # whatever the logits were

    threads.for_rows(len(rows), block_rows(*rows.shape), block)
    return (dlogits,)


replace("cross_entropy", cross_entropy, cross_entropy_backward)


def group_rows(n_rows: int, vocab: int) -> int:
    """How many rows are projected at a time: groups of one size, as few as hold GROUP_LOGITS each."""
    n_groups = -(-n_rows // max(64, GROUP_LOGITS // vocab))
    return -(-n_rows // n_groups)


def vocab_slice(vocab: int) -> int:
    """How many rows of wte a thread takes at a time: whole turns, so that no core waits in the last."""
    n_slices = 2 if vocab <= LARGEST_SLICE else TURN * -(-vocab // (TURN * LARGEST_SLICE))
    return -(-vocab // (n_slices * 8)) * 8


class _Group:
    """Logits of a group of rows as exponentials, transposed: [part of the vocabulary, rows], which BLAS multiplies faster.

    They are shifted by a row's maximum only where a sum would leave the range of numbers, as in `attend`.
    """

    def __init__(self, x: np.ndarray, wte: np.ndarray | Table, classes: np.ndarray) -> None:
        self.x, self.wte, self.classes = x, wte, classes
        vocab = wte.shape[0]
        self.slices = slices.pieces(vocab, vocab_slice(vocab))
        logits = buffers.passing((vocab, len(x)), x.dtype)
        self.exps = [logits[part] for part in self.slices]
        self.picked = np.empty((2, len(x)), x.dtype)  # the targets' logits and their exponentials
        self.sums = np.empty((len(self.slices), len(x)))
        self.top: np.ndarray | None = None
        self._each_slice(self._project, self._exponentiate)
        self.total = self.sums.sum(axis=0)
        if not (self.total.min() > LEAST and self.total.max() < MOST):
            self._each_slice(self._project)
            self.top = np.max([z.max(axis=0) for z in self.exps], axis=0)
            self._each_slice(self._exponentiate)
            self.total = self.sums.sum(axis=0)

    def _each_slice(self, *works: Callable[[int], object]) -> None:
        tasks = [lambda i=i: [work(i) for work in works] for i in range(len(self.slices))]
        for turn in slices.pieces(len(tasks), TURN):
            threads.run(tasks[turn])

    def _project(self, i: int) -> None:
        z, part = self.exps[i], self.slices[i]
        np.matmul(unpack.rows(self.wte, part), self.x.T, out=z)
        self._pick(i, self.picked[0])

    def _pick(self, i: int, out: np.ndarray) -> None:
        part = self.slices[i]
        here = np.flatnonzero((self.classes >= part.start) & (self.classes < part.stop))
        out[here] = self.exps[i][self.classes[here] - part.start, here]

    def _exponentiate(self, i: int) -> None:
        z, sums = self.exps[i], []
        with np.errstate(over="ignore", invalid="ignore"):
            for r in slices.pieces(len(z), max(1, BLOCK // z.shape[1])):  # what stays in a core's cache
                if self.top is not None:
                    z[r] -= self.top
                sums.append(column_sums(np.exp(z[r], out=z[r])))
        self.sums[i] = np.sum(sums, axis=0, dtype=np.float64)
        self._pick(i, self.picked[1])

    def losses(self) -> np.ndarray:
        """logsumexp - z[target] of each row, in float64; exactly 0 where the target has all of the sum."""
        logits, exps = self.picked[0] - (0.0 if self.top is None else self.top), self.picked[1].astype(np.float64)
        return np.log(self.total) - np.where(exps > LEAST, np.log(np.maximum(exps, LEAST)), logits)

    def grads(self, weight: float | np.ndarray, dx: np.ndarray, dwte: Sink | None) -> None:
        """dx = weight (p - onehot) wte, dwte (+)= weight (p - onehot)' x, with one weight, or one a row.

        p is never formed: what the exponentials lack is a factor a row, which scales x and the products instead.
        """
        factor = (weight / self.total).astype(self.x.dtype)[:, None]
        scaled = self.x * factor
        parts = buffers.empty((min(TURN, len(self.slices)), *dx.shape), dx.dtype)

        def work(i: int) -> None:
            part, z, term = self.slices[i], self.exps[i], parts[i % TURN]
            if i < TURN:
                np.matmul(z.T, unpack.rows(self.wte, part), out=term)
            else:
                add_product(z.T, unpack.rows(self.wte, part), term)
            if dwte is None:
                return
            if dwte.filled:
                add_product(z, scaled, dwte.array[part])
            else:
                np.matmul(z, scaled, out=dwte.array[part])

        self._each_slice(work)
        np.add.reduce(parts, axis=0, out=dx)
        dx *= factor
        each = np.asarray(weight, dx.dtype)[..., None]
        picked = self.wte.take(self.classes) if isinstance(self.wte, Table) else self.wte[self.classes]
        dx -= picked * each
        if dwte is not None:
            add_rows(dwte.array, self.classes, self.x * -each)
            dwte.filled = True


def _head(
    x: np.ndarray,
    wte: np.ndarray | Table,
    target: Any,
    weight: Any,
    dy: float | None = None,
    sink: Sink | None = None,
    wanted: Sequence[bool] = (True, True),
) -> tuple[np.ndarray, Grads]:
    """The loss and, when dy is given, the gradients, in one walk over groups of the rows that carry loss."""
    here, classes, weight = counted(target, weight)
    rows = x.reshape(-1, x.shape[-1])[here]
    with nullcontext() if isinstance(here, slice) else buffers.reusing(None):  # a pool would keep every size there is
        dwte = None
        if dy is not None and wanted[1]:
            dwte = sink or Sink(buffers.empty(wte.shape, rows.dtype))
        loss, dx = _walk(rows, wte, classes, weight, dy, dwte)
    return np.asarray(loss, x.dtype), (_spread(dx, here, x.shape), None if dwte is None else dwte.array)


def _walk(
    rows: np.ndarray,
    wte: np.ndarray | Table,
    classes: np.ndarray,
    weight: np.ndarray | None,
    dy: float | None,
    dwte: Sink | None,
) -> tuple[float, np.ndarray | None]:
    """Loss of rows that carry it, and dx when dy is given; dwte collects."""
    total = len(rows) if weight is None else float(weight.sum())
    dx = None if dy is None else buffers.empty(rows.shape, rows.dtype)
    loss = 0.0
    for r in slices.pieces(len(rows), group_rows(len(rows), wte.shape[0])) if len(rows) else ():
        group = _Group(rows[r], wte, classes[r])
        losses = group.losses()
        loss += float((losses if weight is None else losses * weight[r]).sum())
        if dx is not None and dy is not None:
            group.grads(dy / total if weight is None else dy / total * weight[r], dx[r], dwte)
        del group  # or its logits would be there beside those of the next
    if dwte is not None and not dwte.filled:
        dwte.array[...], dwte.filled = 0.0, True
    return loss / (total or 1), dx


def _spread(dx: np.ndarray | None, here: slice | np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The gradient of all of x from that of the rows `here`."""
    if dx is None or isinstance(here, slice):
        return None if dx is None else dx.reshape(shape)
    whole = buffers.empty(shape, dx.dtype)
    whole[...] = 0.0
    whole.reshape(-1, shape[-1])[here] = dx
    return whole


def lm_head_loss(
    x: np.ndarray, wte: np.ndarray | Table, *, target: Any, weight: Any = None
) -> np.ndarray:  # [.., D], [V, D] -> []
    """cross_entropy(x @ wte'). Where no gradient of it is wanted, wte may come in panels."""
    return _head(x, wte, target, weight)[0]


def lm_head_loss_backward(
    dy: np.ndarray,
    y: Any,
    x: np.ndarray,
    wte: np.ndarray | Table,
    *,
    target: Any,
    weight: Any = None,
    sinks: Sequence[Sink | None] = (None, None),
    wanted: Sequence[bool] = (True, True),
) -> Grads:
    """dx, dwte: the walk of the forward pass again, with gradients."""
    return _head(x, wte, target, weight, float(dy), sinks[1], wanted)[1]


def lm_head_loss_and_grads(
    dy: np.ndarray,
    x: np.ndarray,
    wte: np.ndarray | Table,
    *,
    target: Any,
    weight: Any = None,
    sinks: Sequence[Sink | None] = (None, None),
    wanted: Sequence[bool] = (True, True),
) -> tuple[np.ndarray, Grads]:
    """Loss and gradients in one walk: what a training step uses, the same bits as forward and then backward."""
    return _head(x, wte, target, weight, float(dy), sinks[1], wanted)


replace(
    "lm_head_loss",
    lm_head_loss,
    lm_head_loss_backward,
    sinks=True,
    apart=((0, 1), (0, 1)),
    fused=lm_head_loss_and_grads,
)
