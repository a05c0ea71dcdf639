"""Decoding by its fast paths and without them: panels or rows, together or alone, with drafts or token by token."""

import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.fast import attend_blocks, buffers, layout, prepared
from pg_gpt2.fast.attend import attend
from pg_gpt2.fast.embedding import embedding
from pg_gpt2.fast.linear import linear, lm_head
from pg_gpt2.fast.panels import Panels, Table
from pg_gpt2.generation import beam, decode
from pg_gpt2.generation import generate as generation
from pg_gpt2.generation.decode import Decoder, feed_together, step_together
from pg_gpt2.generation.generate import Options
from pg_gpt2.generation.sampling import Sampling

from tests.engine import batches
from tests.engine.arithmetic import bytes_of
from tests.engine.small_models import CONFIGS, GREEDY, WITH_OPTIONS, name_of, random_params
from tests.engine.traced import bytes_of_arrays


@pytest.fixture(params=[False, True], ids=["rows", "panels"])
def by_panels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both layouts, whichever this machine would choose."""
    monkeypatch.setattr(layout, "use_panels", request.param)
    return request.param


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_arranged_weights_are_the_checkpoints_again(config: GPT2Config, by_panels: bool) -> None:
    params = random_params(config)
    kept = layout.lay_out(dict(params), config)
    assert isinstance(kept["h.0.attn.c_attn.weight"], Panels) is by_panels
    plain = layout.CheckpointTensors(kept)
    assert list(plain) == list(params)
    for name, array in params.items():
        np.testing.assert_array_equal(plain[name], array)
    stored = layout.KeptTensors(params, config)
    assert [*stored, *config.adapter_shapes()] == list(params)
    assert {name: array.shape for name, array in stored.items()} == layout.stored_shapes(config)


@pytest.mark.parametrize(("k", "n"), [(16, 64), (100, 65), (768, 192), (1600, 64), (3072, 130), (997, 70), (7, 3)])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 31, 50])
def test_products_with_panels(k: int, n: int, rows: int) -> None:
    source = np.random.default_rng(rows)
    x, w, b = (source.standard_normal(shape, np.float32) for shape in ((rows, k), (k, n), n))
    wanted = x.astype(np.float64) @ w + b
    np.testing.assert_allclose(linear(x, Panels.of(w), b), wanted, atol=2e-6 * k**0.5 * 10)
    table = Table.of(np.ascontiguousarray(w.T))
    np.testing.assert_allclose(lm_head(x, table) + b, wanted, atol=2e-6 * k**0.5 * 10)
    np.testing.assert_array_equal(embedding(table, ids=[[0, n - 1]]), w.T[np.array([[0, n - 1]])])
    np.testing.assert_array_equal(table.plain(), w.T)
    np.testing.assert_array_equal(Panels.of(w).plain(), w)


def test_a_product_cut_in_depth_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms of all logits of a batch would be twice the logits, and stay."""
    monkeypatch.setattr(buffers, "_scratch", threading.local())
    x, w = np.ones((128, 1024), np.float32), Panels.of(np.ones((1024, 20000), np.float32))
    tracemalloc.start()
    try:
        y = linear(x, w, np.ones(20000, np.float32))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (y == 1025).all()
    assert most < 1.6 * y.nbytes


