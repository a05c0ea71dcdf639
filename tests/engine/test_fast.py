"""Every fast form beside the plain op of `core`, over random shapes; and whole models, decoders and steps in both."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pg_gpt2.core import adamw as plain_adamw
from pg_gpt2.core import gpt2, op
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.tape import Eager, Tape
from pg_gpt2.fast import activations, layout, ops, threads
from pg_gpt2.fast import adamw as fast_adamw
from pg_gpt2.generation.decode import Decoder, several, step_together
from pg_gpt2.training.trainer import Trainer

from tests.engine.arithmetic import gradients_of
from tests.engine.small_models import CONFIGS, random_params

# Both forms round each sum of n products differently, by about 1e-7 of its terms, of which there are a few hundred.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}

Case = tuple[list[tuple[int, ...]], dict[str, Any]]  # shapes of the inputs, attributes


def case(name: str, draw: np.random.Generator) -> Case:
    """Random shapes and attributes that fit an op; one in three is large enough to be cut into pieces."""
    large = draw.random() < 1 / 3
    m, n, k = (int(draw.integers(1, 400 if large else 12)) for _ in range(3))
    batch = tuple(int(draw.integers(1, 4)) for _ in range(draw.integers(0, 3)))
    heads, width = int(draw.integers(1, 5)), int(draw.integers(1, 20))
    d = heads * width
    t = int(draw.integers(1, 150 if large else 9))
    key = {"seed": int(draw.integers(100)), "step": int(draw.integers(9)), "site": int(draw.integers(9))}
    axis = int(draw.integers(-2, 2))
    cases: dict[str, Case] = {
        "add": ([(*batch, m, n), ((m, n), (n,), (m, 1))[draw.integers(3)]], {}),
        "mul": ([(*batch, m, n), ((m, n), (n,), (m, 1))[draw.integers(3)]], {}),
        "scale": ([(*batch, m, n)], {"factor": float(draw.normal())}),
        **{name: ([(*batch, m, n)], {}) for name in activations.INTO},
        "softmax": ([(*batch, m, n)], {}),
        "layernorm": ([(*batch, m, n + 1), (n + 1,), (n + 1,)], {"eps": 1e-5}),
        "matmul": ([(*batch, m, k), ((*batch, k, n), (k, n))[draw.integers(2)]], {}),
        "addmm": ([(*batch, m, n), (*batch, m, k), (k, n)], {"factor": float(draw.normal())}),
        "linear": ([(*batch, m, k), (k, n), (n,)], {}),
        "lm_head": ([(*batch, m, k), (n, k)], {}),
        "mlp": ([(*batch, m, k), (k, n), (n,), (n, k), (k,)], {}),
        "embedding": ([(m, n)], {"ids": draw.integers(0, m, (*batch, k))}),
        "cross_entropy": ([(*batch, m, n)], loss_attributes((*batch, m), n, draw)),
        "lm_head_loss": ([(*batch, m, k), (n, k)], loss_attributes((*batch, m), n, draw)),
        "dropout": ([(*batch, m, n)], {"p": float(draw.uniform(0, 0.9)), **key}),
        "causal_attention": (
            [(*batch, t, 3 * d)],
            {
                "n_head": heads,
                "factor": (None, 0.05, 1.0)[draw.integers(3)],
                "chunk": int(draw.integers(1, 70)),
                "p": float(draw.choice([0.0, 0.3])),
                **key,
            },
        ),
        "attention": ([(*batch, t, d), (d, 3 * d), (3 * d,), (d, d), (d,)], {"n_head": heads}),
        "slice": ([(*batch, m, n)], {"axis": axis % 2 - 2, "start": 0, "stop": 1}),
        "concat": ([(*batch, m, n)] * int(draw.integers(1, 4)), {"axis": axis % 2 - 2}),
        "sum": ([(*batch, m, n)], {"axis": (None, -1, -2)[draw.integers(3)]}),
        "mean": ([(*batch, m, n)], {"axis": (None, -1, -2)[draw.integers(3)]}),
    }
    return cases[name]


def loss_attributes(shape: tuple[int, ...], n: int, draw: np.random.Generator) -> dict[str, Any]:
    """Targets, of which one case in two ignores some and one in two weighs them."""
    target = draw.integers(0, n, shape)
    if draw.random() < 0.5:
        target[draw.random(shape) < draw.random()] = -100
    weight = {"weight": draw.uniform(0.1, 9, shape[: draw.integers(1, len(shape) + 1)])} if draw.random() < 0.5 else {}
    return {"target": target} | weight


@pytest.fixture
def plainly() -> Iterator[None]:
    """The plain ops are used."""
    op.use_fast(False)
    yield
    op.use_fast(True)


@pytest.mark.parametrize("name", sorted(op.fast))
@pytest.mark.parametrize("seed", range(8))
def test_a_fast_form_gives_what_the_plain_op_gives(name: str, seed: int) -> None:
    draw = np.random.default_rng([seed, *name.encode()])
    shapes, attrs = case(name, draw)
    arrays = [draw.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0])) for shape in shapes]
    y = op.plain[name](*arrays, **attrs)
    np.testing.assert_allclose(op.fast[name](*arrays, **attrs), y, **TOLERANCE)
    dy = draw.standard_normal(y.shape, np.float32)
    expected = gradients_of(op.plain[name], dy, *arrays, **attrs)
    for got, wanted in zip(gradients_of(op.fast[name], dy, *arrays, **attrs), expected, strict=True):
        assert got is not None
        assert got.dtype == np.float32
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(got / scale, wanted / scale, **TOLERANCE)


def test_what_is_off_is_off(plainly: None) -> None:
    assert not op.is_fast()
    assert all(ops.lookup(name) is form for name, form in op.plain.items())
    op.use_fast(True)
    assert op.is_fast()
    assert all(ops.lookup(name) is form for name, form in op.fast.items())


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_decodes_plainly_as_it_does_fast(config: GPT2Config) -> None:
    params = random_params(config)
    ids = np.random.default_rng(1).integers(0, config.vocab, 90).tolist()
    fast = Decoder(layout.lay_out(dict(params), config), config, 96)
    op.use_fast(False)
    try:
        plain = Decoder(layout.DecoderWeights(params), config, 96)
        logits = [plain.feed(ids[:70]), *(plain.feed([token]) for token in ids[70:])]
        twin = plain.copy()
        twin.rewind(80)
        np.testing.assert_allclose(twin.feed_all(ids[80:]), logits[11:], **TOLERANCE)
        whole = gpt2.logits(Eager(), params, np.array(ids), config)
        np.testing.assert_allclose(whole[69:], logits, rtol=1e-4, atol=1e-4)
        streams = several(layout.DecoderWeights(params), config, [9, 9])
        streams[1].feed(ids[:3])
        together = step_together(streams, [ids[0], ids[3]])
        np.testing.assert_allclose(together, whole[[0, 3]], rtol=1e-4, atol=1e-4)
    finally:
        op.use_fast(True)
    np.testing.assert_allclose([fast.feed(ids[:70]), *(fast.feed([token]) for token in ids[70:])], logits, atol=2e-4)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_a_model_learns_plainly_what_it_learns_fast(dropout_p: float) -> None:
    config = GPT2Config(n_layer=2, n_head=2, d_model=16, n_positions=16, vocab=61)
    draw = np.random.default_rng(3)
    batches = [(draw.integers(0, 61, (2, 12)), draw.integers(0, 61, (2, 12))) for _ in range(2)]
    learned = []
    for fast in (True, False):
        op.use_fast(fast)
        try:
            trainer = Trainer(config, gpt2.init_params(config, 5), tied={"h.1.ln_1.bias": "h.0.ln_1.bias"})
            results = [
                trainer.step(batches, lr=1e-3, dropout_p=dropout_p, seed=4, step_no=n + 1, grad_clip=0.5)
                for n in range(3)
            ]
            learned.append((results, trainer.params))
        finally:
            op.use_fast(True)
    (fast_results, fast_params), (plain_results, plain_params) = learned
    for got, wanted in zip(fast_results, plain_results, strict=True):
        assert got.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert got.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
    for name, wanted in plain_params.items():
        np.testing.assert_allclose(fast_params[name], wanted, atol=2e-5, err_msg=name)


def test_adamw_and_norm_are_those_of_the_paper() -> None:
    draw = np.random.default_rng(2)
    state = [draw.standard_normal(1000, np.float32) for _ in range(3)] + [draw.random(1000, np.float32)]
    hyper = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 7, "grad_scale": 0.3}
    fast, plain = ([array.copy() for array in state] for _ in range(2))
    fast_adamw.adamw(*fast, **hyper)
    plain_adamw.adamw(*plain, **hyper)
    for got, wanted in zip(fast, plain, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert fast_adamw.global_norm(state) == pytest.approx(plain_adamw.global_norm(state), rel=1e-6)


def test_weights_are_drawn_alike_by_one_thread_and_by_several() -> None:
    config = GPT2Config(n_layer=1, n_head=1, d_model=64, n_positions=8, vocab=9000)
    one, several_threads = gpt2.init_params(config, 3), gpt2.init_params(config, 3, threads.run)
    for name, array in one.items():
        np.testing.assert_array_equal(array, several_threads[name])


def test_the_plain_tape_runs_the_model_as_the_fast_one() -> None:
    config = GPT2Config(n_layer=1, n_head=2, d_model=8, n_positions=8, vocab=20)
    params, ids = gpt2.init_params(config, 1), np.array([[1, 2, 3, 4]])
    tape = Tape()
    handles = {name: tape.leaf(w, True) for name, w in params.items()}
    loss = gpt2.loss(tape, handles, ids, ids, config)
    tape.backward(loss)
    trainer = Trainer(config, params)
    assert trainer.gradients([(ids, ids)])[0] == pytest.approx(float(loss.data), rel=1e-6)
    for name, handle in handles.items():
        assert handle.grad is not None
        np.testing.assert_allclose(trainer.grads[name], handle.grad, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_plain_tape_may_go_backward_more_than_once() -> None:
    tape = Tape()
    x = tape.leaf(np.float32([3]), True)
    z = tape.apply("scale", tape.apply("mul", x, x), factor=2.0)
    tape.backward(z)
    tape.backward(z)
    assert x.grad is not None
    assert x.grad.tolist() == [24]  # gradients of leaves add up, as in torch
