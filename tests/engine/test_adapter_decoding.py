"""What predicts with an adapter: it shares its base's arrays and plans, and neither company nor what was read changes a bit."""

import gc
import re
import tracemalloc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import LINEAR_LAYERS, Adapter, GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.fast import layout, panels, prepared, threads
from pg_gpt2.fast.linear import addmm, matmul
from pg_gpt2.fast.panels import Panels
from pg_gpt2.generation import beam, decode, generate, packing, prefixes, scoring, tracing
from pg_gpt2.generation.decode import Decoder, feed_together, several, step_together
from pg_gpt2.generation.generate import Options
from pg_gpt2.generation.sampling import Sampling

from tests.engine import batches
from tests.engine.constrained import EOS, constraint, said
from tests.engine.small_models import CONFIGS, GREEDY, random_adapter, random_params
from tests.engine.test_prefixes import in_a_process
from tests.engine.traced import bytes_of_arrays

BASE = CONFIGS[0]
FORMS = [
    Adapter(r=8),
    Adapter(r=1, alpha=2, targets=("mlp.c_proj",)),
    Adapter(r=5, alpha=-3, targets=LINEAR_LAYERS),
    Adapter(r=70, alpha=70, targets=("attn.c_proj", "mlp.c_fc")),
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"r{form.r}-{len(form.targets)}")


