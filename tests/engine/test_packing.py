"""Texts that share a pass: the states and scores that each gets alone, bit for bit where weights lie in panels."""

import threading

import numpy as np
import pytest
from pg_gpt2 import host
from pg_gpt2.core import gpt2, tape
from pg_gpt2.core.tape import Eager
from pg_gpt2.fast import layout, threads
from pg_gpt2.generation import packing, scoring
from pg_gpt2.generation.decode import Decoder

from .small_models import ARRANGED, CONFIGS, random_params

LENGTHS = [1, 2, 40, 3, 160, 0, 7, 64, 65, 300, 20, 96, 5]


@pytest.fixture(params=ARRANGED, ids=str)
def model(request, monkeypatch):
    """Config, arranged weights, weights as they are, texts of many lengths, some of them beyond the window."""
    config, panels = request.param
    monkeypatch.setattr(layout, "use_panels", panels)
    params = random_params(config)
    random = np.random.default_rng(5)
    texts = [random.integers(0, config.vocab, n).tolist() for n in LENGTHS]
    return config, layout.lay_out(dict(params), config), params, texts


def same(model, found, alone):
    config, arranged, _, _ = model
    if Decoder(arranged, config, 1).exact:
        np.testing.assert_array_equal(found, alone)
    else:  # rounding of products of other sizes
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)


def test_scores_of_several_texts_are_those_of_each_alone(model):
    config, arranged, _, texts = model
    together = scoring.scores_of_several(arranged, config, texts)
    for ids, (logprobs, ranks) in zip(texts, together):
        assert len(logprobs) == len(ranks) == max(0, len(ids) - 1)
        if len(ids) > 1:
            alone, ranks_alone = scoring.token_scores(arranged, config, ids)
            same(model, logprobs, alone)
            if Decoder(arranged, config, 1).exact:
                assert ranks.tolist() == ranks_alone.tolist()
    unranked = scoring.scores_of_several(arranged, config, texts, ranked=False)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(together, unranked))


def test_scores_are_those_of_a_plain_pass(model):
    config, arranged, params, texts = model
    for ids, (logprobs, ranks) in zip(texts, scoring.scores_of_several(arranged, config, texts)):
        if 1 < len(ids) <= config.n_positions:
            logits = np.asarray(gpt2.logits(Eager(), params, np.asarray([ids[:-1]]), config))[0].astype(np.float64)
            chosen = logits[np.arange(len(ids) - 1), ids[1:]]
            plain = chosen - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) - logits.max(1)
            np.testing.assert_allclose(logprobs, plain, rtol=1e-4, atol=1e-4)
            assert (abs(ranks - 1 - (logits > chosen[:, None]).sum(1)) <= 1).mean() > 0.9


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [None, 0, 1])
def test_embeddings_of_several_texts_are_those_of_each_alone(model, pooling, layer):
    config, arranged, _, texts = model
    texts = [ids for ids in texts if ids]
    together = scoring.embeddings(arranged, config, texts, layer, pooling)
    for ids, found in zip(texts, together):
        same(model, found, scoring.embedding(arranged, config, ids, layer, pooling))


def test_states_are_those_of_a_decoder(model):
    config, arranged, _, texts = model
    texts = [np.asarray(ids) for ids in texts if 0 < len(ids) <= config.n_positions]
    states = packing.states(arranged, config, texts, config.n_layer)
    for ids, found in zip(texts, np.split(states, np.cumsum([len(ids) for ids in texts])[:-1])):
        decoder = Decoder(arranged, config, len(ids))
        alone = decoder._read(ids.tolist()).copy()
        same(model, found, alone)


def test_passes_are_full_and_keep_the_order():
    sizes = [5, 500, 20, 600, 1, 0, 511, 3]
    shared = list(packing.passes(sizes, lambda size: size))
    assert [size for some in shared for size in some] == sizes
    assert all(sum(some) <= packing.ROWS or len(some) == 1 for some in shared)
    assert shared == [[5, 500], [20], [600], [1, 0, 511], [3]]


def test_last_rows_are_those_of_all(model):
    config, arranged, _, texts = model
    texts = [np.asarray(ids) for ids in texts if 0 < len(ids) <= config.n_positions]
    wanted = [1 + len(ids) // 3 for ids in texts]
    for depth in range(config.n_layer + 1):
        every = packing.states(arranged, config, texts, depth).copy()
        last = packing.states(arranged, config, texts, depth, wanted)
        ends = np.cumsum([len(ids) for ids in texts])
        same(model, last, every[np.concatenate([np.arange(end - n, end) for end, n in zip(ends, wanted)])])


def test_the_bits_of_a_long_text_do_not_depend_on_the_number_of_threads(model, monkeypatch):
    config, arranged, _, _ = model
    text = np.random.default_rng(6).integers(0, config.vocab, 2500).tolist()
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "_pool", threads.ThreadPool(count))
        found.append(
            [*scoring.token_scores(arranged, config, text), scoring.embedding(arranged, config, text, None, "mean")]
        )
        threads._pool.close()
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


def test_passes_on_other_threads_do_not_call_the_server_and_end_with_it(monkeypatch):
    config = CONFIGS[0]
    params = layout.lay_out(random_params(config), config)
    text = np.random.default_rng(6).integers(0, config.vocab, 4000).tolist()
    looks: list[int] = []

    def look() -> None:
        looks.append(threading.get_ident())
        if len(looks) == most:
            raise KeyboardInterrupt

    monkeypatch.setattr(host, "check_interrupts", look)
    monkeypatch.setattr(tape, "before_each_op", threads.look)  # as in a server
    monkeypatch.setattr(threads, "_pool", threads.ThreadPool(2))
    for work in (scoring.token_scores, lambda *args: scoring.embedding(*args, None, "mean")):
        looks, most = [], 0
        whole = work(params, config, text)
        assert set(looks) == {threading.get_ident()}
        looks, most = [], 20
        with pytest.raises(KeyboardInterrupt):
            work(params, config, text)
        assert len(looks) < 40
        most = 0
        for a, b in zip(whole, work(params, config, text)):
            np.testing.assert_array_equal(a, b)
    threads._pool.close()
