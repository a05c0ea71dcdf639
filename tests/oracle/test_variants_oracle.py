"""The GPT-2 family beside transformers, live: random configurations in which everything that may differ does.

Logits and gradients agree to some 1e-6 of their size, in deep models to 1e-5: float32 sums in another order. Where the two best
tokens are as close as that, greedy texts may part; no such case is among these seeds, which are fixed.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
import torch
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import ACTIVATIONS, ARCHITECTURE, GPT2Config
from pg_gpt2.core.op import use_fast
from pg_gpt2.core.tape import Eager
from pg_gpt2.fast import layout
from pg_gpt2.generation import beam, decode, generate, sampling, scoring, trees
from pg_gpt2.training.trainer import Batch, Trainer
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from tests.engine import batches
from tests.oracle.variant_models import COUNT, by_our_names, drawn, member, random_ids, random_params, their_model

TOLERANCE = 2e-5  # of logits and of gradients, relative to their size
BENDS = 1e-2  # of relu's gradients: a unit that is 0 but for rounding may be on or off, of some thousands in a batch
NEW = 8  # tokens of a greedy text
STEPS, SHORT = 30, 16  # steps of AdamW, on rows so long
# All configurations as a session serves and trains them; a third each, which has all activation functions, in other ways.
FAST = [("fast", number) for number in range(COUNT)]
PLAIN = [("plain", number) for number in range(0, COUNT, 3)]
ROWS = [("rows", number) for number in range(1, COUNT, 3)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose by threads, and much on a machine that does other things."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Fast ops, or plain ones."""
    use_fast(request.param == "fast")
    yield request.param
    use_fast(True)


