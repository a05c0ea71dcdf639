"""A step cut into shards: the same mean as uncut, and the same bits whoever computes a shard, and in whatever order."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
from pg_gpt2.core import gpt2, op
from pg_gpt2.core.config import Adapter, GPT2Config
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast import threads
from pg_gpt2.training.shards import Found, Shard, Sharded, Sum, cut, numbered
from pg_gpt2.training.trainer import Batch, StepResult, Trainer

from tests.engine.small_models import random_adapter

CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=32, vocab=301)
OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "grad_clip": 1.0, "seed": 5, "step_no": 2}
# The two add the same float32 numbers in another order: about 1e-7 of the largest of them.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-6}


def trainer(adapter: Adapter | None = None) -> Trainer:
    """A small model, or an adapter of it that has learnt a little."""
    config = GPT2Config(2, 2, 64, 32, 301, adapter=adapter)
    params = gpt2.init_params(CONFIG, 3)
    return Trainer(config, params | (random_adapter(config, 1) if adapter else {}))


def rows(n: int = 8, length: int = 20, weighted: bool = True) -> Batch:
    """Rows of which some targets carry no loss, none of the fifth's and the sixth's; with weights."""
    draw = np.random.default_rng(2)
    tokens, targets = draw.integers(0, CONFIG.vocab, (2, n, length))
    targets[:, :3] = -100
    targets[4:6] = -100
    return Batch(tokens, targets, draw.random(n) + 0.5 if weighted else None)


def shards_of(whole: Batch, count: int, batch_size: int) -> list[Shard]:
    """The rows as a run cuts them."""
    parts = []
    for part in cut(len(whole.tokens), count):
        own = [None if array is None else array[part] for array in whole]
        starts = range(0, len(own[0]), batch_size)
        parts.append([Batch(*(array if array is None else array[i : i + batch_size] for array in own)) for i in starts])
    return numbered(parts)


def step(t: Trainer, shards: list[Shard] | None, batches: list[Batch], **more: Any) -> StepResult:
    together = partial(Sharded(t).gradients, shards) if shards else None
    return t.step(batches, gradients=together, **(OPTIONS | more))


def bits(t: Trainer) -> bytes:
    return b"".join(t.params[name].tobytes() for name in t.m)


def test_rows_are_cut_evenly_and_in_order():
    assert [(part.start, part.stop) for part in cut(8, 3)] == [(0, 3), (3, 6), (6, 8)]
    for n, count in itertools.product(range(1, 12), range(1, 12)):
        assert [i for part in cut(n, count) for i in range(n)[part]] == list(range(n))


@pytest.mark.parametrize("adapter", [None, Adapter(r=3)], ids=["model", "adapter"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain ops"])
def test_a_sharded_step_is_the_step_of_the_whole(adapter, weighted, fast):
    """The weighted mean over the targets of all rows, although each shard has weights of its own, one of them none."""
    op.use_fast(fast)
    try:
        one, several, whole = trainer(adapter), trainer(adapter), rows(weighted=weighted)
        expected = step(one, None, [whole], dropout_p=0)
        found = step(several, shards_of(whole, 5, 8), [whole], dropout_p=0)
    finally:
        op.use_fast(True)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert found.tokens == expected.tokens
    for name, gradient in one.grads.items():
        np.testing.assert_allclose(several.grads[name], gradient, **TOLERANCE)


def test_shards_that_are_micro_batches_drop_what_these_do():
    """Four shards of two rows are the micro-batches of batch_size 2: masks are drawn by their numbers in the step."""
    one, several, whole = trainer(Adapter(r=3, dropout_p=0.3)), trainer(Adapter(r=3, dropout_p=0.3)), rows(8)
    shards = shards_of(whole, 4, 2)
    batches = [batch for shard in shards for batch in shard.batches]
    expected = step(one, None, batches, dropout_p=0.2)
    assert step(several, shards, batches, dropout_p=0.2).loss == pytest.approx(expected.loss, rel=1e-6)
    for name, gradient in one.grads.items():
        np.testing.assert_allclose(several.grads[name], gradient, **TOLERANCE)


class Elsewhere(Sharded):
    """Shards computed by other trainers, and added as they come."""

    def __init__(self, t: Trainer, others: list[Trainer], order: list[int]) -> None:
        super().__init__(t)
        self.others, self.order = others, order

    def collect(self, shards, added, how):
        for index in self.order:
            found = Sharded(self.others[index % len(self.others)]).compute(shards[index], how)
            added.add(index, found and Found(found.loss, found.gradients.copy()))


def test_who_computes_a_shard_and_when_changes_no_bit(request):
    """Nor does the number of threads."""
    whole, ends = rows(8), set()
    request.addfinalizer(lambda: threads.set_threads(2))
    for n_threads, order in itertools.product((1, 3), ([0, 1, 2, 3], [3, 1, 0, 2])):
        threads.set_threads(n_threads)
        t, shards = trainer(), shards_of(whole, 4, 1)
        batches = [batch for shard in shards for batch in shard.batches]
        for step_no in (1, 2):
            how = OPTIONS | {"step_no": step_no, "dropout_p": 0.1}
            others = [trainer() for _ in range(3)]
            for other in others:
                for name, w in t.params.items():
                    other.params[name][...] = w
            t.step(batches, gradients=partial(Elsewhere(t, others, order).gradients, shards), **how)
        ends.add(bits(t))
    t = trainer()
    for step_no in (1, 2):
        step(t, shards, batches, step_no=step_no, dropout_p=0.1)
    assert ends == {bits(t)}


def test_the_order_of_a_sum_is_that_of_the_shards():
    values = [np.float32(1e8), np.float32(3.0), np.float32(-1e8)]
    sums = set()
    for order in itertools.permutations(range(3)):
        added = Sum(np.empty(1, np.float32))
        for index in order:
            added.add(index, Found(float(values[index]), np.full(1, values[index])))
        sums.add((float(added.total[0]), added.loss))
    assert sums == {(float((values[0] + values[1]) + values[2]), 3.0)}
    assert float(added.total[0]) == 0.0, "another order would give 3"


def test_a_step_without_loss_is_refused():
    whole = rows(8)
    whole.targets[...] = -100
    with pytest.raises(InvalidParameter, match="no target of these rows carries loss"):
        step(trainer(), shards_of(whole, 2, 8), [whole])
