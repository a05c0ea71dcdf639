"""Learning a vocabulary: as Hugging Face's trainer does (golden), and as counting afresh after each merge would."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2 import host
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.tokenizer.bpe_train import train
from pg_gpt2.tokenizer.pretokenize import pretokens
from pg_gpt2.tokenizer.tables import BYTE_CHARACTERS, END_OF_TEXT

from tests.engine.tokenizers import from_strings

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer" / "learned"
CORPUS = (GOLDEN / "corpus.txt").read_text(encoding="utf-8")
no_deadline = settings(deadline=None)  # machines differ
ALPHABET = sorted(BYTE_CHARACTERS)


def train_naively(texts, n_merges):
    """The definition: count, take the most frequent pair (of equals the one of lowest ids), replace it, again."""
    tokens = list(ALPHABET)
    index = {token: i for i, token in enumerate(tokens)}
    counted = Counter(word for text in texts for word in pretokens(text))
    words = [([index[BYTE_CHARACTERS[b]] for b in word.encode()], count) for word, count in counted.items()]
    merges = []
    for _ in range(n_merges):
        pairs = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((tokens[a], tokens[b]))
        tokens.append(tokens[a] + tokens[b])
        for word, _ in words:
            for i in range(len(word) - 1):
                if word[i : i + 2] == [a, b]:
                    word[i : i + 2] = [len(tokens) - 1]
    return merges


def test_learns_what_hugging_face_learns():
    vocab, merges = train([CORPUS], 600)
    assert merges == parse_merges((GOLDEN / "merges.txt").read_bytes())
    assert vocab == parse_vocab((GOLDEN / "vocab.json").read_bytes())


def test_a_learned_vocabulary_encodes_as_hugging_face_does():
    tokenizer = from_strings(*train([CORPUS], 600))
    for text, ids in json.loads((GOLDEN / "cases.json").read_bytes())["plain"]:
        assert tokenizer.encode(text) == ids


@no_deadline
@given(st.lists(st.text("ab =é", max_size=40), max_size=5), st.integers(0, 30))
def test_learns_what_counting_afresh_learns(texts, n_merges):
    vocab, merges = train(texts, 257 + n_merges)
    assert merges == train_naively(texts, n_merges)
    assert list(vocab.values()) == list(range(len(vocab)))
    tokenizer = from_strings(vocab, merges)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


def test_bytes_come_first_and_end_of_text_last():
    vocab, merges = train([CORPUS], 300)
    assert [token for token, i in vocab.items() if i < 256] == ALPHABET
    assert ALPHABET[0] == "!"
    assert vocab["Ġ"] == 220  # as in GPT-2's vocab.json
    assert vocab[END_OF_TEXT] == 299
    assert len(merges) == 43


def test_texts_are_counted_together_and_apart():
    assert train(["ab ab", "ab"], 258)[1] == [("a", "b")]
    assert train(["a", "b"] * 9, 258)[1] == []  # no pair goes across two texts


def test_without_pairs_the_vocabulary_is_smaller_than_asked():
    vocab, merges = train(["ab ab"], 1000)
    assert merges == [("a", "b"), ("Ġ", "ab")]
    assert len(vocab) == 259
    assert vocab[END_OF_TEXT] == 258
    assert len(train([], 1000)[0]) == 257


@pytest.mark.parametrize("vocab_size", [256, 0, -1])
def test_a_vocabulary_holds_all_bytes(vocab_size):
    with pytest.raises(InvalidParameter, match=f"vocab_size {vocab_size} is too small") as error:
        train(["a"], vocab_size)
    assert "257" in error.value.hint


def test_learning_can_be_cancelled(monkeypatch):
    class Cancelled(Exception):
        pass

    def cancel():
        raise Cancelled

    monkeypatch.setattr(host, "check_interrupts", cancel)
    with pytest.raises(Cancelled):
        train([CORPUS], 300)
