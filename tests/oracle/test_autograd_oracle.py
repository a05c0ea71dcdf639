"""Kernels and handles beside torch, live: random shapes, a block written in SQL, and a network trained by hand in SQL."""

import os
from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest
import torch
from pg_gpt2 import bytea_ops
from pg_gpt2.tensor import from_bytes, to_bytes
from torch.nn import functional as F

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # float32 sums of some hundred terms of unit size


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh form."""
    return F.gelu(x, approximate="tanh")


def attention(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, w_o: torch.Tensor, b_o: torch.Tensor) -> torch.Tensor:
    """Two heads, causal."""
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(-3, -2) for part in (x @ w + b).chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2).flatten(-2) @ w_o + b_o


Run = Callable[..., object]
Case = tuple[list[tuple[int, ...]], Run, Run | None, Callable[..., torch.Tensor]]
CASES: dict[str, Callable[[int, int], Case]] = {
    # shapes, forward kernel, backward kernel of (dy, *inputs), torch
    "matmul": lambda t, d: ([(t, d), (d, 7)], lambda a, b: bytea_ops.matmul(a, b, t, d, 7), None, torch.matmul),
    "add": lambda t, d: ([(t, d), (d,)], bytea_ops.add, None, torch.add),
    "gelu": lambda t, d: ([(t, d)], bytea_ops.gelu, lambda dy, x: bytea_ops.gelu_backward(x, dy), gelu),
    "softmax": lambda t, d: (
        [(t, d)],
        lambda x: bytea_ops.softmax(x, d),
        lambda dy, x: bytea_ops.softmax_backward(bytea_ops.softmax(x, d), dy, d),
        lambda x: torch.softmax(x, -1),
    ),
    "layernorm": lambda t, d: (
        [(t, d), (d,), (d,)],
        lambda x, g, b: bytea_ops.layernorm(x, g, b, 1e-5),
        lambda dy, x, g, b: bytea_ops.layernorm_backward(x, dy, g, 1e-5),
        lambda x, g, b: F.layer_norm(x, (d,), g, b, 1e-5),
    ),
    "transpose": lambda t, d: ([(t, d)], lambda x: bytea_ops.transpose(x, t, d), None, lambda x: x.T),
    "attention": lambda t, d: (
        [(t, 2 * d), (2 * d, 6 * d), (6 * d,), (2 * d, 2 * d), (2 * d,)],
        lambda *xs: bytea_ops.attention(*xs, 2, t, 2 * d),
        lambda dy, *xs: bytea_ops.attention_backward(*xs, dy, 2, t, 2 * d),
        attention,
    ),
    "mlp": lambda t, d: (
        [(t, d), (d, 4 * d), (4 * d,), (4 * d, d), (d,)],
        lambda x, w, b, w2, b2: bytea_ops.add(
            bytea_ops.matmul(bytea_ops.gelu(bytea_ops.add(bytea_ops.matmul(x, w, t, d, 4 * d), b)), w2, t, 4 * d, d), b2
        ),
        lambda dy, *xs: bytea_ops.mlp_backward(*xs, dy, t, d),
        lambda x, w, b, w2, b2: gelu(x @ w + b) @ w2 + b2,
    ),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_torch(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    t, d = int(rng.integers(1, 80)), int(rng.integers(2, 30))
    shapes, forward, backward, reference = CASES[name](t, d)
    arrays = [(rng.normal(size=shape) * 0.5).astype(np.float32) for shape in shapes]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = reference(*tensors)
    y = from_bytes(forward(*map(to_bytes, arrays))).reshape(expected.shape)  # type: ignore[arg-type]
    np.testing.assert_allclose(y, expected.detach().numpy(), **TOLERANCE)
    if backward is None:
        return
    dy = rng.normal(size=expected.shape).astype(np.float32)
    expected.backward(torch.from_numpy(dy))  # type: ignore[no-untyped-call]
    grads = backward(to_bytes(dy), *map(to_bytes, arrays))
    for grad, tensor in zip(grads if isinstance(grads, tuple) else [grads], tensors, strict=True):
        assert tensor.grad is not None
        scale = max(1.0, float(tensor.grad.abs().max()))
        got = from_bytes(grad).reshape(tensor.shape)  # type: ignore[arg-type]
        np.testing.assert_allclose(got / scale, tensor.grad.numpy() / scale, **TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_and_adamw_kernels_equal_torch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = torch.tensor(rng.normal(size=50).astype(np.float32), requires_grad=True)
    loss = F.cross_entropy(z[None], torch.tensor([7]))
    loss.backward()
    assert bytea_ops.cross_entropy(z.detach().numpy().tobytes(), 7) == pytest.approx(loss.item(), rel=1e-6)
    got = from_bytes(bytea_ops.cross_entropy_backward(z.detach().numpy().tobytes(), 7))
    np.testing.assert_allclose(got, z.grad.numpy(), rtol=1e-5, atol=1e-7)  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW([z], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    state: tuple[bytes | None, ...] = (z.detach().numpy().tobytes(), None, None)
    for step in range(1, 6):
        z.grad = torch.from_numpy(rng.normal(size=50).astype(np.float32))
        optimizer.step()
        w, m, v = state
        state = bytea_ops.adamw_step(w, z.grad.numpy().tobytes(), m, v, 1e-2, 0.9, 0.99, 1e-8, 0.1, step)
    np.testing.assert_allclose(from_bytes(state[0] or b""), z.detach().numpy(), rtol=1e-5, atol=1e-6)


# --- handles, in the server -----------------------------------------------------------------------------------------


@pytest.fixture
def conn() -> Iterator[psycopg.Connection]:
    """A session of the cluster of `make test-oracle`."""
    with psycopg.connect(os.environ["PG_GPT2_TEST_DSN"], autocommit=True) as conn:
        conn.execute("SET pg_gpt2.tape = 'session'")
        yield conn
        conn.execute("SELECT llm_prune_autograd_state()")


def value(conn: psycopg.Connection, query: str, *args: object) -> object:
    """The one value of a query."""
    row = conn.execute(query, args).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def variable(conn: psycopg.Connection, array: np.ndarray) -> object:
    """A handle that requires a gradient."""
    return value(conn, "SELECT llm_variable(%s, %s, true)", array.tobytes(), list(array.shape))


def op(conn: psycopg.Connection, name: str, *inputs: object, extra: str = "{}") -> object:
    """The handle of an op's result."""
    return value(conn, "SELECT llm_op(%s, %s::bigint[], %s)", name, list(inputs), extra)


