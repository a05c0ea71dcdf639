"""From an option to a constraint of a vocabulary.

The last few are kept with the tokenizer, and what was found out about their states with them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import InvalidParameter
from ...tokenizer.bpe import Tokenizer
from . import grammar, json_schema, regex
from .constraint import Constraint
from .vocabulary import Vocabulary

MOST = 4  # constraints of a tokenizer that are kept, up to some 50 MB each

GRAMMARS: Mapping[str, Callable[[Any], grammar.Node]] = {
    "choices": grammar.choices,
    "regex": regex.parse,
    "json_schema": json_schema.parse,
}


def compiled(
    option: str, value: Any, tokenizer: Tokenizer, vocab: int, eos: int | None, also_ends: tuple[int, ...] = ()
) -> Constraint:
    """What an option asks for, of the tokens below `vocab` that do not end a text. 22023 where no text fits, 2201B for a pattern
    that is none."""
    kept: dict[tuple[Any, ...], Constraint] = tokenizer.kept.setdefault("constraints", {})
    key = option, value, vocab, eos, also_ends
    found = kept.pop(key, None)
    if found is None:
        node = GRAMMARS[option](value)
        if node is grammar.NOTHING:
            raise InvalidParameter(
                f"no text fits {option}", hint="No text can match it: look for parts that contradict each other."
            )
        found = Constraint(node, _vocabulary(tokenizer, vocab, {eos, *also_ends}), tokenizer.encode, eos)
    while len(kept) >= MOST:
        del kept[next(iter(kept))]  # the one that was used least recently
    kept[key] = found
    return found


def _vocabulary(tokenizer: Tokenizer, vocab: int, ends: set[int | None]) -> Vocabulary:
    kept: dict[tuple[int, frozenset[int | None]], Vocabulary] = tokenizer.kept.setdefault("tree", {})
    key = vocab, frozenset(ends)
    if key not in kept:
        kept.clear()
        kept[key] = Vocabulary({i: data for i, data in tokenizer.tokens.items() if i < vocab and i not in ends})
    return kept[key]
