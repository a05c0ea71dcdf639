"""causal_attention on a packed q|k|v projection, heads in parallel; and attention with its two projections.

Follows Vaswani et al. 2017; the arithmetic of a head is in `attend`.
"""

from typing import Any

import numpy as np

from ..core import rng
from ..core.op import Grads, replace
from ..core.ops import CHUNK, split_heads
from . import buffers, slices, threads
from .attend import attend, attend_backward
from .elementwise import LEAST
from .linear import linear, linear_backward
from .products import run_all

GROUP = 1 << 18  # scores of a chunk of rows, of as many heads: as `elementwise.BLOCK`
MOST_SCORES = 1 << 22  # of a chunk of rows of one head
MOST_PRODUCTS = 1 << 32  # of two numbers, for the scores of a chunk: some 100 ms
MASK_PIECE = 1 << 22  # values of a mask that are drawn at a time
Group = tuple[slice, slice]  # batch rows, heads
Saved = tuple[np.ndarray, np.ndarray | None]  # norms of the probabilities, masks of dropout


def split_qkv(
    qkv: np.ndarray, n_head: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [B, T, 3D] -> 3 x [B, H, T, d]
    """Views of the queries, keys and values."""
    q, k, v = np.split(qkv, 3, axis=-1)
    return split_heads(q, n_head), split_heads(k, n_head), split_heads(v, n_head)


def _groups(b: int, h: int, t: int, chunk: int) -> list[Group]:
    """(batch rows, heads) of each piece of work, about GROUP of scores; an even number where it can be, for two cores."""
    scores = min(t, chunk) * t
    if b * h * scores < LEAST:
        return [(slice(0, b), slice(0, h))]
    count = 2 * -(-b * h * scores // (2 * GROUP))
    if b >= count:
        return [(rows, slice(0, h)) for rows in slices.pieces(b, -(-b // count))]
    # One sequence has many chunks, and each is a dozen calls: fewer, larger pieces.
    parts = -(-h * scores // (2 * GROUP))
    heads = slices.pieces(h, -(-h // (parts + parts * b % 2)))
    return [(slice(i, i + 1), group) for i in range(b) for group in heads]


def _batched(qkv: np.ndarray) -> np.ndarray:
    """[.., T, 3D] -> [B, T, 3D]."""
    return np.ascontiguousarray(qkv).reshape(-1, *qkv.shape[-2:])


def _rows_at_a_time(chunk: int, t: int, d: int) -> int:
    """`chunk`, or fewer where so many rows of t keys of width d would take long."""
    return max(1, min(chunk, MOST_SCORES // t, MOST_PRODUCTS // (t * d)))


def _draw(masks: np.ndarray, g: Group, p: float, key: dict[str, int]) -> None:
    """Fill the masks [B, H, t, width] of these heads by address: the mask of a head does not depend on the chunk."""
    n_head = masks.shape[1]
    for i in range(g[0].start, g[0].stop):
        for j in range(g[1].start, g[1].stop):
            mask = masks[i, j].reshape(-1)
            for part in slices.pieces(mask.size, MASK_PIECE):
                threads.look()
                rng.keep_mask(p, part.stop - part.start, row=i * n_head + j, start=part.start, out=mask[part], **key)


def mask_shape(b: int, n_head: int, t: int) -> tuple[int, int, int, int]:
    """[B, H, t, width], a row of a mask being whole ticks of the generator."""
    return b, n_head, t, -(-t // rng.VALUES_PER_TICK) * rng.VALUES_PER_TICK


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
) -> tuple[np.ndarray, Saved]:  # [.., T, 3D] -> [.., T, D]
    """Attention of each head over its q, k, v; p drops probabilities. Saves their norms [2, B, H, T, 1] and masks."""
    x = _batched(qkv)
    b, t, width = x.shape
    y = buffers.empty((*qkv.shape[:-1], width // 3), x.dtype)
    q, k, v = split_qkv(x, n_head)
    out = split_heads(y.reshape(b, t, -1), n_head)
    chunk = _rows_at_a_time(chunk, t, q.shape[-1])
    norms = np.empty((2, b, n_head, t, 1), x.dtype)
    masks = buffers.empty(mask_shape(b, n_head, t), np.dtype(bool)) if p else None

    def work(g: Group) -> None:
        mask = None
        if masks is not None:
            _draw(masks, g, p, {"seed": seed, "step": step, "site": site})
            mask = masks[g]
        parts = q[g], k[g], v[g], out[g]
        attend(*parts, 0, chunk, factor=factor, norms=norms[(slice(None), *g)], p=p, masks=mask)

    run_all([lambda g=g: work(g) for g in _groups(b, n_head, t, chunk)])  # type: ignore[misc]
    return y, (norms, masks)


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
    saved: Saved | None = None,
) -> Grads:
    """dqkv, head by head."""
    if saved is None:
        address = {"seed": seed, "step": step, "site": site}
        _, saved = causal_attention(qkv, n_head=n_head, factor=factor, chunk=chunk, p=p, **address)
    (norms, masks), x = saved, _batched(qkv)
    b, t, _ = x.shape
    dqkv = buffers.empty(qkv.shape, x.dtype)
    q, k, v = split_qkv(x, n_head)
    dq, dk, dv = split_qkv(dqkv.reshape(x.shape), n_head)
    chunk = _rows_at_a_time(chunk, t, q.shape[-1])
    d_out = split_heads(np.ascontiguousarray(dy).reshape(b, t, -1), n_head)

    def work(g: Group) -> None:
        grads, mask = (dq[g], dk[g], dv[g]), None if masks is None else masks[g]
        attend_backward(d_out[g], q[g], k[g], v[g], norms[(slice(None), *g)], grads, chunk, p, mask, factor)

    run_all([lambda g=g: work(g) for g in _groups(b, n_head, t, chunk)])  # type: ignore[misc]
    return (dqkv,)


replace("causal_attention", causal_attention, causal_attention_backward, saves=True)


def attention(
    x: np.ndarray,
    w_qkv: np.ndarray,
    b_qkv: np.ndarray,
    w_o: np.ndarray,
    b_o: np.ndarray,
    *,
    n_head: int,
    chunk: int = CHUNK,
) -> tuple[np.ndarray, Any]:  # [.., T, D], [D, 3D], [3D], [D, D], [D] -> [.., T, D]
    """linear, causal_attention, linear; saves what they computed between."""
    qkv = linear(x, w_qkv, b_qkv)
    mixed, parts = causal_attention(qkv, n_head=n_head, chunk=chunk)
    return linear(mixed, w_o, b_o), (qkv, mixed, parts)


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
    saved: Any = None,
) -> Grads:
    """The backward passes of its three parts, in reverse."""
    qkv, mixed, parts = saved or attention(x, w_qkv, b_qkv, w_o, b_o, n_head=n_head, chunk=chunk)[1]
    d_mixed, dw_o, db_o = linear_backward(dy, None, mixed, w_o, b_o)
    (dqkv,) = causal_attention_backward(d_mixed, None, qkv, n_head=n_head, chunk=chunk, saved=parts)  # type: ignore[arg-type]
    dx, dw_qkv, db_qkv = linear_backward(dqkv, None, x, w_qkv, b_qkv)  # type: ignore[arg-type]
    return dx, dw_qkv, db_qkv, dw_o, db_o


replace("attention", attention, attention_backward, saves=True)
