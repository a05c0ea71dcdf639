"""erf over arrays of float32 beside SciPy's, and the activations that use it beside torch where they are hardest."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pg_gpt2.fast.erf import EDGE, TOP, erf_into
from pg_gpt2.fast.ops import registry, use_fast
from scipy.special import erf
from torch.nn import functional as F

from tests.engine.arithmetic import gradients_of

PIECE = 1 << 20


def worst(x: np.ndarray) -> float:
    """The largest error in units in the last place of the exact value."""
    y, exact = np.empty_like(x), erf(x.astype(np.float64))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        erf_into(x, y)
    return float((np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def from_bits(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)


def test_erf_is_within_two_ulp_of_scipys_for_numbers_of_every_exponent() -> None:
    draw = np.random.default_rng(0)
    bits = (np.arange(255)[:, None] << 23) + draw.integers(0, 1 << 23, 20_000)
    for sign in (0, 1 << 31):
        for some in np.array_split(bits.reshape(-1) + sign, 8):
            assert worst(from_bits(some)) <= 2


@pytest.mark.parametrize(
    "place", [0.0, 2.0**-126, EDGE, TOP, 0.4769363], ids=str
)  # 0.4769..: erf comes to 1/2, a new exponent
def test_erf_is_within_two_ulp_of_scipys_for_all_numbers_around(place: float) -> None:
    middle = int(np.float32(place).view(np.uint32))
    assert worst(from_bits(np.arange(max(0, middle - PIECE), middle + PIECE))) <= 2


def test_erf_is_within_two_ulp_of_scipys_where_it_bends() -> None:
    for low in np.arange(0, 4, 0.25):  # one in four of the numbers
        first, last = (int(np.float32(edge).view(np.uint32)) for edge in (max(low, 0.125), low + 0.25))
        assert worst(from_bits(np.arange(first, last, 4))) <= 2


TORCH = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "relu": torch.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
}


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fast ops, then the plain ones."""
    use_fast(request.param)
    yield
    use_fast(True)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", TORCH)
def test_an_activation_is_about_as_close_to_the_exact_one_as_torchs(name: str) -> None:
    """Below -5 both gelus, and at its bends every derivative, are differences of which nobody has more than these digits."""
    x = np.linspace(-100, 100, 400_001, dtype=np.float32)
    given, exact = torch.tensor(x, requires_grad=True), torch.tensor(x.astype(np.float64), requires_grad=True)
    theirs, truth = TORCH[name](given), TORCH[name](exact)
    theirs.sum().backward()
    truth.sum().backward()
    assert given.grad is not None
    assert exact.grad is not None
    y, (dx,) = registry[name](x), gradients_of(registry[name], np.ones_like(x), x)

    def lost(y: np.ndarray, right: torch.Tensor) -> float:
        return float((np.abs(y - right.detach().numpy()) / np.maximum(1, np.abs(x))).max())

    assert lost(y, truth) <= 2 * lost(theirs.detach().numpy(), truth) + 2**-23
    assert lost(dx, exact.grad) <= 2 * lost(given.grad.numpy(), exact.grad) + 2**-23


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", TORCH)
def test_an_activation_of_a_huge_number_is_torchs(name: str) -> None:
    x = np.array([-1e38, -1e19, -1e4, -100, -0.0, 0.0, 100, 1e4, 1e19, 1e38, np.nan], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a square of gelu's; NaN
        y = registry[name](x)
    np.testing.assert_allclose(y, TORCH[name](torch.tensor(x)).numpy(), rtol=1e-6, atol=1e-30)
