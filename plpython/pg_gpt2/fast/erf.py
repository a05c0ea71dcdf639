"""The error function over arrays, which NumPy lacks: in float32 within 2 units in the last place (1.3 at most: all were tried).

Up to EDGE, x (1 + p(x^2)). Beyond it that value at EDGE, times 1 + RATIO (1 - exp(-d h(d))), d = |x| - EDGE: both sides are
computed for all values, and one of them changes nothing. Rounding of the tail is multiplied with erf(EDGE) RATIO < 0.16.
The polynomials are minimax in units in the last place of erf, fitted by tests/golden/make_erf_golden.py.
"""

import numpy as np

from . import buffers

EDGE = 0.9985674  # where erf is 1 / (1 + RATIO)
RATIO = 0.1875  # exact in any precision
TOP = 3.95  # from here on erf is 1 in float32
P = (
    0.12837916575,
    -0.37612626036,
    0.11283587898,
    -0.026853941427,
    0.0051886011191,
    -0.00080128363622,
    7.8633820894e-05,
)
H = (2.636551619, 0.8429377776, 0.04156413109, -0.009913804797, 0.001834208774, -0.0001871092773)


def erf_into(x: np.ndarray, y: np.ndarray) -> None:
    """y = erf(x), not the same memory; NaN where x is, -1 and 1 at the infinities."""
    near, term = (buffers.scratch(slot, x.shape, x.dtype) for slot in ("erf_near", "erf_term"))
    x.clip(-EDGE, EDGE, out=near)
    np.multiply(near, near, out=term)
    np.multiply(term, P[-1], out=y)
    for coefficient in P[-2:0:-1]:
        y += coefficient
        y *= term
    y += P[0]
    y *= near
    y += near  # last: the rounding of a product with 1 + p would be larger

    np.subtract(x, near, out=near)
    np.abs(near, out=near)
    near.clip(0.0, TOP - EDGE, out=near)
    np.multiply(near, -H[-1], out=term)
    for coefficient in H[-2::-1]:
        term -= coefficient
        term *= near
    np.exp(term, out=term)
    np.subtract(1.0, term, out=term)
    term *= RATIO
    term *= y
    y += term
