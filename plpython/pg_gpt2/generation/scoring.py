"""What a model thinks of given texts: log-probabilities, ranks, perplexity, and hidden states as an embedding.

Past the window it slides by half, as in Hugging Face's guide to perplexity of fixed-length models: every token is scored once,
with at least half a window before it. Windows and several texts share passes, and passes the cores (packing.py); one text
alone goes on from what the session has read (prefixes.py), with the same bits. Logits are made a few rows at a time.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from .. import host
from ..core import gpt2
from ..core.config import GPT2Config
from ..errors import InvalidParameter
from ..fast import buffers, slices, threads
from ..fast.layout import DecoderWeights
from ..fast.linear import lm_head
from ..tensor import FLOAT32
from . import packing, prefixes
from .decode import bytes_of_several, checked

ROWS = 128  # of logits at a time at least: 26 MB of GPT-2's
LOGITS = 1 << 20  # at a time, where these are more rows
BLOCK = 1 << 16  # logits whose exponentials are made at a time, in a core's cache
OVERFLOW = 700.0  # exp() of more is no double precision

Scores = tuple[np.ndarray, np.ndarray]  # log-probabilities and ranks [n - 1] of a text's tokens from the second on


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

    @property
    def n_scored(self) -> int:
        """Tokens that are scored, each by the position before it."""
        return self.stop - self.first


class _Piece(NamedTuple):
    """Ids start..stop of a text, which an embedding reads together."""

    text: int
    start: int
    stop: int

    @property
    def n_rows(self) -> int:
        """Positions that a pass computes."""
        return self.stop - self.start


def token_scores(params: DecoderWeights, config: GPT2Config, ids: Sequence[int], ranked: bool = True) -> Scores:
    """Log-probability and rank (1 = most probable) of ids[1:], each given what precedes it: two vectors [len(ids) - 1].

    Without `ranked` the ranks mean nothing.
    """
    tokens, scores = np.asarray(ids, np.int64), np.zeros((2, len(ids) - 1))
    parts = _parts_of(0, len(ids), config)
    if parts and params.exact:  # elsewhere passes that end at fixed boundaries are slower than one pass
        first = parts.pop(0)
        _score_with_cache(params, config, tokens[: first.stop], scores[:, : first.stop - 1])
    _score_parts(params, config, [tokens], parts, [(scores[0], scores[1])], ranked)
    return scores[0], scores[1].astype(np.int64)


def _score_with_cache(params: DecoderWeights, config: GPT2Config, tokens: np.ndarray, scores: np.ndarray) -> None:
    """Set scores [2, n - 1] of tokens [n]; those that the session knows need no pass, and it will know these."""
    room = len(tokens) - 1
    host.require_memory(bytes_of_several(params, config, [room]), f"keys and values of {room} positions")
    decoder = prefixes.take(params, config, tokens, room, scored=True)
    place = decoder.length
    scores[:, :place] = decoder.scores
    for hidden in decoder.passes(tokens[place:-1]):
        rows = slice(place, place := place + len(hidden))
        scores[:, rows] = _score(params, hidden, tokens[1:][rows], ranked=True)
    decoder.scores = scores[:, : room - 1].copy()
    prefixes.give(decoder)


def scores_of_several(
    params: DecoderWeights, config: GPT2Config, texts: Sequence[Sequence[int]], ranked: bool = True
) -> list[Scores]:
    """`token_scores` of each text; of those that have no two tokens, empty ones."""
    tokens = [np.asarray(ids, np.int64) for ids in texts]
    scores = [(np.empty(n), np.zeros(n, np.int64)) for n in (max(0, len(ids) - 1) for ids in texts)]
    parts = [part for i, ids in enumerate(texts) for part in _parts_of(i, len(ids), config)]
    _score_parts(params, config, tokens, parts, scores, ranked)
    return scores


def _parts_of(text: int, n: int, config: GPT2Config) -> list[_Part]:
    """The windows of a text of n tokens; one position sees the token before."""
    return [_Part(text, *window) for window in windows(n, max(2, config.n_positions))]


def _score_parts(
    params: DecoderWeights,
    config: GPT2Config,
    tokens: Sequence[np.ndarray],
    parts: Iterable[_Part],
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    ranked: bool,
) -> None:
    """Set those of the scores [n - 1] of texts of tokens [n] that the parts are about."""

    def work(some: list[_Part]) -> None:
        texts = [tokens[part.text][part.start : part.stop - 1] for part in some]
        hidden = packing.states(params, config, texts, config.n_layer, [part.n_scored for part in some])
        found = _score(params, hidden, np.concatenate([tokens[p.text][p.first : p.stop] for p in some]), ranked)
        place = 0
        for part in some:
            here = slice(place, place := place + part.n_scored)
            for kept, new in zip(scores[part.text], found):
                kept[part.first - 1 : part.stop - 1] = new[here]

    progress, done = host.Progress("scoring", "tokens", sum(map(len, tokens))), 0
    for turn in packing.run_passes(parts, lambda part: part.n_rows, work):
        done += sum(part.n_scored for part in chain.from_iterable(turn))
        progress.at(done)


def _score(params: DecoderWeights, hidden: np.ndarray, targets: np.ndarray, ranked: bool) -> Scores:  # [m, D], [m]
    """Log-probability and rank of each target given the state before it."""
    table = gpt2.output_table(params)
    vocab = table.shape[0]
    logprobs, ranks = np.empty(len(targets)), np.zeros(len(targets), np.int64)
    with buffers.reusing(buffers.LooseBufferPool()):
        for rows in slices.pieces(len(targets), _rows_of_logits(vocab)):
            logits = lm_head(hidden[rows], table)
            for some in slices.pieces(len(logits), max(1, BLOCK // vocab)):
                here = slice(rows.start + some.start, rows.start + some.stop)
                logprobs[here], ranks[here] = _score_rows(logits[some], targets[here], ranked)
            threads.look()
            del logits
    return logprobs, ranks


def _rows_of_logits(vocab: int) -> int:
    return max(ROWS, LOGITS // vocab)


def _score_rows(logits: np.ndarray, targets: np.ndarray, ranked: bool) -> Scores:  # [m, V], [m]
    """What `_score` says of a few rows, each by itself: of all at once, the bits of a sum could depend on a row's place."""
    chosen = logits[np.arange(len(targets)), targets]
    higher = [np.count_nonzero(row) for row in logits > chosen[:, None]] if ranked else [-1] * len(targets)
    top = checked(logits.max(axis=1, keepdims=True))
    logits -= top
    chosen = chosen - top[:, 0]
    np.exp(logits, out=logits)
    totals = [np.add.reduce(row, dtype=np.float64) for row in logits]
    return chosen - np.log(totals), 1 + np.array(higher)


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


