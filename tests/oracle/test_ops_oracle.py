"""Every op beside its torch counterpart, forward and backward, on random shapes and dtypes."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from pg_gpt2.fast.ops import registry
from torch.nn import functional as F

from tests.engine.arithmetic import gradients_of

SEEDS = range(5)
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # float32 sums of some hundred terms of unit size


def causal_attention(qkv: torch.Tensor, n_head: int, factor: float | None = None) -> torch.Tensor:
    q, k, v = (part.unflatten(-1, (n_head, -1)).transpose(-3, -2) for part in qkv.chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=factor).transpose(-3, -2).flatten(-2)


def attention(x, w_qkv, b_qkv, w_o, b_o, n_head: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return causal_attention(x @ w_qkv + b_qkv, n_head) @ w_o + b_o


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def some(t: int, n: int) -> np.ndarray:
    """Targets of t rows, of which every third carries no loss."""
    return np.where(np.arange(t) % 3 == 0, -100, np.arange(t) * 5 % n)


def weighted(losses: torch.Tensor, target: np.ndarray) -> torch.Tensor:
    """Their mean over what counts, row t with weight t + 1."""
    weights = torch.from_numpy(np.where(target == -100, 0, np.arange(1, len(target) + 1)))
    return (losses * weights).sum() / weights.sum()


Case = tuple[list[tuple[int, ...]], dict, Callable[..., torch.Tensor]]
CASES: dict[str, Callable[[int, int, int, int], Case]] = {
    "matmul": lambda b, t, d, n: ([(b, t, d), (d, n)], {}, torch.matmul),
    "matmul of batches": lambda b, t, d, n: ([(b, t, d), (b, d, n)], {}, torch.matmul),
    "addmm": lambda b, t, d, n: ([(t, n), (t, d), (d, n)], {"factor": 2.5}, partial(torch.addmm, alpha=2.5)),
    "add": lambda b, t, d, n: ([(b, t, d), (t, d)], {}, torch.add),
    "mul": lambda b, t, d, n: ([(b, t, d), (b, 1, d)], {}, torch.mul),
    "scale": lambda b, t, d, n: ([(b, t)], {"factor": 0.37}, lambda x: x * 0.37),
    "gelu": lambda b, t, d, n: ([(b, t, d)], {}, gelu),
    "gelu_exact": lambda b, t, d, n: ([(b, t, d)], {}, F.gelu),
    "relu": lambda b, t, d, n: ([(b, t, d)], {}, torch.relu),
    "silu": lambda b, t, d, n: ([(b, t, d)], {}, F.silu),
    "quick_gelu": lambda b, t, d, n: ([(b, t, d)], {}, lambda x: x * torch.sigmoid(1.702 * x)),
    "tanh": lambda b, t, d, n: ([(b, t, d)], {}, torch.tanh),
    "softmax": lambda b, t, d, n: ([(b, t, d)], {}, lambda x: torch.softmax(x, -1)),
    "layernorm": lambda b, t, d, n: (
        [(b, t, d), (d,), (d,)],
        {"eps": 1e-5},
        lambda x, g, c: F.layer_norm(x, (d,), g, c, 1e-5),
    ),
    "linear": lambda b, t, d, n: ([(b, t, d), (d, n), (n,)], {}, lambda x, w, c: x @ w + c),
    "mlp": lambda b, t, d, n: (
        [(t, d), (d, n), (n,), (n, d), (d,)],
        {},
        lambda x, w, c, v, e: gelu(x @ w + c) @ v + e,
    ),
    "causal_attention": lambda b, t, d, n: (
        [(b, t, 12 * b)],
        {"n_head": 2, "chunk": 16},
        lambda x: causal_attention(x, 2),
    ),
    "causal_attention with a factor": lambda b, t, d, n: (
        [(b, t, 12 * b)],
        {"n_head": 2, "factor": 0.7},
        lambda x: causal_attention(x, 2, 0.7),
    ),
    "attention": lambda b, t, d, n: (
        [(b, t, 8), (8, 24), (24,), (8, 8), (8,)],
        {"n_head": 4},
        lambda *xs: attention(*xs, n_head=4),
    ),
    "embedding": lambda b, t, d, n: (
        [(n, d)],
        {"ids": np.arange(b * t).reshape(b, t) * 7 % n},
        lambda table: F.embedding(torch.arange(b * t).reshape(b, t) * 7 % n, table),
    ),
    "cross_entropy": lambda b, t, d, n: (
        [(t, n)],
        {"target": np.arange(t) * 5 % n},
        lambda z: F.cross_entropy(z, torch.arange(t) * 5 % n),
    ),
    "cross_entropy of some": lambda b, t, d, n: (
        [(t, n)],
        {"target": some(t, n)},
        lambda z: F.cross_entropy(z, torch.from_numpy(some(t, n)), ignore_index=-100),
    ),
    "cross_entropy with weights": lambda b, t, d, n: (
        [(t, n)],
        {"target": some(t, n), "weight": np.arange(1, t + 1) / 7},
        lambda z: weighted(F.cross_entropy(z, torch.from_numpy(some(t, n)), reduction="none"), some(t, n)),
    ),
    "lm_head": lambda b, t, d, n: ([(t, d), (n, d)], {}, lambda x, wte: x @ wte.T),
    "lm_head_loss": lambda b, t, d, n: (
        [(t, d), (n, d)],
        {"target": np.arange(t) * 5 % n},
        lambda x, wte: F.cross_entropy(x @ wte.T, torch.arange(t) * 5 % n),
    ),
    "lm_head_loss of some": lambda b, t, d, n: (
        [(t, d), (n, d)],
        {"target": some(t, n)},
        lambda x, wte: F.cross_entropy(x @ wte.T, torch.from_numpy(some(t, n)), ignore_index=-100),
    ),
    "lm_head_loss with weights": lambda b, t, d, n: (
        [(t, d), (n, d)],
        {"target": some(t, n), "weight": np.arange(1, t + 1) / 7},
        lambda x, wte: weighted(F.cross_entropy(x @ wte.T, torch.from_numpy(some(t, n)), reduction="none"), some(t, n)),
    ),
    "transpose": lambda b, t, d, n: ([(b, t, d)], {}, lambda x: x.transpose(-1, -2)),
    "reshape": lambda b, t, d, n: ([(b, t, d)], {"shape": (t, -1)}, lambda x: x.reshape(t, -1)),
    "slice": lambda b, t, d, n: ([(b, t, d)], {"axis": 2, "start": 1, "stop": d}, lambda x: x[..., 1:d]),
    "concat": lambda b, t, d, n: ([(b, t), (b, d)], {"axis": 1}, lambda *xs: torch.cat(xs, 1)),
    "sum": lambda b, t, d, n: ([(b, t, d)], {"axis": 1}, lambda x: x.sum(1)),
    "mean": lambda b, t, d, n: ([(b, t, d)], {}, lambda x: x.mean()),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_op_equals_torch(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    b, t, d, n = (int(rng.integers(*limits)) for limits in ((1, 4), (2, 90), (2, 50), (2, 130)))
    shapes, attrs, reference = CASES[name](b, t, d, n)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = reference(*tensors)
    op = registry[name.split()[0]]
    np.testing.assert_allclose(op(*arrays, **attrs), expected.detach().numpy(), **TOLERANCE)
    dy = rng.normal(size=tuple(expected.shape)).astype(np.float32)
    expected.backward(torch.as_tensor(dy))  # type: ignore[no-untyped-call]
    for grad, tensor in zip(gradients_of(op, np.asarray(dy), *arrays, **attrs), tensors, strict=True):
        assert tensor.grad is not None
        scale = max(1.0, float(tensor.grad.abs().max()))
        np.testing.assert_allclose(grad / scale, tensor.grad.numpy() / scale, **TOLERANCE)
