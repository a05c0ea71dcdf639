"""Reading and writing of safetensors, npz and the older gzip container; names, masks, configurations."""

import io
import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from pg_gpt2 import formats
from pg_gpt2.core.config import ARCHITECTURE, Adapter, GPT2Config
from pg_gpt2.errors import (
    FeatureNotSupported,
    InconsistentData,
    MalformedData,
)
from pg_gpt2.formats import checkpoint as names
from pg_gpt2.formats.hub_config import config_of, fields_of
from pg_gpt2.formats.safetensors import bfloat16_to_float32
from pg_gpt2.formats.vocab import parse_merges, parse_vocab

from tests.engine.checkpoint_files import (
    CONFIG,
    assert_same,
    deflated_bytes,
    every_format,
    gzip_bytes,
    import_all,
    npz_bytes,
    raw_safetensors,
    safetensors_bytes,
    weights,
)


@every_format
@pytest.mark.parametrize("block_rows", [3, 1000])
def test_what_was_written_is_read(write, open_, block_rows):
    assert_same(import_all(open_(io.BytesIO(write(weights()))), block_rows=block_rows), weights())


@every_format
def test_rows_in_any_order(write, open_):
    tensors = weights()
    with open_(io.BytesIO(write(tensors))) as checkpoint:
        for name, start, stop in [("wpe", 3, 8), ("wte", 2, 5), ("wte", 7, 9), ("wpe", 0, 2), ("wte", 0, 11)]:
            np.testing.assert_array_equal(checkpoint.rows(name, start, stop), tensors[name][start:stop])


@pytest.mark.parametrize("write", [deflated_bytes, gzip_bytes])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
def test_float_widths_and_byte_orders(write, dtype):
    tensors = {name: values.astype(dtype) for name, values in weights().items()}
    expected = {name: values.astype("<f4") for name, values in tensors.items()}
    assert_same(import_all(formats.open_npz(io.BytesIO(write(tensors)))), expected)


def test_hub_names_and_masks():
    tensors = {f"_orig_mod.{names.hub_name(name)}": values for name, values in weights().items()}
    tensors["_orig_mod.transformer.h.0.attn.bias"] = np.ones((1, 1, 8, 8), "<f4")
    tensors["_orig_mod.transformer.h.1.attn.masked_bias"] = np.ones((1,), "<f4")
    tensors["lm_head.weight"] = tensors["_orig_mod.transformer.wte.weight"]
    assert_same(import_all(formats.open_safetensors(io.BytesIO(safetensors_bytes(tensors)))), weights())


@every_format
def test_a_tied_head_stands_for_the_embedding(write, open_):
    """As safetensors.torch.save_model writes a tied model: of the two names that share a tensor, the first."""
    tensors = weights()
    tensors = {"lm_head.weight": tensors.pop("wte")} | {names.hub_name(name): v for name, v in tensors.items()}
    assert_same(import_all(open_(io.BytesIO(write(tensors)))), weights())


@every_format
def test_what_is_the_matter_with_a_file_of_another_layout_is_said(write, open_):
    turned = {n: v.T.copy() if n.startswith("h.") else v for n, v in weights().items()}
    with pytest.raises(InconsistentData, match=r"c_attn.weight has shape \[12, 4\], \(out, in\) as torch.nn.Linear"):
        import_all(open_(io.BytesIO(write(turned))))
    with pytest.raises(InconsistentData, match="the file has no biases"):
        import_all(open_(io.BytesIO(write({n: v for n, v in weights().items() if not n.endswith(".bias")}))))
    with pytest.raises(InconsistentData, match="tensor wte is missing") as raised:
        import_all(open_(io.BytesIO(write({f"model.{n}": v for n, v in weights().items()}))))
    assert "model.wte" in raised.value.hint


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548105171\n"