def bytes_of_passes(config: GPT2Config, n: int | None = None) -> int:
    """Memory that scoring or embedding n tokens, or any number, takes beside the weights: on each core values of a block, and
    logits."""
    rows = max(packing.ROWS, config.n_positions)
    rows = rows if n is None else min(n, rows)
    values = rows * (8 * config.d_model + 2 * config.inner) + min(rows, _rows_of_logits(config.vocab)) * config.vocab
    return FLOAT32.itemsize * values * (threads.threads() if n is None or n > packing.ROWS else 1)


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
    parts = [
        _Piece(i, piece.start, piece.stop) for i, ids in enumerate(tokens) for piece in slices.pieces(len(ids), window)
    ]
    totals = np.zeros((len(texts), config.d_model), np.float64)
    sums: dict[_Piece, np.ndarray] = {}

    def work(some: list[_Piece]) -> None:
        wanted = [1 if pooling == "last" else piece.n_rows for piece in some]
        x = packing.states(params, config, [tokens[p.text][p.start : p.stop] for p in some], depth, wanted)
        checked(x, "the model's hidden states")
        for piece, rows in zip(some, np.split(x, np.cumsum(wanted)[:-1])):
            sums[piece] = rows.sum(axis=0, dtype=np.float64)

    progress, done = host.Progress("embedding", "tokens", sum(map(len, tokens))), 0
    for turn in packing.run_passes(parts, lambda piece: piece.n_rows, work):
        for piece in chain.from_iterable(turn):
            totals[piece.text] += sums.pop(piece)  # in order, whichever pass was done first
            done += piece.n_rows
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
