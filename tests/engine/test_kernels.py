"""The SQL kernels are the ops of the registry: identity, not similarity. Values are in pgTAP and in the oracle."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pg_gpt2 import bytea_ops
from pg_gpt2.core.op import Op
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast.ops import registry
from pg_gpt2.tensor import from_bytes, to_bytes
from pg_gpt2.training import optim

from tests.engine.arithmetic import gradients_of


def tensor(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 values."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def sent(*numbers: float) -> bytes:
    """An array of double precision as array_send has it."""
    elements = np.array([(8, number) for number in numbers], bytea_ops.SENT)
    return struct.pack(">5i", 1, 0, bytea_ops.FLOAT8, len(numbers), 1) + elements.tobytes()


X, GAMMA, W = tensor(6, 8), tensor(8), tensor(8, 4)
ATTENTION = tensor(6, 8), tensor(8, 24), tensor(24), tensor(8, 8, seed=1), tensor(8, seed=1)
MLP = tensor(6, 8), tensor(8, 32), tensor(32), tensor(32, 8), tensor(8)
DY = tensor(6, 8, seed=2)
FORWARD: dict[str, tuple[Callable[..., Any], tuple, dict, tuple]] = {
    # op -> kernel, arrays, attributes of the op, scalars of the kernel
    "matmul": (bytea_ops.matmul, (X, W), {}, (6, 8, 4)),
    "add": (bytea_ops.add, (X, GAMMA), {}, ()),
    "gelu": (bytea_ops.gelu, (X,), {}, ()),
    "softmax": (bytea_ops.softmax, (X,), {}, (8,)),
    "layernorm": (bytea_ops.layernorm, (X, GAMMA, tensor(8, seed=3)), {"eps": 1e-5}, (1e-5,)),
    "ones_like": (bytea_ops.ones_like, (X,), {}, ()),
    "zeros_like": (bytea_ops.zeros_like, (X,), {}, ()),
    "transpose": (bytea_ops.transpose, (X,), {}, (6, 8)),
    "attention": (bytea_ops.attention, ATTENTION, {"n_head": 2}, (2, 6, 8)),
    "dropout": (bytea_ops.dropout, (X,), {"p": 0.4, "seed": 9}, (0.4, True, 9)),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_is_the_registry_op(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, arrays, attrs, scalars = FORWARD[name]
    called: list[Op] = []

    def spy(self: Op, *arrays: np.ndarray, **attrs: Any) -> Any:
        called.append(self)
        return run(self, *arrays, **attrs)

    run = Op.run
    monkeypatch.setattr(Op, "run", spy)
    result = kernel(*map(to_bytes, arrays), *scalars)
    assert called == [registry[name]]
    assert called[0] is registry[name]
    assert result == to_bytes(registry[name](*arrays, **attrs))


EPS = 1e-5
LOSS_GRADIENT = np.ones((), np.float32)
BACKWARD: dict[str, tuple[Callable[..., Any], tuple, tuple, dict, np.ndarray]] = {
    # op -> kernel, its arguments, arrays of the op, attributes, dy
    "gelu": (bytea_ops.gelu_backward, (X, DY), (X,), {}, DY),
    "softmax": (lambda x, dy: bytea_ops.softmax_backward(bytea_ops.softmax(x, 8), dy, 8), (X, DY), (X,), {}, DY),
    "layernorm": (
        lambda *a: bytea_ops.layernorm_backward(*a, 1e-5),
        (X, DY, GAMMA),
        (X, GAMMA, GAMMA),
        {"eps": 1e-5},
        DY,
    ),
    "cross_entropy": (
        lambda z: bytea_ops.cross_entropy_backward(z, 3),
        (GAMMA,),
        (GAMMA,),
        {"target": 3},
        np.ones((), np.float32),
    ),
    "attention": (lambda *a: bytea_ops.attention_backward(*a, 2, 6, 8), (*ATTENTION, DY), ATTENTION, {"n_head": 2}, DY),
    "mlp": (lambda *a: bytea_ops.mlp_backward(*a, 6, 8), (*MLP, DY), MLP, {}, DY),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_is_the_registry_op(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, given, arrays, attrs, dy = BACKWARD[name]
    expected = [to_bytes(grad) for grad in gradients_of(registry[name], dy, *arrays, **attrs) if grad is not None]
    op, called = registry[name], []

    def spy(*args: Any, **options: Any) -> Any:
        called.append(name)
        return op.backward(*args, **options)

    monkeypatch.setitem(registry, name, Op(name, op.forward, spy, op.inputs, saves=op.saves, reads=op.reads))
    result = kernel(*map(to_bytes, given))
    assert called == [name]
    assert (list(result) if isinstance(result, tuple) else [result]) == expected


def test_adamw_step_is_the_trainers() -> None:
    w, g, m, v = (np.abs(tensor(300_000, seed=i)) for i in range(4))
    hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    result = bytea_ops.adamw_step(*map(to_bytes, (w, g, m, v)), *hyper.values(), 7)
    optim.step_all({"w": w[None]}, {"w": g[None]}, {"w": m[None]}, {"w": v[None]}, {"w": 7}, **hyper)
    assert result == tuple(map(to_bytes, (w, m, v)))


def test_dropout_backward_reads_the_mask_off_the_output() -> None:
    x = tensor(4096)
    y = registry["dropout"](x, p=0.3, seed=4)
    expected = gradients_of(registry["dropout"], np.ones_like(x), x, p=0.3, seed=4)[0]
    result = bytea_ops.dropout_backward(*map(to_bytes, (x, y, np.ones_like(x))), 0.3, True)
    np.testing.assert_allclose(from_bytes(result), expected, rtol=1e-6)


def test_clipping_bounds_the_norm_and_keeps_a_short_gradient() -> None:
    g = tensor(1000)
    norm = float(np.linalg.norm(g))
    assert bytea_ops.grad_clip(to_bytes(g), 2 * norm) == to_bytes(g)
    assert np.linalg.norm(from_bytes(bytea_ops.grad_clip(to_bytes(g), 1.0))) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: bytea_ops.matmul(b"\0\0\0\0", b"\0\0\0\0", 1, 1, 2),
        lambda: bytea_ops.gelu(b""),
        lambda: bytea_ops.softmax(bytes(12), 2),
        lambda: bytea_ops.layernorm(bytes(12), bytes(8), bytes(8), 1e-5),
        lambda: bytea_ops.layernorm(bytes(8), bytes(8), bytes(8), float("nan")),
        lambda: bytea_ops.gelu_backward(bytes(8), bytes(4)),
        lambda: bytea_ops.transpose(bytes(8), 2, 2),
        lambda: bytea_ops.grad_clip(bytes(4), 0.0),
        lambda: bytea_ops.sample(to_bytes(np.float32([np.nan])), bytea_ops.Sampling(), 0),
        lambda: bytea_ops.tensor(sent(1e39), 1),
    ],
)
def test_misfits_are_invalid_parameters(wrong: Callable[[], object]) -> None:
    with pytest.raises(InvalidParameter):
        wrong()
