"""GPT-2's relatives: what an architecture computes, beside a plain float64 pass; by every path, and in training."""

from dataclasses import replace
from itertools import product
from math import erf, pi, sqrt

import numpy as np
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import ACTIVATIONS, ARCHITECTURE, LINEAR_LAYERS, LM_HEAD, Adapter, GPT2Config, block_shapes
from pg_gpt2.core.op import use_fast
from pg_gpt2.core.tape import Eager
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast import layout
from pg_gpt2.generation import scoring, tracing
from pg_gpt2.generation.decode import Decoder
from pg_gpt2.training import trainer
from pg_gpt2.training.trainer import Batch, Trainer

from tests.engine.small_models import VARIANT, random_params

PLAIN = GPT2Config(n_layer=3, n_head=2, d_model=20, n_positions=24, vocab=61)
KINDS = [
    *({"activation_function": name} for name in ACTIVATIONS),
    {"n_inner": 13},
    {"n_inner": 200},
    {"layer_norm_epsilon": 0.01},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    {"tie_word_embeddings": False},
    {name: getattr(VARIANT, name) for name in ARCHITECTURE},
]
IDS = np.random.default_rng(1).integers(0, PLAIN.vocab, 20)

every_kind = pytest.mark.parametrize(
    "config", [replace(PLAIN, **kind) for kind in KINDS], ids=lambda c: str(c.differences())
)
every_form = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


@pytest.fixture(autouse=True)
def _fast_again():
    yield
    use_fast(True)


def params_of(config):
    """Random ones, the scores of attention not so large that one token gets all."""
    return {name: w / 2 if "c_attn" in name else w for name, w in random_params(config, 3).items()}


