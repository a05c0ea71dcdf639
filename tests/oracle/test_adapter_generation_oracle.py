"""Generation with an adapter beside PEFT, live: greedy text, beam search, logits over a cache, a batch, scores, hidden states.

Weights are random, and spread so that the logits of a position differ. Where the two best candidates are closer than the
rounding of float32 the implementations may part; no such case is among these seeds, which are fixed.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from pg_gpt2.core.config import LINEAR_LAYERS, Adapter, GPT2Config
from pg_gpt2.fast import layout
from pg_gpt2.generation import beam, scoring
from pg_gpt2.generation import generate as generation
from pg_gpt2.generation.decode import Decoder
from pg_gpt2.generation.sampling import Sampling

from tests.engine import batches
from tests.oracle.peft_models import by_peft, random_params

BASE = GPT2Config(n_layer=3, n_head=2, d_model=64, n_positions=96, vocab=300, eos_token_id=299)
FORMS = {
    "one matrix": Adapter(r=8, alpha=16),
    "all matrices": Adapter(r=3, alpha=5, targets=LINEAR_LAYERS, dropout_p=0.1),  # which predictions do not drop
    "of rank 1": Adapter(r=1, alpha=2, targets=("attn.c_proj", "mlp.c_fc")),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
panels = pytest.mark.parametrize("panels", [False, True], ids=["rows", "panels"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose by threads, and much on a machine that does other things."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def both(form: Adapter, panels: bool, monkeypatch: pytest.MonkeyPatch):
    """Config, weights as a session holds them, made of the base's, and the model of PEFT."""
    monkeypatch.setattr(layout, "use_panels", panels)
    config = replace(BASE, adapter=form)
    params = random_params(config, 5)
    base = layout.lay_out({name: params[name].copy() for name in BASE.param_shapes()}, BASE)
    weights = base.with_adapter({name: params[name] for name in config.adapter_shapes()})
    assert np.abs(Decoder(weights, config, 9).feed([1, 2, 3]) - Decoder(base, BASE, 9).feed([1, 2, 3])).max() > 0.1
    return config, weights, by_peft(config, params)


def random_ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, BASE.vocab - 1, count).tolist()


def generated(model: peft.PeftModel, prompt: list[int], **options: object) -> list[list[int]]:
    """Continuations by PEFT, each up to its end-of-text token; what follows there is padding."""
    found = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    texts = [sequence[len(prompt) :].tolist() for sequence in found]
    return [text[: [*text, BASE.eos_token_id].index(BASE.eos_token_id) + 1] for text in texts]


@forms
@panels
@pytest.mark.parametrize("seed", range(3))
def test_greedy_continuations_of_64_tokens(both, seed: int) -> None:
    config, weights, model = both
    prompt = random_ids(1 + 6 * seed, seed)
    options = generation.Options(64, Sampling(0.0), config.eos_token_id)
    found = [token.id for token in generation.tokens(weights, config, prompt, options)]
    assert found == generated(model, prompt, max_new_tokens=64, eos_token_id=config.eos_token_id)[0]
    prompts = [prompt, random_ids(20, seed + 10), random_ids(3, seed + 20)]
    together = batches.texts(weights, config, prompts, [options] * 3)
    for one, tokens in zip(prompts, together):
        expected = generated(model, one, max_new_tokens=64, eos_token_id=config.eos_token_id)[0]
        assert [token.id for token in tokens] == expected


@forms
@panels
def test_logits_over_a_cache(both) -> None:
    """A prompt, then one token at a time, with the keys and values of each kept by both."""
    config, weights, model = both
    ids = random_ids(90, 1)
    decoder = Decoder(weights, config, 96)
    with torch.no_grad():
        state = model(torch.tensor([ids[:70]]), use_cache=True)
        np.testing.assert_allclose(decoder.feed(ids[:70]), state.logits[0, -1].numpy(), atol=2e-4)
        for token in ids[70:]:
            state = model(torch.tensor([[token]]), past_key_values=state.past_key_values, use_cache=True)
            np.testing.assert_allclose(decoder.feed([token]), state.logits[0, -1].numpy(), atol=2e-4)


@forms
@panels
def test_beams(both) -> None:
    config, weights, model = both
    prompt = random_ids(6, 2)
    found = beam.beam_search(weights, config, prompt, beam.Beams(4, 24, eos=config.eos_token_id))
    expected = generated(
        model, prompt, num_beams=4, num_return_sequences=4, max_new_tokens=24, eos_token_id=config.eos_token_id
    )
    assert [list(one.ids) for one in found] == expected


@forms
@panels
def test_scores_and_hidden_states(both) -> None:
    config, weights, model = both
    ids = random_ids(80, 3)
    with torch.no_grad():
        state = model(torch.tensor([ids]), output_hidden_states=True)
    logprobs = torch.log_softmax(state.logits[0, :-1].double(), -1)[torch.arange(79), torch.tensor(ids[1:])].numpy()
    found, _ = scoring.token_scores(weights, config, ids)
    np.testing.assert_allclose(found, logprobs, atol=2e-4)
    for layer in range(config.n_layer + 1):
        wanted = state.hidden_states[layer][0].mean(0).numpy()
        np.testing.assert_allclose(scoring.embedding(weights, config, ids, layer, "mean"), wanted, atol=2e-4)
