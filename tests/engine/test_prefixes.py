"""What a session has read and goes on from: the same bits with it and without, bounded memory, one owner at a time."""

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.core import op
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.fast import layout
from pg_gpt2.generation import decode, generate, prefixes, scoring
from pg_gpt2.generation.decode import Decoder
from pg_gpt2.generation.generate import Options

from tests.engine import batches
from tests.engine.small_models import GREEDY, KEEPS_BITS, random_params

KINDS = {"panels": "BlockCache", "rows": "RowCache", "plain": "KeyValues"}
MIXTURES = int(os.environ.get("PG_GPT2_MIXTURES", "1000")) // len(KINDS) + 1
CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=320, vocab=331)
INSTRUCTIONS = np.random.default_rng(0).integers(0, 331, 200).tolist()


def in_a_process(program: str) -> str:
    """What a program prints that has NumPy as the server has it."""
    here = Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1] / "plpython"), str(here.parents[1])])
    program = f"from pg_gpt2.fast import blas_library; blas_library.import_numpy_single_threaded(); {program}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_random_mixtures_of_calls_give_the_same_bits_with_and_without_what_was_read(kind: str) -> None:
    """Generation, streams by turns, batches, beams, next tokens, scores, cancels, versions and adapters, changing room."""
    if kind == "panels" and in_a_process("import mixtures; print(mixtures.are_panels_usable())") == "False":
        kind = "rows"  # all there is on this machine
    cache, saved = in_a_process(f"import mixtures; mixtures.main({kind!r}, {MIXTURES}, 0)").split()
    assert cache == KINDS[kind]
    assert int(saved) > 5, "tokens of a mixture"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the three kinds of caches, and room for what is read."""
    monkeypatch.setattr(layout, "use_panels", request.param == "panels")
    monkeypatch.setattr(host, "prefix_room", lambda: 64 << 20)
    op.use_fast(request.param != "plain")
    yield request.param
    op.use_fast(True)
    prefixes.session.clear()


@pytest.fixture
def params(kind: str) -> layout.DecoderWeights:
    """A model of a version that is known."""
    params = random_params(CONFIG)
    found = layout.DecoderWeights(params) if kind == "plain" else layout.lay_out(params, CONFIG)
    found.identity = ("model", 1)
    return found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass has."""
    rows: list[int] = []
    hidden = decode._hidden

    def counted(*args: object) -> np.ndarray:
        rows.append(args[2].size)  # type: ignore[attr-defined]
        return hidden(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_hidden", counted)
    return rows


def begin(params: layout.DecoderWeights, ids: list[int], room: int = 0) -> Decoder:
    """Read `ids` and give them back."""
    decoder, _ = prefixes.begin(params, CONFIG, ids, room or len(ids))
    prefixes.give(decoder)
    return decoder


def test_of_a_text_that_was_read_the_last_token_is_read_again(params, read, kind):
    begin(params, INSTRUCTIONS)
    read.clear()
    begin(params, INSTRUCTIONS)
    assert sum(read) == (1 if kind == "panels" else 200 - decode.WHOLE)
    (used,) = prefixes.session.usage()
    assert used.saved == 200 - sum(read)
    assert used.entries == 1


def test_what_others_have_in_common_is_read_once_by_a_batch_whatever_is_kept(params, read, kind, monkeypatch):
    """And so are prompts that are the same: samples."""
    monkeypatch.setattr(host, "prefix_room", lambda: 0)
    prompts = [[*INSTRUCTIONS, number, 2 * number] for number in range(6)] * 2
    options = [Options(1, GREEDY)] * len(prompts)
    found = batches.texts(params, CONFIG, prompts, options)
    common = 200 if kind == "panels" else decode.WHOLE
    assert sum(read) == common + 6 * (202 - common)
    alone = [list(generate.tokens(params, CONFIG, prompt, option)) for prompt, option in zip(prompts, options)]
    assert [[token.id for token in tokens] for tokens in found] == [[token.id for token in tokens] for tokens in alone]
    assert prefixes.session.usage() == []


def test_families_within_families_are_read_once(params, read, kind):
    """Two instructions, each with two kinds of cases; and what a batch had in common serves the next one."""
    rng = np.random.default_rng(1)
    roots = [INSTRUCTIONS[:128], [300, *INSTRUCTIONS[:127]]]
    kinds = [root + rng.integers(0, 331, 128).tolist() for root in roots for _ in range(2)]
    texts = [[*kind, number] for number in range(3) for kind in kinds]
    logits = prefixes.begin_together(decode.several(params, CONFIG, [300] * 12), texts)
    assert sum(read) == 2 * 128 + 4 * 128 + 12
    read.clear()
    again = prefixes.begin_together(decode.several(params, CONFIG, [300] * 12), texts)
    assert sum(read) == 4 * 128 + 12
    np.testing.assert_array_equal(again, logits)
    begin(params, [*roots[1], 5])
    assert read[-1] == 1


def test_what_is_taken_is_nobody_elses_until_it_is_given(params, read, kind):
    begin(params, INSTRUCTIONS)
    with_it = prefixes.take(params, CONFIG, [*INSTRUCTIONS, 1], 220)
    assert with_it.length >= decode.WHOLE
    assert prefixes.session.usage() == []
    without = prefixes.take(params, CONFIG, [*INSTRUCTIONS, 2], 220)
    assert without.length == 0
    assert with_it.cache is not without.cache


def test_a_stream_that_is_abandoned_is_dropped_and_changes_nothing(params, kind):
    options = Options(20, GREEDY)
    whole = list(generate.tokens(params, CONFIG, INSTRUCTIONS, options))
    one = generate.tokens(params, CONFIG, INSTRUCTIONS, options)
    other = generate.tokens(params, CONFIG, INSTRUCTIONS, options)
    pairs = [(next(one), next(other)) for _ in range(7)]
    assert [a for a, _ in pairs] == [b for _, b in pairs] == whole[:7]
    del one
    assert [*(b for _, b in pairs), *other] == whole
    assert list(generate.tokens(params, CONFIG, INSTRUCTIONS, options)) == whole


def test_what_is_kept_does_not_hold_the_weights(params, kind):
    held = weakref.ref(params["wte"] if isinstance(params["wte"], np.ndarray) else params["wte"].data)
    identity = params.identity
    begin(params, INSTRUCTIONS)
    params.clear()
    params.prepared.clear()
    assert held() is None
    assert [used.identity for used in prefixes.session.usage()] == [identity]


def test_another_version_and_another_kind_find_nothing(params, kind):
    begin(params, INSTRUCTIONS)
    assert prefixes.take(layout.DecoderWeights(params, ("model", 2)), CONFIG, INSTRUCTIONS, 200).length == 0
    unknown = layout.DecoderWeights(params)
    begin(unknown, INSTRUCTIONS)
    assert prefixes.take(unknown, CONFIG, INSTRUCTIONS, 200).length == 0
    if kind != "panels":
        op.use_fast(kind == "plain")
        assert prefixes.take(params, CONFIG, INSTRUCTIONS, 200).length == 0


def test_a_long_room_is_not_kept_and_of_a_long_text_the_beginning(params, kind, monkeypatch):
    decoder, _ = prefixes.begin(params, CONFIG, INSTRUCTIONS[: 120 if kind == "panels" else 130], 320)
    prefixes.give(decoder)
    (used,) = prefixes.session.usage()
    assert used.nbytes <= decoder.room_bytes(128) + 8 * 130
    prefixes.session.clear()
    monkeypatch.setattr(host, "prefix_room", lambda: decoder.room_bytes(128) + 4096)
    begin(params, INSTRUCTIONS)
    (used,) = prefixes.session.usage()
    assert used.nbytes <= host.prefix_room()
    assert prefixes.take(params, CONFIG, INSTRUCTIONS, 200).length == 128
    monkeypatch.setattr(host, "prefix_room", lambda: 0)
    prefixes.take(params, CONFIG, [1, 2], 2)
    assert prefixes.session.usage() == []


def test_the_least_recently_used_go_first(params, kind, monkeypatch):
    texts = [[number, *INSTRUCTIONS] for number in range(4)]
    room = Decoder(params, CONFIG, 201).nbytes
    monkeypatch.setattr(host, "prefix_room", lambda: 3 * room + 8192)
    for number in (0, 1, 2, 0, 3):
        begin(params, texts[number])
    kept = [number for number in range(4) if prefixes.take(params, CONFIG, texts[number], 201).length]
    assert kept == [0, 2, 3]


def test_scores_of_a_common_beginning_are_computed_once(params, read, kind):
    texts = [[*INSTRUCTIONS, number, 7] for number in range(5)]
    without = [scoring.token_scores(layout.DecoderWeights(params), CONFIG, text) for text in texts]
    read.clear()
    found = [scoring.token_scores(params, CONFIG, text) for text in texts]
    if kind == "panels" and not KEEPS_BITS:  # panels that nobody else asks for
        np.testing.assert_allclose(found, without, rtol=1e-5)
    else:
        np.testing.assert_array_equal(found, without)
    # The token before the first that differs is read again.
    assert sum(read) == (201 + 4 * 2 if kind == "panels" else 0)


def test_a_decoder_resumes_by_itself(params, read, kind):
    decoder = Decoder(params, CONFIG, 240)
    decoder.feed([*INSTRUCTIONS, 1, 2, 3])
    rest = decoder.resume([*INSTRUCTIONS, 1, 4, 5])
    assert rest == ([4, 5] if kind == "panels" else [*INSTRUCTIONS[decode.WHOLE :], 1, 4, 5])
    np.testing.assert_array_equal(decoder.feed(rest), Decoder(params, CONFIG, 240).feed([*INSTRUCTIONS, 1, 4, 5]))
