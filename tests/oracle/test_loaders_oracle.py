"""The loaders against transformers: directories that it writes are read exactly, and it opens those that we write."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from pg_gpt2.formats import hub_name
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from loaders import load_model, save_model
from loaders.common import Database
from loaders.hub_model import HubModel
from loaders.vocabulary import Vocabulary

TEXTS = ["The tables are the truth,\r\n  memory   is a cache.\n", "naïve 日本 — it's 1234!?", " x" * 50, ""]
LOGITS_TOLERANCE = 1e-5  # float32, sums in another order; logits of this model are below 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 300}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=299, eos_token_id=299)).eval()


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    """vocab.json and merges.txt of 300 tokens."""
    path = tmp_path_factory.mktemp("tokenizer")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" the tables truth memory cache it's"] * 9, vocab_size=280, show_progress=False)
    trained.save_model(str(path))
    ids = trained.get_vocab()
    (path / "vocab.json").write_text(json.dumps(ids | {"<|endoftext|>": len(ids)}))
    return path


def read(directory):
    """All tensors of a model directory, by our names."""
    hub = HubModel(directory)
    return {name: np.concatenate(list(hub.parts(name))) for name in hub.tensors}


def assert_same(found, model):
    state = model.state_dict()
    assert {hub_name(name) for name in found} == {name for name in state if name != "lm_head.weight"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, state[hub_name(name)].float().numpy(), err_msg=name)


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard_size", ["1GB", "40kB"])
def test_directories_of_save_pretrained(model, tmp_path, dtype, shard_size):
    narrow = GPT2LMHeadModel(model.config)
    narrow.load_state_dict(model.state_dict())
    narrow.to(dtype).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "40kB")
    assert_same(read(tmp_path), narrow)
    assert HubModel(tmp_path).config.eos_token_id == 299


def test_config_that_we_write(model, tmp_path):
    model.save_pretrained(tmp_path)
    ours = HubModel(tmp_path).config.to_hub()
    save_model.write_json(tmp_path / "config.json", ours)
    again, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    np.testing.assert_array_equal(logits(again.eval(), [1, 2, 3]), logits(model, [1, 2, 3]))
    assert {name: getattr(again.config, name) for name in ours} == ours


def test_vocabulary_that_we_write(tokenizer_directory, tmp_path):
    vocabulary = Vocabulary.find(tokenizer_directory)
    vocabulary.save(tmp_path, n_positions=64)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    expected = vocabulary.tokenizer()
    for tokenizer in (GPT2Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert [tokenizer(text)["input_ids"] for text in TEXTS] == [expected.encode(text).ids for text in TEXTS]
        assert tokenizer.decode(expected.encode(TEXTS[1]).ids) == TEXTS[1]
        assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (vocabulary.ids["<|endoftext|>"], 64)


def test_vocabulary_that_transformers_writes(tokenizer_directory, tmp_path):
    theirs = GPT2Tokenizer(str(tokenizer_directory / "vocab.json"), str(tokenizer_directory / "merges.txt"))
    theirs.save_pretrained(tmp_path)
    expected = Vocabulary.find(tokenizer_directory)
    found = Vocabulary.find(tmp_path)
    assert (found.ids, found.merges) == (expected.ids, expected.merges)


def test_through_the_server_and_back(conn, model, tokenizer_directory, tmp_path):
    model.save_pretrained(tmp_path / "in")
    Vocabulary.find(tokenizer_directory).save(tmp_path / "in", n_positions=64)
    ids = [5, 200, 299, 0, 77]
    load_model.load_model(Database(conn), tmp_path / "in", "through")
    (data,) = conn.execute("SELECT llm_logits(%s::int[], 'through')", [ids]).fetchone()
    found = np.frombuffer(data, "<f4").reshape(len(ids), 300)
    np.testing.assert_allclose(found, logits(model, ids), atol=LOGITS_TOLERANCE, rtol=0)
    save_model.save_model(Database(conn), "through", tmp_path / "out")
    assert_same(read(tmp_path / "out"), model)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_array_equal(logits(again, ids), logits(model, ids))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    (encoded,) = conn.execute("SELECT llm_encode(%s, 'through')", [TEXTS[1]]).fetchone()
    assert tokenizer(TEXTS[1])["input_ids"] == encoded
    assert safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors").keys() == {
        hub_name(name) for name in HubModel(tmp_path / "in").tensors
    }
