"""Targets of -100, weights, and the padding that both make possible: what has no influence, and to which bit."""

from collections.abc import Iterator

import numpy as np
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.ops import IGNORED
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast.ops import registry, use_fast
from pg_gpt2.training.trainer import Batch, Trainer, evaluate

from tests.engine.arithmetic import gradients_of

CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=16, n_positions=16, vocab=61)
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "grad_clip": 1.0}
LENGTHS = (3, 11, 1, 7)
ROUNDED = {"rtol": 2e-5, "atol": 2e-6}  # the same sums in float32, in another order


@pytest.fixture(params=[True, False], ids=["fast", "plain"], autouse=True)
def _form(request: pytest.FixtureRequest) -> Iterator[None]:
    use_fast(request.param)
    yield
    use_fast(True)


def trainer() -> Trainer:
    return Trainer(CONFIG, gpt2.init_params(CONFIG, seed=4))


def rows(seed: int = 0) -> list[Batch]:
    """One batch a row: of different lengths, their first targets ignored."""
    draw = np.random.default_rng(seed)
    found = []
    for length in LENGTHS:
        ids = draw.integers(0, CONFIG.vocab, (1, length + 1))
        targets = ids[:, 1:].copy()
        targets[:, : length // 2] = IGNORED
        found.append(Batch(ids[:, :-1], targets))
    return found


def padded(found: list[Batch], pad: int = 0, length: int = max(LENGTHS), weight: list[float] | None = None) -> Batch:
    tokens, targets = np.full((len(found), length), pad), np.full((len(found), length), IGNORED)
    for i, row in enumerate(found):
        tokens[i, : row.tokens.size], targets[i, : row.targets.size] = row.tokens, row.targets
    return Batch(tokens, targets, None if weight is None else np.asarray(weight))


def state(t: Trainer) -> list[np.ndarray]:
    return [array for arrays in (t.params, t.m, t.v) for array in arrays.values()]


def assert_same_bits(a: Trainer, b: Trainer) -> None:
    for x, y in zip(state(a), state(b), strict=True):
        np.testing.assert_array_equal(x, y)


def gradients(batches: list[Batch]) -> tuple[float, dict[str, np.ndarray]]:
    t = trainer()
    loss, _ = t.gradients(batches)
    return loss, t.grads


def assert_close(a: tuple[float, dict[str, np.ndarray]], b: tuple[float, dict[str, np.ndarray]]) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-6)
    for name in a[1]:
        np.testing.assert_allclose(a[1][name], b[1][name], **ROUNDED, err_msg=name)


