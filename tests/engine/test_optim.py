"""AdamW bit by bit, clipping, and both forms of the learning rate's schedule."""

import json
from itertools import pairwise
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.training import optim

CASES = json.loads((Path(__file__).parent.parent / "golden" / "kernels.json").read_text())


def test_adamw_is_exact_in_float32() -> None:
    given, expected = CASES["adamw"]["inputs"], CASES["adamw"]["expected"]
    w, g, m, v = (np.array(given[name], np.float32) for name in "wgmv")
    rest = {name: given[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "step")}
    optim.adamw(w, g, m, v, **rest)
    for name, array in (("w", w), ("m", m), ("v", v)):
        assert array.tobytes().hex() == expected[f"{name}_hex_le"], name
    np.testing.assert_array_equal(g, np.array(given["g"], np.float32))


def test_weight_decay_acts_on_matrices_only() -> None:
    weights = {"matrix": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    zeros = {name: np.zeros_like(w) for name, w in weights.items()}
    moments = [{name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2)]
    steps = {"matrix": 1, "bias": 1}
    optim.step_all(weights, zeros, *moments, steps, lr=0.5, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
    assert (weights["matrix"] == np.float32(0.95)).all()
    assert (weights["bias"] == 1).all()


def test_a_large_tensor_steps_as_its_elements_do() -> None:
    rng = np.random.default_rng(0)
    w, g, m, v = (rng.normal(size=(700, 400)).astype(np.float32) for _ in range(4))
    v **= 2
    rest = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 0.7}
    alone = [a[3, 5:9].copy() for a in (w, m, v)]
    optim.adamw(alone[0], g[3, 5:9], alone[1], alone[2], step=3, **rest)
    optim.step_all({"w": w}, {"w": g}, {"w": m}, {"w": v}, {"w": 3}, **rest)
    for whole, part in zip((w, m, v), alone, strict=True):
        np.testing.assert_array_equal(whole[3, 5:9], part)


def test_global_norm_and_clipping() -> None:
    grads = [np.full((500, 600), 2.0, np.float32), np.full(7, 3.0, np.float32)]
    norm = optim.global_norm(grads)
    assert norm == pytest.approx(np.sqrt(500 * 600 * 4 + 63), rel=1e-7)
    assert optim.clip_scale(norm, None) == 1
    assert optim.clip_scale(norm, 2 * norm) == 1
    assert optim.clip_scale(norm, 1.0) == pytest.approx(1 / (norm + 1e-6))


@pytest.mark.parametrize("clip", [0.0, -1.0, nan])
def test_a_clip_that_is_not_positive_is_an_error(clip: float) -> None:
    with pytest.raises(InvalidParameter, match="grad_clip"):
        optim.clip_scale(1.0, clip)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": -1.0},
        {"lr": inf},
        {"lr": nan},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": -1.0},
        {"weight_decay": nan},
        {"step": 0},
    ],
)
def test_hyperparameters_outside_their_domain_are_errors(change: dict) -> None:
    good = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "step": 1}
    optim.check_adamw(**good)
    with pytest.raises(InvalidParameter, match=next(iter(change))):
        optim.check_adamw(**{**good, **change})


@pytest.mark.parametrize(("key", "total"), [("total=5, step 1..6", 5), ("total=10, step 1..10", 10)])
def test_schedule_of_the_kernel(key: str, total: int) -> None:
    given, expected = CASES["lr_schedule"]["inputs"], CASES["lr_schedule"]["expected"][key]
    rates = [optim.lr_schedule(i, given["warmup"], total, given["lr_max"]) for i in range(1, len(expected) + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)


def test_schedule_of_a_run() -> None:
    rates = [optim.run_lr(step, 100, 2000, 1.0, 0.1) for step in range(1, 101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)  # a warm-up of 2000 is cut to 10
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[54] == pytest.approx(0.55)  # half way down
    assert optim.run_lr(1, 1, 2000, 0.3) == 0.3
    assert optim.run_lr(1, 5, 2000, 0.3) < 0.3  # no room for a warm-up


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_other_schedules_of_a_run(schedule: str) -> None:
    min_lr = 0.1 if schedule == "linear" else 0.0
    rates = [optim.run_lr(step, 100, 2000, 1.0, min_lr, schedule) for step in range(1, 101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    expected = 1 - np.arange(91) / 100 if schedule == "linear" else np.ones(91)
    np.testing.assert_allclose(rates[9:], expected)
    assert rates[-1] == (0.1 if schedule == "linear" else 1.0)
    assert optim.run_lr(1, 1, 2000, 0.3, min_lr, schedule) == 0.3


def test_schedule_without_decay_room() -> None:
    assert optim.lr_schedule(7, 7, 7, 1.0) == 0.0
    assert optim.lr_schedule(3, 7, 7, 0.7) == pytest.approx(0.3)
