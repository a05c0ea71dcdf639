"""Ops against small verified values, computed in float64 by an independent implementation (golden/kernels.json)."""

import json
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2.fast.ops import registry

from tests.engine.arithmetic import gradients_of

CASES = json.loads((Path(__file__).parent.parent / "golden" / "kernels.json").read_text())
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # stated by the file


def case(name: str) -> tuple[dict, dict]:
    """Inputs and expected values; lists become float32 arrays."""

    def arrays(values: dict) -> dict:
        return {k: np.array(v, np.float32) if isinstance(v, list) else v for k, v in values.items()}

    return arrays(CASES[name]["inputs"]), arrays(CASES[name]["expected"])


def test_matmul() -> None:
    given, expected = case("matmul m=2,k=3,n=2")
    y = registry["matmul"](given["a"].reshape(2, 3), given["b"].reshape(3, 2))
    np.testing.assert_allclose(y.ravel(), expected["y"], **TOLERANCE)


def test_add() -> None:
    given, expected = case("add")
    np.testing.assert_allclose(registry["add"](given["a"], given["b"]), expected["y"], **TOLERANCE)


@pytest.mark.parametrize("name", ["gelu", "gelu (wide range)", "softmax", "softmax (5d)"])
def test_one_input(name: str) -> None:
    given, expected = case(name)
    op = registry[name.split()[0]]
    np.testing.assert_allclose(op(given["x"]), expected["y"], **TOLERANCE)
    np.testing.assert_allclose(gradients_of(op, given["dy"], given["x"])[0], expected["dx"], **TOLERANCE)


@pytest.mark.parametrize("name", ["layernorm", "layernorm (6d)"])
def test_layernorm(name: str) -> None:
    given, expected = case(name)
    inputs = given["x"], given["gamma"], given["beta"]
    np.testing.assert_allclose(registry["layernorm"](*inputs, eps=given["eps"]), expected["y"], **TOLERANCE)
    grads = gradients_of(registry["layernorm"], given["dy"], *inputs, eps=given["eps"])
    for grad, key in zip(grads, ("dx", "dgamma", "dbeta"), strict=True):
        np.testing.assert_allclose(grad, expected[key], **TOLERANCE)


def test_cross_entropy() -> None:
    given, expected = case("cross_entropy target=2")
    op, one = registry["cross_entropy"], np.ones((), np.float32)
    np.testing.assert_allclose(op(given["logits"], target=2), expected["loss"][0], **TOLERANCE)
    np.testing.assert_allclose(gradients_of(op, one, given["logits"], target=2)[0], expected["dlogits"], **TOLERANCE)


def test_mlp_backward() -> None:
    given, expected = case("mlp backward T=2,D=4,hidden=16")
    x, dy = given["x"].reshape(2, 4), given["dy"].reshape(2, 4)
    inputs = x, given["w_fc"].reshape(4, 16), given["b_fc"], given["w_proj"].reshape(16, 4), given["b_proj"]
    for grad, key in zip(
        gradients_of(registry["mlp"], dy, *inputs), ("dx", "dw_fc", "db_fc", "dw_proj", "db_proj"), strict=True
    ):
        np.testing.assert_allclose(grad.ravel(), expected[key], **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("attention")])
def test_attention(name: str) -> None:
    given, expected = case(name)
    t, d, heads = given["T"], given["D"], given["n_head"]
    w_qkv, w_o = given["w_qkv"].reshape(d, 3 * d), given["w_o"].reshape(d, d)
    inputs = given["x"].reshape(t, d), w_qkv, given["b_qkv"], w_o, given["b_o"]
    if "y" in expected:
        y = registry["attention"](*inputs, n_head=heads)
        np.testing.assert_allclose(y.ravel(), expected["y"], **TOLERANCE)
    else:
        grads = gradients_of(registry["attention"], given["dy"].reshape(t, d), *inputs, n_head=heads)
        for grad, key in zip(grads, ("dx", "dw_qkv", "db_qkv", "dw_o", "db_o"), strict=True):
            np.testing.assert_allclose(grad.ravel(), expected[key], **TOLERANCE)
