"""Adapters as files against PEFT: directories that it writes mean here what they mean to it, and it opens those that we write."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft import LoraConfig as PeftLora
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from pg_gpt2.core.config import Adapter
from pg_gpt2.core.config import GPT2Config as Config
from transformers import GPT2Config, GPT2LMHeadModel

from loaders import load_adapter, load_model, save_adapter
from loaders.common import Database, LoaderError
from loaders.hub_model import HubModel
from loaders.peft_adapter import OTHER_LAYERS, LoraConfig, PeftAdapter, _modules, write_peft

BASE = Config(n_layer=3, n_head=2, d_model=32, n_positions=64, vocab=300, eos_token_id=299)
LOGITS_TOLERANCE = 1e-5  # float32, sums in another order; logits of this model are below 10
IDS = [5, 200, 299, 0, 77, 31]


def new_model():
    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 300}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=299, eos_token_id=299)).eval()


def adapted(**options):
    """A model with an adapter whose A and B are random, which is far from the base."""
    model = get_peft_model(new_model(), PeftLora(**options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.copy_(torch.randn_like(values) / 4)
    return model


def layers(model):
    """Name -> (A, B, scale) of what PEFT adapts, in our orientation."""
    return {
        name.removeprefix("base_model.model.transformer."): (
            layer.lora_A["default"].weight.detach().float().numpy().T,
            layer.lora_B["default"].weight.detach().float().numpy().T,
            layer.scaling["default"],
        )
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def ours(found):
    """The same of a PeftAdapter."""
    tensors = {name: found.rows(name, 0, tensor.shape[0]) for name, tensor in found.tensors.items()}
    names = {name.rpartition(".")[0] for name in tensors}
    return {name: (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], found.adapter.scale) for name in names}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, (a, b, scale) in expected.items():
        np.testing.assert_array_equal(found[name][0], a, err_msg=name)
        np.testing.assert_array_equal(found[name][1], b, err_msg=name)
        assert found[name][2] == pytest.approx(scale, rel=1e-15), name


LOADED = {
    "nothing said": {},
    "list": {"target_modules": ["c_attn", "c_fc"], "r": 4, "lora_alpha": 32, "lora_dropout": 0.1},
    "suffix of two layers": {"target_modules": ["c_proj"], "r": 3, "lora_alpha": 7},
    "end of a name": {"target_modules": ["mlp.c_proj"], "fan_in_fan_out": True},
    "whole names": {"target_modules": [f"transformer.h.{i}.mlp.c_fc" for i in range(3)], "layers_to_transform": [0]},
    "regular expression": {"target_modules": r".*\.h\.\d+\.(attn|mlp)\.c_\w+"},
    "all layers": {"target_modules": "all-linear", "r": 16},
    "all but some": {"target_modules": "all-linear", "exclude_modules": ["c_fc"]},
    "all but those that match": {"target_modules": ["c_proj"], "exclude_modules": r".*mlp.*"},
    "every block by its number": {
        "target_modules": ["c_attn"],
        "layers_to_transform": [0, 1, 2],
        "layers_pattern": "h",
    },
    "rank-stabilized": {"target_modules": ["c_attn"], "r": 6, "lora_alpha": 5, "use_rslora": True},
    "patterns that change all": {
        "target_modules": ["c_attn", "c_fc"],
        "rank_pattern": {"c_attn": 4, r"h\.\d+\.mlp.c_fc": 4},
        "alpha_pattern": {"c_.*": 3},
    },
    "gaussian": {"target_modules": ["c_attn"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["c_attn"], "init_lora_weights": "orthogonal"},
    "random": {"target_modules": ["c_attn"], "init_lora_weights": False},
}


@pytest.mark.parametrize("options", LOADED.values(), ids=LOADED.keys())
def test_what_peft_writes_is_what_it_reads(options, tmp_path):
    adapted(**options).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(new_model(), tmp_path)
    assert_same(ours(PeftAdapter(tmp_path, BASE)), layers(again))


@pytest.mark.parametrize("target_modules", ["all-linear", "ALL-LINEAR", r".*\.c_attn", None])
def test_targets_that_peft_finds_when_it_reads(target_modules, tmp_path):
    """It writes the names that it found; a configuration by hand may say less."""
    adapted(target_modules="all-linear" if "LINEAR" in str(target_modules).upper() else ["c_attn"]).save_pretrained(
        tmp_path
    )
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": target_modules}))
    assert_same(ours(PeftAdapter(tmp_path, BASE)), layers(PeftModel.from_pretrained(new_model(), tmp_path)))


def test_names_mean_the_layers_that_they_mean_to_peft():
    """Random configurations, hand-written ones included that PEFT would not write."""
    rng = random.Random(0)
    lists = [
        "c_attn",
        "attn",
        "c_proj",
        "mlp.c_proj",
        "h.1.mlp.c_fc",
        "transformer.h.2.attn.c_proj",
        "proj",
        "wte",
        "lm_head",
    ]
    expressions = [r".*c_attn", r"h\.0.*", r"transformer\.h\.[02]\..*c_.*", r".*(fc|wpe)", "", "lm_head"]
    modules = [*_modules(3), *OTHER_LAYERS]
    counts = Counter()
    for _ in range(2000):
        wanted = rng.choice([rng.choice(expressions), rng.sample(lists, rng.randint(1, 4))])
        excluded = rng.choice([None, rng.choice(expressions), rng.sample(lists, rng.randint(0, 2))])
        blocks = rng.choice([None, [], 1, 2, [0], [0, 2], [5]])
        pattern = rng.choice([None, "h", ["blocks", "h"], "layers", []]) if blocks else None
        if isinstance(wanted, str) and blocks is not None:
            blocks = pattern = None  # PEFT raises an error
        fields = {
            "target_modules": wanted,
            "exclude_modules": excluded,
            "layers_to_transform": blocks,
            "layers_pattern": pattern,
        }
        theirs = PeftLora(**fields)
        expected = [name for name in modules if _says_yes(check_target_module_exists(theirs, name))]
        assert [name for name in modules if LoraConfig({"peft_type": "LORA", **fields})._targets(name)] == expected, (
            fields
        )
        counts[len(expected)] += 1
    assert len(counts) > 6


def _says_yes(found):
    return bool(found) and type(found).__name__ != "_ExcludedModule"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, tmp_path):
    model = adapted(target_modules=["c_attn"]).to(dtype)
    model.save_pretrained(tmp_path)
    assert_same(ours(PeftAdapter(tmp_path, BASE)), layers(model))


REFUSED = {
    "use_dora = True: DoRA rescales": {"target_modules": ["c_attn"], "use_dora": True},
    "bias = 'all': it changes": {"target_modules": ["c_attn"], "bias": "all"},
    "bias = 'lora_only': it changes": {"target_modules": ["c_attn"], "bias": "lora_only"},
    "lora_bias = True: B has a bias": {"target_modules": ["c_attn"], "lora_bias": True},
    r"modules_to_save = \['ln_f'\]": {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]},
    "trainable_token_indices = ": {"target_modules": ["c_attn"], "trainable_token_indices": [1, 2]},
    r"transformer\.wte, which is no layer of a block": {"target_modules": ["c_attn", "wte"]},
    "lm_head, which is no layer of a block": {"target_modules": ["c_attn", "lm_head"]},
    "init_lora_weights = 'pissa': that changed": {"target_modules": ["c_attn"], "init_lora_weights": "pissa"},
    "init_lora_weights = 'pissa_niter_2'": {"target_modules": ["c_attn"], "init_lora_weights": "pissa_niter_2"},
    "init_lora_weights = 'olora'": {"target_modules": ["c_attn"], "init_lora_weights": "olora"},
    r"leaves out h\.1\.attn\.c_attn": {"target_modules": ["c_attn"], "layers_to_transform": [0, 2]},
    r"leaves out h\.0\.attn\.c_attn": {"target_modules": ["c_attn"], "layers_to_transform": 1},
    r"leaves out h\.0\.mlp\.c_fc": {"target_modules": ["c_attn", "h.1.mlp.c_fc"]},
    r"r = 8 for h\.0\.attn\.c_attn and 4 for h\.0\.mlp\.c_fc": {
        "target_modules": ["c_attn", "c_fc"],
        "rank_pattern": {"c_fc": 4},
    },
    r"lora_alpha = 8 for h\.0\.attn\.c_attn and 16 for h\.1\.attn\.c_attn": {
        "target_modules": ["c_attn"],
        "alpha_pattern": {"h.1.attn.c_attn": 16},
    },
}


@pytest.mark.parametrize(("message", "options"), REFUSED.items())
def test_what_an_adapter_here_cannot_be_is_refused_by_name(message, options, tmp_path):
    adapted(**options).save_pretrained(tmp_path)
    with pytest.raises(LoaderError, match=message):
        PeftAdapter(tmp_path, BASE)


def test_merged_as_the_refusal_says(tmp_path):
    """What cannot be an adapter can be a model."""
    model = adapted(target_modules=["c_attn"], use_dora=True)
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    HubModel(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(logits(again), expected, atol=LOGITS_TOLERANCE, rtol=0)


def test_pickled_weights_are_refused(tmp_path):
    adapted(target_modules=["c_attn"]).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(LoaderError, match=r"adapter_model\.bin, a pickle, which is not read: open it with PeftModel"):
        PeftAdapter(tmp_path, BASE)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter(),
        Adapter(4, 2.5, ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), 0.1),
        Adapter(1, 3, ("mlp.c_proj",)),
    ],
)
def test_peft_opens_what_we_write(adapter, tmp_path):
    rng = np.random.default_rng(0)
    config = Config(3, 2, 32, 64, 300, 299, adapter)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in config.adapter_shapes().items()}
    new_model().save_pretrained(tmp_path / "base")
    write_peft(tmp_path / "adapter", adapter, str(tmp_path / "base"), tensors)
    model = PeftModel.from_pretrained(new_model(), tmp_path / "adapter")
    expected = {name.rpartition(".")[0] for name in tensors}
    expected = {name: (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], adapter.scale) for name in expected}
    assert_same(layers(model), expected)
    assert model.peft_config["default"].lora_dropout == adapter.dropout_p
    found = PeftAdapter(tmp_path / "adapter", BASE)
    assert found.adapter == adapter
    assert_same(ours(found), expected)
    by_name = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()  # with the base that it names
    np.testing.assert_array_equal(logits(by_name), logits(model.eval()))
    model.save_pretrained(tmp_path / "again")
    assert PeftAdapter(tmp_path / "again", BASE).adapter == adapter


def server_logits(conn, model):
    (data,) = conn.execute("SELECT llm_logits(%s::int[], %s)", [IDS, model]).fetchone()
    return np.frombuffer(data, "<f4").reshape(len(IDS), 300)


def load_base(conn, directory):
    new_model().save_pretrained(directory)
    load_model.load_model(Database(conn), directory, "base of peft")


@pytest.mark.parametrize("options", LOADED.values(), ids=LOADED.keys())
def test_what_peft_writes_computes_the_same_here(conn, options, tmp_path):
    load_base(conn, tmp_path / "base")
    model = adapted(**options)
    model.save_pretrained(tmp_path / "adapter")
    load_adapter.load_adapter(Database(conn), tmp_path / "adapter", "base of peft", "from peft")
    expected = logits(model)
    assert np.abs(expected - logits(new_model())).max() > 100 * LOGITS_TOLERANCE
    np.testing.assert_allclose(server_logits(conn, "from peft"), expected, atol=LOGITS_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("r", "alpha", "targets"),
    [
        (8, 16, ["attn.c_attn"]),
        (1, 2.5, ["mlp.c_fc", "attn.c_proj"]),
        (5, 1, ["mlp.c_proj"]),
        (64, -3, ["attn.c_attn"]),
    ],
)
def test_what_we_write_computes_the_same_in_peft(conn, r, alpha, targets, tmp_path):
    """As trained here: an adapter that llm_adapter_create made, whose B is not zero any more."""
    load_base(conn, tmp_path / "base")
    conn.execute("SELECT llm_adapter_create('ours', 'base of peft', %s, %s, %s, 0.1, 3)", [r, alpha, targets])
    rows = conn.execute("SELECT name, shape FROM llm_param WHERE model = 'ours' AND name LIKE '%.lora_B'").fetchall()
    rng = np.random.default_rng(2)
    for name, shape in rows:
        values = rng.standard_normal(shape).astype(np.float32) / 4
        conn.execute("UPDATE llm_param SET data = %s WHERE model = 'ours' AND name = %s", [values.tobytes(), name])
    save_adapter.save_adapter(Database(conn), "ours", tmp_path / "saved", base=str(tmp_path / "base"))
    model = PeftModel.from_pretrained(new_model(), tmp_path / "saved").eval()
    expected = logits(model)
    assert np.abs(expected - logits(new_model())).max() > 100 * LOGITS_TOLERANCE
    np.testing.assert_allclose(server_logits(conn, "ours"), expected, atol=LOGITS_TOLERANCE, rtol=0)
    model.save_pretrained(tmp_path / "back")
    load_adapter.load_adapter(Database(conn), tmp_path / "back", "base of peft", "back")
    np.testing.assert_array_equal(server_logits(conn, "back"), server_logits(conn, "ours"))