@pytest.fixture(params=[False, True], ids=["rows", "panels"])
def by_panels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both layouts, whichever this machine would choose."""
    monkeypatch.setattr(layout, "use_panels", request.param)
    return request.param


def adapted(form: Adapter, config: GPT2Config = BASE) -> GPT2Config:
    return replace(config, adapter=form)


def merged(params: dict[str, np.ndarray], config: GPT2Config) -> dict[str, np.ndarray]:
    """W + (alpha / r) A B in the place of each W."""
    assert config.adapter is not None
    found = {name: params[name].copy() for name in replace(config, adapter=None).param_shapes()}
    for layer in range(config.n_layer):
        for target in config.adapter.targets:
            low, up = params[f"h.{layer}.{target}.lora_A"], params[f"h.{layer}.{target}.lora_B"]
            found[f"h.{layer}.{target}.weight"] += np.float32(config.adapter.scale) * (low @ up)
    return found


# ---- the weights


@forms
def test_an_adapter_has_the_very_arrays_of_its_base(form: Adapter, by_panels: bool) -> None:
    base = layout.lay_out(random_params(BASE), BASE)
    own = random_adapter(adapted(form))
    weights = base.with_adapter(own)
    assert all(weights[name] is tensor for name, tensor in base.items())
    assert weights.prepared is base.prepared
    assert weights.identity is None
    assert weights.exact is base.exact is by_panels
    plain = layout.CheckpointTensors(weights)
    assert list(plain) == list(adapted(form).param_shapes())
    for name, array in own.items():
        np.testing.assert_array_equal(plain[name], array)
        assert by_panels or np.shares_memory(weights[name], array)
    if form.r % 4 == 0 and form.r <= 64:
        assert sum(weights[name].nbytes for name in own) == sum(array.nbytes for array in own.values())


def test_what_a_file_keeps_of_an_adapter_is_its_base(by_panels: bool) -> None:
    config = adapted(FORMS[2])
    params = random_params(config)
    assert layout.stored_shapes(config) == layout.stored_shapes(BASE)
    stored = dict(layout.KeptTensors(params, config))
    assert list(stored) == list(BASE.param_shapes())
    base = layout.decoder_weights(stored, config)
    found = base.with_adapter({name: params[name] for name in config.adapter_shapes()})
    ids = list(range(20))
    laid_out = Decoder(layout.lay_out(dict(params), config), config, 20).feed(ids)
    np.testing.assert_array_equal(Decoder(found, config, 20).feed(ids), laid_out)


def test_where_kernels_do_not_keep_rows_alone_nothing_claims_that_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "use_panels", True)
    config = adapted(FORMS[0])
    base = layout.lay_out(random_params(BASE), BASE)
    own = random_adapter(config)
    wanted = Decoder(base.with_adapter(own), config, 40).feed(list(range(40)))
    monkeypatch.setattr(layout, "use_panels", None)
    monkeypatch.setattr(panels, "keep_rows_alone", lambda k, width: False)
    base = layout.DecoderWeights(base)
    weights = base.with_adapter(own)
    assert not weights.exact
    assert decode.kind_of_cache(weights) is decode.RowCache
    assert all(weights[name] is tensor for name, tensor in base.items())
    decoder = Decoder(weights, config, 40)
    np.testing.assert_allclose(decoder.feed(list(range(40))), wanted, atol=1e-4)
    decoder.rewind(39)
    np.testing.assert_allclose(decoder.feed([39]), wanted, atol=1e-4)


# ---- what it computes


@forms
@pytest.mark.parametrize("config", CONFIGS[:2], ids=lambda c: f"d{c.d_model}")
def test_every_route_gives_the_logits_of_the_merged_model(config: GPT2Config, form: Adapter, by_panels: bool) -> None:
    config = adapted(form, config)
    params = random_params(config)
    ids = np.random.default_rng(1).integers(0, config.vocab, 90).tolist()
    plain, without_one = merged(params, config), replace(config, adapter=None)
    wanted = gpt2.logits(Eager(), plain, np.asarray([ids]), without_one)[0]
    close = {"atol": 3e-5 * float(np.abs(wanted).max())}
    weights = layout.lay_out(dict(params), config)
    base = {name: params[name] for name in plain}
    without = gpt2.logits(Eager(), base, np.asarray([ids]), without_one)[0]
    assert np.abs(without - wanted).max() > 100 * close["atol"], "the adapter does something"

    alone = Decoder(weights, config, 96)
    np.testing.assert_allclose(alone.feed(ids[:80]), wanted[79], **close)
    for place in range(80, 84):
        np.testing.assert_allclose(alone.feed([ids[place]]), wanted[place], **close)
    np.testing.assert_allclose(alone.feed_all(ids[84:]), wanted[84:], **close)
    streams = several(weights, config, [96] * 3)
    feed_together(streams, [ids[:3], ids[:40], ids[:20]])
    together = step_together(streams, [ids[3], ids[40], ids[20]])
    np.testing.assert_allclose(together, wanted[[3, 40, 20]], **close)
    states = packing.states(weights, config, [np.asarray(ids), np.asarray(ids[:7])], config.n_layer)
    np.testing.assert_allclose(decode.logits_of(weights, states), np.concatenate([wanted, wanted[:7]]), **close)
    scores, _ = scoring.token_scores(weights, config, ids)
    expected, _ = scoring.token_scores(layout.lay_out(dict(plain), without_one), without_one, ids)
    np.testing.assert_allclose(scores, expected, atol=2e-3)


@forms
def test_with_b_zero_every_form_has_the_bits_of_the_base(form: Adapter, by_panels: bool) -> None:
    config = adapted(form)
    base = layout.lay_out(random_params(BASE), BASE)
    own = {name: array * np.float32(name.endswith("lora_A")) for name, array in random_adapter(config).items()}
    weights = base.with_adapter(own)
    texts = [np.random.default_rng(n).integers(0, BASE.vocab, n).tolist() for n in (1, 2, 17, 70, 130)]

    def found(weights: layout.DecoderWeights, config: GPT2Config) -> list[np.ndarray]:
        decoder = Decoder(weights, config, 160)
        logits = [decoder.feed(texts[4]), decoder.feed([3]), decoder.feed_all(texts[2])]
        streams = several(weights, config, [160] * 5)
        logits += [feed_together(streams, texts), step_together(streams, [1, 2, 3, 4, 5])]
        logits += [scoring.token_scores(weights, config, texts[3])[0]]
        logits += scoring.embeddings(weights, config, texts, None, "mean")
        beams = beam.beam_search(weights, config, texts[1], beam.Beams(3, 8))
        return [*logits, np.array([b.score for b in beams])]

    for one, other in zip(found(weights, config), found(base, BASE), strict=True):
        np.testing.assert_array_equal(one, other)


# ---- bits


RANKS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20, 33, 64, 65, 100]


def check_bits() -> None:
    """In a process whose NumPy is as the server has it: where adapters are exact, rows have the same bits in any company."""
    if not layout.in_panels(BASE):
        return
    base = layout.lay_out(random_params(BASE), BASE)
    rng = np.random.default_rng(3)
    ids = rng.integers(0, BASE.vocab, 130).tolist()
    for r in RANKS:
        config = adapted(Adapter(r=r, targets=LINEAR_LAYERS))
        weights = base.with_adapter(random_adapter(config))
        assert weights.exact, r
        alone = Decoder(weights, config, 160)
        one = np.array([alone.feed([token]) for token in ids])
        for rows in (2, 3, 15, 16, 17, 33, 64, 65, 81, 130):
            other = Decoder(weights, config, 160)
            parts = [other.feed_all(ids[start : start + rows]).copy() for start in range(0, 130, rows)]
            assert np.array_equal(np.concatenate(parts), one), (r, rows)
        streams = several(weights, config, [160] * 19)
        feed_together(streams, [ids[: 1 + 5 * n] for n in range(19)])
        rows = step_together(streams, [ids[1 + 5 * n] for n in range(19)])
        assert np.array_equal(rows, one[1 + 5 * np.arange(19)]), r
        states = packing.states(weights, config, [np.asarray(ids[:n]) for n in (130, 1, 17, 64)], config.n_layer)
        assert np.array_equal(decode.logits_of(weights, states)[:130], one), r
    wide = GPT2Config(n_layer=1, n_head=4, d_model=1024, n_positions=40, vocab=50)  # c_proj is cut in depth
    config = adapted(Adapter(r=8, targets=LINEAR_LAYERS), wide)
    weights = layout.lay_out(random_params(config), config)
    ids = rng.integers(0, 50, 40).tolist()
    alone, whole = Decoder(weights, config, 40), Decoder(weights, config, 40)
    assert np.array_equal(whole.feed_all(ids), [alone.feed([token]) for token in ids])
    print("compared")


def test_an_adapters_rows_have_the_same_bits_alone_and_together() -> None:
    """Of any rank, with one token or many in a pass, prepared or not."""
    usable = in_a_process("import mixtures; print(mixtures.are_panels_usable())") == "True"
    found = in_a_process("from tests.engine import test_adapter_decoding as t; t.check_bits()")
    assert found == ("compared" if usable else "")


@pytest.mark.parametrize("m", [1, 2, 16, 17, 63, 64, 65, 129, 256, 257, 300])
@pytest.mark.parametrize("r", [1, 5, 8, 64, 70, 1000])
def test_the_two_products_in_panels(m: int, r: int) -> None:
    rng = np.random.default_rng(m)
    x, low, up, c = (rng.standard_normal(shape, np.float32) for shape in ((m, 100), (100, r), (r, 130), (m, 130)))
    a, b = Panels.of(low, panels.narrow_width(r)), Panels.of(up)
    found = matmul(x, a)
    wanted = x.astype(np.float64) @ low
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    kept = c.copy()
    np.testing.assert_allclose(addmm(c, found, b, factor=0.5), c + 0.5 * wanted @ up, atol=1e-4 * r)
    np.testing.assert_array_equal(c, kept)
    np.testing.assert_allclose(matmul(x[None], a)[0], found)
    np.testing.assert_array_equal(addmm(c, found, Panels.of(np.zeros_like(up)), factor=0.5), c)


def test_what_an_adapter_adds_is_handed_over_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of rows is one task, however large its product: tasks of a task would make threads wait for each other."""
    handed: list[int] = []
    run = threads.ThreadPool.run

    def counting(pool: threads.ThreadPool, tasks: Sequence[threads.Task], batch: threads.Batch | None = None) -> None:
        handed.append(len(tasks))
        run(pool, tasks, batch)

    monkeypatch.setattr(threads.ThreadPool, "run", counting)
    c, low, up = np.zeros((512, 2304), np.float32), np.zeros((512, 8), np.float32), np.zeros((8, 2304), np.float32)
    panels.added(c, low, Panels.of(up))
    assert handed == [2]


