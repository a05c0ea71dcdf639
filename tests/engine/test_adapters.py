"""Training an adapter: its own tensors learn, and the base beside them stays as it is, in rows or in panels."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pg_gpt2.core import gpt2, op
from pg_gpt2.core.config import LINEAR_LAYERS, Adapter, GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.core.tape import Tape as PlainTape
from pg_gpt2.fast import layout, threads
from pg_gpt2.fast.panels import Panels, Table
from pg_gpt2.training import trainer as training
from pg_gpt2.training.trainer import Batch, Trainer, estimate_step_bytes, evaluate

from tests.engine.arithmetic import bytes_of, keep_values
from tests.engine.small_models import random_adapter
from tests.engine.test_ops_gradients import numeric_gradient

BASE = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=32, vocab=301)
FORMS = {
    "one matrix": Adapter(r=3, alpha=5),
    "all matrices": Adapter(r=2, alpha=8, targets=LINEAR_LAYERS),
    "the last matrix": Adapter(r=2, targets=("mlp.c_proj",)),
    "with dropout": Adapter(r=3, alpha=5, targets=LINEAR_LAYERS, dropout_p=0.4),
}
OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "grad_clip": 1.0, "dropout_p": 0.0}
# Products in panels and in rows, and the plain ops, round sums of a few hundred terms differently, by about 1e-7 of a term.
TOLERANCE = {"rtol": 1e-3, "atol": 5e-6}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
panels = pytest.mark.parametrize("panels", [False, True], ids=["rows", "panels"])
speeds = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The faster forms are on again, and panels where they pay."""
    yield
    op.use_fast(True)
    layout.use_panels = None


def base_of(panels: bool, config: GPT2Config = BASE) -> Mapping[str, Any]:
    """Weights as a session holds them; nobody can write into them."""
    layout.use_panels = panels
    return layout.lay_out(gpt2.init_params(replace(config, adapter=None), 3), replace(config, adapter=None))


def trainer(form: Adapter, panels: bool = False, **more: Any) -> Trainer:
    """An adapter that has learnt a little already: its B is not zero."""
    config = replace(BASE, adapter=form)
    return Trainer(config, {**base_of(panels), **random_adapter(config, 1)}, **more)


def batches(lengths: tuple[int, ...] = (20, 20)) -> list[Batch]:
    draw = np.random.default_rng(2)
    made = [Batch(*draw.integers(0, BASE.vocab, (2, 3, length))) for length in lengths]
    made[0].targets[0, :7] = -100
    return [made[0]._replace(weight=np.array([0.5, 1.0, 3.0])), *made[1:]]


