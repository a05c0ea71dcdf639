"""Beam search as Hugging Face's `generate(num_beams=...)` does it: the same candidates, scores, penalties and stopping rules.

All beams advance in one pass of the model a step. A score is the sum of log-probabilities over length ** length_penalty.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import host
from ..core.config import GPT2Config
from ..errors import InvalidParameter
from ..fast import slices
from ..fast.layout import DecoderWeights
from . import prefixes
from .constraints.constraint import Constraint
from .decode import Decoder, step_together
from .processors import History
from .sampling import Sampling, require_choice
from .softmax import log_softmax

MOST_SCORES = 1 << 21  # looked at between two looks for a cancel


@dataclass(frozen=True)
class Beam:
    """A continuation: its ids (the end-of-text token included) and its score, or while it runs the sum of log-probabilities."""

    ids: tuple[int, ...]
    score: np.float32


@dataclass(frozen=True)
class Beams:
    """What a search asks for beside its prompt; of `sampling` it takes what adjusts scores. `eos` None = no end-of-text token."""

    width: int
    max_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool = False
    eos: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None  # what the text must be
    also_ends: tuple[int, ...] = ()  # other tokens that end a text

    def history(self, prompt: Sequence[int], ids: Sequence[int] = ()) -> History:
        """What a beam of these ids has read, said and may say."""
        walk = self.constraint.begin(self.max_tokens) if self.constraint else None
        return History(prompt, self.eos, ids, walk, self.also_ends)


def beam_search(params: DecoderWeights, config: GPT2Config, prompt: Sequence[int], asked: Beams) -> list[Beam]:
    """The `width` best continuations of `prompt`, best first; fewer where processors leave fewer."""
    width, max_tokens = asked.width, asked.max_tokens
    if len(prompt) + max_tokens > config.n_positions:
        raise InvalidParameter(
            f"a prompt of {len(prompt)} tokens and max_tokens {max_tokens} do not fit the window of {config.n_positions}",
            hint="Beam search does not slide the window: use a shorter prompt or fewer max_tokens.",
        )
    if asked.history(prompt).over:
        return [Beam((), np.float32(0))]
    decoder, first = prefixes.begin(params, config, prompt, len(prompt) + max_tokens)
    decoders, logits = [decoder], first[None]
    running = [Beam((), np.float32(0))]
    finished: list[Beam] = []
    for length in range(1, max_tokens + 1):
        candidates = _continuations(prompt, running, logits, asked)
        require_choice(bool(candidates or finished))
        ended = [length == max_tokens or _has_ended(beam, asked) for _, beam in candidates]
        finished += [
            Beam(beam.ids, _score(beam.score, length, asked.length_penalty))
            for (_, beam), end in zip(candidates[:width], ended)
            if end
        ]
        finished = sorted(finished, key=lambda beam: -beam.score)[:width]
        going_on = [candidate for candidate, end in zip(candidates, ended) if not end][:width]
        if not going_on or (
            len(finished) == width
            and (
                asked.early_stopping or _score(going_on[0][1].score, length, asked.length_penalty) <= finished[-1].score
            )
        ):
            break
        decoders = _follow(decoders, [source for source, _ in going_on])
        running = [beam for _, beam in going_on]
        logits = step_together(decoders, [beam.ids[-1] for beam in running])
        host.check_interrupts()
    prefixes.give(decoders[0])
    return finished


def _has_ended(beam: Beam, asked: Beams) -> bool:
    """Whether nothing follows: after an end-of-text token, or where there is none and the text is complete."""
    if asked.eos is not None or asked.constraint is None:
        return beam.ids[-1] == asked.eos or beam.ids[-1] in asked.also_ends
    return asked.history((), beam.ids).over


def _score(total: np.float32, length: int, penalty: float) -> np.float32:
    return np.float32(total / np.float32(length**penalty))


def _continuations(
    prompt: Sequence[int], running: list[Beam], logits: np.ndarray, asked: Beams
) -> list[tuple[int, Beam]]:
    """The best extensions by one token, best first, each with the number of the beam that it extends: twice as many as beams
    are wanted, so that enough remain when half of them end."""
    count = 2 * asked.width
    sums = np.array([beam.score for beam in running], np.float32)[:, None]
    places, values = [], []
    for rows in slices.pieces(len(logits), max(1, MOST_SCORES // logits.shape[1])):
        logarithms = _adjusted(prompt, running[rows], log_softmax(logits[rows]), asked)
        totals = (logarithms + sums[rows]).reshape(-1)
        some = np.argpartition(-totals, min(count, totals.size) - 1)[:count]
        some = some[totals[some] > -np.inf]
        places.append(some + rows.start * logits.shape[1])
        values.append(totals[some])
        host.check_interrupts()
    found, scores = np.concatenate(places), np.concatenate(values)
    order = np.lexsort((found, -scores))[:count]
    best = found[order]
    sources, tokens = np.divmod(best, logits.shape[1])
    return [
        (int(source), Beam((*running[source].ids, int(token)), score))
        for source, token, score in zip(sources, tokens, scores[order])
    ]


def _adjusted(prompt: Sequence[int], beams: list[Beam], logarithms: np.ndarray, asked: Beams) -> np.ndarray:  # [B, V]
    """Log-probabilities as the processors change them, which Hugging Face does without normalising them again."""
    if asked.sampling.adjustments or asked.constraint:
        for row, beam in enumerate(beams):
            history = asked.history(prompt, beam.ids)
            logarithms[row] = asked.sampling.adjusted(logarithms[row], history)
            host.check_interrupts()
    return logarithms


def _follow(decoders: list[Decoder], sources: list[int]) -> list[Decoder]:
    """Decoders for beams that extend `sources`: the first to extend one takes it over, the others copy it."""
    free = dict(enumerate(decoders))
    copies: list[Decoder | None] = []
    for source in sources:
        copies.append(None if free.pop(source, None) is not None else decoders[source].copy())
        host.check_interrupts()
    return [copy or decoders[source] for copy, source in zip(copies, sources)]