# ---- many adapters of one base


def test_one_plan_serves_all_adapters_of_a_form(by_panels: bool) -> None:
    config, other = adapted(FORMS[0]), adapted(FORMS[2])
    base = layout.lay_out(random_params(BASE), BASE)
    several_weights = [base.with_adapter(random_adapter(config, seed)) for seed in range(5)]
    ids = list(range(9))
    found = []
    for weights in several_weights:
        alone = layout.lay_out({**random_params(BASE), **_own(weights, config)}, config)
        found.append(Decoder(weights, config, 10).feed(ids))
        np.testing.assert_array_equal(found[-1], Decoder(alone, config, 10).feed(ids))
    assert len({logits.tobytes() for logits in found}) == 5
    Decoder(base.with_adapter(random_adapter(other)), other, 10).feed(ids)
    Decoder(base, BASE, 10).feed(ids)
    assert set(base.prepared) == {(9, config.adapter), (9, other.adapter), (9, None)}


def _own(weights: layout.DecoderWeights, config: GPT2Config) -> dict[str, np.ndarray]:
    plain = layout.CheckpointTensors(weights)
    return {name: plain[name] for name in config.adapter_shapes()}


def test_an_adapter_that_is_gone_is_held_by_nothing(by_panels: bool) -> None:
    config = adapted(FORMS[0])
    base = layout.lay_out(random_params(BASE), BASE)
    weights = base.with_adapter(random_adapter(config))
    Decoder(weights, config, 40).feed_all(list(range(40)))
    own = [weights[name] for name in config.adapter_shapes()]
    held = [weakref.ref(tensor.data if isinstance(tensor, Panels) else tensor) for tensor in own]
    gc.disable()
    try:
        del weights, own
        assert all(ref() is None for ref in held)
    finally:
        gc.enable()


