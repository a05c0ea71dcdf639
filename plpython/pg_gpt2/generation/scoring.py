"""What a model thinks of a given text: log-probabilities, ranks, perplexity, and hidden states as an embedding.

Past the window it slides by half, as in Hugging Face's guide to perplexity of fixed-length models: every token is scored once,
with at least half a window before it. Logits are made a few rows at a time.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .. import host
from ..core import gpt2
from ..core.config import LAYER_NORM_EPS, GPT2Config
from ..core.tape import Eager
from ..errors import InvalidParameter
from ..fast import slices
from ..fast.layout import DecoderWeights
from ..fast.linear import lm_head
from . import prefixes
from .decode import Decoder, bytes_of_several, checked, is_exact

ROWS = 128  # rows of logits at a time: 26 MB of GPT-2's


def token_scores(params: DecoderWeights, config: GPT2Config, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability and rank (1 = most probable) of ids[1:], each given what precedes it: two vectors [len(ids) - 1]."""
    scores = np.empty((2, len(ids) - 1))
    tokens = np.asarray(ids, np.int64)
    progress = host.Progress("scoring", "tokens", len(ids))
    for start, first, stop in windows(len(ids), max(2, config.n_positions)):  # one position sees the token before
        window = scores[:, start : stop - 1]
        if is_exact(params):
            _score_with_cache(params, config, tokens[start:stop], first - start, window, keep=not start)
        else:  # passes that end at fixed boundaries are slower than one pass
            hidden = gpt2.hidden(Eager(), params, tokens[None, start : stop - 1], config)[0]
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
            logits = checked(lm_head(hidden[skipped:][rows], params["wte"]))
            scores[:, at] = _score_rows(logits, tokens[1:][at])
            host.check_interrupts()
        place += len(hidden)


def _score_rows(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [m, V], [m] -> [m], [m]
    chosen = logits[np.arange(len(targets)), targets]
    ranks = 1 + np.count_nonzero(logits > chosen[:, None], axis=1)
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


def embedding(
    params: DecoderWeights, config: GPT2Config, ids: Sequence[int], layer: int | None, pooling: str
) -> np.ndarray:
    """Hidden state [D] after `layer` blocks (0 = embeddings, null or n_layer = after the final norm), over all tokens.

    Texts longer than the window are cut into windows; 'mean' averages all tokens, 'last' takes the last one.
    """
    depth = _depth(layer, config)
    if pooling not in ("mean", "last"):
        raise InvalidParameter(
            f"pooling must be 'mean' or 'last', not '{pooling}'",
            hint="mean averages all tokens, last takes the last one.",
        )
    tokens = np.asarray(ids, np.int64)
    if pooling == "last":
        return _states(params, config, tokens[-config.n_positions :], depth)[-1]
    progress = host.Progress("embedding", "tokens", len(ids))
    total = np.zeros(config.d_model, np.float64)
    for window in slices.pieces(len(tokens), config.n_positions):
        total += _states(params, config, tokens[window], depth).sum(axis=0, dtype=np.float64)
        progress.at(window.stop)
    return (total / len(tokens)).astype(np.float32)


def _depth(layer: int | None, config: GPT2Config) -> int:
    depth = config.n_layer if layer is None else layer
    if depth < 0:
        depth += config.n_layer + 1
    if not 0 <= depth <= config.n_layer:
        raise InvalidParameter(
            f"layer {layer} is not in 0..{config.n_layer}",
            hint="0 is the embeddings, -1 or null the state after the final norm.",
        )
    return depth


def _states(params: DecoderWeights, config: GPT2Config, ids: np.ndarray, depth: int) -> np.ndarray:  # [T] -> [T, D]
    run = Eager()
    x = gpt2.embed(run, params, ids[None])
    for i in range(depth):
        x = gpt2.block(run, gpt2.layer_params(params, i), x, n_head=config.n_head, layer=i)
    if depth == config.n_layer:
        x = run.apply("layernorm", x, params["ln_f.weight"], params["ln_f.bias"], eps=LAYER_NORM_EPS)
    return checked(x[0], "hidden states")
