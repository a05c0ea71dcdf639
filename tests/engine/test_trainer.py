"""Training in memory: 50 steps beside torch, accumulation, determinism, and the order of batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.core import gpt2, op
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.errors import Diverged, InvalidParameter
from pg_gpt2.fast import threads
from pg_gpt2.training.batches import BatchOrder
from pg_gpt2.training.trainer import Batch, Trainer, estimate_step_bytes, evaluate

from tests.engine.arithmetic import bytes_of

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "gpt2_tiny.npz"))
TINY = GPT2Config(n_layer=2, n_head=2, d_model=16, n_positions=16, vocab=61)
BATCHES = [(tokens[:, :-1], tokens[:, 1:]) for tokens in GOLDEN["tokens"]]
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "grad_clip": 1.0, "dropout_p": 0.0}


def trainer() -> Trainer:
    return Trainer(TINY, {k.removeprefix("param."): a.copy() for k, a in GOLDEN.items() if k.startswith("param.")})


def assert_same_state(a: Trainer, b: Trainer) -> None:
    for x, y in ((a.params, b.params), (a.m, b.m), (a.v, b.v)):
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)
    assert a.steps == b.steps


def test_fifty_steps_follow_torch() -> None:
    t = trainer()
    results = [t.step([BATCHES[i % len(BATCHES)]], **OPTIONS, step_no=i + 1) for i in range(50)]
    np.testing.assert_allclose([r.loss for r in results], GOLDEN["losses"], rtol=1e-4)
    np.testing.assert_allclose([r.grad_norm for r in results], GOLDEN["norms"], rtol=5e-3)  # steeper in the weights
    assert results[0].tokens == 32
    assert set(t.steps.values()) == {50}


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts = trainer(), trainer()
    tokens, targets = BATCHES[0]
    loss, n = whole.gradients([(tokens, targets)])
    split = [(tokens[:1], targets[:1]), (tokens[1:], targets[1:])]
    assert parts.gradients(split) == (pytest.approx(loss, rel=1e-6), n)
    for name, grad in whole.grads.items():
        np.testing.assert_allclose(parts.grads[name], grad, rtol=1e-4, atol=1e-6, err_msg=name)


def test_micro_batches_weigh_by_tokens() -> None:
    tokens, targets = BATCHES[0]
    long, short = (tokens[:1], targets[:1]), (tokens[1:, :4], targets[1:, :4])
    t = trainer()
    both, _ = t.gradients([long, short])
    (a, n), (b, k) = t.gradients([long]), t.gradients([short])
    assert both == pytest.approx((a * n + b * k) / (n + k), rel=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_training_is_the_same_bits_on_any_number_of_threads(count: int) -> None:
    before, (a, b) = threads.threads(), (trainer(), trainer())
    options = {**OPTIONS, "dropout_p": 0.3}
    a.step(BATCHES[:2], **options, seed=3)
    try:
        threads.set_threads(count)
        b.step(BATCHES[:2], **options, seed=3)
    finally:
        threads.set_threads(before)
    assert_same_state(a, b)


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def speed(request: pytest.FixtureRequest) -> Iterator[None]:
    """By the faster forms of ops, and by the plain ones."""
    op.use_fast(request.param)
    yield
    op.use_fast(True)


@pytest.mark.parametrize("tied", [{}, {"h.1.mlp.c_fc.weight": "h.0.mlp.c_fc.weight"}], ids=["", "tied"])
def test_every_audit_level_gives_the_same_bits(speed: None, tied: dict[str, str]) -> None:
    """Of several micro-batches, and uses of a tensor: sums in another order would have other bits."""
    a, b = (Trainer(TINY, trainer().params, tied=tied) for _ in range(2))
    rows: list[str] = []
    for step in (1, 2):
        a.step(BATCHES[:2], **OPTIONS, step_no=step)
        b.step(BATCHES[:2], **OPTIONS, step_no=step, audit=lambda phase, node: rows.append(node.name))
    assert rows
    assert_same_state(a, b)


def test_rows_of_one_token_leave_queries_and_keys_to_weight_decay() -> None:
    t, d = trainer(), TINY.d_model
    before = {name: array.copy() for name, array in t.params.items()}
    tokens, targets = (part[:, :1] for part in BATCHES[0])
    for step in range(1, 101):
        t.step([(tokens, targets)], **OPTIONS | {"dropout_p": 0.1}, step_no=step)
    decayed = np.float64((1 - OPTIONS["lr"] * OPTIONS["weight_decay"]) ** 100)
    for layer in range(TINY.n_layer):
        weight, bias = (f"h.{layer}.attn.c_attn.{kind}" for kind in ("weight", "bias"))
        np.testing.assert_array_equal(t.params[bias][: 2 * d], before[bias][: 2 * d])
        np.testing.assert_allclose(t.params[weight][:, : 2 * d], before[weight][:, : 2 * d] * decayed, rtol=1e-5)
        assert not t.m[weight][:, : 2 * d].any()
        assert not t.v[weight][:, : 2 * d].any()
        assert (t.params[bias][2 * d :] != before[bias][2 * d :]).all()


def test_a_run_resumes_from_its_state() -> None:
    a, b = trainer(), trainer()
    for step in range(1, 5):
        a.step([BATCHES[step % 4]], **OPTIONS, step_no=step)
    for step in (1, 2):
        b.step([BATCHES[step % 4]], **OPTIONS, step_no=step)
    resumed = Trainer(TINY, b.params, b.m, b.v, b.steps)
    for step in (3, 4):
        resumed.step([BATCHES[step % 4]], **OPTIONS, step_no=step)
    assert_same_state(a, resumed)


def test_dropout_depends_on_seed_step_and_micro_batch() -> None:
    t = trainer()
    same = {t.gradients([BATCHES[0]], dropout_p=0.2, seed=1, step_no=1)[0] for _ in range(2)}
    others = {t.gradients([BATCHES[0]], dropout_p=0.2, seed=s, step_no=n)[0] for s, n in ((2, 1), (1, 2), (1, 3))}
    assert len(same) == 1
    assert len(same | others) == 4
    twice, _ = t.gradients([BATCHES[0], BATCHES[0]], dropout_p=0.2, seed=1, step_no=1)
    assert twice not in same


def test_evaluation_is_the_loss_without_dropout() -> None:
    t = trainer()
    total, n = evaluate(t.params, TINY, Batch(*BATCHES[0]))
    assert total / n == pytest.approx(GOLDEN["losses"][0], rel=1e-6)


def test_a_model_that_diverges_keeps_its_weights() -> None:
    a, b = trainer(), trainer()
    a.params["wte"][3] = b.params["wte"][3] = np.inf
    with np.errstate(invalid="ignore"), pytest.raises(Diverged, match="step 7"):
        a.step([BATCHES[0]], **OPTIONS, step_no=7)
    assert_same_state(a, b)


def test_a_step_can_be_interrupted_and_leaves_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cancelled(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise Cancelled

    a, b = trainer(), trainer()
    monkeypatch.setattr(host, "check_interrupts", check)
    with pytest.raises(Cancelled):
        a.step([BATCHES[0]], **OPTIONS)
    assert_same_state(a, b)
    calls = 100
    a.step([BATCHES[0]], **OPTIONS)
    b.step([BATCHES[0]], **OPTIONS)
    assert_same_state(a, b)


@pytest.mark.parametrize("change", [{"lr": -1.0}, {"dropout_p": 1.0}, {"grad_clip": 0.0}, {"beta1": 1.0}])
def test_bad_options_change_nothing(change: dict) -> None:
    a, b = trainer(), trainer()
    with pytest.raises(InvalidParameter):
        a.step([BATCHES[0]], **{**OPTIONS, **change})
    assert_same_state(a, b)


def test_a_step_needs_a_batch() -> None:
    with pytest.raises(InvalidParameter, match="micro-batch"):
        trainer().step([], **OPTIONS)


def test_buffers_are_reused_from_step_to_step() -> None:
    config = GPT2Config(n_layer=3, n_head=4, d_model=64, n_positions=64, vocab=300)
    t = Trainer(config, gpt2.init_params(config))
    tokens = np.random.default_rng(0).integers(0, 300, (8, 65))
    held = []
    for _ in range(3):
        t.gradients([(tokens[:, :-1], tokens[:, 1:])], dropout_p=0.1)
        held.append(bytes_of(t._pool))
    assert held[0] == held[2]


def test_rows_of_many_lengths_take_the_memory_of_the_longest() -> None:
    config = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=128, vocab=300)
    tokens = np.random.default_rng(0).integers(0, 300, (4, 129))
    longest, mixed = Trainer(config, gpt2.init_params(config)), Trainer(config, gpt2.init_params(config))
    longest.gradients([(tokens[:, :-1], tokens[:, 1:])])
    for length in range(100, 129):
        mixed.gradients([(tokens[:, :length], tokens[:, 1 : length + 1])])
        assert bytes_of(mixed._pool) <= bytes_of(longest._pool)
    for name, grad in longest.grads.items():
        np.testing.assert_array_equal(mixed.grads[name], grad, err_msg=name)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    ("n_layer", "n_head", "d_model", "vocab", "batch", "length"),
    [(4, 4, 128, 1000, 4, 256), (2, 2, 64, 300, 2, 1024), (12, 12, 96, 300, 4, 100), (2, 4, 512, 30000, 2, 128)],
)
def test_estimate_covers_the_memory_of_a_step(
    n_layer: int, n_head: int, d_model: int, vocab: int, batch: int, length: int, dropout_p: float
) -> None:
    config = GPT2Config(n_layer=n_layer, n_head=n_head, d_model=d_model, n_positions=length, vocab=vocab)
    t = Trainer(config, gpt2.init_params(config))
    tokens = np.zeros((batch, length), np.int64)
    t.gradients([(tokens, tokens)], dropout_p=dropout_p)
    held = 16 * config.n_params() + bytes_of(t._pool)
    assert held <= estimate_step_bytes(config, batch, length, dropout_p) < 1.15 * held


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        *({"activation_function": name} for name in ("gelu", "relu", "silu", "quick_gelu", "tanh")),
        {"activation_function": "relu", "n_inner": 1000},
        {"n_inner": 30},
        {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_estimate_covers_the_memory_of_a_step_of_a_relative(
    changes: dict[str, Any], recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pg_gpt2.training.trainer.MOST_KEPT", 0 if recomputes else 1 << 40)
    config = GPT2Config(n_layer=6, n_head=4, d_model=128, n_positions=256, vocab=500, **changes)
    t = Trainer(config, gpt2.init_params(config))
    tokens = np.zeros((3, 256), np.int64)
    t.gradients([(tokens, tokens)])
    held = 16 * config.n_params() + bytes_of(t._pool)
    assert held <= estimate_step_bytes(config, 3, 256) < 1.2 * held


def test_logits_in_the_memory_of_later_gradients_change_no_bit() -> None:
    config = GPT2Config(n_layer=4, n_head=2, d_model=32, n_positions=64, vocab=200)
    tokens = np.random.default_rng(0).integers(0, 200, (3, 64))
    batches = [(tokens, tokens), (tokens[:1], tokens[1:2])]
    lent, own = (Trainer(config, gpt2.init_params(config)) for _ in range(2))
    assert lent._unused is not None
    assert lent._unused.size >= tokens.size * config.vocab, "too little to lend"
    own._unused = None
    assert lent.gradients(batches) == own.gradients(batches)
    for name, grad in lent.grads.items():
        np.testing.assert_array_equal(grad, own.grads[name], err_msg=name)


class TestBatchOrder:
    def test_each_epoch_is_a_permutation(self) -> None:
        order = BatchOrder(seed=3, n_rows=10)
        rows = np.concatenate([order.rows(step, 4) for step in range(1, 6)])
        assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
        assert list(rows[:10]) != list(rows[10:])

    def test_any_step_is_reached_directly(self) -> None:
        order = BatchOrder(seed=3, n_rows=10)
        for step in (1, 2, 3, 40):
            np.testing.assert_array_equal(order.rows(step, 4), BatchOrder(seed=3, n_rows=10).rows(step, 4))

    def test_seeds_differ(self) -> None:
        assert list(BatchOrder(1, 50).rows(1, 50)) != list(BatchOrder(2, 50).rows(1, 50))

    def test_no_rows_is_an_error(self) -> None:
        with pytest.raises(InvalidParameter, match="no rows"):
            BatchOrder(0, 0)