def test_fifty_adapters_of_one_base_cost_fifty_times_their_own_tensors(by_panels: bool) -> None:
    """Used by one session for prompts, tokens and small batches: plans and buffers are the base's."""
    shape = GPT2Config(n_layer=4, n_head=4, d_model=128, n_positions=160, vocab=300)
    config = adapted(Adapter(r=8), shape)
    base = layout.lay_out(random_params(shape), shape)
    ids = list(range(100))

    def use(weights: layout.DecoderWeights) -> None:
        decoder = Decoder(weights, config, 128)
        decoder.feed(ids)
        decoder.feed([1])
        decoder.feed_all([2, 3, 4])
        step_together(several(weights, config, [8] * 7), [5] * 7)

    use(base.with_adapter(random_adapter(config, 0)))
    own = sum(array.nbytes for array in random_adapter(config).values())
    gc.collect()
    tracemalloc.start()
    try:
        kept = []
        for seed in range(50):
            kept.append(base.with_adapter(random_adapter(config, seed)))
            use(kept[-1])
        gc.collect()
        held = bytes_of_arrays()
    finally:
        tracemalloc.stop()
    assert 50 * own <= held < 50 * (own + 1024)
    assert sum(rows for rows, _ in base.prepared) <= prepared.MOST_PREPARED


# ---- what a session has read


def test_what_an_adapter_has_read_is_its_own(by_panels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "prefix_room", lambda: 64 << 20)
    config = adapted(FORMS[0])
    base = layout.lay_out(random_params(BASE), BASE)
    base.identity = "base"
    models = [(base, BASE)]
    for name in ("one", "other"):
        models.append((base.with_adapter(random_adapter(config, len(models))).with_identity(name), config))
    ids = np.random.default_rng(1).integers(0, BASE.vocab, 150).tolist()
    fresh = [Decoder(weights, config, 150).feed(ids) for weights, config in models]
    try:
        for weights, config in models:
            assert prefixes.take(weights, config, ids, 160).length == 0, "what others have read is not found"
            decoder, _ = prefixes.begin(weights, config, ids, 150)
            prefixes.give(decoder)
        assert [used.identity for used in prefixes.session.usage()] == ["base", "one", "other"]
        for (weights, config), wanted in zip(models, fresh):
            decoder, logits = prefixes.begin(weights, config, ids, 150)
            np.testing.assert_array_equal(logits, wanted)
            prefixes.give(decoder)
            assert prefixes.take(weights, config, ids, 150).length >= 100
        unknown = base.with_adapter(random_adapter(config, 1))
        assert prefixes.take(unknown, config, ids, 160).length == 0, "nobody knows whose it is"
    finally:
        prefixes.session.clear()