@pytest.mark.parametrize(
    "read",
    [
        lambda data: formats.open_safetensors(io.BytesIO(data)),
        lambda data: formats.open_npz(io.BytesIO(data)),
        formats.read_config,
        parse_vocab,
        parse_merges,
    ],
    ids=["safetensors", "npz", "config.json", "vocab.json", "merges.txt"],
)
def test_a_git_lfs_pointer_says_what_it_is(read):
    with pytest.raises(MalformedData, match="is a git-LFS pointer") as raised:
        read(POINTER)
    assert "git lfs pull" in raised.value.hint


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("transformer.wte.weight", "wte"),
        ("module.transformer.wte.weight", "wte"),
        ("module._orig_mod.wpe.weight", "wpe"),
        ("_orig_mod.module.lm_head.weight", "lm_head.weight"),
        ("wpe.weight", "wpe"),
        ("wte", "wte"),
        ("_orig_mod.transformer.h.3.ln_1.weight", "h.3.ln_1.weight"),
        ("transformer._orig_mod.h.3._orig_mod.mlp.c_fc.bias", "h.3.mlp.c_fc.bias"),
        ("transformer.h.0.attn.bias", None),
        ("h.11.attn.masked_bias", None),
        ("h.0.attn.c_attn.bias", "h.0.attn.c_attn.bias"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_canonical_name(theirs, ours):
    assert names.canonical_name(theirs) == ours


def test_hub_name_is_undone_by_canonical_name():
    for name in CONFIG.param_shapes():
        assert names.canonical_name(names.hub_name(name)) == name


@pytest.mark.parametrize("write", [safetensors_bytes, npz_bytes])
def test_metadata_carries_the_config(write):
    file = io.BytesIO(write(weights(), names.hub_metadata(CONFIG)))
    open_ = formats.open_safetensors if write is safetensors_bytes else formats.open_npz
    with open_(file) as checkpoint:
        assert checkpoint.config() == CONFIG


def test_config_needs_n_head():
    with formats.open_npz(io.BytesIO(npz_bytes(weights()))) as checkpoint:
        assert checkpoint.config() is None
    with formats.open_npz(io.BytesIO(npz_bytes(weights(), {"n_head": "4", "eos_token_id": "10"}))) as checkpoint:
        assert checkpoint.config() == GPT2Config(2, 4, 4, 8, 11, 10)
    with (
        formats.open_npz(io.BytesIO(npz_bytes(weights(), {"n_head": "3"}))) as checkpoint,
        pytest.raises(InconsistentData, match="not divisible"),
    ):
        checkpoint.config()


@pytest.mark.parametrize("field", [field.name for field in fields(GPT2Config) if field.name != "adapter"])
def test_whoever_says_another_value_of_a_field_is_contradicted(field):
    known = replace(CONFIG, eos_token_id=3, stop_token_ids=(3, 4))
    assert names.agreed("m", known, {}, "it") == known
    assert names.agreed("m", known, {field: getattr(known, field)}, "it") == known
    other = {"stop_token_ids": (2, 3), "activation_function": "relu"}.get(field, 2)
    with pytest.raises(InconsistentData, match=re.escape(f"it says {field} = {other}, and model")):
        names.agreed("m", replace(known, n_layer=1, n_head=1), {field: other}, "it")


def test_an_end_of_text_token_is_taken_where_none_is_known():
    known = replace(CONFIG, eos_token_id=None)
    assert names.agreed("m", known, {"eos_token_id": 7}, "it").eos_token_id == 7
    assert names.agreed("m", known, {"eos_token_id": None}, "it").eos_token_id is None
    with pytest.raises(InconsistentData, match="11 token ids"):
        names.agreed("m", known, {"eos_token_id": 11}, "it")


HUB = fields_of(CONFIG)
VARIED = {
    "activation_function": "relu",
    "n_inner": 7,
    "layer_norm_epsilon": 1e-6,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "tie_word_embeddings": False,
}


def without(*keys):
    return {key: value for key, value in HUB.items() if key not in keys}


def test_config_json_says_the_configuration():
    assert config_of(HUB) == CONFIG
    assert formats.read_config(json.dumps(HUB).encode()) == CONFIG
    general = {"num_hidden_layers": 2, "num_attention_heads": HUB["n_head"], "hidden_size": 4}
    other = without("n_layer", "n_head", "n_embd", "n_positions") | general | {"max_position_embeddings": 8}
    assert config_of(other) == CONFIG
    assert config_of(HUB | other) == CONFIG
    for eos in (50256, -1, True, [50256, "x"], None, "x"):
        assert config_of(HUB | {"eos_token_id": eos}) == replace(CONFIG, eos_token_id=None)


def test_tokens_that_end_generation_are_those_of_generation_config_where_there_is_one():
    for eos, generation, stops in (
        (3, None, None),
        ([3], {"eos_token_id": 3}, None),
        ([3, 4], None, (3, 4)),
        (3, {"eos_token_id": [4, 3]}, (4, 3)),
        (3, {"eos_token_id": 50256}, ()),
        (3, {}, ()),
    ):
        expected = replace(CONFIG, eos_token_id=3, stop_token_ids=stops)
        data = None if generation is None else json.dumps(generation).encode()
        assert formats.read_config(json.dumps(HUB | {"eos_token_id": eos}).encode(), generation=data) == expected
    with pytest.raises(MalformedData, match=r"generation_config\.json is not a JSON object"):
        formats.read_config(json.dumps(HUB).encode(), generation=b"[]")


def test_the_tokens_that_end_generation_are_said_by_an_exported_file():
    for stops in (None, (), (3, 4)):
        config = replace(CONFIG, eos_token_id=3, stop_token_ids=stops)
        with formats.open_npz(io.BytesIO(npz_bytes(weights(), names.hub_metadata(config)))) as checkpoint:
            assert checkpoint.config() == config


@pytest.mark.parametrize("stops", [None, (), (3,), (3, 10)])
@pytest.mark.parametrize("adapter", [None, Adapter(2, 8.0, ("mlp.c_fc",), 0.5)])
@pytest.mark.parametrize("kind", [{}, VARIED], ids=["gpt2", "variant"])
def test_a_configuration_goes_through_json(adapter, stops, kind):
    config = replace(CONFIG, adapter=adapter, stop_token_ids=stops, **kind)
    assert GPT2Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.plain() == replace(CONFIG, eos_token_id=None, **kind)
    assert config.to_json().keys() & ARCHITECTURE.keys() == kind.keys()  # of GPT-2's own models what it always was


@pytest.mark.parametrize("kind", [{name: value} for name, value in VARIED.items()] + [VARIED], ids=str)
def test_another_architecture_goes_through_config_json_and_through_the_metadata_of_a_file(kind):
    config = replace(CONFIG, eos_token_id=3, **kind)
    assert config.differences() == kind
    assert config_of(json.loads(json.dumps(fields_of(config)))) == config
    tensors = {name: np.ones(shape, "<f4") for name, shape in config.param_shapes().items()}
    for write, open_ in ((npz_bytes, formats.open_npz), (safetensors_bytes, formats.open_safetensors)):
        with open_(io.BytesIO(write(tensors, names.hub_metadata(config)))) as checkpoint:
            assert checkpoint.config() == config
            assert [name for name, _, _ in checkpoint.tensors(config)] == [*checkpoint.names()]
            with pytest.raises(InconsistentData, match="says " + next(iter(kind))):
                names.agreed("m", replace(CONFIG, eos_token_id=3), checkpoint.said(), "it")


def test_a_width_of_four_times_the_models_is_gpt2s():
    assert replace(CONFIG, n_inner=16) == CONFIG
    assert config_of(HUB | {"n_inner": 16}) == CONFIG
    assert config_of(HUB | {"n_inner": None}) == CONFIG


@pytest.mark.parametrize(
    ("key", "text"), [("n_inner", "x"), ("layer_norm_epsilon", "["), ("tie_word_embeddings", "False")]
)
def test_a_value_of_the_metadata_that_is_none_is_refused(key, text):
    with (
        formats.open_npz(io.BytesIO(npz_bytes(weights(), {"n_head": "2", key: text}))) as checkpoint,
        pytest.raises(MalformedData, match=f"says {key} = "),
    ):
        checkpoint.config()


@pytest.mark.parametrize(
    "more",
    [
        *({"activation_function": name} for name in ("mish", "", None, 7, ["gelu_new"])),
        *({"layer_norm_epsilon": eps} for eps in (0, -1e-5, 2, True, None, "1e-5")),
        *({"n_inner": n} for n in (0, 10**30, "16", [])),
        *({"model_type": name} for name in ("bert", "gptj", None)),
        {"add_cross_attention": True},
        *({name: value} for name, ours in ARCHITECTURE.items() if type(ours) is bool for value in (1, None, "true")),
        *({name: n} for name in ("n_layer", "vocab_size", "n_embd") for n in (0, -1, None, 1.5, True, "2", 1 << 31)),
        *({"n_embd": 6, "n_head": 4}, {"hidden_size": 8}, {"num_attention_heads": 1}),
    ],
)
def test_what_is_no_gpt2_is_refused_by_the_name_of_what_differs(more):
    with pytest.raises(
        (InconsistentData, MalformedData), match=rf"it (has|is) .*({next(iter(more))}|d_model 6)"
    ) as caught:
        config_of(HUB | more, "it")
    assert caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"n_head": 1' + b"0" * 5000 + b"}", b'{"a":1,"a":1}']
)
def test_a_malformed_config_json_is_refused(data):
    with pytest.raises(MalformedData):
        formats.read_config(data)


