"""Every op's backward pass against finite differences in float64: the next op is one line here."""

from collections.abc import Callable

import numpy as np
import pytest
from pg_gpt2.core.op import Sink
from pg_gpt2.fast.ops import registry, use_fast

from tests.engine.arithmetic import gradients_of

STEP = 1e-6  # of a central difference: its error is about 1e-10 relative for values of unit size


def values(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float64 values; the seed follows from the shape, so that arrays of one call differ."""
    return np.random.default_rng([seed, len(shape), *shape]).normal(size=shape)


def numeric_gradient(f: Callable[[], float], x: np.ndarray) -> np.ndarray:
    """Central differences of f by each element of x, in place."""
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        was = x[i]
        x[i] = was + STEP
        above = f()
        x[i] = was - STEP
        grad[i], x[i] = (above - f()) / (2 * STEP), was
    return grad


def check_grads(name: str, **attrs: object) -> Callable[..., None]:
    """check_grads(op, **attrs)(*arrays): backward agrees with finite differences of sum(dy * forward)."""

    def check(*arrays: np.ndarray) -> None:
        op = registry[name]
        before = [array.copy() for array in arrays]
        y, saved = op.run(*arrays, **attrs)
        dy = np.random.default_rng(1).normal(size=y.shape)
        grads = op.gradients(dy.copy(), y, *arrays, saved=saved, sinks=[None] * len(arrays), **attrs)
        assert len(grads) == len(arrays)
        for array, grad in zip(arrays, grads, strict=True):
            expected = numeric_gradient(lambda: float((op(*arrays, **attrs) * dy).sum()), array)
            if grad is None:
                assert not expected.any()
                continue
            assert grad.shape == array.shape
            assert grad.dtype == np.float64
            np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-8)
        for array, copy in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, copy)
        for grad, again in zip(grads, gradients_of(op, dy, *arrays, **attrs), strict=True):
            np.testing.assert_array_equal(grad, again)  # from the inputs alone, the same bits

    return check


GRADCHECKS = {
    "matmul": (check_grads("matmul"), [(3, 4), (4, 5)]),
    "matmul of a batch and a matrix": (check_grads("matmul"), [(2, 3, 4), (4, 5)]),
    "matmul of batches": (check_grads("matmul"), [(2, 1, 3, 4), (3, 4, 2)]),
    "addmm": (check_grads("addmm", factor=-1.7), [(2, 3, 5), (2, 3, 4), (4, 5)]),
    "add": (check_grads("add"), [(3, 4), (3, 4)]),
    "add a bias": (check_grads("add"), [(2, 3, 4), (4,)]),
    "add broadcast both ways": (check_grads("add"), [(3, 1), (2, 1, 4)]),
    "mul": (check_grads("mul"), [(3, 4), (3, 4)]),
    "mul broadcast": (check_grads("mul"), [(2, 3, 4), (3, 1)]),
    "mul a row": (check_grads("mul"), [(5, 4), (4,)]),
    "scale": (check_grads("scale", factor=-1.7), [(3, 4)]),
    "gelu": (check_grads("gelu"), [(3, 7)]),
    "gelu_exact": (check_grads("gelu_exact"), [(3, 7)]),
    "relu": (check_grads("relu"), [(3, 7)]),
    "silu": (check_grads("silu"), [(3, 7)]),
    "quick_gelu": (check_grads("quick_gelu"), [(3, 7)]),
    "tanh": (check_grads("tanh"), [(3, 7)]),
    "softmax": (check_grads("softmax"), [(3, 7)]),
    "layernorm": (check_grads("layernorm", eps=1e-5), [(2, 3, 6), (6,), (6,)]),
    "linear": (check_grads("linear"), [(2, 3, 4), (4, 5), (5,)]),
    "lm_head": (check_grads("lm_head"), [(2, 3, 4), (7, 4)]),
    "mlp": (check_grads("mlp"), [(3, 4), (4, 8), (8,), (8, 4), (4,)]),
    "causal_attention": (check_grads("causal_attention", n_head=2), [(2, 5, 12)]),
    "causal_attention with a factor": (check_grads("causal_attention", n_head=2, factor=0.25), [(2, 5, 12)]),
    "causal_attention in chunks": (check_grads("causal_attention", n_head=2, chunk=2), [(7, 12)]),
    "causal_attention with dropout": (
        check_grads("causal_attention", n_head=2, chunk=3, p=0.4, seed=5, step=2, site=3),
        [(2, 7, 12)],
    ),
    "attention": (check_grads("attention", n_head=2), [(5, 4), (4, 12), (12,), (4, 4), (4,)]),
    "embedding": (check_grads("embedding", ids=[3, 1, 3, 0]), [(5, 4)]),
    "embedding in order": (check_grads("embedding", ids=[[0, 2, 4]]), [(5, 4)]),
    "cross_entropy": (check_grads("cross_entropy", target=[1, 0, 4]), [(3, 5)]),
    "cross_entropy of one row": (check_grads("cross_entropy", target=2), [(5,)]),
    "cross_entropy with ignored targets": (check_grads("cross_entropy", target=[1, -100, 4, -100]), [(4, 5)]),
    "cross_entropy with weights": (check_grads("cross_entropy", target=[1, -100, 4], weight=[3, 5, 0.5]), [(3, 5)]),
    "cross_entropy of nothing": (check_grads("cross_entropy", target=[-100, -100]), [(2, 5)]),
    "lm_head_loss": (check_grads("lm_head_loss", target=[[1, 0, 6], [2, 2, 3]]), [(2, 3, 4), (7, 4)]),
    "lm_head_loss with ignored targets": (
        check_grads("lm_head_loss", target=[[-100, 0, 6], [2, -100, -100]]),
        [(2, 3, 4), (7, 4)],
    ),
    "lm_head_loss with weights": (
        check_grads("lm_head_loss", target=[[-100, 0, 6], [2, 2, -100]], weight=[0.3, 7]),
        [(2, 3, 4), (7, 4)],
    ),
    "lm_head_loss of nothing": (check_grads("lm_head_loss", target=[[-100] * 3] * 2), [(2, 3, 4), (7, 4)]),
    "dropout": (check_grads("dropout", p=0.3, seed=7), [(5, 9)]),
    "transpose": (check_grads("transpose"), [(2, 3, 4)]),
    "transpose by axes": (check_grads("transpose", axes=[2, 0, 1]), [(2, 3, 4)]),
    "reshape": (check_grads("reshape", shape=[4, -1]), [(2, 6)]),
    "slice": (check_grads("slice", axis=1, start=1, stop=3), [(2, 4, 3)]),
    "concat": (check_grads("concat", axis=-1), [(2, 1), (2, 3), (2, 2)]),
    "sum": (check_grads("sum"), [(2, 3)]),
    "sum over an axis": (check_grads("sum", axis=0), [(2, 3)]),
    "mean": (check_grads("mean"), [(2, 3)]),
    "mean over an axis": (check_grads("mean", axis=-1), [(2, 3)]),
    "ones_like": (check_grads("ones_like"), [(2, 3)]),
    "zeros_like": (check_grads("zeros_like"), [(2, 3)]),
}


@pytest.mark.parametrize("case", GRADCHECKS)
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_backward_agrees_with_finite_differences(case: str, fast: bool) -> None:
    check, shapes = GRADCHECKS[case]
    use_fast(fast)
    try:
        check(*(values(*shape, seed=i) for i, shape in enumerate(shapes)))
    finally:
        use_fast(True)


def test_every_op_is_checked() -> None:
    assert set(registry) == {case.split()[0] for case in GRADCHECKS}


@pytest.mark.parametrize(
    ("name", "shapes", "attrs"),
    [
        ("linear", [(3, 4), (4, 5), (5,)], {}),
        ("lm_head", [(3, 4), (7, 4)], {}),
        ("embedding", [(5, 4)], {"ids": [3, 1, 3, 0]}),
        ("lm_head_loss", [(3, 4), (7, 4)], {"target": [1, 0, 6]}),
    ],
)
def test_gradients_collect_in_a_sink(name: str, shapes: list[tuple[int, ...]], attrs: dict) -> None:
    arrays = [values(*shape, seed=i) for i, shape in enumerate(shapes)]
    op = registry[name]
    y, saved = op.run(*arrays, **attrs)
    dy = np.ones_like(y)
    expected = op.gradients(dy, y, *arrays, saved=saved, sinks=[None] * len(arrays), **attrs)
    sinks = [Sink(np.full_like(array, np.nan)) if array.ndim == 2 else None for array in arrays]
    for times in (1, 2):
        op.gradients(dy, y, *arrays, saved=saved, sinks=sinks, **attrs)
        for sink, grad in zip(sinks, expected, strict=True):
            if sink is not None and sink.filled:
                np.testing.assert_allclose(sink.array, times * grad, rtol=1e-12)


@pytest.mark.parametrize("attrs", [{}, {"chunk": 16}, {"p": 0.5, "seed": 3}])
def test_what_sees_one_key_has_exactly_no_gradient_in_its_scores(attrs: dict) -> None:
    op = registry["causal_attention"]
    qkv = values(3, 40, 36).astype(np.float32)
    first, rest = qkv[:, :1], gradients_of(op, values(3, 40, 12, seed=1).astype(np.float32), qkv, n_head=2, **attrs)[0]
    alone = gradients_of(op, values(3, 1, 12, seed=1).astype(np.float32), first, n_head=2, **attrs)[0]
    assert not alone[..., :24].any()
    assert alone[..., 24:].any()
    assert not rest[:, 0, :12].any()  # the query; the key is seen by others
    assert rest[:, 1:, :12].any()


@pytest.mark.parametrize(
    ("name", "shapes", "attrs"),
    [
        ("layernorm", [(5, 1), (1,), (1,)], {}),
        ("softmax", [(5, 1)], {}),
        ("cross_entropy", [(5, 1)], {"target": [0] * 5}),
    ],
)
def test_what_can_have_one_value_only_has_exactly_no_gradient(name: str, shapes: list, attrs: dict) -> None:
    arrays = [values(*shape, seed=i).astype(np.float32) * 3 for i, shape in enumerate(shapes)]
    dy = np.full_like(registry[name](*arrays, **attrs), 0.7)
    assert not gradients_of(registry[name], dy, *arrays, **attrs)[0].any()


def test_loss_and_gradients_in_one_pass_are_the_same_bits() -> None:
    x, wte = values(600, 8).astype(np.float32), values(9000, 8).astype(np.float32)
    target = np.random.default_rng(0).integers(0, 9000, 600)
    op = registry["lm_head_loss"]
    assert op.fused is not None
    loss, grads = op.fused(np.float32(0.5), x, wte, target=target)
    assert loss == op(x, wte, target=target)
    for grad, expected in zip(grads, gradients_of(op, np.asarray(0.5, np.float32), x, wte, target=target), strict=True):
        np.testing.assert_array_equal(grad, expected)
