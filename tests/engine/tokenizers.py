"""The learned vocabulary of the golden files, texts that are awkward to split, and a count of the looks for a cancel request."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from pg_gpt2 import host
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.tokenizer.bpe import Tokenizer, token_bytes


def from_strings(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], eos: int | None = None) -> Tokenizer:
    """The tokenizer of what vocab.json and merges.txt hold."""
    return Tokenizer.of({token_id: token_bytes(token) for token, token_id in vocab.items()}, merges, eos)


GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
VOCAB = parse_vocab((GOLDEN / "learned" / "vocab.json").read_bytes())
MERGES = parse_merges((GOLDEN / "learned" / "merges.txt").read_bytes())
LEARNED = from_strings(VOCAB, MERGES)
CASES = json.loads((GOLDEN / "learned" / "cases.json").read_bytes())

no_deadline = settings(deadline=None)  # machines differ

# Text dense in what the pattern tells apart, and any text
awkward = st.text(
    st.sampled_from(
        [*"aZé日\u0301", *"'stremvld", *" \t\n\r\x1c\x85\xa0\u2028\u3000", *"19½Ⅷ٣", *"!_-\0", *"😀𝔘𝟘𐄇\u200d"]
    )
)
texts = st.one_of(awkward, st.text(), st.text("ab '"))


class Cancelled(Exception):
    """Stands for a cancel request."""


@pytest.fixture(name="checks")
def counted_checks(monkeypatch):
    """The list grows by one at each look for a cancel request; set to a number, the look of that number raises."""
    seen = []
    limit = [10**9]

    def check():
        seen.append(None)
        if len(seen) >= limit[0]:
            raise Cancelled

    monkeypatch.setattr(host, "check_interrupts", check)
    return seen, limit