def test_npz_opens_in_numpy():
    with np.load(io.BytesIO(npz_bytes(weights(), {"n_head": "2"})), allow_pickle=False) as found:
        assert_same(dict(found), weights())


def test_export_is_deterministic():
    assert npz_bytes(weights()) == npz_bytes(weights())


def test_fortran_order_is_converted_in_npz_and_refused_in_gzip():
    tensors = {name: np.asfortranarray(values) for name, values in weights().items()}
    assert_same(import_all(formats.open_npz(io.BytesIO(deflated_bytes(tensors))), block_rows=3), weights())
    with pytest.raises(FeatureNotSupported, match="wte is in Fortran order"):
        formats.open_npz(io.BytesIO(gzip_bytes(tensors)))


def test_bfloat16_is_exact():
    bits = np.array([0x0000, 0x3F80, 0xC049, 0x7F7F, 0x0001], np.uint16)
    np.testing.assert_array_equal(
        bfloat16_to_float32(bits), np.array([0, 1, -3.140625, 3.3895314e38, 9.1835e-41], np.float32)
    )


def bf16_file(shape=(2, 3)):
    count = int(np.prod(shape))
    header = {"w": {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, 2 * count]}}
    return raw_safetensors(header, (0x3F80 + np.arange(count)).astype("<u2").tobytes())