@pytest.mark.parametrize("seed", range(3))
def test_a_block_by_handles_has_torchs_gradients(conn: psycopg.Connection, seed: int) -> None:
    rng = np.random.default_rng(seed)
    t, d = int(rng.integers(2, 40)), 2 * int(rng.integers(2, 20))
    shapes = [
        (t, d),
        (d,),
        (d,),
        (d, 3 * d),
        (3 * d,),
        (d, d),
        (d,),
        (d,),
        (d,),
        (d, 4 * d),
        (4 * d,),
        (4 * d, d),
        (d,),
    ]
    arrays = [(rng.normal(size=shape) * 0.4).astype(np.float32) for shape in shapes]
    x, g1, b1, w, b, w_o, b_o, g2, b2, fc, b_fc, proj, b_proj = handles = [variable(conn, array) for array in arrays]
    eps = '{"eps": 1e-5}'
    attended = op(conn, "attention", op(conn, "layernorm", x, g1, b1, extra=eps), w, b, w_o, b_o, extra='{"n_head": 2}')
    mid = op(conn, "add", x, attended)
    h = op(conn, "layernorm", mid, g2, b2, extra=eps)
    h = op(conn, "gelu", op(conn, "add", op(conn, "matmul", h, fc), b_fc))
    out = op(conn, "add", mid, op(conn, "add", op(conn, "matmul", h, proj), b_proj))
    loss = op(conn, "mean", op(conn, "mul", out, out))
    conn.execute("SELECT llm_backprop()")

    leaves = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    tx, tg1, tb1, tw, tb, tw_o, tb_o, tg2, tb2, tfc, tb_fc, tproj, tb_proj = leaves
    tmid = tx + attention(F.layer_norm(tx, (d,), tg1, tb1), tw, tb, tw_o, tb_o)
    tout = tmid + gelu(F.layer_norm(tmid, (d,), tg2, tb2) @ tfc + tb_fc) @ tproj + tb_proj
    (tout * tout).mean().backward()
    got_loss = from_bytes(value(conn, "SELECT llm_value(%s)", loss))[0]  # type: ignore[arg-type]
    assert got_loss == pytest.approx((tout * tout).mean().item(), rel=1e-5)
    for handle, leaf in zip(handles, leaves, strict=True):
        got = from_bytes(value(conn, "SELECT llm_grad(%s)", handle)).reshape(leaf.shape)  # type: ignore[arg-type]
        assert leaf.grad is not None
        error = np.linalg.norm(got - leaf.grad.numpy()) / np.linalg.norm(leaf.grad.numpy())
        assert error < 1e-5