def test_streams_of_base_and_adapters_by_turns_get_what_each_gets_alone(by_panels: bool) -> None:
    """Their plans are one, and so are its buffers."""
    config = adapted(FORMS[0])
    base = layout.lay_out(random_params(BASE), BASE)
    models = [(base, BASE), *((base.with_adapter(random_adapter(config, seed)), config) for seed in range(3))]
    options = Options(30, Sampling(), None, 5)
    alone = [list(generate.tokens(*model, [1, 2, 3], options)) for model in models]
    together = zip(*(generate.tokens(*model, [1, 2, 3], options) for model in models))
    assert [list(tokens) for tokens in zip(*together)] == alone
    assert len({tuple(token.id for token in tokens) for tokens in alone}) == 4


def test_a_batch_of_an_adapter_gives_each_prompt_what_it_gets_alone(by_panels: bool) -> None:
    config = adapted(FORMS[2])
    weights = layout.lay_out(random_params(config), config)
    prompts = [[1, 2, 3], list(range(40)), [7] * 100, [4]]
    options = [Options(40, GREEDY if seed % 2 else Sampling(), None, seed) for seed in range(4)]
    together = batches.texts(weights, config, prompts, options)
    for prompt, option, found in zip(prompts, options, together):
        assert [t.id for t in found] == [t.id for t in generate.tokens(weights, config, prompt, option)]


@pytest.mark.parametrize("form", [r"\d{4}-\d{2}-\d{2}", ["yes", "no", "nowhere", "the lower one"], r"\w+( \w+)*\."])
def test_constrained_text_of_an_adapter_is_the_same_alone_in_a_batch_and_without_drafts(
    form: str | list[str], by_panels: bool
) -> None:
    config = adapted(FORMS[2])
    weights = layout.lay_out(random_params(config), config)
    made = constraint(form)
    options = [Options(30, GREEDY if seed else Sampling(), EOS, seed, constraint=made) for seed in range(3)]
    prompts = [[1, 2, 3], list(range(40)), [7]]
    alone = [list(generate.tokens(weights, config, prompt, each)) for prompt, each in zip(prompts, options)]
    for tokens in alone:
        text = said([token.id for token in tokens if token.id != EOS])
        assert text in form if isinstance(form, list) else re.fullmatch(form, text)
    plain = [replace(each, look_up=False) for each in options]
    assert [list(generate.tokens(weights, config, prompt, each)) for prompt, each in zip(prompts, plain)] == alone
    assert batches.texts(weights, config, prompts, options) == alone


# ---- looking inside


@forms
def test_a_trace_names_the_products_of_an_adapter(form: Adapter) -> None:
    """What other models have under a name is the sum here, as in PEFT's modules."""
    config = adapted(form)
    params = random_params(config)
    steps = {step.name: step for step in tracing.trace(params, config, list(range(6)))}
    plain = {step.name: step for step in tracing.trace(merged(params, config), BASE, list(range(6)))}
    added = [f"h.{i}.{target}.{part}" for i in range(2) for target in form.targets for part in ("base_layer", "lora_A")]
    assert set(steps) == {*plain, *added}
    for name, step in plain.items():
        assert steps[name].layer == step.layer
        assert steps[name].op == ("addmm" if f"{name}.lora_A" in params else step.op)
        np.testing.assert_allclose(steps[name].data, step.data, atol=1e-3)
    for name in added:
        target, _, part = name.rpartition(".")
        base = steps[f"{target}.base_layer"].data
        low = steps[f"{target}.lora_A"].data
        assert steps[name].op == ("linear" if part == "base_layer" else "matmul")
        np.testing.assert_allclose(
            base + np.float32(form.scale) * low @ params[f"{target}.lora_B"], steps[target].data, atol=1e-4
        )
    attention = tracing.layer_attention(params, config, list(range(6)), 1)
    np.testing.assert_array_equal(attention, steps["h.1.attn.weights"].data)
    lens = dict(tracing.logit_lens(params, config, list(range(6))))
    np.testing.assert_allclose(lens[2], steps["probabilities"].data[-1], atol=1e-5)
    x = steps["h.0.attn.c_proj"].data + steps["embeddings"].data
    np.testing.assert_allclose(steps["h.0.attn.residual"].data, x, atol=1e-5)
