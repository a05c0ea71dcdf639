"""GGUF files that the gguf package wrote, read as transformers reads them."""

import numpy as np
import psycopg
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from pg_gpt2.core import gpt2
from pg_gpt2.core.tape import Eager
from pg_gpt2.formats import hub_name
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from loaders import load_model
from loaders.common import Database, LoaderError
from loaders.hub_model import HubModel
from tests.oracle import gguf_files

KINDS = [
    *(Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1),
    *(Kind.TQ1_0, Kind.MXFP4, *gguf_files.SCALES),
]
TEXTS = ["The tables are the truth,\r\n  memory   is a cache.\n", "naïve 日本 — it's 1234!?", " x" * 50]
IDS = [5, 200, 299, 0, 77, 1, 300]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Tokens in order of their ids, 300 with a last <|endoftext|>, and merges."""
    path = tmp_path_factory.mktemp("vocabulary")
    trained = ByteLevelBPETokenizer()
    texts = [" the tables truth memory cache it's", "arithmetic of models in rows"] * 9
    trained.train_from_iterator(texts, vocab_size=299, show_progress=False)
    trained.save_model(str(path))
    ids = trained.get_vocab()
    merges = [tuple(line.split(" ")) for line in (path / "merges.txt").read_text().splitlines()[1:]]
    return [*sorted(ids, key=ids.get), "<|endoftext|>"], merges


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(0)
    # transformers takes the number of positions of a GGUF file for 1024, whatever it says
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 256, "n_positions": 1024, "vocab_size": len(vocabulary[0]) + 1}
    made = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for tensor in made.parameters():  # biases and gains of 0 and 1 would hide errors
            tensor += 0.05 * torch.randn_like(tensor)
    return made


def read(path):
    hub = HubModel(path)
    return hub, {name: np.concatenate(list(hub.parts(name))) for name in hub.tensors}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_gguf_file_is_read_as_transformers_reads_it(model, vocabulary, tmp_path, kind):
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, model, kind, vocabulary=vocabulary, head=kind is Kind.F16)
    expected = GPT2LMHeadModel.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    hub, found = read(path)
    state = expected.state_dict()
    assert {hub_name(name) for name in found} == state.keys() - {"lm_head.weight"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, state[hub_name(name)].numpy(), err_msg=name)
    assert (hub.config.n_positions, hub.config.vocab, hub.config.eos_token_id) == (1024, 301, 299)
    with torch.no_grad():
        logits = expected(torch.tensor([IDS])).logits[0].numpy()
    ours = gpt2.logits(Eager(), found, np.array([IDS]), hub.config.engine())[0]
    np.testing.assert_allclose(ours, logits, atol=1e-4 * np.abs(logits).max(), rtol=0)  # float32, sums in another order


def test_quantisation_keeps_the_weights(model, tmp_path):
    """Not read as something else, by both: a step of q8_0 is a 127th of the largest of 32 neighbours."""
    gguf_files.write(tmp_path / "tiny.gguf", model, Kind.Q8_0)
    _, found = read(tmp_path)
    for name, values in found.items():
        original = model.state_dict()[hub_name(name)].numpy()
        np.testing.assert_allclose(values, original, atol=np.abs(original).max() / 127, rtol=0, err_msg=name)


def test_the_tokenizer_in_a_gguf_file_is_that_of_transformers(model, vocabulary, tmp_path):
    gguf_files.write(tmp_path / "tiny.gguf", model, Kind.F16, vocabulary=vocabulary)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    found = HubModel(tmp_path / "tiny.gguf").vocabulary()
    assert found.ids["<|endoftext|>"] == 299
    assert "[PAD300]" not in found.ids
    ours = found.tokenizer()
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert found.roles == {"eos": 299}
    (tmp_path / "none").mkdir()
    gguf_files.write(tmp_path / "none" / "tiny.gguf", model, Kind.F16)
    assert HubModel(tmp_path / "none").vocabulary is None


def test_the_added_tokens_in_a_gguf_file_are_found_as_transformers_finds_them(model, vocabulary, tmp_path):
    tokens, merges = vocabulary
    tokens = [*tokens[:-2], "<|user|>", tokens[-1]]  # in place of the last that was merged
    merges = [pair for pair in merges if "".join(pair) in tokens]
    gguf_files.write(tmp_path / "tiny.gguf", model, Kind.F16, vocabulary=(tokens, merges))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    ours = HubModel(tmp_path).vocabulary().tokenizer()
    ours.encode_special_tokens = False
    for text in (*TEXTS, "<|user|>the tables<|user|><|endoftext|> it's <|endoftext|>", "<|user <|user|> |>"):
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.encode("<|user|>the").ids[0] == 298


@pytest.mark.parametrize("kind", [1, 3], ids=["normal", "control"])
def test_an_end_of_text_in_a_gguf_file_is_special_whatever_its_kind(model, vocabulary, tmp_path, kind):
    gguf_files.write(tmp_path / "tiny.gguf", model, Kind.F16, vocabulary=vocabulary, kind_of_end=kind)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    ours = HubModel(tmp_path).vocabulary().encoder()
    for text in ("the tables<|endoftext|>", "<|endoftext|> it's <|endoftext|>"):
        for split in (False, True):
            assert ours.encode(text, special=not split) == theirs(text, split_special_tokens=split)["input_ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "llama"}, "of architecture llama, and not gpt2"),
        ({"pre": "llama-bpe"}, "tokenizer of kind gpt2, llama-bpe"),
        ({"add_bos_token": True}, "add_bos_token"),
    ],
)
def test_a_gguf_file_of_something_else_is_refused_by_name(model, vocabulary, tmp_path, change, message):
    gguf_files.write(tmp_path / "tiny.gguf", model, Kind.F16, vocabulary=vocabulary, **change)
    with pytest.raises(LoaderError, match=message):
        HubModel(tmp_path).vocabulary()


def test_damaged_gguf_files(model, tmp_path):
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, model, Kind.Q8_0)
    whole = path.read_bytes()
    for size in (4, 30, 200, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(LoaderError, match="not a GGUF file that gguf can read"):
            HubModel(path)
    (tmp_path / "other.gguf").write_bytes(whole)
    with pytest.raises(LoaderError, match="has 2 GGUF files; name one"):
        HubModel(tmp_path)


def test_a_damaged_token_is_told(model, vocabulary, tmp_path):
    """The weights do not need it."""
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, model, Kind.Q8_0, vocabulary=vocabulary)
    whole, text = path.read_bytes(), b"<|endoftext|>"
    assert whole.count(text) == 1
    path.write_bytes(whole.replace(text, b"\xff" * len(text)))
    read(path)
    with pytest.raises(LoaderError, match=r"tiny\.gguf is not a GGUF file that gguf can read: .*utf-8"):
        HubModel(path).vocabulary()


def test_a_gguf_file_goes_into_the_database_with_its_tokenizer(model, vocabulary, tmp_path, dsn):
    gguf_files.write(tmp_path / "tiny.gguf", model, Kind.Q8_0, vocabulary=vocabulary)
    expected = GPT2LMHeadModel.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = expected(torch.tensor([IDS])).logits[0].numpy()
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    with psycopg.connect(dsn) as conn:
        load_model.load_model(Database(conn), tmp_path / "tiny.gguf", "from gguf")
        (data,) = conn.execute("SELECT llm_logits(%s::int[], 'from gguf')", [IDS]).fetchone()
        found = np.frombuffer(data, "<f4").reshape(len(IDS), -1)
        np.testing.assert_allclose(found, logits, atol=1e-4 * np.abs(logits).max(), rtol=0)
        (ids,) = conn.execute("SELECT llm_encode(%s, 'from gguf')", [TEXTS[1]]).fetchone()
        assert ids == theirs(TEXTS[1])["input_ids"]
        conn.rollback()
