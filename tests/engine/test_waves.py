"""Passes of one stream at the same time: the bits of one after another, and what ends one ends those that follow."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.fast import layout, prepared, threads
from pg_gpt2.generation import waves
from pg_gpt2.generation.decode import Decoder

from tests.engine.small_models import random_params

CONFIG = GPT2Config(n_layer=3, n_head=2, d_model=32, n_positions=1101, vocab=50)
IDS = [(7 * i + i // 5) % 50 for i in range(1100)]


class Cancelled(Exception):
    """Stands for a cancel request."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads.set_threads(2)
    yield
    threads.set_threads(2)


@pytest.fixture(params=[False, True], ids=["rows", "panels"])
def params(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> layout.DecoderWeights:
    monkeypatch.setattr(layout, "use_panels", request.param)
    return layout.lay_out(random_params(CONFIG), CONFIG)


def read(params: layout.DecoderWeights, texts: list[list[int]]) -> list[np.ndarray]:
    """The states after each text of a stream, and the logits after one more token, which all keys and values are in."""
    decoder = Decoder(params, CONFIG, 1101)
    found = [x.copy() for ids in texts for x in decoder.passes(ids)]
    assert list(decoder.ids) == list(itertools.chain.from_iterable(texts))
    return [np.concatenate(found), decoder.feed([1])]


@pytest.mark.parametrize("sizes", [[256], [257], [511], [700, 3, 300], [5, 1000], [1100], [130, 270, 130]])
def test_they_have_the_bits_of_one_after_another(monkeypatch, params, sizes):
    ends = list(itertools.accumulate(sizes, initial=0))
    texts = [IDS[a:b] for a, b in itertools.pairwise(ends)]
    made = []
    run = waves.run
    monkeypatch.setattr(waves, "run", lambda layers, passes: made.append(len(passes)) or run(layers, passes))
    found = read(params, texts)
    assert made, "several passes were computed at a time"
    monkeypatch.setattr(waves, "run", lambda layers, passes: [one(waves.Gate(layers, None)) for one in passes])
    for mine, wanted in zip(found, read(params, texts)):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("layer", [0, 2])
def test_an_error_of_one_is_that_of_all_and_nothing_is_appended(monkeypatch, params, place, layer):
    decoder = Decoder(params, CONFIG, 1100)
    attend = decoder.cache.attend
    starts = [0, 256, 512, 768] if decoder.exact else [0, 128, 256, 384]

    def failing(at: int, qkv: np.ndarray, out: np.ndarray, start: int, factor: float | None = None) -> None:
        if (at, start) == (layer, starts[place]):
            time.sleep(0.02)  # those that follow wait by now
            raise MemoryError("no room")
        attend(at, qkv, out, start, factor)

    with monkeypatch.context() as patch:
        patch.setattr(decoder.cache, "attend", failing)
        with pytest.raises(MemoryError, match="no room"):
            decoder.feed(IDS[:1024])
    assert decoder.length == len(decoder.ids) == 0
    np.testing.assert_array_equal(decoder.feed(IDS[:1024]), Decoder(params, CONFIG, 1100).feed(IDS[:1024]))


@pytest.mark.parametrize("looks", [1, 2, 5, 9])
def test_they_can_be_cancelled(monkeypatch, params, looks):
    decoder = Decoder(params, CONFIG, 1100)
    left = [looks]

    def check() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Cancelled

    def again_and_again() -> None:
        for _ in range(9):
            decoder.rewind(0)
            decoder.feed(IDS[:1024])

    with monkeypatch.context() as patch:
        patch.setattr(host, "check_interrupts", check)
        with pytest.raises(Cancelled):
            again_and_again()
    decoder.rewind(0)
    np.testing.assert_array_equal(decoder.feed(IDS[:1024]), Decoder(params, CONFIG, 1100).feed(IDS[:1024]))


def test_who_waits_for_another_looks_for_a_cancel_request(monkeypatch):
    """The caller's pass waits for that of a helper, which does not end by itself."""
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > 0.1:
            raise Cancelled

    def slow(gate: waves.Gate) -> None:
        while time.monotonic() - began < 20:
            time.sleep(0.01)
            threads.look()
        gate.leave(0)

    monkeypatch.setattr(host, "check_interrupts", check)
    with pytest.raises(Cancelled):
        waves.run(1, [slow, lambda gate: gate.enter(0)])
    assert time.monotonic() - began < 10


def test_small_passes_are_alone(monkeypatch, params):
    """They use memory of the server's own thread."""
    sizes = []
    run = waves.run
    monkeypatch.setattr(
        waves, "run", lambda layers, passes: sizes.extend(len(p.args[0]) for p in passes) or run(layers, passes)
    )
    decoder = Decoder(params, CONFIG, 1100)
    decoder.feed(IDS[:125])
    decoder.feed(IDS[125:900])
    assert sizes
    assert min(sizes) > prepared.MOST_ROWS
