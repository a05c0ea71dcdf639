"""Write erf.npz: float32 numbers of every size with their erf by SciPy; and print the polynomials of pg_gpt2/fast/erf.py.

    .venv/oracle/bin/python -m tests.golden.make_erf_golden

A fit is minimax in units of 2^-24 of erf: least squares at Chebyshev points, whose weights grow where the error is large
(Lawson 1961).
"""

from pathlib import Path

import numpy as np
from pg_gpt2.fast.erf import EDGE, TOP, H, P
from scipy.special import erf, erfc

POINTS = 2000
ROUNDS = 400


def minimax(x: np.ndarray, y: np.ndarray, weight: np.ndarray, degree: int) -> tuple[np.ndarray, float]:
    """Coefficients, from the constant on, and the largest weighted error."""
    powers, share, best = np.vander(x, degree + 1, increasing=True), np.ones(len(x)), (np.zeros(0), np.inf)
    for _ in range(ROUNDS):
        w = np.sqrt(share) * weight
        fitted = np.linalg.lstsq(powers * w[:, None], y * w, rcond=None)[0]
        errors = np.abs(powers @ fitted - y) * weight
        best = min(best, (fitted, float(errors.max())), key=lambda found: found[1])
        share *= errors / errors.max() + 1e-4
        share /= share.max()
    return best


def fit() -> tuple[np.ndarray, np.ndarray]:
    """p, with erf(x) = x (1 + p(x^2)) up to EDGE, and h, with erfc(EDGE + d) = erfc(EDGE) exp(-d h(d))."""
    points = (1 - np.cos(np.linspace(0, np.pi, POINTS))) / 2
    square = np.maximum(points * EDGE**2, 1e-6)
    x = np.sqrt(square)
    p, p_error = minimax(square, erf(x) / x - 1, 2**24 * x / erf(x), len(P) - 1)
    d = np.maximum(points * (TOP - EDGE), 1e-4)
    left = erfc(EDGE + d)
    h, h_error = minimax(d, -np.log(left / erfc(EDGE)) / d, 2**24 * left * d, len(H) - 1)
    print(f"p {p_error:.3f}, h {h_error:.3f} units of 2^-24")
    return p, h


def numbers() -> np.ndarray:
    """Of both signs: some of each exponent, those around the edges, zeros, infinities, NaN."""
    draw = np.random.default_rng(0)
    mantissas = np.concatenate([[0, 1, 2**23 - 1], draw.integers(0, 2**23, 5)])
    every = ((np.arange(255)[:, None] << 23) + mantissas).reshape(-1)
    usual = np.linspace(0, 4.2, 3000, dtype=np.float32).view(np.int32)
    edges = np.concatenate([np.float32(edge).view(np.int32) + np.arange(-20, 20) for edge in (EDGE, TOP)])
    x = np.concatenate([every, usual, edges]).astype(np.int32).view(np.float32)
    return np.concatenate([x, -x, np.array([np.inf, -np.inf, np.nan], np.float32)])


if __name__ == "__main__":
    for name, coefficients in zip("PH", fit(), strict=True):
        print(f"{name} = ({', '.join(f'{value:.10g}' for value in coefficients)})")
    x = numbers()
    np.savez_compressed(Path(__file__).parent / "erf.npz", x=x, erf=erf(x.astype(np.float64)))
