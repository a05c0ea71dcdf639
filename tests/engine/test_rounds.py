"""Local steps with averaging: an independent DiLoCo in plain NumPy, and the same bits whoever computes a replica."""

import itertools
from typing import Any

import numpy as np
import pytest
from pg_gpt2.core import adamw as plain
from pg_gpt2.core.config import Adapter
from pg_gpt2.training.flat import Flat
from pg_gpt2.training.rounds import Rounds
from pg_gpt2.training.shards import Shard, Sharded
from pg_gpt2.training.trainer import Trainer

from tests.engine.test_shards import CONFIG, rows, shards_of, trainer

UPDATE: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}
REPLICAS, STEPS = 3, 4


def shard_of(step: int, replica: int) -> Shard:
    """Rows of a step; the second replica has none with loss in the third step."""
    whole = rows(6)
    draw = np.random.default_rng([step, replica])
    shard = shards_of(whole._replace(tokens=draw.integers(0, CONFIG.vocab, whole.tokens.shape)), REPLICAS, 2)[replica]
    if (step, replica) == (3, 1):
        empty = [batch._replace(targets=np.full_like(batch.targets, -100)) for batch in shard.batches]
        return Shard(tuple(empty), shard.first_part)
    return shard


def read(step: int, replica: int) -> tuple[Shard, dict[str, Any]]:
    shard = shard_of(step, replica)
    total = sum(batch.total() for batch in shard.batches)
    return shard, {"dropout_p": 0.1, "seed": 5, "step_no": step, "total": total, "update": UPDATE | {"lr": 1e-2 / step}}


def diloco(t: Trainer, rounds: list[range], outer_lr: float, outer_momentum: float) -> dict[str, np.ndarray]:
    """The paper's algorithm 1 in float64 but for the gradients, with the inner moments averaged; the weights."""
    shared, m, v, b = ({name: np.float64(w) for name, w in a.items()} for a in (t.params, t.m, t.v, t.m))
    count = 0
    for steps in rounds:
        ends = []
        for replica in range(REPLICAS):
            w, m_i, v_i = ({name: a.copy() for name, a in one.items()} for one in (shared, m, v))
            for done, step in enumerate(steps, 1):
                shard, how = read(step, replica)
                if not shard.counts():
                    continue
                for name in t.m:
                    t.params[name][...] = w[name]
                drawn = {name: how[name] for name in ("dropout_p", "seed", "step_no")}
                t.gradients(shard.batches, first_part=shard.first_part, **drawn)
                hyper = dict(how["update"])
                scale = plain.clip_scale(plain.global_norm(list(t.grads.values())), hyper.pop("grad_clip"))
                for name, g in t.grads.items():
                    decay = {"weight_decay": hyper["weight_decay"] if g.ndim == 2 else 0.0, "step": count + done}
                    plain.adamw(w[name], np.float64(g), m_i[name], v_i[name], grad_scale=scale, **hyper | decay)
            ends.append((w, m_i, v_i))
        count += len(steps)
        for name in t.m:
            outer = shared[name] - sum(w[name] for w, _, _ in ends) / REPLICAS
            b[name] = outer_momentum * b[name] + outer
            shared[name] = shared[name] - outer_lr * (outer + outer_momentum * b[name])
            m[name], v[name] = (sum(end[i][name] for end in ends) / REPLICAS for i in (1, 2))
    return shared


ROUNDS = [range(1, 4), range(4, 7), range(7, 8)]


@pytest.mark.parametrize("outer", [(0.7, 0.9), (1.0, 0.0)], ids=["nesterov", "mean"])
@pytest.mark.parametrize("adapter", [None, Adapter(r=3)], ids=["model", "adapter"])
def test_rounds_are_those_of_the_paper(outer, adapter):
    """To the rounding of float32, which AdamW lets grow where a gradient is nearly 0: its step has the size of lr there, too."""
    t = trainer(adapter)
    rounds = Rounds(t, REPLICAS, *outer)
    for steps in ROUNDS:
        rounds.learn(steps, read, Sharded(t).collect)
    expected = diloco(trainer(adapter), ROUNDS, *outer)
    assert set(t.steps.values()) == {7}
    for name in t.m:
        np.testing.assert_allclose(t.params[name], expected[name], rtol=1e-3, atol=2e-4)
        assert np.abs(t.params[name] - trainer(adapter).params[name]).max() > 1e-3, "it has learned"


class Elsewhere(Sharded):
    """Replicas computed by other trainers, and added as they come."""

    def __init__(self, t: Trainer, order: tuple[int, ...]) -> None:
        super().__init__(t)
        self.order = order

    def collect(self, parts, added, how):
        for index in self.order:
            found = self.compute(parts[index], how)
            added.add(index, found._replace(gradients=found.gradients.copy()))


def test_who_computes_a_replica_and_when_changes_no_bit():
    ends = set()
    for order in itertools.permutations(range(REPLICAS)):
        t = trainer()
        rounds, losses = Rounds(t, REPLICAS, 0.7, 0.9), []
        for steps in ROUNDS:
            losses.append(rounds.learn(steps, read, Elsewhere(t, order).collect))
        ends.add((rounds.state.copy().tobytes(), rounds.momentum.tobytes(), str(losses)))
    assert len(ends) == 1


def test_a_flat_row_is_its_arrays():
    arrays = [np.arange(6.0).reshape(2, 3), np.arange(6.0, 7), np.arange(7.0, 11)]
    row = Flat(arrays)
    for first, end in itertools.combinations(range(12), 2):
        assert row[first:end].tolist() == list(range(first, min(end, 11)))
    row.take(np.arange(11.0) + 100)
    assert row.copy().tolist() == list(range(100, 111))
    assert arrays[0].tolist() == [[100, 101, 102], [103, 104, 105]]