NET = {"e": (11, 8), "w1": (8, 16), "b1": (16,), "gamma": (16,), "beta": (16,), "w2": (16, 11)}
IDS, TARGETS = [3, 1, 4, 1, 5, 9, 2, 6], [1, 4, 1, 5, 9, 2, 6, 5]
FORWARD = """
    SELECT llm_op('cross_entropy', ARRAY[llm_op('matmul', ARRAY[llm_op('layernorm', ARRAY[llm_op('gelu', ARRAY[
               llm_op('add', ARRAY[
                   llm_op('matmul', ARRAY[llm_op('embedding', ARRAY[e.id], '{"ids": [3,1,4,1,5,9,2,6]}'), w1.id]), b1.id])
           ]), gamma.id, beta.id], '{"eps": 1e-5}'), w2.id])], '{"target": [1,4,1,5,9,2,6,5]}')
    FROM h AS e, h AS w1, h AS b1, h AS gamma, h AS beta, h AS w2
    WHERE (e.name, w1.name, b1.name, gamma.name, beta.name, w2.name) = ('e', 'w1', 'b1', 'gamma', 'beta', 'w2')
"""
UPDATE = """
    UPDATE net SET data = s.weight, m = s.m, v = s.v
    FROM (SELECT n.name, a.* FROM net AS n JOIN h USING (name),
              LATERAL pg_llm_adamw_step(n.data, llm_grad(h.id), n.m, n.v, 0.01, 0.9, 0.999, 1e-8,
                  CASE WHEN cardinality(n.shape) = 2 THEN 0.1 ELSE 0 END, %s) AS a) AS s
    WHERE net.name = s.name
"""


def test_a_network_trained_by_hand_follows_torch(conn: psycopg.Connection) -> None:
    """50 AdamW steps: forward, backward and update are SQL over rows."""
    rng = np.random.default_rng(5)
    arrays = {name: (rng.normal(size=shape) * 0.3).astype(np.float32) for name, shape in NET.items()}
    conn.execute("CREATE TEMP TABLE net (name text, shape int[], data bytea, m bytea, v bytea)")
    for name, array in arrays.items():
        conn.execute("INSERT INTO net VALUES (%s, %s, %s)", (name, list(array.shape), array.tobytes()))
    p = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    matrices = [tensor for tensor in p.values() if tensor.ndim == 2]
    vectors = [tensor for tensor in p.values() if tensor.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=0.01
    )
    losses = []
    for step in range(1, 51):
        conn.execute("CREATE TEMP TABLE h AS SELECT name, llm_variable(data, shape, true) AS id FROM net")
        loss = from_bytes(value(conn, f"SELECT llm_value(({FORWARD}))"))[0]  # type: ignore[arg-type]
        conn.execute("SELECT llm_backprop()")
        conn.execute(UPDATE, (step,))
        conn.execute("SELECT llm_prune_autograd_state()")
        conn.execute("DROP TABLE h")

        x = gelu(p["e"][IDS] @ p["w1"] + p["b1"])
        expected = F.cross_entropy(F.layer_norm(x, (16,), p["gamma"], p["beta"]) @ p["w2"], torch.tensor(TARGETS))
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        losses.append((float(loss), expected.item()))
    ours, theirs = np.array(losses).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < 0.5 * ours[0]
