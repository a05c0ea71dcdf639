"""Directories and pickled state dicts as transformers 3 to 5 left them: what from_pretrained loads is what the loader loads."""

import json
import random

import numpy as np
import pytest
import safetensors.torch
import torch
from pg_gpt2.formats import hub_name
from transformers import GPT2Config, GPT2LMHeadModel

from loaders.common import LoaderError
from loaders.hub_model import HubModel

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 300}


def made(seed=0):
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=299, eos_token_id=299)).eval()
    with torch.no_grad():
        for tensor in model.parameters():  # biases and gains of 0 and 1 would hide errors
            tensor += 0.05 * torch.randn_like(tensor)
    return model


@pytest.fixture(scope="module")
def model():
    return made()


def read(source):
    hub = HubModel(source)
    return {name: np.concatenate(list(hub.parts(name))) for name in hub.tensors}


def assert_same(found, model):
    state = model.state_dict()
    assert {hub_name(name) for name in found} == state.keys() - {"lm_head.weight"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, state[hub_name(name)].float().numpy(), err_msg=name)


def assert_as_transformers(directory, model=None):
    """Both load the same weights, those of `model`."""
    theirs, report = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    found = read(directory)
    assert_same(found, theirs)
    if model is not None:
        assert_same(found, model)


def with_config(model, directory, **fields):
    """The directory with the config.json of `model`, changed."""
    directory.mkdir(exist_ok=True)
    config = json.loads(model.config.to_json_string(use_diff=False)) | fields
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return directory


def moved_aside(directory):
    """An index as a sharded save leaves it, and its shards."""
    return [*directory.glob("model-*.safetensors"), directory / "model.safetensors.index.json"]


@pytest.mark.parametrize("shards", ["there", "removed"])
def test_an_index_of_an_earlier_sharded_save_is_not_looked_at(model, tmp_path, shards):
    old = made(1)
    old.save_pretrained(tmp_path, max_shard_size="40kB")
    left = {path: path.read_bytes() for path in moved_aside(tmp_path)}
    assert len(left) > 2
    model.save_pretrained(tmp_path)
    for path, data in left.items():  # transformers 5 removes what transformers 4 left
        if shards == "there" or path.suffix == ".json":
            path.write_bytes(data)
    assert_as_transformers(tmp_path, model)


def test_a_single_file_of_an_earlier_save_wins_as_in_transformers(model, tmp_path):
    model.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    made(1).save_pretrained(tmp_path, max_shard_size="40kB")
    (tmp_path / "model.safetensors").write_bytes(data)
    assert_as_transformers(tmp_path, model)


def test_a_shard_that_is_not_there_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="40kB")
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(LoaderError, match=r"names model-00002.*, which is not there"):
        HubModel(tmp_path)


def test_a_tied_model_of_which_only_the_head_was_saved(model, tmp_path):
    with_config(model, tmp_path)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" in file.keys()  # noqa: SIM118
        assert "transformer.wte.weight" not in file.keys()  # noqa: SIM118
    assert_as_transformers(tmp_path, model)


