"""erf over arrays of float32 beside SciPy's values (golden/erf.npz; its script is beside it)."""

import math
import warnings
from pathlib import Path

import numpy as np
from pg_gpt2.core import activations
from pg_gpt2.fast.erf import erf_into

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "erf.npz")


def erf(x: np.ndarray) -> np.ndarray:
    """As fast/ computes it."""
    y = np.empty_like(x)
    erf_into(x, y)
    return y


def ulps(y: np.ndarray, exact: np.ndarray) -> float:
    """Largest distance of float32 values from exact ones, in units of their last place."""
    return float((np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def test_erf_is_within_two_units_in_the_last_place() -> None:
    finite = np.isfinite(GOLDEN["x"])
    x, exact = GOLDEN["x"][finite], GOLDEN["erf"][finite]
    with warnings.catch_warnings(action="error"):
        assert ulps(erf(x), exact) <= 2
        assert ulps(activations.erf(x), exact) <= 1  # rounded once, from float64


def test_erf_at_the_ends() -> None:
    x = np.array([np.inf, -np.inf, 3e38, 5.0, 0.0, -0.0, np.nan], np.float32)
    for y in (erf(x), activations.erf(x)):
        np.testing.assert_array_equal(y, np.array([1, -1, 1, 1, 0, 0, np.nan], np.float32))
        np.testing.assert_array_equal(np.signbit(y[4:6]), [False, True])


def test_erf_never_falls_by_more_than_its_error() -> None:
    x = np.linspace(0, 4.1, 1 << 20, dtype=np.float32)
    y = erf(x)
    assert np.diff(y).min() >= -2 * np.spacing(np.float32(0.99))
    np.testing.assert_array_equal(erf(-x), -y)


def test_erf_in_float64_is_close_enough_for_gradcheck() -> None:
    x = np.linspace(-6, 6, 10001)
    np.testing.assert_allclose(erf(x), [math.erf(value) for value in x], atol=4e-8)  # erf is 1 from 3.95 on