@pytest.mark.parametrize("start", [0, 1, 60, 64, 1000, 1023, 1030])
@pytest.mark.parametrize("rows", [1, 2, 9, 64])
def test_attention_over_blocks(start: int, rows: int) -> None:
    q, k, v = np.random.default_rng(start).standard_normal((3, 2, start + rows, 8), np.float32)
    blocks = -(-(start + rows) // attend_blocks.BLOCK)
    keys, values = np.zeros((2, blocks, 8, 64), np.float32), np.zeros((2, 64 * blocks, 8), np.float32)
    attend_blocks.store(keys, values, k[:, :start], v[:, :start], 0)
    attend_blocks.store(keys, values, k[:, start:], v[:, start:], start)
    out, wanted = np.empty((2, 2, rows, 8), np.float32)
    attend_blocks.attend_blocks(q[:, start:], keys, values, out, start)
    attend(q[:, start:], k, v, wanted, offset=start)
    np.testing.assert_allclose(out, wanted, atol=2e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_every_route_gives_the_logits_of_a_full_pass(config: GPT2Config, by_panels: bool) -> None:
    params = random_params(config)
    ids = np.random.default_rng(1).integers(0, config.vocab, 90).tolist()
    wanted = gpt2.logits(Eager(), params, np.asarray([ids]), config)[0]
    close = {"atol": 2e-5 * float(np.abs(wanted).max())}
    arranged = layout.lay_out(dict(params), config)

    alone = Decoder(arranged, config, 96)
    np.testing.assert_allclose(alone.feed(ids[:20]), wanted[19], **close)
    for place in range(20, 90):
        np.testing.assert_allclose(alone.feed([ids[place]]), wanted[place], **close)

    several = Decoder(arranged, config, 96)
    several.feed(ids[:20])
    np.testing.assert_allclose(several.feed_all(ids[20:30]), wanted[20:30], **close)
    several.feed_all([0] * 8)
    several.rewind(30)
    np.testing.assert_allclose(several.feed_all(ids[30:37]), wanted[30:37], **close)

    streams = decode.several(arranged, config, [96, 70, 96, 64, 96])
    for place, stream in enumerate(streams):
        stream.feed(ids[: 10 * place + 1])
    streams.append(streams[3].copy())
    together = step_together(streams, [ids[stream.length] for stream in streams])
    for stream, row in zip(streams, together):
        np.testing.assert_allclose(row, wanted[stream.length - 1], **close)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 33])
