"""Checkpoints that transformers writes are read bit for bit, and what we write opens there with the same logits."""

import io
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from pg_gpt2 import formats
from pg_gpt2.core.config import GPT2Config
from transformers import GPT2Config as HubConfig
from transformers import GPT2LMHeadModel

CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=32, n_positions=64, vocab=300, eos_token_id=299)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    hub = HubConfig(
        n_layer=CONFIG.n_layer, n_head=CONFIG.n_head, n_embd=CONFIG.d_model, n_positions=CONFIG.n_positions,
        vocab_size=CONFIG.vocab, bos_token_id=CONFIG.eos_token_id, eos_token_id=CONFIG.eos_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(hub).eval()


def torch_weights(model):
    """float32 values by our names."""
    return {name: model.state_dict()[formats.hub_name(name)].float().numpy() for name in CONFIG.param_shapes()}


def open_safetensors(path):
    return formats.open_safetensors(io.BytesIO(path.read_bytes()))


def read(checkpoint):
    with checkpoint:
        return {
            name: np.concatenate([rows(0, 20), rows(20, shape[0])]) for name, shape, rows in checkpoint.tensors(CONFIG)
        }


def assert_same(found, expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def write_directory(model, tensors, directory):
    """What save_model writes: our bytes beside transformers' own config.json."""
    shapes = {formats.hub_name(name): values.shape for name, values in tensors.items()}
    by_hub_name = {formats.hub_name(name): values for name, values in tensors.items()}
    with open(directory / "model.safetensors", "wb") as file:
        for chunk in formats.write_safetensors(
            shapes, lambda name: np.array_split(by_hub_name[name], 3), formats.hub_metadata(CONFIG)
        ):
            file.write(chunk)
    model.config.save_pretrained(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_save_pretrained_is_read_exactly(model, tmp_path, dtype):
    narrow = GPT2LMHeadModel(model.config)
    narrow.load_state_dict(model.state_dict())
    narrow.to(dtype).save_pretrained(tmp_path)
    found = read(open_safetensors(tmp_path / "model.safetensors"))
    assert_same(found, torch_weights(narrow))


def test_shards_hold_every_tensor_once(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="40kB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {}
    for shard in sorted(set(index["weight_map"].values())):
        with open_safetensors(tmp_path / shard) as checkpoint:
            for name in checkpoint.names():
                found[name] = checkpoint.rows(name, 0, checkpoint.shape(name)[0])
    assert set(found) == set(CONFIG.param_shapes())
    assert_same(found, torch_weights(model))


def test_our_safetensors_gives_the_same_logits(model, tmp_path):
    tensors = torch_weights(model)
    write_directory(model, tensors, tmp_path)
    again, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again.eval()(ids).logits)


def test_our_safetensors_opens_in_the_library(model, tmp_path):
    tensors = torch_weights(model)
    write_directory(model, tensors, tmp_path)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert_same({name: found[formats.hub_name(name)] for name in tensors}, tensors)
    with open_safetensors(tmp_path / "model.safetensors") as checkpoint:
        assert checkpoint.config() == CONFIG


def test_the_library_reads_what_a_state_dict_with_masks_and_head_says(model, tmp_path):
    """As the first GPT-2 files of the hub: no prefix, causal masks, a copy of the tied head."""
    tensors = {formats.hub_name(name, ""): values for name, values in torch_weights(model).items()}
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    np.savez(tmp_path / "model.npz", **tensors)
    for checkpoint in (
        open_safetensors(tmp_path / "model.safetensors"),
        formats.open_npz(io.BytesIO((tmp_path / "model.npz").read_bytes()), CONFIG),
    ):
        assert_same(read(checkpoint), torch_weights(model))