def test_bfloat16_rows():
    with formats.open_safetensors(io.BytesIO(bf16_file())) as checkpoint:
        np.testing.assert_array_equal(checkpoint.rows("w", 1, 2), [[1 + 3 / 128, 1 + 4 / 128, 1 + 5 / 128]])


# What must be refused


def changed(change):
    tensors = weights()
    change(tensors)
    return tensors


WRONG = {
    "tensor h.1.ln_2.bias is missing": lambda t: t.pop("h.1.ln_2.bias"),
    "tensor h.2.ln_1.bias in the file is not part": lambda t: t.update({"h.2.ln_1.bias": np.zeros(4, "<f4")}),
    r"tensor wpe has shape \[8, 5\]": lambda t: t.update(wpe=np.zeros((8, 5), "<f4")),
    r"tensor ln_f.bias has a value that is not finite, at \[2\]": lambda t: t["ln_f.bias"].put(2, np.nan),
    r"tensor wte has a value that is not finite, at \[7, 1\]": lambda t: t["wte"].put(29, np.inf),
    "wte and transformer.wte.weight in the file are both tensor wte": lambda t: t.update(
        {"transformer.wte.weight": t["wte"]}
    ),
    r"lm_head.weight has shape \[2, 4\]": lambda t: t.update({"lm_head.weight": np.zeros((2, 4), "<f4")}),
    "lm_head.weight differs from wte": lambda t: t.update({"lm_head.weight": t["wte"] + 1}),
}


@every_format
@pytest.mark.parametrize(("message", "change"), WRONG.items(), ids=WRONG)
def test_wrong_checkpoint_names_the_tensor(write, open_, message, change):
    with pytest.raises(InconsistentData, match=message):
        import_all(open_(io.BytesIO(write(changed(change)))), block_rows=3)