def test_a_prepared_pass_has_the_bits_of_the_ops(
    config: GPT2Config, rows: int, by_panels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arranged = layout.lay_out(random_params(config), config)
    ids = np.random.default_rng(rows).integers(0, config.vocab, (2, rows)).tolist()
    found = []
    for most in (prepared.MOST_ROWS, 0):
        monkeypatch.setattr(prepared, "MOST_ROWS", most)
        alone, streams = Decoder(arranged, config, 160), decode.several(arranged, config, [96] * rows)
        logits = [alone.feed_all(some).copy() for some in ids]
        for place, stream in enumerate(streams):
            stream.feed(ids[0][: place + 1])
        logits += [step_together(streams, some).copy() for some in ids]
        found.append(np.array(logits))
    assert (rows, config.adapter) in arranged.prepared
    np.testing.assert_array_equal(*found)


def test_what_is_prepared_goes_with_the_weights(by_panels: bool) -> None:
    """Without waiting for Python's collector: the memory may be wanted. A thread that reads ahead holds it for a moment."""
    config = GPT2Config(n_layer=2, n_head=4, d_model=1024, n_positions=16, vocab=50)  # products that two threads share
    arranged = layout.lay_out(gpt2.init_params(config), config)
    decoder = Decoder(arranged, config, 8)
    for rows in (1, 2):
        decoder.feed_all([1] * rows)
    arrays = (tensor.data if isinstance(tensor, Panels) else tensor for tensor in arranged.values())
    held = [weakref.ref(array) for array in arrays]
    gc.disable()
    try:
        del decoder, arranged
        deadline = time.monotonic() + 10
        while any(ref() is not None for ref in held) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(held) > 20
        assert all(ref() is None for ref in held)
    finally:
        gc.enable()


def test_passes_over_many_numbers_of_rows_keep_few_buffers(by_panels: bool) -> None:
    """As of a batch whose streams end one by one."""
    arranged = layout.lay_out(random_params(CONFIGS[0]), CONFIGS[0])
    decoder = Decoder(arranged, CONFIGS[0], prepared.MOST_ROWS)
    for rows in [*range(prepared.MOST_ROWS, 0, -1), prepared.MOST_ROWS]:
        decoder.rewind(0)
        decoder.feed_all([1] * rows)
        assert (rows, None) in arranged.prepared
        assert sum(rows for rows, _ in arranged.prepared) <= prepared.MOST_PREPARED


def test_prompts_take_their_memory_from_one_pool(by_panels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt no longer than an earlier one costs no fresh memory, which would be a page fault every 4 kB."""
    config, pool = CONFIGS[0], buffers.LooseBufferPool()
    monkeypatch.setattr(buffers, "kept", lambda: pool)
    params = layout.lay_out(random_params(config), config)
    ids = list(range(150))
    expected = Decoder(params, config, 160).feed(ids).copy()
    held = bytes_of(pool)
    rows = len(ids) if by_panels else decode.WHOLE  # of a pass
    assert held >= 4 * rows * (3 + 4 + 4) * config.d_model  # q k v, and the hidden layer before and after gelu
    for length in (149, 100, 150):
        logits = Decoder(params, config, 160).feed(ids[:length])
        assert bytes_of(pool) == held
    np.testing.assert_array_equal(logits, expected)
    pool.clear()
    monkeypatch.setattr(decode, "PREFILL_ROWS", 100)
    streams = [Decoder(params, config, 1) for _ in range(101)]
    step_together(streams, [1] * 101)
    assert bytes_of(pool) == 0, "what many streams need is not kept"


def test_rows_in_panels_have_the_same_bits_alone_and_together() -> None:
    """Where `are_usable` finds that panels pay; so it says at least with AVX-512, which the tests' own process may have off."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        has_avx512 = "avx512vl" in file.read()
    program = f"""
from pg_gpt2.fast import blas_library, threads
blas_library.import_numpy_single_threaded()
import numpy as np
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.fast import attend_blocks, layout, ops
from pg_gpt2.generation.decode import Decoder, feed_together, several, step_together
from small_models import CONFIGS, random_params
wide = GPT2Config(n_layer=1, n_head=1, d_model=128, n_positions=1100, vocab=50)  # d_head 128: shorter pieces of values
for d in (8, 64, 122, 128, 160, 1000):
    assert not {has_avx512} or "SkylakeX" not in blas_library.blas_name() or attend_blocks.is_usable(d), d
    if attend_blocks.is_usable(d) and d <= 160:  # whatever number of positions is mixed
        q, k, v = np.random.default_rng(d).standard_normal((3, 1, 1100, d), np.float32)
        keys, values = np.zeros((1, 18, d, 64), np.float32), np.zeros((1, 18 * 64, d), np.float32)
        attend_blocks.store(keys, values, k, v, 0)
        whole, alone = np.empty((2, 1, 1100, d), np.float32)
        attend_blocks.attend_blocks(q, keys, values, whole, 0)
        for i in range(1100):
            attend_blocks.attend_blocks(q[:, i : i + 1], keys, values, alone[:, i : i + 1], i)
        assert np.array_equal(alone, whole), d
assert not attend_blocks.is_usable(2000)
params = layout.lay_out(random_params(wide), wide)
if layout.in_panels(wide):
    ids = np.random.default_rng(1).integers(0, wide.vocab, 1100).tolist()
    alone, other = Decoder(params, wide, 1100), Decoder(params, wide, 1100)
    alone.feed(ids[:940])
    other.feed(ids[:940])
    one = np.array([alone.feed([token]) for token in ids[940:]])
    assert np.array_equal(np.concatenate([other.feed_all(ids[s : s + 7]) for s in range(940, 1100, 7)]), one)
    texts = [ids[:300], ids[:5], ids[7:8], ids[100:164], ids[:201], ids[:90]]  # in three passes
    apart, together = (several(params, wide, [400] * len(texts)) for _ in range(2))
    for half in (slice(None), slice(0, 70)):
        texts = [text[half] for text in texts]
        alone = np.array([decoder.feed(text) for decoder, text in zip(apart, texts)])
        assert np.array_equal(feed_together(together, texts), alone)
for config in CONFIGS:
    if not layout.in_panels(config):
        assert not {has_avx512} or "SkylakeX" not in blas_library.blas_name() or config.d_model < 64, config
        continue
    params = layout.lay_out(random_params(config), config)
    ids = np.random.default_rng(1).integers(0, config.vocab, 90).tolist()
    alone = Decoder(params, config, 96)
    prompt = alone.feed(ids[:9])
    one = np.array([prompt, *(alone.feed([token]) for token in ids[9:])])
    for rows in range(2, 20):
        other = Decoder(params, config, 96)
        other.feed(ids[:9])
        parts = [other.feed_all(ids[start : start + rows]) for start in range(9, 90, rows)]
        assert np.array_equal(np.concatenate(parts), one[1:]), rows
    streams = several(params, config, [96, 60] * 9 + [96]) + [Decoder(params, config, 96)]
    for place, stream in enumerate(streams):
        stream.feed(ids[:9])
        for token in ids[9 : 9 + (4 * place if place > 18 or place % 2 == 0 else 2 * place)]:
            stream.feed([token])
    for row, stream in zip(step_together(streams, [ids[s.length] for s in streams]), streams):
        assert np.array_equal(row, one[stream.length - 9])
print("checked")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1] / "plpython")])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "checked\n", done.stderr


# --- drafts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), *WITH_OPTIONS])
def test_a_batch_gives_each_prompt_what_it_gets_alone(config: GPT2Config, sampling: Sampling, by_panels: bool) -> None:
    arranged = layout.lay_out(random_params(config), config)
    prompts = [[1, 2, 3], list(range(40)), [7] * 95, [4]]
    options = [Options(80, sampling, None, seed, logprobs=True) for seed in range(4)]
    together = batches.texts(arranged, config, prompts, options)
    for prompt, option, found in zip(prompts, options, together):
        alone = list(generation.tokens(arranged, config, prompt, option))
        assert [token.id for token in found] == [token.id for token in alone]
        np.testing.assert_allclose([token.logprob for token in found], [token.logprob for token in alone], atol=1e-4)


@pytest.mark.parametrize("rooms", [[96], [11] * 6, [160, 3, 64, 65, 128, 129, 160, 9999]])
def test_the_memory_asked_for_is_what_decoders_take(rooms: list[int], by_panels: bool) -> None:
    config = CONFIGS[0]
    arranged = layout.lay_out(random_params(config), config)
    tracemalloc.start()
    try:
        streams = decode.several(arranged, config, rooms)
        held = bytes_of_arrays()
    finally:
        tracemalloc.stop()
    assert len(streams) == len(rooms)
    assert 0 <= held - decode.bytes_of_several(arranged, config, rooms) < 1024


def test_beams_are_the_same_in_both_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[0]
    found = []
    for use_panels in (False, True):
        monkeypatch.setattr(layout, "use_panels", use_panels)
        arranged = layout.lay_out(random_params(config), config)
        found.append(beam.beam_search(arranged, config, [1, 2, 3], beam.Beams(width=3, max_tokens=20)))
    assert [b.ids for b in found[0]] == [b.ids for b in found[1]]


def test_logits_of_many_streams_are_made_a_few_at_a_time(by_panels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[0]
    streams = decode.several(layout.lay_out(random_params(config), config), config, [8] * 150)
    texts = [[place % config.vocab, 3] for place in range(150)]
    whole = feed_together(streams, texts)
    monkeypatch.setattr(decode, "LOGITS_ROWS", 1 << 20)
    for stream in streams:
        stream.rewind(0)
    np.testing.assert_allclose(feed_together(streams, texts), whole, atol=1e-5)
