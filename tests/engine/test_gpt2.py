"""The model on a tape and eagerly: golden values of torch, the same bits by every route, initialisation."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.op import Sink
from pg_gpt2.core.tape import Eager
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast.attend import attend
from pg_gpt2.fast.attention import split_heads, split_qkv
from pg_gpt2.fast.tape import Tape

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "gpt2_tiny.npz"))
TINY = GPT2Config(n_layer=2, n_head=2, d_model=16, n_positions=16, vocab=61)
PARAMS = {name.removeprefix("param."): array for name, array in GOLDEN.items() if name.startswith("param.")}
TOKENS, TARGETS = GOLDEN["tokens"][0, :, :-1], GOLDEN["tokens"][0, :, 1:]


def gradients(tape: Tape, *, drop: gpt2.Dropout | None = None, fused: bool = True) -> tuple[float, dict]:
    """Loss and gradients of the golden batch."""
    handles = {k: tape.leaf(w, True, Sink(np.full_like(w, np.nan))) for k, w in PARAMS.items()}
    if fused:
        x = gpt2.hidden(tape, handles, TOKENS, TINY, drop=drop)
        loss = tape.finish("lm_head_loss", x, handles["wte"], target=TARGETS)
    else:
        loss = gpt2.loss(tape, handles, TOKENS, TARGETS, TINY, drop=drop)
        tape.backward(loss)
    return float(loss.data), {k: h.sink.array for k, h in handles.items() if h.sink}


def test_logits_equal_torch() -> None:
    logits = gpt2.logits(Eager(), PARAMS, TOKENS, TINY)
    np.testing.assert_allclose(logits, GOLDEN["logits"], atol=2e-5)


def test_gradients_equal_torch() -> None:
    loss, grads = gradients(Tape(keep=False))
    assert abs(loss - GOLDEN["losses"][0]) < 1e-6 * loss
    for name, grad in grads.items():
        expected = GOLDEN[f"grad.{name}"]
        assert np.linalg.norm(grad - expected) <= 1e-5 * np.linalg.norm(expected), name


@pytest.mark.parametrize("drop", [None, gpt2.Dropout(0.2, seed=3, step=4)], ids=["plain", "dropout"])
def test_keeping_values_or_recomputing_them_gives_the_same_bits(drop: gpt2.Dropout | None) -> None:
    loss, grads = gradients(Tape(keep=False), drop=drop)
    for keep, recompute, fused in product((True, False), repeat=3):
        other_loss, others = gradients(Tape(keep=keep, recompute=recompute), drop=drop, fused=fused)
        assert loss == other_loss
        for name, grad in grads.items():
            np.testing.assert_array_equal(grad, others[name], err_msg=name)


def test_gradients_without_sinks_are_the_same_bits() -> None:
    tape = Tape()
    handles = {k: tape.leaf(w, True) for k, w in PARAMS.items()}
    tape.backward(gpt2.loss(tape, handles, TOKENS, TARGETS, TINY))
    for name, grad in gradients(Tape())[1].items():
        np.testing.assert_array_equal(handles[name].grad, grad, err_msg=name)


def test_a_tape_frees_what_it_need_not_keep() -> None:
    tape = Tape(keep=False)
    nodes = []
    tape.audit = lambda phase, node: nodes.append((phase, node))
    gradients(tape)
    assert not tape.nodes
    assert all(node.output.data is None for phase, node in nodes if phase == "backward" and node.name != "lm_head_loss")


def test_audit_sees_every_op_both_ways_in_order() -> None:
    seen: list[tuple[str, str]] = []
    gradients(Tape(audit=lambda phase, node: seen.append((phase, node.name))))
    forward = [name for phase, name in seen if phase == "forward"]
    assert forward[:3] == ["embedding", "embedding", "add"]
    assert [name for phase, name in seen if phase == "backward"] == forward[::-1]


def test_one_sequence_equals_the_row_of_a_batch_beyond_rounding() -> None:
    batch = gpt2.logits(Eager(), PARAMS, TOKENS, TINY)
    np.testing.assert_allclose(gpt2.logits(Eager(), PARAMS, TOKENS[1], TINY), batch[1], atol=1e-5)


def test_decoding_with_a_cache_through_the_attend_hook() -> None:
    whole = gpt2.hidden(Eager(), PARAMS, TOKENS[:1], TINY)
    cache: dict[int, np.ndarray] = {}

    def cached(layer: int, qkv: np.ndarray, factor: float | None) -> np.ndarray:
        cache[layer] = np.concatenate([cache[layer], qkv], axis=1) if layer in cache else qkv
        _, k, v = split_qkv(cache[layer], TINY.n_head)
        y = np.empty((*qkv.shape[:-1], TINY.d_model), np.float32)
        q = split_qkv(qkv, TINY.n_head)[0]
        attend(q, k, v, split_heads(y, TINY.n_head), offset=k.shape[2] - q.shape[2])
        return y

    parts = [
        gpt2.hidden(Eager(), PARAMS, TOKENS[:1, a:b], TINY, position=a, attend=cached)
        for a, b in ((0, 5), (5, 6), (6, 13), (13, 16))
    ]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_backward_from_a_constant_is_an_error() -> None:
    tape = Tape()
    with pytest.raises(InvalidParameter, match="requires a gradient"):
        tape.backward(tape.apply("gelu", tape.leaf(np.ones(3, np.float32))))


def test_a_value_used_twice_collects_both_gradients() -> None:
    tape = Tape()
    x = tape.leaf(np.array([[1.0, 2.0], [3.0, 4.0]]), True)
    y = tape.apply("add", tape.apply("mul", x, x), tape.apply("transpose", tape.apply("add", x, x)))
    tape.backward(y)
    np.testing.assert_allclose(x.grad, 2 * x.data + 2)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("tokens", "position"), [(np.zeros(17, int), 0), (np.zeros(3, int), 14), (np.zeros(0, int), 0)]
)
def test_a_window_that_does_not_fit_is_an_error(tokens: np.ndarray, position: int) -> None:
    with pytest.raises(InvalidParameter, match="does not fit"):
        gpt2.hidden(Eager(), PARAMS, tokens, TINY, position=position)


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(InvalidParameter, match="61"):
        gpt2.hidden(Eager(), PARAMS, np.array([61]), TINY)


def test_initialisation_is_that_of_gpt2() -> None:
    config = GPT2Config(n_layer=3, n_head=4, d_model=128, n_positions=64, vocab=5000)
    params = gpt2.init_params(config, seed=7)
    assert {name: w.shape for name, w in params.items()} == config.param_shapes()
    for name, w in params.items():
        assert w.dtype == np.float32
        if w.ndim == 2:
            std = 0.02 / np.sqrt(6) if name.endswith("c_proj.weight") else 0.02
            assert abs(w.std() / std - 1) < 5 / np.sqrt(2 * w.size), name  # five standard errors
            assert abs(w.mean()) < 5 * std / np.sqrt(w.size), name
        else:
            assert (w == (1 if name.endswith("weight") else 0)).all(), name


def test_initialisation_depends_on_the_seed_alone() -> None:
    a, b, c = (gpt2.init_params(TINY, seed) for seed in (1, 1, 2))
    assert all((a[name] == b[name]).all() for name in a)
    assert all((a[name] != c[name]).any() for name in a if a[name].ndim == 2)
    assert not np.array_equal(a["h.0.mlp.c_fc.weight"], a["h.1.mlp.c_fc.weight"])