@pytest.mark.parametrize("both", [False, True], ids=["alone", "beside their own names"])
def test_the_general_names_of_a_configuration(model, tmp_path, both):
    model.save_pretrained(tmp_path)
    general = {
        "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    own = {} if both else dict.fromkeys(("n_positions", "n_embd", "n_layer", "n_head"), ...)
    with_config(model, tmp_path, **general, **own)
    assert_as_transformers(tmp_path, model)
    config = HubModel(tmp_path).config
    theirs = GPT2Config.from_pretrained(tmp_path)
    assert (config.n_layer, config.n_head, config.d_model, config.n_positions, config.vocab) == (
        theirs.n_layer, theirs.n_head, theirs.n_embd, theirs.n_positions, theirs.vocab_size,
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", ""])
def test_prefixes_of_wrapped_models(model, tmp_path, prefix):
    with_config(model, tmp_path)
    state = {f"{prefix}{name}": values.clone() for name, values in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same(read(tmp_path), model)


def test_the_bare_model_of_transformers(model, tmp_path):
    model.transformer.save_pretrained(tmp_path)
    assert_as_transformers(tmp_path, model)


def test_linear_weights_are_transposed(model, tmp_path):
    with_config(model, tmp_path)
    state = {n: v.T.contiguous() if ".h." in n and v.ndim == 2 else v.clone() for n, v in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same(read(tmp_path), model)
    name = "transformer.h.1.mlp.c_fc.weight"
    state[name] = state[name].T.contiguous()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        LoaderError, match=r"c_attn.weight is \(out, in\), as torch.nn.Linear .* h.1.mlp.c_fc.weight is"
    ):
        HubModel(tmp_path)


def test_a_model_without_biases_has_zeros(model, tmp_path):
    with_config(model, tmp_path)
    state = {name: v.clone() for name, v in model.state_dict().items() if not name.endswith(".bias")}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path)  # which warns, and initialises them: with zeros
    assert_same(read(tmp_path), theirs)
    assert HubModel(tmp_path).notes == ["it has no biases: zeros stand for them"]
    state["transformer.ln_f.bias"] = model.state_dict()["transformer.ln_f.bias"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoaderError, match=r"tensor h\.0\.ln_1\.bias is missing"):
        HubModel(tmp_path)


def test_another_prefix_is_shown(model, tmp_path):
    with_config(model, tmp_path)
    state = {f"gpt.{name}": values.clone() for name, values in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoaderError, match=r"tensor wte is missing; there are gpt\."):
        HubModel(tmp_path)


# --- what torch.save writes -------------------------------------------------------------------------------------------------


def with_masks(model):
    """A state dict as transformers 3 had it, with a mask in every block."""
    state = dict(model.state_dict())
    for i in range(2):
        state[f"transformer.h.{i}.attn.bias"] = torch.tril(torch.ones(1, 1, 64, 64, dtype=torch.uint8))
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pytorch_model_bin(tmp_path, zipped, dtype):
    model = made().to(dtype)
    with_config(model, tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(with_masks(model), path, _use_new_zipfile_serialization=zipped)
    assert_as_transformers(tmp_path, model)
    assert_same(read(path), model)


@pytest.mark.parametrize(
    "state", [lambda model: model.state_dict(keep_vars=True), lambda model: dict(model.named_parameters())]
)
def test_a_state_dict_of_parameters(model, tmp_path, state):
    with_config(model, tmp_path)
    torch.save(state(model), tmp_path / "pytorch_model.bin")
    assert_as_transformers(tmp_path, model)


@pytest.mark.parametrize("kind", ["sparse_coo", "meta"])
def test_a_tensor_that_is_no_plain_array_is_told(model, tmp_path, kind):
    with_config(model, tmp_path)
    state = model.state_dict()
    wpe = state["transformer.wpe.weight"]
    state["transformer.wpe.weight"] = wpe.to_sparse() if kind == "sparse_coo" else wpe.to("meta")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(LoaderError, match=rf"tensor transformer\.wpe\.weight has dtype float32 \({kind}\)"):
        HubModel(tmp_path)


def test_names_that_are_no_texts_are_told(tmp_path):
    torch.save({7: torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(LoaderError, match="neither a state_dict nor a checkpoint of nanoGPT; it has 7"):
        HubModel(tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_damage_is_told_whatever_the_unpickler_stumbles_over(tmp_path, zipped):
    """One to four bytes that are others: 1,000 files, of which some are still files."""
    small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=6))
    with_config(small, tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 4))):
            damaged[rng.randrange(4, len(damaged))] = rng.choice((rng.randrange(256), *b"\0.q}"))
        path.write_bytes(damaged)
        try:
            read(path)
        except LoaderError:
            refused += 1
    assert 100 < refused < 1000


def test_shards_of_pytorch_model_bin(model, tmp_path):
    with_config(model, tmp_path)
    state = with_masks(model)
    names = list(state)
    index = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_as_transformers(tmp_path, model)


def test_safetensors_come_before_a_pickle(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.save(made(1).state_dict(), tmp_path / "pytorch_model.bin")
    assert_as_transformers(tmp_path, model)


class Program:
    def __reduce__(self):
        return (print, ("it ran",))


def test_no_program_in_a_pickle_is_run(model, tmp_path, capsys):
    path = with_config(model, tmp_path) / "pytorch_model.bin"
    torch.save(model.state_dict() | {"x": Program()}, path)
    with pytest.raises(LoaderError, match="is not weights alone, or damaged"):
        HubModel(tmp_path)
    assert capsys.readouterr().out == ""
    torch.save({"weights": model.state_dict()}, path)
    with pytest.raises(LoaderError, match="neither a state_dict nor a checkpoint of nanoGPT; it has weights"):
        HubModel(tmp_path)
    whole = path.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(LoaderError, match="damaged"):
            HubModel(tmp_path)
