"""When a run ends, which evaluation is its best, and learning rates, beside transformers' classes and functions, live."""

import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pg_gpt2.training.early import Evaluations
from pg_gpt2.training.optim import run_lr
from transformers.trainer import Trainer
from transformers.trainer_callback import EarlyStoppingCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

EVERY = 5  # steps
# A few values, so that equal ones and steps down of exactly the threshold are frequent; powers of 2, so that they are exact.
LOSSES = st.lists(
    st.sampled_from([n / 8 for n in range(33)]) | st.floats(0, 10) | st.sampled_from([math.nan, math.inf]), max_size=30
)


def theirs(losses: list[float], patience: int, threshold: float) -> tuple[int | None, int | None]:
    """The step after which Trainer ends (None: it does not), and the step of its best metric, as its loop calls the two."""
    args = SimpleNamespace(
        metric_for_best_model="loss", greater_is_better=False, eval_strategy="steps", save_strategy=SaveStrategy.STEPS
    )
    state, control = TrainerState(), TrainerControl()
    callback = EarlyStoppingCallback(patience, threshold)
    trainer = SimpleNamespace(args=args, state=state)
    for state.global_step, loss in zip(range(EVERY, 10**9, EVERY), losses):
        metrics = {"eval_loss": loss}
        callback.on_evaluate(args, state, control, metrics)  # in Trainer.evaluate, before it looks for the best
        Trainer._determine_best_metric(trainer, metrics, None)
        if control.should_training_stop:
            return state.global_step, state.best_global_step
    return None, state.best_global_step


def ours(losses: list[float], patience: int, min_delta: float) -> tuple[int | None, int | None]:
    evaluations = Evaluations(patience, min_delta)
    for step, loss in zip(range(EVERY, 10**9, EVERY), losses):
        evaluations.add(step, loss)
        if evaluations.exhausted:
            return step, evaluations.best_step
    return None, evaluations.best_step


@given(LOSSES, st.integers(1, 5), st.sampled_from([0.0, 0.125, 0.25, 1.0]) | st.floats(0, 1))
def test_the_same_losses_end_at_the_same_step_with_the_same_best(losses, patience, threshold):
    assert ours(losses, patience, threshold) == theirs(losses, patience, threshold)


@pytest.mark.parametrize(
    ("losses", "patience", "threshold", "end"),
    [
        ([3, 2, 1, 1, 1], 2, 0, 25),
        (
            [3, 2.5, 2.25, 2, 1.75],
            2,
            0.25,
            20,
        ),  # down by just the threshold twice, each compared with the lowest before
        ([3, 2, 2.5, 1.5, 1.75, 1.75, 1.75], 3, 0, 35),
        ([math.nan, 3, 3], 1, 0, 15),
    ],
)
def test_examples(losses, patience, threshold, end):
    assert ours(losses, patience, threshold)[0] == theirs(losses, patience, threshold)[0] == end


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("n_steps", "warmup"), [(100, 10), (100, 3), (1000, 0), (7, 0), (2, 0)])
def test_learning_rates(name, n_steps, warmup):
    """Both in float64, the formulae written otherwise."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.003)
    steps = {} if name == "constant" else {"num_training_steps": n_steps}
    schedule = getattr(transformers, f"get_{name}_schedule_with_warmup")(optimizer, num_warmup_steps=warmup, **steps)
    for step in range(1, n_steps + 1):
        optimizer.step()
        schedule.step()
        rate = run_lr(step, n_steps, warmup, 0.003, schedule=name)
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=1e-18)
