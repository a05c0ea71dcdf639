"""Pairs of prompt and completion as rows of llm_dataset: loss on the completion and its end-of-text only.

Tokens are those of TRL's SFTTrainer with completion_only_loss: of prompt and completion together, of which the completion's
begin where they differ from those of the prompt alone. TRL cuts what is too long at its end; here the prompt loses its beginning.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ... import host
from ...errors import InvalidParameter
from ...limits import MOST_WEIGHT
from ...tokenizer.bpe import Tokenizer
from .. import db
from ..caller_query import Weighted
from ..prompts import end_of_text
from ..storage.store import find_config
from .datasets import MANY_TOKENS, Cut, Places, add_rows


@dataclass
class _Encoded:
    """Ids of pairs one after the other, and of each pair how many they are, how many carry no loss, and its weight."""

    tokenizer: Tokenizer
    eos: int
    max_length: int
    special: bool
    parts: list[np.ndarray] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    ignored: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    count: int = 0  # of ids
    null: int = 0  # of pairs that are no rows, or not as they were given
    unweighted: int = 0
    empty: int = 0
    too_long: int = 0
    cut: int = 0
    torn: int = 0

    def add(self, prompt: str | None, completion: str | None, weight: float | None) -> None:
        """One pair, or why there is none."""
        if prompt is None or completion is None or weight is None:
            self.null += 1
            return
        if not 0 < weight <= MOST_WEIGHT:
            self.unweighted += 1
            return
        before, ids = (self.tokenizer.encode(text, self.special) for text in (prompt, prompt + completion))
        n_prompt = _common(before, ids)
        excess = len(ids) - self.max_length  # with the end-of-text, which is a target only
        if not ids:
            self.empty += 1
        elif excess > max(0, n_prompt - 1):
            self.too_long += 1
        else:
            self.torn += n_prompt < len(before)
            if excess > 0:
                self.cut += 1
                ids, n_prompt = ids[excess:], n_prompt - excess
            self.parts.append(np.asarray([*ids, self.eos], np.int32))
            self.sizes.append(len(ids) + 1)
            self.ignored.append(max(0, n_prompt - 1))
            self.weights.append(weight)
            self.count += len(ids) + 1

    def tell(self) -> None:
        """NOTICEs about what is not as it was given."""
        for count, what in (
            (self.null, "skipped {} with a NULL"),
            (self.unweighted, f"skipped {{}} with a weight that is not above 0 and at most {MOST_WEIGHT:,}"),
            (self.empty, "skipped {} without any text"),
            (self.too_long, f"skipped {{}} whose completion alone takes more than {self.max_length} tokens"),
            (self.cut, f"the prompts of {{}} lost their beginnings, to fit into {self.max_length} tokens"),
            (
                self.torn,
                "in {} a token spans the boundary between prompt and completion: begin completions with a space, and end"
                " no prompt with one",
            ),
        ):
            if count:
                db.notice(what.format("1 pair" if count == 1 else f"{count:,} pairs"))


def _common(some: list[int], others: list[int]) -> int:
    """How many ids they have in common at their beginnings."""
    if others[: len(some)] == some:
        return len(some)
    return next((i for i, (a, b) in enumerate(zip(some, others)) if a != b), len(others))


def add_pairs(pairs: Iterable[Weighted], tokenizer: Tokenizer, model: str, cut: Cut, special: bool) -> int:
    """Tokenize `pairs` into rows of at most `cut.block_size` tokens, one a pair; their number. With `special` as in encode."""
    eos = end_of_text(model, find_config(model), tokenizer, "training data")
    found = _Encoded(tokenizer, eos, cut.block_size, special)
    room = MANY_TOKENS
    progress = host.Progress("tokenizing the source", "pairs")
    for n, pair in enumerate(pairs):
        found.add(*pair)
        progress.at(n)
        host.check_interrupts()
        if found.count > room:
            room = 2 * found.count
            host.require_memory(8 * room, f"pairs of more than {found.count} tokens")  # in parts, and as one
    found.tell()
    if not found.parts:
        raise InvalidParameter(
            "the source has no pair to learn from", hint="A pair is a prompt and a completion that fit into max_length."
        )
    ids, sizes = np.concatenate(found.parts), np.asarray(found.sizes)
    found.parts.clear()
    places = Places(np.cumsum(sizes) - sizes, sizes - 1, np.asarray(found.ignored), np.asarray(found.weights))
    return add_rows(ids, places, model, cut)