@pytest.fixture
def served(
    request: pytest.FixtureRequest, number: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[layout.DecoderWeights]:
    """Weights as a session holds them: in panels where machine and shape allow; in rows; or for plain ops."""
    config, params, _ = member(number)
    if request.param == "rows":
        monkeypatch.setattr(layout, "use_panels", False)
    use_fast(request.param != "plain")
    copies = {name: w.copy() for name, w in params.items()}
    yield layout.DecoderWeights(copies) if request.param == "plain" else layout.lay_out(copies, config)
    use_fast(True)


in_each_form = pytest.mark.parametrize(("form", "number"), FAST + PLAIN, indirect=["form"])
in_each_way = pytest.mark.parametrize(("served", "number"), FAST + ROWS + PLAIN, indirect=["served"])


def logits_of(model: GPT2LMHeadModel, ids: np.ndarray) -> np.ndarray:  # [.., T] -> [.., T, V]
    with torch.no_grad():
        found = model(torch.from_numpy(np.atleast_2d(ids)), use_cache=False).logits.numpy()
    return found.reshape(*ids.shape, -1)


@lru_cache(maxsize=2 * COUNT)
def continued(number: int, ids: tuple[int, ...]) -> list[int]:
    """What transformers says after them."""
    found = member(number)[2].generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[0, len(ids) :].tolist()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE * max(1.0, float(np.abs(expected).max()))


def test_the_configurations_have_everything_that_may_differ() -> None:
    configs = [drawn(number) for number in range(COUNT)]
    assert {config.activation_function for config in configs} == set(ACTIVATIONS)
    for name, default in ARCHITECTURE.items():
        assert {getattr(config, name) == default for config in configs} >= {False}, name
    assert {config.n_layer for config in configs} >= {1, 2, 20}
    assert {config.vocab for config in configs} >= {2, 70_000}
    assert {config.n_head % 2 for config in configs} == {0, 1}
    assert (
        {config.d_model % 8 == 0 for config in configs}
        == {config.inner % 16 == 0 for config in configs}
        == {True, False}
    )
    assert {config.tie_word_embeddings for config in configs} == {True, False}


@in_each_form
def test_logits_of_a_relative_are_those_of_transformers(number: int, form: str) -> None:
    config, params, model = member(number)
    ids = random_ids(config, 2, config.n_positions)
    assert_close(gpt2.logits(Eager(), params, ids, config), logits_of(model, ids))


@in_each_way
def test_decoding_of_a_relative_gives_the_logits_of_transformers(number: int, served: layout.DecoderWeights) -> None:
    """A prompt, then tokens one by one, several at once, those of a tree, and several streams that share passes."""
    config, _, model = member(number)
    ids = random_ids(config, config.n_positions)
    expected, given = logits_of(model, ids), ids.tolist()
    half = len(given) // 2
    decoder = decode.Decoder(served, config, len(given))
    found = [decoder.feed(given[:half]), *(decoder.feed([token]) for token in given[half : half + 3])]
    assert_close(np.array(found), expected[half - 1 : half + 3])
    assert_close(decoder.feed_all(given[half + 3 : -2]), expected[half + 3 : -2])
    tree = trees.Tree([*given[-2:], given[0]], [-1, 0, -1])  # two that follow each other, and a sibling
    found_at = decode.logits_of(served, decoder.feed_tree(tree))
    assert_close(found_at[:2], expected[-2:])
    assert_close(found_at[2], logits_of(model, np.array([*given[:-2], given[0]]))[-1])

    lengths = [half, 1, half // 2]
    streams = decode.several(served, config, [len(given)] * 3)
    assert_close(decode.feed_together(streams, [given[:n] for n in lengths]), expected[np.array(lengths) - 1])
    assert_close(decode.step_together(streams, [given[n] for n in lengths]), expected[lengths])


@in_each_way
def test_greedy_texts_of_a_relative_are_those_of_transformers(number: int, served: layout.DecoderWeights) -> None:
    config = drawn(number)
    prompts = [random_ids(config, n, seed=n).tolist() for n in (1, 9)]
    options = generate.Options(NEW, sampling.Sampling(0.0))
    expected = [continued(number, tuple(ids)) for ids in prompts]
    alone = [[token.id for token in generate.tokens(served, config, ids, options)] for ids in prompts]
    together = batches.texts(served, config, prompts, [options] * 2)
    assert alone == expected
    assert [[token.id for token in tokens] for tokens in together] == expected


@in_each_way
def test_scores_and_states_of_a_relative_are_those_of_transformers(number: int, served: layout.DecoderWeights) -> None:
    """What perplexity, choosing and embeddings are made of."""
    config, _, model = member(number)
    texts = [random_ids(config, n, seed=n) for n in (9, 17)]
    found = [scoring.token_scores(served, config, texts[0].tolist())]
    found += scoring.scores_of_several(served, config, [ids.tolist() for ids in texts])
    for (logprobs, _), ids in zip(found, [texts[0], *texts], strict=True):
        right = torch.from_numpy(logits_of(model, ids)[:-1]).double().log_softmax(-1).numpy()
        np.testing.assert_allclose(logprobs, right[np.arange(len(ids) - 1), ids[1:]], atol=1e-4)
    with torch.no_grad():
        states = model(torch.from_numpy(texts[0][None]), output_hidden_states=True).hidden_states
    for layer in (0, config.n_layer // 2, None):
        right = states[-1 if layer is None else layer][0].numpy().mean(axis=0)
        assert_close(scoring.embedding(served, config, texts[0].tolist(), layer, "mean"), right)


@pytest.mark.parametrize(("served", "number"), FAST[::7] + PLAIN[::7], indirect=["served"])
def test_beams_of_a_relative_are_those_of_transformers(number: int, served: layout.DecoderWeights) -> None:
    config, _, model = member(number)
    ids = random_ids(config, 5, seed=1).tolist()
    width = min(3, config.vocab // 2)
    expected = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, 5, dtype=torch.long),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found = beam.beam_search(served, config, ids, beam.Beams(width, 6))
    assert [list(one.ids) for one in found] == expected[:, 5:].tolist()


def torch_loss(model: torch.nn.Module, given: Batch) -> torch.Tensor:
    logits = model(torch.from_numpy(given.tokens), use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(given.targets).flatten())


def batch_of(length: int, config: GPT2Config, seed: int) -> Batch:
    """Rows of which some targets carry no loss."""
    ids = random_ids(config, 2, length + 1, seed=seed)
    targets = ids[:, 1:].copy()
    targets[0, :5] = -100
    return Batch(ids[:, :-1], targets)


@in_each_form
def test_gradients_of_a_relative_are_those_of_torch(number: int, form: str) -> None:
    config, params, model = member(number)
    given = batch_of(config.n_positions, config, number)
    model.zero_grad()
    loss = torch_loss(model, given)
    loss.backward()  # type: ignore[no-untyped-call]
    trainer = Trainer(config, params)
    assert trainer.gradients([given])[0] == pytest.approx(loss.item(), rel=2e-6)
    theirs = by_our_names(model)
    assert trainer.grads.keys() == theirs.keys()
    allowed = BENDS if config.activation_function == "relu" else 4 * TOLERANCE
    for name, p in theirs.items():
        assert p.grad is not None
        expected = p.grad.numpy()
        assert np.linalg.norm(trainer.grads[name] - expected) <= allowed * np.linalg.norm(expected), name


@pytest.mark.parametrize(("form", "number"), FAST[::5] + PLAIN[1::5], indirect=["form"])
def test_thirty_steps_of_a_relative_follow_torch(number: int, form: str) -> None:
    """Fast, a fifth of the configurations, which has all activation functions; plain, five of them."""
    config = drawn(number)
    params = random_params(config, number)
    model = their_model(config, params)
    weights, others = ([p for p in model.parameters() if (p.ndim >= 2) == decayed] for decayed in (True, False))
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    trainer = Trainer(config, params)
    for step in range(1, STEPS + 1):
        given = batch_of(SHORT, config, step % 5)
        optimizer.zero_grad()
        expected = torch_loss(model, given)
        expected.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        how = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "grad_clip": 1.0, "dropout_p": 0.0}
        result = trainer.step([given], step_no=step, **how)  # type: ignore[arg-type]
        assert result.loss == pytest.approx(
            expected.item(), rel=1e-3 if config.activation_function == "relu" else 1e-4
        ), step