def activated(name, x):
    """By the formulas of transformers' activations."""
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))
    if name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    if name in ("silu", "quick_gelu"):
        return x / (1 + np.exp(-x * {"silu": 1, "quick_gelu": 1.702}[name]))
    return {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[name](x)


def plain_logits(params, config, ids):
    """What modeling_gpt2.py of transformers computes, in float64."""
    p = {name: array.astype(np.float64) for name, array in params.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        root = np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_epsilon)
        return centred / root * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    x = p["wte"][ids] + p["wpe"][: len(ids)]
    for i in range(config.n_layer):
        q, k, v = np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=-1)
        mixed = []
        for h in range(config.n_head):
            part = slice(h * config.d_head, (h + 1) * config.d_head)
            scores = q[:, part] @ k[:, part].T
            if config.scale_attn_weights:
                scores = scores / sqrt(config.d_head)
            if config.scale_attn_by_inverse_layer_idx:
                scores = scores / (i + 1)
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            w = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(w / w.sum(-1, keepdims=True) @ v[:, part])
        x = x + linear(np.concatenate(mixed, -1), f"h.{i}.attn.c_proj")
        hidden = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        x = x + linear(activated(config.activation_function, hidden), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ p["wte" if config.tie_word_embeddings else LM_HEAD].T


@every_kind
@every_form
def test_logits_are_those_of_the_architecture(config, fast):
    use_fast(fast)
    params = params_of(config)
    logits = gpt2.logits(Eager(), params, IDS, config)
    np.testing.assert_allclose(logits, plain_logits(params, config, IDS), atol=2e-5 * np.abs(logits).max())
    if set(config.differences()) - {"activation_function", "reorder_and_upcast_attn", "n_inner"}:
        others = {name: w for name, w in params.items() if name != LM_HEAD}
        with pytest.raises(AssertionError):  # and not GPT-2's
            np.testing.assert_allclose(
                logits, plain_logits(others, replace(PLAIN, n_inner=config.n_inner), IDS), atol=1e-3
            )


@every_kind
@every_form
@pytest.mark.parametrize("use_panels", [True, False], ids=["panels", "rows"])
def test_decoding_gives_the_logits_of_a_full_pass(config, fast, use_panels, monkeypatch):
    monkeypatch.setattr(layout, "use_panels", use_panels and fast)
    use_fast(fast)
    params = params_of(config)
    wanted = plain_logits(params, config, IDS)
    weights = layout.lay_out(dict(params), config) if fast else layout.DecoderWeights(params)
    assert layout.CheckpointTensors(weights).keys() == params.keys()
    decoder = Decoder(weights, config, 24)
    found = [decoder.feed(IDS[:7]), *(decoder.feed(IDS[i : i + 1]) for i in range(7, 20))]
    np.testing.assert_allclose(found, wanted[6:], atol=2e-5 * np.abs(wanted).max())
    scores, _ = scoring.token_scores(weights, config, IDS.tolist())
    logprobs = wanted - np.log(np.exp(wanted).sum(-1, keepdims=True))
    np.testing.assert_allclose(scores, logprobs[np.arange(19), IDS[1:]], atol=5e-5 * np.abs(wanted).max())


def batch_of(config, rows=3):
    random = np.random.default_rng(5)
    tokens = random.integers(0, config.vocab, (rows, 17))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def gradients(config, params, fast, *, dropout_p=0.0):
    use_fast(fast)
    learner = Trainer(config, {name: array.copy() for name, array in params.items()})
    loss, _ = learner.gradients([batch_of(config), batch_of(config, 2)], dropout_p=dropout_p, seed=9)
    return loss, {name: grad.copy() for name, grad in learner.grads.items()}


@every_kind
@pytest.mark.parametrize("adapter", [None, Adapter(r=3, targets=LINEAR_LAYERS)], ids=["model", "adapter"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
def test_gradients_of_the_fast_paths_are_those_of_the_plain_ops(config, adapter, kept, monkeypatch):
    monkeypatch.setattr(trainer, "MOST_KEPT", 1 << 27 if kept else 0)
    config = replace(config, adapter=adapter)
    params = random_params(config, 3)
    loss, found = gradients(config, params, True, dropout_p=0.1)
    plain_loss, wanted = gradients(config, params, False, dropout_p=0.1)
    assert abs(loss - plain_loss) < 2e-6 * plain_loss
    assert found.keys() == wanted.keys() == config.trained_shapes().keys()
    total = sqrt(sum(float(np.square(grad).sum(dtype=np.float64)) for grad in wanted.values()))
    for name, grad in wanted.items():
        assert np.linalg.norm(found[name] - grad) < 1e-5 * max(np.linalg.norm(grad), 0.01 * total), name


@every_kind
def test_gradients_are_those_of_finite_differences(config):
    params = params_of(config)
    _, found = gradients(config, params, True)
    random = np.random.default_rng(2)

    def loss(changed):
        total, count = 0.0, 0
        for batch in (batch_of(config), batch_of(config, 2)):
            for ids, targets in zip(batch.tokens, batch.targets):
                z = plain_logits(changed, config, ids)
                z = z - z.max(-1, keepdims=True)
                total += (np.log(np.exp(z).sum(-1)) - z[np.arange(16), targets]).sum()
                count += 16
        return total / count

    for name in ("h.2.mlp.c_fc.weight", "h.1.attn.c_attn.weight", "wte", config.output_table, "h.0.ln_1.weight"):
        direction = random.standard_normal(params[name].shape) * 1e-6
        slope = loss(params | {name: params[name] + direction}) - loss(params | {name: params[name] - direction})
        expected = float((found[name] * direction).sum())
        scale = float(np.linalg.norm(found[name]) * np.linalg.norm(direction))
        assert abs(slope / 2 - expected) < 2e-3 * scale / sqrt(params[name].size) + 1e-4 * abs(expected), name


@every_kind
def test_twenty_steps_learn_by_either_form_alike(config):
    losses = []
    for fast in (True, False):
        use_fast(fast)
        learner = Trainer(config, gpt2.init_params(config, 4))
        losses.append([learner.step([batch_of(config)], lr=3e-3, dropout_p=0.0, step_no=i).loss for i in range(1, 21)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)  # Adam makes of a rounding of 0 a step
    assert losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize("config", [VARIANT, replace(VARIANT, tie_word_embeddings=True)], ids=["own head", "tied"])
def test_only_a_tied_table_learns_from_both_ends(config):
    params = random_params(config)
    _, grads = gradients(config, params, True)
    seen = np.isin(np.arange(config.vocab), np.concatenate([batch_of(config).tokens, batch_of(config, 2).tokens]))
    moved = np.abs(grads["wte"]).max(axis=1) > 0
    assert (moved == seen).all() if LM_HEAD in grads else moved.all()


@every_kind
def test_a_trace_shows_the_attention_that_was_computed(config):
    params = params_of(config)
    steps = {step.name: step.data for step in tracing.trace(params, config, IDS)}
    np.testing.assert_allclose(
        steps["logits"], plain_logits(params, config, IDS), atol=1e-4 * np.abs(steps["logits"]).max()
    )
    for i in range(config.n_layer):
        mixed = steps[f"h.{i}.attn.weights"] @ steps[f"h.{i}.attn.v"]
        np.testing.assert_allclose(mixed.swapaxes(0, 1).reshape(20, -1), steps[f"h.{i}.attn.heads"], atol=1e-5)
        assert f"h.{i}.mlp.{ACTIVATIONS[config.activation_function]}" in steps
    *_, (layer, last) = tracing.logit_lens(params, config, IDS)
    assert layer == config.n_layer
    np.testing.assert_allclose(last, steps["probabilities"][-1], atol=1e-6)


@every_kind
def test_an_adapter_merged_is_the_model_of_the_two(config):
    config = replace(config, adapter=Adapter(r=2, alpha=3, targets=("attn.c_attn", "mlp.c_fc", "mlp.c_proj")))
    params = random_params(config)
    assert {name: w.shape for name, w in params.items()} == config.param_shapes()
    merged = dict(gpt2.merged(params, config))
    own = replace(config, adapter=None)
    assert {name: w.shape for name, w in merged.items()} == own.param_shapes()
    logits = gpt2.logits(Eager(), params, IDS, config)
    np.testing.assert_allclose(gpt2.logits(Eager(), merged, IDS, own), logits, atol=3e-5 * np.abs(logits).max())


@every_kind
def test_shapes_follow_from_the_fields(config):
    shapes = config.param_shapes()
    assert config.n_params() == sum(int(np.prod(shape)) for shape in shapes.values()) == config.n_trained()
    assert (LM_HEAD in shapes) is not config.tie_word_embeddings
    inner = config.n_inner or 80
    assert shapes["h.1.mlp.c_fc.weight"] == shapes["h.1.mlp.c_proj.weight"][::-1] == (20, inner)
    assert block_shapes(20, config.n_inner)["mlp.c_fc.bias"] == (inner,)
    params = gpt2.init_params(replace(config, d_model=200, n_inner=config.n_inner and 300), 1)
    for name, w in params.items():  # as transformers' _init_weights
        if w.ndim == 2:
            assert abs(w.std() / (0.02 / sqrt(6) if name.endswith("c_proj.weight") else 0.02) - 1) < 0.05, name
        else:
            assert (w == (1 if name.endswith("weight") else 0)).all(), name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *product(["activation_function"], ["mish", "", None, 3, [], "GELU"]),
        *product(["n_inner"], [0, -1, 1.5, True, "8", 1 << 31]),
        *product(["layer_norm_epsilon"], [0, -1e-5, 1.1, float("nan"), float("inf"), None, "1e-5", True]),
        *product([name for name, ours in ARCHITECTURE.items() if type(ours) is bool], [None, 0, 1, "true"]),
    ],
)
def test_a_value_that_no_architecture_has_is_refused_by_name(field, value):
    with pytest.raises(InvalidParameter, match=field) as caught:
        replace(PLAIN, **{field: value})
    assert caught.value.hint
