"""What the tests of constraints share: a small vocabulary, constraints of it, and texts drawn within them."""

from functools import cache
from pathlib import Path

import numpy as np
from pg_gpt2.generation.constraints import grammar, regex
from pg_gpt2.generation.constraints.constraint import Constraint
from pg_gpt2.generation.constraints.vocabulary import Vocabulary
from pg_gpt2.tokenizer.bpe import Tokenizer
from pg_gpt2.tokenizer.bpe_train import train

from tests.engine.tokenizers import from_strings

LEARNED = Path(__file__).parents[1] / "golden" / "tokenizer" / "learned"
EOS = 700


@cache
def tokenizer() -> Tokenizer:
    """700 tokens at most and an end-of-text token, learned from texts in several scripts."""
    corpus = (LEARNED / "corpus.txt").read_text(encoding="utf-8")
    vocab, merges = train(
        [corpus, "abcabcabc aabb 123123 2026-01-02 xxxx xxxxxxxx", '{"name": "abc", "age": 12}' * 9], EOS
    )
    assert len(vocab) <= EOS
    return from_strings({**{word: i for word, i in vocab.items() if i != EOS}, "<|end|>": EOS}, merges, EOS)


@cache
def vocabulary() -> Vocabulary:
    """All of it but the end-of-text token."""
    return Vocabulary({i: data for i, data in tokenizer().tokens.items() if i != EOS})


def constraint(of: str | list[str] | grammar.Node, eos: int | None = EOS) -> Constraint:
    """That of a pattern, of choices, or of a grammar."""
    node = regex.parse(of) if isinstance(of, str) else grammar.choices(of) if isinstance(of, list) else of
    return Constraint(node, vocabulary(), tokenizer().encode, eos)


def allowed(made: Constraint, state: grammar.Node) -> tuple[np.ndarray, list[grammar.Node]]:
    """Ids that may come in a state, ascending, and the state after each; the end-of-text token is not among them."""
    ids, after = made._walk(state)
    return ids, [made._automaton.nodes[number] for number in after.tolist()]


def drawn(made: Constraint, max_tokens: int, seed: int) -> list[int]:
    """Tokens drawn among those that may come, each equally probable, without the end-of-text token."""
    walk, rng, found = made.begin(max_tokens), np.random.default_rng(seed), []
    while walk.left and not walk.over:
        token = int(rng.choice(walk.allowed))
        if token == made.eos:
            break
        found.append(token)
        walk.take(token)
    return found


def said(tokens: list[int]) -> str:
    """Their text; an error where it is none."""
    return tokenizer().decode_bytes(tokens).decode()
