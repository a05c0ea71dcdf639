"""What the arrays and attributes of each op must be, whichever form of it runs: the errors that a caller sees.

Rules that a paper takes for granted: shapes that fit, ids within the table, axes that exist; and the limits of docs/limits.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import limits
from .core import ops  # noqa: F401  (the ops are entered before their checks)
from .core.op import check
from .core.ops import IGNORED
from .errors import InvalidParameter

Shape = tuple[int, ...]


def misfit(op: str, rule: str, **shapes: Shape) -> InvalidParameter:
    """The error for shapes that do not fit: names the op, the shapes, and the rule as hint."""
    described = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return InvalidParameter(f"{op}: shapes do not fit: {described}", hint=f"Rule: {rule}.")


def _check_row(op: str, n: int) -> None:
    """Rows must not be longer than an op takes that works on whole rows."""
    if n > limits.MOST_ROW:
        raise InvalidParameter(
            f"{op}: a row of {n} values; the most is {limits.MOST_ROW}",
            hint="Give the length of a row, or shorter rows.",
        )


def _check_axis(op: str, axis: int, ndim: int) -> None:
    """The axis must exist."""
    if not -ndim <= axis < ndim:
        raise InvalidParameter(
            f"{op}: axis {axis} does not exist in a tensor of {ndim} dimensions",
            hint="Axes count from 0; negative ones from the end.",
        )


def _check_ids(op: str, ids: Any, limit: int, beside: int | None = None) -> np.ndarray:
    """ids must be integers in 0 .. limit - 1, or `beside`; they as an array."""
    array = np.asarray(ids)
    if array.ndim >= limits.MOST_DIMENSIONS:
        raise InvalidParameter(
            f"{op}: ids of {array.ndim} dimensions; the most is {limits.MOST_DIMENSIONS - 1}",
            hint="ids are a list of token numbers, or a list of such lists.",
        )
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InvalidParameter(f"{op}: ids must be integers, not {array.dtype}", hint="ids are token numbers from 0.")
    if array.size and not (array.min() >= 0 and array.max() < limit):
        bad = (array < 0) | (array >= limit)
        if beside is not None:
            bad &= array != beside
        if bad.any():
            also = "" if beside is None else f", and {beside} for none"
            raise InvalidParameter(
                f"{op}: id {array[bad][0]} is out of range", hint=f"Valid ids are 0 to {limit - 1}{also}."
            )
    return array


def _check_targets(op: str, target: Any, weight: Any, n_rows: int, vocab: int) -> None:
    """There must be one class a row, or IGNORED; and weights that fit them."""
    targets = _check_ids(op, target, vocab, IGNORED)
    if targets.size != n_rows or not n_rows:
        raise InvalidParameter(f"{op}: {targets.size} targets for {n_rows} rows", hint="There is one target a row.")
    if weight is None:
        return
    weights = np.asarray(weight, np.float64)
    if not weights.ndim or weights.shape != targets.shape[: weights.ndim]:
        raise misfit(
            op, "there is one weight a target, or one a list of them", weight=weights.shape, target=targets.shape
        )
    if not ((weights > 0) & (weights <= limits.MOST_WEIGHT)).all():
        bad = weights[~((weights > 0) & (weights <= limits.MOST_WEIGHT))][0]
        raise InvalidParameter(
            f"{op}: weight {bad} is not above 0 and at most {limits.MOST_WEIGHT:g}",
            hint=f"The target {IGNORED} carries no loss.",
        )


def check_p(p: float) -> None:
    """A dropout probability must be at least 0 and below 1."""
    if not 0.0 <= p < 1.0:
        raise InvalidParameter(
            f"dropout probability must be at least 0 and below 1, not {p}",
            hint="0 switches dropout off; GPT-2 was trained with 0.1.",
        )


def check_length(t: int) -> None:
    """A sequence must not be longer than attention takes."""
    if t > limits.MOST_POSITIONS:
        raise InvalidParameter(
            f"attention over {t} positions; the most is {limits.MOST_POSITIONS}", hint="Attend over shorter sequences."
        )


def _check_broadcast(op: str, rule: str, a: Shape, b: Shape, matrix: int = 0) -> None:
    """Dimensions before the last `matrix` must broadcast."""
    try:
        np.broadcast_shapes(a[: len(a) - matrix], b[: len(b) - matrix])
    except ValueError:
        raise misfit(op, rule, a=a, b=b) from None


def _binary(op: str) -> Any:
    def rule(a: np.ndarray, b: np.ndarray) -> None:
        if a.shape != b.shape:
            _check_broadcast(op, "dimensions are equal or 1, counted from the last", a.shape, b.shape)

    return rule


def _matmul(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise misfit("matmul", "a is [.., m, k] and b is [.., k, n]", a=a.shape, b=b.shape)
    _check_broadcast("matmul", "leading dimensions broadcast", a.shape, b.shape, matrix=2)


def _addmm(c: np.ndarray, a: np.ndarray, b: np.ndarray, *, factor: float = 1.0) -> None:
    if b.ndim != 2 or not a.ndim or a.shape[-1] != b.shape[0] or c.shape != (*a.shape[:-1], b.shape[1]):
        raise misfit("addmm", "c is [.., n], a is [.., k], b is [k, n]", c=c.shape, a=a.shape, b=b.shape)


def _linear(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    if w.ndim != 2 or b.shape != w.shape[1:] or not x.ndim or x.shape[-1] != w.shape[0]:
        raise misfit("linear", "x is [.., k], w is [k, n], b is [n]", x=x.shape, w=w.shape, b=b.shape)


def _mlp(x: np.ndarray, w_fc: np.ndarray, b_fc: np.ndarray, w_proj: np.ndarray, b_proj: np.ndarray) -> None:
    _linear(x, w_fc, b_fc)
    if w_proj.ndim != 2 or w_proj.shape[0] != w_fc.shape[1] or b_proj.shape != w_proj.shape[1:]:
        raise misfit(
            "mlp",
            "w_fc is [D, F], w_proj is [F, n], b_proj is [n]",
            w_fc=w_fc.shape,
            w_proj=w_proj.shape,
            b_proj=b_proj.shape,
        )


def _lm_head(x: np.ndarray, wte: np.ndarray) -> None:
    if not x.ndim or wte.ndim != 2 or x.shape[-1] != wte.shape[1]:
        raise misfit("lm_head", "x is [.., D], wte is [V, D]", x=x.shape, wte=wte.shape)


def _embedding(table: np.ndarray, *, ids: Any) -> None:
    if table.ndim != 2:
        raise misfit("embedding", "the table is [V, D]", table=table.shape)
    _check_ids("embedding", ids, table.shape[0])


def _softmax(x: np.ndarray) -> None:
    if not x.ndim:
        raise misfit("softmax", "x has at least one dimension", x=x.shape)
    _check_row("softmax", x.shape[-1])


def _layernorm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 0.0) -> None:
    if not x.ndim or gamma.shape != x.shape[-1:] or beta.shape != gamma.shape:
        raise misfit("layernorm", "x is [.., n], gamma and beta are [n]", x=x.shape, gamma=gamma.shape, beta=beta.shape)
    _check_row("layernorm", x.shape[-1])


def _dropout(x: np.ndarray, *, p: float, **address: int) -> None:
    check_p(p)


def _causal_attention(qkv: np.ndarray, *, n_head: int, p: float = 0.0, **rest: int) -> None:
    check_p(p)
    if qkv.ndim < 2 or n_head < 1 or qkv.shape[-1] % (3 * n_head):
        raise misfit("causal_attention", f"qkv is [.., T, 3D] with D divisible by n_head = {n_head}", qkv=qkv.shape)
    check_length(qkv.shape[-2])


def _attention(
    x: np.ndarray, w_qkv: np.ndarray, b_qkv: np.ndarray, w_o: np.ndarray, b_o: np.ndarray, *, n_head: int, **rest: int
) -> None:
    if w_qkv.ndim != 2 or w_o.ndim != 2 or w_qkv.shape[1] != 3 * w_o.shape[0] or n_head < 1 or w_o.shape[0] % n_head:
        raise InvalidParameter(
            f"attention: w_qkv {list(w_qkv.shape)} and w_o {list(w_o.shape)} do not fit n_head {n_head}",
            hint="Rule: w_qkv is [D, 3D], w_o is [D, D], D is divisible by n_head.",
        )
    _linear(x, w_qkv, b_qkv)
    if x.ndim < 2 or b_o.shape != w_o.shape[1:]:
        raise misfit("attention", "x is [.., T, D], b_o is [D]", x=x.shape, b_o=b_o.shape)
    check_length(x.shape[-2])


def _cross_entropy(logits: np.ndarray, *, target: Any, weight: Any = None) -> None:
    if not logits.ndim:
        raise misfit("cross_entropy", "logits are [.., V]", logits=logits.shape)
    vocab = logits.shape[-1]
    _check_row("cross_entropy", vocab)
    _check_targets("cross_entropy", target, weight, logits.size // max(1, vocab), vocab)


def _lm_head_loss(x: np.ndarray, wte: np.ndarray, *, target: Any, weight: Any = None) -> None:
    if not x.ndim or wte.ndim != 2 or x.shape[-1] != wte.shape[1]:
        raise misfit("lm_head_loss", "x is [.., D], wte is [V, D]", x=x.shape, wte=wte.shape)
    _check_targets("lm_head_loss", target, weight, x.size // max(1, x.shape[-1]), wte.shape[0])


def _transpose(x: np.ndarray, *, axes: Sequence[int] | None = None) -> None:
    if axes is None:
        if x.ndim < 2:
            raise misfit("transpose", "x has at least two dimensions", x=x.shape)
        return
    for axis in axes:
        _check_axis("transpose", axis, x.ndim)
    if sorted(axis % x.ndim for axis in axes) != list(range(x.ndim)):
        raise InvalidParameter(
            f"transpose: axes {list(axes)} are not a permutation of the {x.ndim} dimensions",
            hint="Name every axis once, or leave axes out to swap the last two.",
        )


def _reshape(x: np.ndarray, *, shape: Sequence[int]) -> None:
    if len(shape) > limits.MOST_DIMENSIONS:
        raise misfit("reshape", f"there are at most {limits.MOST_DIMENSIONS} dimensions", shape=tuple(shape))
    try:
        np.broadcast_to(np.zeros((), np.int8), x.shape).reshape(tuple(shape))
    except ValueError:
        raise misfit("reshape", "the number of values stays the same", x=x.shape, shape=tuple(shape)) from None


def _slice(x: np.ndarray, *, axis: int, start: int, stop: int) -> None:
    _check_axis("slice", axis, x.ndim)
    if not 0 <= start < stop <= x.shape[axis]:
        raise InvalidParameter(
            f"slice: {start} to {stop} does not fit axis {axis} of shape {list(x.shape)}",
            hint="Rule: 0 <= start < stop <= length of the axis.",
        )


def _concat(*xs: np.ndarray, axis: int = 0) -> None:
    _check_axis("concat", axis, xs[0].ndim)
    place = axis % xs[0].ndim
    if len({(x.ndim, x.shape[:place], x.shape[place + 1 :]) for x in xs}) > 1:
        shapes = {f"x{i}": x.shape for i, x in enumerate(xs)}
        raise misfit("concat", f"shapes are equal but for axis {axis}", **shapes)


def _reduction(op: str) -> Any:
    def rule(x: np.ndarray, *, axis: int | None = None) -> None:
        if axis is not None:
            _check_axis(op, axis, x.ndim)

    return rule


check("add", _binary("add"))
check("mul", _binary("mul"))
check("matmul", _matmul)
check("addmm", _addmm)
check("linear", _linear)
check("mlp", _mlp)
check("lm_head", _lm_head)
check("embedding", _embedding)
check("softmax", _softmax)
check("layernorm", _layernorm)
check("dropout", _dropout)
check("causal_attention", _causal_attention)
check("attention", _attention)
check("cross_entropy", _cross_entropy)
check("lm_head_loss", _lm_head_loss)
check("transpose", _transpose)
check("reshape", _reshape)
check("slice", _slice)
check("concat", _concat)
check("sum", _reduction("sum"))
check("mean", _reduction("mean"))
