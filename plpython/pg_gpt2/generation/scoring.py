"""What a model thinks of given texts: log-probabilities, ranks, perplexity, and hidden states as an embedding.

Past the window it slides by half, as in Hugging Face's guide to perplexity of fixed-length models: every token is scored once,
with at least half a window before it. Logits are made a few rows at a time. Several texts share passes (packing.py); one
alone goes on from what the session has read (prefixes.py), with the same bits.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .. import host
from ..core import gpt2
from ..core.config import GPT2Config
from ..errors import InvalidParameter
from ..fast import slices
from ..fast.layout import DecoderWeights
from ..fast.linear import lm_head
from ..tensor import FLOAT32
from . import packing, prefixes
from .decode import Decoder, bytes_of_several, checked, is_exact

ROWS = 128  # rows of logits at a time: 26 MB of GPT-2's
OVERFLOW = 700.0  # exp() of more is no double precision

Scores = tuple[np.ndarray, np.ndarray]  # log-probabilities and ranks [n - 1] of a text's tokens from the second on


def token_scores(params: DecoderWeights, config: GPT2Config, ids: Sequence[int]) -> Scores:
    """Log-probability and rank (1 = most probable) of ids[1:], each given what precedes it: two vectors [len(ids) - 1]."""
    scores = np.empty((2, len(ids) - 1))
    tokens = np.asarray(ids, np.int64)
    progress = host.Progress("scoring", "tokens", len(ids))
    for start, first, stop in windows(len(ids), max(2, config.n_positions)):  # one position sees the token before
        window = scores[:, start : stop - 1]
        if is_exact(params):
            _score_with_cache(params, config, tokens[start:stop], first - start, window, keep=not start)
        else:  # passes that end at fixed boundaries are slower than one pass
            hidden = packing.states(params, config, [tokens[start : stop - 1]], config.n_layer)
            _score_passes(params, [hidden], 0, tokens[start:stop], first - start, window)
        progress.at(stop)
    return scores[0], scores[1].astype(np.int64)


def _score_with_cache(
    params: DecoderWeights, config: GPT2Config, tokens: np.ndarray, first: int, scores: np.ndarray, keep: bool
) -> None:  # [n], [2, n - 1]
    """Scores of tokens[first:]; those that the session knows need no pass, and with `keep` it will know these."""
    room = len(tokens) - 1
    host.require_memory(bytes_of_several(params, config, [room]), f"keys and values of {room} positions")
    decoder = prefixes.take(params, config, tokens, room, scored=True) if keep else Decoder(params, config, room)
    known = decoder.length
    scores[:, :known] = decoder.scores
    _score_passes(params, decoder.passes(tokens[known:-1]), known, tokens, first, scores)
    if keep:
        decoder.scores = scores[:, : room - 1].copy()
        prefixes.give(decoder)


def _score_passes(
    params: DecoderWeights,
    passes: Iterable[np.ndarray],
    place: int,
    tokens: np.ndarray,
    first: int,
    scores: np.ndarray,
) -> None:  # of [T, D], [n], [2, n - 1]
    """Scores of tokens[first:] that follow the rows of `passes`, the first of which is at `place`."""
    for hidden in passes:
        skipped = max(0, min(first - 1 - place, len(hidden)))
        for rows in slices.pieces(len(hidden) - skipped, ROWS):
            at = slice(place + skipped + rows.start, place + skipped + rows.stop)
            logits = checked(lm_head(hidden[skipped:][rows], gpt2.output_table(params)))
            scores[:, at] = _score_rows(logits, tokens[1:][at], ranked=True)
            host.check_interrupts()
        place += len(hidden)


class _Part(NamedTuple):
    """A window of a text: ids start..stop of it, of which those from `first` on are scored."""

    text: int
    start: int
    first: int
    stop: int

    @property
    def n_rows(self) -> int:
        """Positions that a pass computes: the last token predicts nothing that is there."""
        return self.stop - 1 - self.start


def scores_of_several(
    params: DecoderWeights, config: GPT2Config, texts: Sequence[Sequence[int]], ranked: bool = True
) -> list[Scores]:
    """`token_scores` of each text; of those that have no two tokens, empty ones. Without `ranked` the ranks are 0."""
    tokens = [np.asarray(ids, np.int64) for ids in texts]
    scores = [(np.empty(n), np.zeros(n, np.int64)) for n in (max(0, len(ids) - 1) for ids in texts)]
    width = max(2, config.n_positions)  # one position sees the token before
    parts = [_Part(i, *window) for i, ids in enumerate(texts) for window in windows(len(ids), width)]
    progress, done = host.Progress("scoring", "tokens", sum(map(len, texts))), 0
    for some in packing.passes(parts, lambda part: part.n_rows):
        hidden = packing.states(params, config, [tokens[p.text][p.start : p.stop - 1] for p in some], config.n_layer)
        ends = np.cumsum([part.n_rows for part in some])
        rows = np.concatenate([np.arange(end - (p.stop - p.first), end) for p, end in zip(some, ends)])
        targets = np.concatenate([tokens[p.text][p.first : p.stop] for p in some])
        found = _score(params, hidden[rows], targets, ranked)
        place = 0
        for part in some:
            here = slice(place, place := place + part.stop - part.first)
            for kept, new in zip(scores[part.text], found):
                kept[part.first - 1 : part.stop - 1] = new[here]
        done += place
        progress.at(done)
    return scores


def _score(params: DecoderWeights, hidden: np.ndarray, targets: np.ndarray, ranked: bool) -> Scores:  # [m, D], [m]
    """Log-probability and rank of each target given the state before it."""
    logprobs, ranks = np.empty(len(targets)), np.zeros(len(targets), np.int64)
    for rows in slices.pieces(len(targets), ROWS):
        logits = checked(lm_head(hidden[rows], gpt2.output_table(params)))
        logprobs[rows], ranks[rows] = _score_rows(logits, targets[rows], ranked)
        host.check_interrupts()
    return logprobs, ranks


def _score_rows(logits: np.ndarray, targets: np.ndarray, ranked: bool) -> Scores:  # [m, V], [m]
    chosen = logits[np.arange(len(targets)), targets]
    ranks = 1 + np.count_nonzero(logits > chosen[:, None], axis=1) if ranked else np.zeros(len(targets), np.int64)
    top = logits.max(axis=1, keepdims=True)
    logits -= top
    chosen = chosen - top[:, 0]
    np.exp(logits, out=logits)
    totals = [row.sum(dtype=np.float64) for row in logits]  # of all at once, bits could depend on a row's place
    return chosen - np.log(totals), ranks


def windows(n: int, width: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, stop): the window start..stop scores the tokens first..stop, of `n` tokens from the second on."""
    scored = 1
    stride = max(1, width // 2)
    for start in range(0, n, stride):
        stop = min(start + width, n)
        if scored < stop:
            yield start, scored, stop
        scored = stop
        if stop == n:
            return


def perplexity(logprobs: np.ndarray) -> float | None:
    """exp of their negative mean; None where there are none."""
    return math.exp(min(-float(logprobs.mean()), OVERFLOW)) if len(logprobs) else None


def bytes_of_a_pass(config: GPT2Config) -> int:
    """Memory that scoring or embedding takes beside the weights: values of a block, and logits with a copy of them."""
    rows = max(packing.ROWS, config.n_positions)
    return FLOAT32.itemsize * (rows * (8 * config.d_model + 2 * config.inner) + 2 * ROWS * config.vocab)


def embedding(
    params: DecoderWeights, config: GPT2Config, ids: Sequence[int], layer: int | None, pooling: str
) -> np.ndarray:
    """Hidden state [D] after `layer` blocks (0 = embeddings, null or n_layer = after the final norm), over all tokens.

    Texts longer than the window are cut into windows; 'mean' averages all tokens, 'last' takes the last one.
    """
    return embeddings(params, config, [ids], layer, pooling)[0]


def embeddings(
    params: DecoderWeights, config: GPT2Config, texts: Sequence[Sequence[int]], layer: int | None, pooling: str
) -> list[np.ndarray]:
    """`embedding` of each text, which has at least one token."""
    depth = depth_of(layer, config)
    require_pooling(pooling)
    window = config.n_positions
    tokens = [np.asarray(ids, np.int64)[-window if pooling == "last" else 0 :] for ids in texts]
    parts = [(i, piece) for i, ids in enumerate(tokens) for piece in slices.pieces(len(ids), window)]
    totals = np.zeros((len(texts), config.d_model), np.float64)
    progress, done = host.Progress("embedding", "tokens", sum(map(len, tokens))), 0
    for some in packing.passes(parts, lambda part: part[1].stop - part[1].start):
        x = checked(
            packing.states(params, config, [tokens[i][piece] for i, piece in some], depth), "the model's hidden states"
        )
        place = 0
        for i, piece in some:
            rows = x[place : (place := place + piece.stop - piece.start)]
            totals[i] += rows[-1] if pooling == "last" else rows.sum(axis=0, dtype=np.float64)
        done += place
        progress.at(done)
    if pooling == "mean":
        totals /= np.array([len(ids) for ids in tokens])[:, None]
    return list(totals.astype(np.float32))


def require_pooling(pooling: str) -> None:
    """22023 for what is no way of pooling."""
    if pooling not in ("mean", "last"):
        raise InvalidParameter(
            f"pooling must be 'mean' or 'last', not '{pooling}'",
            hint="mean averages all tokens, last takes the last one.",
        )


def depth_of(layer: int | None, config: GPT2Config) -> int:
    """How many blocks `layer` means. 22023 where there are not so many."""
    depth = config.n_layer if layer is None else layer
    if depth < 0:
        depth += config.n_layer + 1
    if not 0 <= depth <= config.n_layer:
        raise InvalidParameter(
            f"layer {layer} is not in 0..{config.n_layer}",
            hint="0 is the embeddings, -1 or null the state after the final norm.",
        )
    return depth
