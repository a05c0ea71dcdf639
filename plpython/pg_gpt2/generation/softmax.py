"""Probabilities of scores, and their logarithms.

Options go by `softmax` and `log_softmax`, in the type of the scores, as transformers computes them; what is told as a
log-probability adds up in float64.
"""

import math

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:  # [n] -> [n]
    """Probabilities of `scores`. A score of +inf takes all."""
    top = scores.max()
    if not np.isfinite(top):
        hits = (scores == top).astype(np.float32)
        return hits / hits.sum()
    exponentials = np.exp(scores - top)
    return exponentials / exponentials.sum()


def log_softmax(scores: np.ndarray) -> np.ndarray:  # [..., V] -> [..., V]
    """Their logarithms, of each row."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_probability(logits: np.ndarray, token: int) -> float:  # [V]
    """Log-probability of `token` under `logits`, before any processor."""
    top = float(logits.max())
    return float(logits[token]) - top - math.log(float(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))


def log_probabilities(
    logits: np.ndarray, rows: np.ndarray, tokens: np.ndarray
) -> np.ndarray:  # [m, V], [k], [k] -> [k]
    """Log-probability of each token by the row beside it; the logits are used up."""
    chosen = logits[rows, tokens]
    top = logits.max(axis=1)
    logits -= top[:, None]
    np.exp(logits, out=logits)
    return (chosen - top[rows]) - np.log(logits.sum(axis=1, dtype=np.float64))[rows]
