"""causal_attention on a packed q|k|v projection, heads in parallel; and attention with its two projections.

Follows Vaswani et al. 2017; the arithmetic of a head is in `attend`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import rng, threads
from ..errors import InvalidParameter
from . import buffers
from .attend import CHUNK, Factors, attend, attend_backward
from .dropout import check_p
from .elementwise import BLOCK
from .linear import linear, linear_backward
from .op import misfit, register
from .products import run_all

Grads = tuple[np.ndarray | None, ...]


def split_heads(x: np.ndarray, n_head: int) -> np.ndarray:  # [B, T, D] -> [B, H, T, d]
    """A view of x with one matrix a head."""
    b, t, width = x.shape
    return x.reshape(b, t, n_head, width // n_head).transpose(0, 2, 1, 3)


def split_qkv(
    qkv: np.ndarray, n_head: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [B, T, 3D] -> 3 x [B, H, T, d]
    """Views of the queries, keys and values."""
    q, k, v = np.split(qkv, 3, axis=-1)
    return split_heads(q, n_head), split_heads(k, n_head), split_heads(v, n_head)


def _groups(b: int, h: int, t: int, chunk: int) -> list[tuple[slice, slice]]:
    """(batch rows, heads) of each piece of work: scores of a chunk fill about one block."""
    scores = min(t, chunk) * t
    if h * scores <= BLOCK:
        return [(rows, slice(0, h)) for rows in threads.pieces(b, max(1, min(BLOCK // (h * scores), -(-b // 2))))]
    heads = threads.pieces(h, max(1, BLOCK // scores))
    return [(slice(i, i + 1), group) for i in range(b) for group in heads]


def _batched(qkv: np.ndarray, n_head: int) -> np.ndarray:
    """[.., T, 3D] -> [B, T, 3D], checked."""
    if qkv.ndim < 2 or n_head < 1 or qkv.shape[-1] % (3 * n_head):
        raise misfit("causal_attention", f"qkv is [.., T, 3D] with D divisible by n_head = {n_head}", qkv=qkv.shape)
    return np.ascontiguousarray(qkv).reshape(-1, *qkv.shape[-2:])


@dataclass(frozen=True)
class _Dropped:
    """The dropout mask of the probabilities [B, H, T, T], by address; the mask of a head is the same for any chunk."""

    p: float
    key: dict[str, int]
    n_head: int
    t: int
    dtype: np.dtype

    def factors(self, batch: slice, heads: slice) -> Factors | None:
        """What `attend` multiplies the probabilities of these heads with."""
        if not self.p:
            return None
        width = -(-self.t // rng.VALUES_PER_TICK) * rng.VALUES_PER_TICK

        def factors(rows: slice, end: int) -> np.ndarray:
            n = rows.stop - rows.start
            out = buffers.scratch("factors", (batch.stop - batch.start, heads.stop - heads.start, n, end), self.dtype)
            for i in range(batch.start, batch.stop):
                for j in range(heads.start, heads.stop):
                    row = i * self.n_head + j
                    mask = rng.keep_mask(self.p, n * width, row=row, start=rows.start * width, **self.key)
                    kept = mask.reshape(n, width)[:, :end]
                    np.multiply(kept, 1.0 / (1.0 - self.p), out=out[i - batch.start, j - heads.start])
            return out

        return factors


def causal_attention(
    qkv: np.ndarray, *, n_head: int, chunk: int = CHUNK, p: float = 0.0, seed: int = 0, step: int = 0, site: int = 0
) -> tuple[np.ndarray, np.ndarray]:  # [.., T, 3D] -> [.., T, D]
    """Attention of each head over its q, k, v; p drops probabilities. Saves their norms [2, B, H, T, 1]."""
    check_p(p)
    x = _batched(qkv, n_head)
    b, t, width = x.shape
    y = buffers.empty((*qkv.shape[:-1], width // 3), x.dtype)
    q, k, v = split_qkv(x, n_head)
    out = split_heads(y.reshape(b, t, -1), n_head)
    norms = np.empty((2, b, n_head, t, 1), x.dtype)
    drop = _Dropped(p, {"seed": seed, "step": step, "site": site}, n_head, t, x.dtype)

    def work(g: tuple[slice, slice]) -> None:
        attend(q[g], k[g], v[g], out[g], 0, chunk, norms=norms[(slice(None), *g)], dropped=drop.factors(*g))

    run_all([lambda g=g: work(g) for g in _groups(b, n_head, t, chunk)])  # type: ignore[misc]
    return y, norms


def causal_attention_backward(
    dy: np.ndarray,
    y: Any,
    qkv: np.ndarray,
    *,
    n_head: int,
    chunk: int = CHUNK,
    p: float = 0.0,
    seed: int = 0,
    step: int = 0,
    site: int = 0,
    saved: np.ndarray | None = None,
    sinks: Any = (),
) -> Grads:
    """dqkv, head by head."""
    if saved is None:
        _, saved = causal_attention(qkv, n_head=n_head, chunk=chunk, p=p, seed=seed, step=step, site=site)
    norms, x = saved, _batched(qkv, n_head)
    b, t, _ = x.shape
    dqkv = buffers.empty(qkv.shape, x.dtype)
    q, k, v = split_qkv(x, n_head)
    dq, dk, dv = split_qkv(dqkv.reshape(x.shape), n_head)
    d_out = split_heads(np.ascontiguousarray(dy).reshape(b, t, -1), n_head)
    drop = _Dropped(p, {"seed": seed, "step": step, "site": site}, n_head, t, x.dtype)

    def work(g: tuple[slice, slice]) -> None:
        grads = (dq[g], dk[g], dv[g])
        attend_backward(d_out[g], q[g], k[g], v[g], norms[(slice(None), *g)], grads, chunk, drop.factors(*g))

    run_all([lambda g=g: work(g) for g in _groups(b, n_head, t, chunk)])  # type: ignore[misc]
    return (dqkv,)


register("causal_attention", causal_attention, causal_attention_backward, "qkv", saves=True, reads=(0,))


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
    if w_qkv.ndim != 2 or w_o.ndim != 2 or w_qkv.shape[1] != 3 * w_o.shape[0] or n_head < 1 or w_o.shape[0] % n_head:
        raise InvalidParameter(
            f"attention: w_qkv {list(w_qkv.shape)} and w_o {list(w_o.shape)} do not fit n_head {n_head}",
            hint="Rule: w_qkv is [D, 3D], w_o is [D, D], D is divisible by n_head.",
        )
    qkv = linear(x, w_qkv, b_qkv)
    mixed, norms = causal_attention(qkv, n_head=n_head, chunk=chunk)
    return linear(mixed, w_o, b_o), (qkv, mixed, norms)


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
    sinks: Any = (),
) -> Grads:
    """The backward passes of its three parts, in reverse."""
    qkv, mixed, norms = saved or attention(x, w_qkv, b_qkv, w_o, b_o, n_head=n_head, chunk=chunk)[1]
    d_mixed, dw_o, db_o = linear_backward(dy, None, mixed, w_o, b_o)
    (dqkv,) = causal_attention_backward(d_mixed, None, qkv, n_head=n_head, chunk=chunk, saved=norms)  # type: ignore[arg-type]
    dx, dw_qkv, db_qkv = linear_backward(dqkv, None, x, w_qkv, b_qkv)  # type: ignore[arg-type]
    return dx, dw_qkv, db_qkv, dw_o, db_o


register("attention", attention, attention_backward, "x w_qkv b_qkv w_o b_o", saves=True, reads=(0, 1, 2, 3))