def assert_same_state(a: Trainer, b: Trainer) -> None:
    assert a.steps == b.steps
    for name in a.m:
        for x, y in ((a.params, b.params), (a.m, b.m), (a.v, b.v)):
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def assert_close(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        scale = max(1e-3, float(np.abs(b[name]).max()))
        np.testing.assert_allclose(a[name] / scale, b[name] / scale, **TOLERANCE, err_msg=name)


@forms
@speeds
def test_gradients_of_an_adapter_agree_with_finite_differences(form: Adapter, fast: bool) -> None:
    config = GPT2Config(n_layer=2, n_head=2, d_model=8, n_positions=6, vocab=11, adapter=form)
    params = {name: w.astype(np.float64) for name, w in gpt2.init_params(config, 3).items()} | {
        name: w.astype(np.float64) for name, w in random_adapter(config, 4).items()
    }
    ids, targets = np.random.default_rng(5).integers(0, 11, (2, 2, 6))
    targets[0, :2] = -100
    drop = gpt2.Dropout(0.2, seed=3, step=4, part=1) if form.dropout_p else None
    op.use_fast(fast)

    def loss() -> float:
        return float(gpt2.loss(Eager(), params, ids, targets, config, drop=drop))

    tape = PlainTape()
    learn = config.trained_shapes()
    leaves = {name: tape.leaf(w, name in learn) for name, w in params.items()}
    tape.backward(gpt2.loss(tape, leaves, ids, targets, config, drop=drop))
    for name, leaf in leaves.items():
        if name not in learn:
            assert leaf.grad is None
            continue
        np.testing.assert_allclose(leaf.grad, numeric_gradient(loss, params[name]), rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", ["linear", "lm_head", "lm_head_loss"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 7, 5), (3, 64, 65), (40, 192, 200), (130, 70, 5000)])
def test_gradients_that_are_wanted_are_the_same_alone_and_with_panels(name: str, m: int, k: int, n: int) -> None:
    draw = np.random.default_rng(m)
    x, w, bias = (draw.standard_normal(shape, np.float32) for shape in ((m, k), (k, n), (n,)))
    attrs = {"target": draw.integers(0, n, m)} if name == "lm_head_loss" else {}
    arrays = (x, w, bias) if name == "linear" else (x, np.ascontiguousarray(w.T))
    form = op.lookup(name)
    y = form(*arrays, **attrs)
    dy = np.asarray(draw.standard_normal(y.shape, np.float32))
    every = form.gradients(dy, y, *arrays, **attrs)
    for place in range(len(arrays)):
        wanted = [i == place for i in range(len(arrays))]
        assert place not in form.reads_for(wanted) or name == "lm_head_loss"
        found = form.gradients(dy, y, *arrays, wanted=wanted, **attrs)
        assert [grad is not None for grad in found] == (wanted if name != "lm_head_loss" else [True, wanted[1]])
        np.testing.assert_allclose(found[place], every[place], rtol=1e-4, atol=1e-4 * np.sqrt(n))
    kept = Panels.of(w) if name == "linear" else Table.of(arrays[1])
    np.testing.assert_allclose(form(x, kept, *arrays[2:], **attrs), y, rtol=1e-4, atol=1e-4 * np.sqrt(k))
    dx, *others = form.gradients(dy, y, x, kept, *arrays[2:], wanted=[True, *[False] * (len(arrays) - 1)], **attrs)
    assert others == [None] * len(others)
    np.testing.assert_allclose(dx, every[0], rtol=1e-4, atol=1e-4 * np.sqrt(n))


@forms
@speeds
def test_with_b_zero_the_loss_in_training_has_the_bits_of_the_base(form: Adapter, fast: bool) -> None:
    config = replace(BASE, adapter=form)
    op.use_fast(fast)
    base = Trainer(BASE, gpt2.init_params(BASE, 3))
    adapter = Trainer(config, gpt2.init_params(BASE, 3) | dict(gpt2.init_adapter(config, 7)))
    options = {"dropout_p": 0.1, "seed": 4, "step_no": 2}
    assert adapter.gradients(batches(), **options) == base.gradients(batches(), **options)
    assert all(adapter.grads[name].any() == name.endswith("lora_B") for name in config.trained_shapes())


@forms
@panels
def test_training_an_adapter_changes_its_own_tensors_only(form: Adapter, panels: bool) -> None:
    t = trainer(form, panels)
    base, own = base_of(panels), t.config.trained_shapes()
    held = {name: w for name, w in t.params.items() if name not in own}
    before = {name: t.params[name].copy() for name in own}
    for step in range(1, 4):
        t.step(batches(), **OPTIONS, step_no=step)
    assert t.m.keys() == t.v.keys() == t.steps.keys() == t.sinks.keys() == t.grads.keys() == own.keys()
    assert sum(sink.array.size for sink in t.sinks.values()) == t._arena.size == t.config.n_trained()
    for name, w in held.items():
        assert t.params[name] is w
        now, then = ((x if isinstance(x, np.ndarray) else x.data) for x in (w, base[name]))
        assert now.tobytes() == then.tobytes()
    for name, w in before.items():
        assert (t.params[name] != w).all()


@panels
def test_the_backward_pass_computes_no_gradient_of_the_base(panels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(FORMS["the last matrix"], panels)
    seen: list[tuple[str, tuple[int, ...]]] = []
    gradients = op.Op.gradients

    def watched(self: op.Op, *arrays: Any, **given: Any) -> op.Grads:
        found = gradients(self, *arrays, **given)
        seen.append((self.name, tuple(i for i, grad in enumerate(found) if grad is not None)))
        return found

    monkeypatch.setattr(op.Op, "gradients", watched)
    ran: list[str] = []
    keep_values(monkeypatch)
    t.gradients([batches()[1]], audit=lambda phase, node: ran.append(node.name))
    layer_1 = ["add", "addmm", "linear", "matmul", "gelu", "linear", "layernorm", "add", "linear", "causal_attention"]
    layer_1 += ["linear", "layernorm"]
    # In layer 0 the way ends at the matrix that learns: nothing asks for the gradient of what goes to it.
    assert sorted(name for name, _ in seen) == sorted(["lm_head_loss", "layernorm", *layer_1, "add", "addmm", "matmul"])
    assert all(places == (0,) for name, places in seen if name in ("linear", "lm_head_loss"))
    assert ran.count("embedding") == 2


@forms
def test_fast_and_plain_training_of_an_adapter_agree(form: Adapter) -> None:
    fast, plain, unpacked = trainer(form), trainer(form), trainer(form, panels=True)
    options = {"dropout_p": 0.2, "seed": 5, "step_no": 3}
    expected = fast.gradients(batches(), **options)
    op.use_fast(False)
    for t in (plain, unpacked):
        assert t.gradients(batches(), **options) == (pytest.approx(expected[0], rel=1e-6), expected[1])
        assert_close(t.grads, fast.grads)


@forms
@pytest.mark.parametrize("lengths", [(20, 20), (1,), (7, 16, 5)])
def test_a_base_in_panels_trains_an_adapter_as_one_in_rows(form: Adapter, lengths: tuple[int, ...]) -> None:
    rows, in_panels = trainer(form), trainer(form, panels=True)
    some = [Batch(*batch[:2]) for batch in batches(lengths)] if lengths == (1,) else batches(lengths)
    some = [batch._replace(targets=np.abs(batch.targets)) for batch in some] if lengths == (1,) else some
    loss, count = rows.gradients(some, dropout_p=0.2)
    assert in_panels.gradients(some, dropout_p=0.2) == (pytest.approx(loss, rel=1e-6), count)
    assert_close(in_panels.grads, rows.grads)


@forms
@panels
def test_what_is_kept_and_looked_at_changes_no_bit_of_an_adapter(
    form: Adapter, panels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "dropout_p": 0.2, "seed": 5}
    plain, kept, audited, recomputed = (trainer(form, panels) for _ in range(4))
    for step in (1, 2):
        plain.step(batches(), **options, step_no=step)
        with monkeypatch.context() as patched:
            keep_values(patched)
            kept.step(batches(), **options, step_no=step)
        audited.step(batches(), **options, step_no=step, audit=lambda phase, node: None)
    monkeypatch.setattr(training, "MOST_KEPT", 0)
    before, count = threads.threads(), 1
    threads.set_threads(count)
    try:
        for step in (1, 2):
            recomputed.step(batches(), **options, step_no=step)
    finally:
        threads.set_threads(before)
    for other in (kept, audited, recomputed):
        assert_same_state(plain, other)


def test_a_recorded_adapter_shows_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMS["with dropout"]
    t = trainer(form)
    nodes: list[Any] = []
    keep_values(monkeypatch)
    t.gradients([batches()[1]], dropout_p=0.1, seed=9, step_no=2, audit=lambda _, node: nodes.append(node))
    nodes = list(dict.fromkeys(nodes))
    second = [node for node in nodes if node.name == "addmm"]
    assert len(second) == 2 * len(form.targets)
    for node in second:
        first, beside = node.inputs[1].node, node.inputs[0].node
        assert (first.name, beside.name, node.attrs) == ("matmul", "linear", {"factor": form.scale})
        dropped = first.inputs[0].node
        assert (dropped.name, dropped.attrs["p"], dropped.inputs[0]) == ("dropout", 0.4, beside.inputs[0])


def test_dropout_of_an_adapter_has_sites_of_its_own() -> None:
    sites: list[tuple[float, int]] = []

    def look(phase: str, node: Any) -> None:
        if phase == "forward" and "site" in node.attrs:
            sites.append((node.attrs["p"], node.attrs["site"]))

    trainer(FORMS["with dropout"]).gradients(batches(), dropout_p=0.1, audit=look)
    others: list[int] = [site for p, site in sites if p == 0.1]
    assert len(sites) == len({site for _, site in sites}) == 2 * (1 + 2 * (3 + 4))
    sites.clear()
    base = Trainer(BASE, gpt2.init_params(BASE, 3))
    base.gradients(batches(), dropout_p=0.1, audit=look)
    assert [site for _, site in sites] == others


def test_dropout_of_an_adapter_depends_on_seed_step_and_micro_batch() -> None:
    t = trainer(FORMS["with dropout"])
    same = {t.gradients([batches()[1]], seed=1, step_no=1)[0] for _ in range(2)}
    others = {t.gradients([batches()[1]], seed=s, step_no=n)[0] for s, n in ((2, 1), (1, 2), (1, 3))}
    assert len(same) == 1
    assert len(same | others) == 4
    assert t.gradients([batches()[1]] * 2, seed=1, step_no=1)[0] not in same


@panels
def test_an_adapter_is_evaluated_without_dropout(panels: bool) -> None:
    t, batch = trainer(FORMS["with dropout"], panels), batches()[0]
    config = replace(t.config, adapter=replace(FORMS["with dropout"], dropout_p=0.0))
    expected, count = Trainer(config, t.params).gradients([batch])
    assert evaluate(t.params, t.config, batch)[0] / batch.total() == pytest.approx(expected, rel=1e-6)
    op.use_fast(False)
    assert evaluate(t.params, t.config, batch)[0] / batch.total() == pytest.approx(expected, rel=1e-6)
    assert count == batch.counted()


@forms
def test_micro_batches_of_an_adapter_add_up_to_the_batch(form: Adapter) -> None:
    form = replace(form, dropout_p=0.0)
    whole, parts, batch = trainer(form, panels=True), trainer(form, panels=True), batches()[1]
    loss, count = whole.gradients([batch])
    split = [Batch(batch.tokens[:1], batch.targets[:1]), Batch(batch.tokens[1:], batch.targets[1:])]
    assert parts.gradients(split) == (pytest.approx(loss, rel=1e-6), count)
    assert_close(parts.grads, whole.grads)


def test_an_adapter_resumes_from_its_state() -> None:
    form = FORMS["with dropout"]
    whole, begun = trainer(form, panels=True), trainer(form, panels=True)
    for step in range(1, 5):
        whole.step(batches(), **OPTIONS, step_no=step)
    for step in (1, 2):
        begun.step(batches(), **OPTIONS, step_no=step)
    resumed = Trainer(begun.config, begun.params, begun.m, begun.v, begun.steps)
    for step in (3, 4):
        resumed.step(batches(), **OPTIONS, step_no=step)
    assert_same_state(whole, resumed)


def test_tensors_of_an_adapter_may_be_one() -> None:
    form = FORMS["all matrices"]
    same = {f"h.1.attn.c_attn.lora_{x}": f"h.0.attn.c_attn.lora_{x}" for x in "AB"}
    config = replace(BASE, adapter=form)
    params = {**base_of(panels=True), **random_adapter(config, 1)}
    params |= {name: params[first].copy() for name, first in same.items()}
    apart, together = Trainer(config, params), Trainer(config, params, tied=same)
    assert together.gradients(batches()) == apart.gradients(batches())
    for name, first in same.items():
        assert name not in together.m
        np.testing.assert_allclose(together.grads[first], apart.grads[first] + apart.grads[name], rtol=1e-4, atol=1e-6)
    together.step(batches(), **OPTIONS)
    assert together.params["h.1.attn.c_attn.lora_A"] is together.params["h.0.attn.c_attn.lora_A"]


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("form", [Adapter(), Adapter(r=16, targets=LINEAR_LAYERS, dropout_p=0.1)], ids=["one", "all"])
@pytest.mark.parametrize(
    ("n_layer", "n_head", "d_model", "vocab", "batch", "length"),
    [(4, 4, 128, 1000, 4, 256), (12, 12, 96, 300, 4, 100), (4, 4, 256, 5000, 16, 256)],
)
def test_the_estimate_covers_the_memory_of_a_step_of_an_adapter(
    n_layer: int, n_head: int, d_model: int, vocab: int, batch: int, length: int, form: Adapter, dropout_p: float
) -> None:
    config = GPT2Config(n_layer, n_head, d_model, length, vocab, adapter=form)
    t = Trainer(config, {**base_of(True, config), **random_adapter(config)})
    tokens = np.zeros((batch, length), np.int64)
    t.gradients([(tokens, tokens)], dropout_p=dropout_p)
    held = 16 * config.n_trained() + bytes_of(t._pool)
    assert held <= estimate_step_bytes(config, batch, length, dropout_p) < 1.25 * held


@forms
def test_a_merged_model_computes_what_the_adapter_does(form: Adapter) -> None:
    config = replace(BASE, adapter=form)
    params = gpt2.init_params(BASE, 3) | random_adapter(config, 1)
    found = dict(gpt2.merged(params, config))
    assert list(found) == list(BASE.param_shapes())
    for name, w in found.items():
        layer = name.removeprefix("h.0.").removeprefix("h.1.").removesuffix(".weight")
        if layer not in form.targets:
            assert w is params[name]
    ids = batches()[0].tokens
    logits = gpt2.logits(Eager(), params, ids, config)
    np.testing.assert_allclose(gpt2.logits(Eager(), found, ids, BASE), logits, rtol=1e-4, atol=1e-4)
    assert np.abs(gpt2.logits(Eager(), params, ids, BASE) - logits).max() > 0.01


def test_an_adapter_begins_as_peft_begins_one() -> None:
    config = replace(BASE, adapter=Adapter(r=8, targets=LINEAR_LAYERS))
    found = dict(gpt2.init_adapter(config, 3))
    assert {name: w.shape for name, w in found.items()} == config.adapter_shapes()
    for name, w in found.items():
        if name.endswith("lora_B"):
            assert not w.any()
            continue
        bound = 1 / np.sqrt(len(w))
        assert 0.95 * bound < np.abs(w).max() <= bound
        assert np.abs(w.mean()) < 0.1 * bound
        assert w.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)  # of a uniform distribution
    again, other = dict(gpt2.init_adapter(config, 3)), dict(gpt2.init_adapter(config, 4))
    drawn = [name for name in found if name.endswith("lora_A")]
    assert all((found[name] == again[name]).all() and (found[name] != other[name]).any() for name in drawn)
    assert len({found[name].tobytes() for name in drawn}) == len(drawn)
    assert {**gpt2.init_params(config, 3)}.keys() == config.param_shapes().keys()
    base = gpt2.init_params(BASE, 3)
    assert all((w == base[name]).all() for name, w in gpt2.init_params(config, 3).items() if name in base)