def test_what_carries_no_loss_has_a_gradient_of_zeros_whatever_it_holds() -> None:
    logits = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    logits[1], logits[3, 2] = np.inf, np.nan
    op, dy = registry["cross_entropy"], np.float32(1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        assert op(logits, target=[3, -100, 8, -100]) == op(logits[[0, 2]], target=[3, 8])
        (d,) = gradients_of(op, np.asarray(dy), logits, target=[3, -100, 8, -100])
    assert not d[[1, 3]].any()
    assert np.isfinite(d).all()
    assert d[[0, 2]].any(axis=1).all()


@pytest.mark.parametrize("weight", [None, [2.0, 0.25, 1.0, 3.0]])
def test_ignored_rows_change_nothing_of_the_others(weight: list[float] | None) -> None:
    draw = np.random.default_rng(2)
    x, wte = (draw.normal(size=shape).astype(np.float32) for shape in ((4, 5, 16), (700, 16)))
    target = draw.integers(0, 700, (4, 5))
    target[draw.random((4, 5)) < 0.4] = IGNORED
    here = target != IGNORED
    dy = np.asarray(np.float32(0.7))
    op, some, of_some = registry["lm_head_loss"], {"target": target}, {"target": target[here]}
    if weight is not None:
        some["weight"], of_some["weight"] = np.array(weight), np.repeat(weight, 5).reshape(4, 5)[here]
    np.testing.assert_allclose(op(x, wte, **some), op(x[here], wte, **of_some), **ROUNDED)
    (dx, dwte), (dx_some, _) = gradients_of(op, dy, x, wte, **some), gradients_of(op, dy, x[here], wte, **of_some)
    np.testing.assert_allclose(dx[here], dx_some, **ROUNDED)
    assert not dx[~here].any()
    assert np.isfinite(dwte).all()


def test_a_loss_of_nothing_is_zero_and_has_no_gradient() -> None:
    for name, shapes in (("cross_entropy", [(3, 5)]), ("lm_head_loss", [(3, 4), (5, 4)])):
        arrays = [np.ones(shape, np.float32) for shape in shapes]
        assert registry[name](*arrays, target=[-100] * 3) == 0
        for grad in gradients_of(registry[name], np.asarray(np.float32(1)), *arrays, target=[-100] * 3):
            assert grad is not None
            assert not grad.any()


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_what_stands_in_the_padding_changes_no_bit(dropout_p: float) -> None:
    a, b = trainer(), trainer()
    for step in (1, 2, 3):
        for t, pad in ((a, 0), (b, 60)):
            t.step([padded(rows(step), pad)], **OPTIONS, dropout_p=dropout_p, step_no=step)
    assert_same_bits(a, b)


def test_padding_and_micro_batches_change_rounding_only() -> None:
    alone = gradients(rows())
    assert_close(gradients([padded(rows())]), alone)
    assert_close(gradients([padded(rows(), length=16)]), alone)
    assert_close(gradients([padded(rows()[:2]), padded(rows()[2:])]), alone)


def test_a_weight_is_that_of_each_counted_token_as_if_the_row_were_there_so_often() -> None:
    often = [row for row, times in zip(rows(), (3, 1, 2, 5), strict=True) for _ in range(times)]
    weighted = [padded(rows(), weight=[3, 1, 2, 5])]
    assert_close(gradients(weighted), gradients(often))
    assert_close(gradients([padded(rows(), weight=[1.5, 0.5, 1, 2.5])]), gradients(often))
    parts = [padded(rows()[:2], weight=[3, 1]), Batch(*rows()[2][:2], np.array([2.0])), padded(rows()[3:], weight=[5])]
    assert_close(gradients(parts), gradients(often))
    total, weight = evaluate(trainer().params, CONFIG, weighted[0])
    assert total / weight == pytest.approx(gradients(weighted)[0], rel=1e-5)


def test_weights_of_one_are_no_weights() -> None:
    (plain, grads), (ones, others) = gradients([padded(rows())]), gradients([padded(rows(), weight=[1] * 4)])
    assert plain == pytest.approx(ones, rel=1e-6)
    for name in grads:
        np.testing.assert_allclose(grads[name], others[name], **ROUNDED)


def test_a_micro_batch_without_loss_adds_nothing() -> None:
    silent = Batch(np.ones((2, 5), np.int64), np.full((2, 5), IGNORED))
    (loss, grads), (same, others) = gradients([*rows(), silent]), gradients(rows())
    assert loss == same
    for name in grads:
        np.testing.assert_array_equal(grads[name], others[name])
    t = trainer()
    with pytest.raises(InvalidParameter, match="no target of these rows carries loss"):
        t.step([silent], **OPTIONS)
    assert_same_bits(t, trainer())
    assert t.step([*rows(), silent], **OPTIONS).tokens == sum(length - length // 2 for length in LENGTHS)


def test_every_audit_level_gives_the_same_bits_with_weights_and_ignored_targets() -> None:
    use_fast(True)  # the plain tape adds the gradients of micro-batches in another order than the one that keeps values
    a, b = trainer(), trainer()
    batch = padded(rows(), weight=[1, 2, 3, 4])
    for step in (1, 2):
        a.step([batch, *rows(1)], **OPTIONS, step_no=step)
        b.step([batch, *rows(1)], **OPTIONS, step_no=step, audit=lambda phase, node: None)
    assert_same_bits(a, b)
