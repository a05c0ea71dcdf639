"""How a file of weights says what model it is of: its metadata, and a config.json beside it."""

import json
import os

import psycopg
import pytest

from tests.server.weight_files import SHAPE, container, npz, registered, rolled_back, safe, stored, weights  # noqa: F401

errors = psycopg.errors


@pytest.fixture
def beside(server_files):
    """`beside(kind, tensors, **config)`: a file of weights in a directory with that config.json; its path."""
    folder = server_files / "hub"
    folder.mkdir()
    folder.chmod(0o755)

    def write(kind, tensors, config, metadata=None):
        path = folder / f"model.{kind}"
        path.write_bytes(safe(tensors, metadata) if kind == "safetensors" else npz(tensors))
        if config is not None:
            (folder / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
        for made in folder.iterdir():
            made.chmod(0o644)
        return str(path)

    yield write
    for made in folder.iterdir():
        made.unlink()
    folder.rmdir()


@pytest.fixture
def notices(sql):
    """What the session is told."""
    told: list[str] = []

    def note(diagnostic):
        told.append(diagnostic.message_primary)

    sql.add_notice_handler(note)
    yield told
    sql.remove_notice_handler(note)


HUB = SHAPE | {"model_type": "gpt2", "eos_token_id": 49}
REGISTERED = "SELECT n_layer, n_head, d_model, n_positions, vocab, eos_token_id FROM llm_model_config WHERE model = %s"
both_kinds = pytest.mark.parametrize("kind", ["safetensors", "npz"])


@both_kinds
def test_a_config_json_beside_the_file_says_its_configuration(sql, beside, kind, notices):
    path = beside(kind, weights(), HUB)
    sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'hub')", [path])
    assert sql.execute(REGISTERED, ["hub"]).fetchone() == (2, 2, 16, 32, 50, 49)
    sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'model')", [path])  # which is registered without an end-of-text token
    assert sql.execute(REGISTERED, ["model"]).fetchone() == (2, 2, 16, 32, 50, 49)
    assert notices == []


def test_a_link_into_the_cache_of_the_hub_has_its_config_json_where_the_link_is(sql, beside, put):
    path = beside("npz", {}, HUB)
    os.unlink(path)
    os.symlink(put("blob", npz(weights())), path)
    sql.execute("SELECT pg_llm_import_npz(%s, 'hub')", [path])
    assert sql.execute(REGISTERED, ["hub"]).fetchone() == (2, 2, 16, 32, 50, 49)


@both_kinds
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("activation_function", "mish"), ("n_inner", 32), ("n_inner", "64"), ("layer_norm_epsilon", 0)),
        *(("scale_attn_weights", None), ("scale_attn_by_inverse_layer_idx", 1), ("tie_word_embeddings", False)),
        *(("add_cross_attention", True), ("model_type", "gptj"), ("n_layer", None), ("hidden_size", 8), ("n_head", 3)),
    ],
)
def test_what_is_no_gpt2_or_has_not_its_tensors_is_refused(sql, beside, kind, name, value):
    """Registered or not: its weights have the names and shapes of a GPT-2."""
    path = beside(kind, weights(), HUB | {name: value})
    for model in ("hub", "model"):
        by = {"n_inner": "n_inner|mlp", "tie_word_embeddings": "tie_word|lm_head"}.get(name, name)
        with pytest.raises(errors.DataError, match=by) as raised, sql.transaction():
            sql.execute(f"SELECT pg_llm_import_{kind}(%s, %s)", [path, model])
        assert raised.value.sqlstate in ("22000", "22P02")
        assert raised.value.diag.message_hint
        assert stored(sql, model) == {}


KINDS = [
    *({"activation_function": name} for name in ("gelu", "relu", "gelu_pytorch_tanh")),
    {"layer_norm_epsilon": 1e-6},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
]


@both_kinds
@pytest.mark.parametrize("architecture", KINDS, ids=str)
def test_an_architecture_comes_with_config_json_and_is_not_forced_upon_a_model(sql, beside, kind, architecture):
    """The tensors of these are those of GPT-2: a registered model is another one, and says so."""
    path = beside(kind, weights(), HUB | architecture)
    sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'hub')", [path])
    names = ", ".join(architecture)
    row = sql.execute(f"SELECT {names} FROM llm_model_config WHERE model = 'hub'").fetchone()
    assert row == tuple(architecture.values())
    (said,) = sql.execute("SELECT architecture FROM llm_models WHERE model = 'hub'").fetchone()
    assert said.startswith("gpt2: ")
    assert all(name in said for name in architecture)
    name = next(iter(architecture))
    with (
        pytest.raises(errors.DataError, match=f'config.json says {name} = .*model "model" has') as raised,
        sql.transaction(),
    ):
        sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'model')", [path])
    assert "llm_model_config" in raised.value.diag.message_hint
    sql.execute(
        f"UPDATE llm_model_config SET ({names}) = ROW ({', '.join(['%s'] * len(architecture))}) WHERE model = 'model'",
        list(architecture.values()),
    )
    sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'model')", [path])
    same = {name: array.tobytes() for name, array in stored(sql, "hub").items()}
    assert {name: array.tobytes() for name, array in stored(sql, "model").items()} == same


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"a":1' + b"0" * 5000 + b"}", bytes(2 << 20)]
)
def test_a_config_json_that_cannot_be_read_is_an_error_that_names_it(sql, beside, data):
    with pytest.raises(errors.InvalidTextRepresentation, match=r'"/.*/config\.json"') as raised, sql.transaction():
        sql.execute("SELECT pg_llm_import_safetensors(%s, 'model')", [beside("safetensors", weights(), data)])
    assert raised.value.diag.message_hint


OTHERS = {"n_head": "4", "eos_token_id": "7", "n_layer": "3", "d_model": "8", "n_positions": "16", "vocab": "51"}


@pytest.mark.parametrize(("field", "value"), OTHERS.items(), ids=OTHERS)
@pytest.mark.parametrize("of", ["llm_model_config", "config.json"])
def test_a_file_that_says_another_value_is_refused(sql, beside, field, value, of):
    """Two heads' weights work as four heads', and give something else."""
    sql.execute("UPDATE llm_model_config SET eos_token_id = 49 WHERE model = 'model'")
    path = beside("safetensors", weights(), HUB if of == "config.json" else None, {field: value})
    model = "hub" if of == "config.json" else "model"
    with pytest.raises(errors.DataException, match=f"metadata says {field} = {value}") as raised, sql.transaction():
        sql.execute("SELECT pg_llm_import_safetensors(%s, %s)", [path, model])
    assert raised.value.sqlstate == "22000"
    with pytest.raises(errors.DataException, match=f"metadata says {field} = {value}"), sql.transaction():
        sql.execute("SELECT llm_import_safetensors(%s, 'model')", [safe(weights(), {field: value})])


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_our_file_of_two_heads_is_not_loaded_into_a_model_of_four(sql, target, kind):
    sql.execute("SELECT llm_init_model('two', 1, 2, 16, 8, 30)")
    sql.execute("INSERT INTO llm_model_config VALUES ('four', 1, 4, 16, 8, 30, NULL), ('same', 1, 2, 16, 8, 30, 7)")
    sql.execute(f"SELECT pg_llm_export_{kind}(%s, 'two')", [str(target)])
    with pytest.raises(errors.DataException, match="n_head = 2"), sql.transaction():
        sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'four')", [str(target)])
    sql.execute(f"SELECT pg_llm_import_{kind}(%s, 'same')", [str(target)])
    assert sql.execute(REGISTERED, ["same"]).fetchone() == (1, 2, 16, 8, 30, 7)


def test_what_is_assumed_of_a_file_that_does_not_say_is_told(sql, put, notices, target):
    assumed = (
        "taken for a GPT-2 of 2 heads as in llm_model_config, with activation_function gelu_new, n_inner 4 * d_model, "
    )
    assumed += "layer_norm_epsilon 1e-05, scale_attn_weights true, "
    sql.execute("SELECT pg_llm_import_safetensors(%s, 'model')", [put("a", safe(weights()))])
    sql.execute("SELECT llm_import_safetensors(%s, 'model', true)", [safe(weights())])
    sql.execute("SELECT pg_llm_import_npz(%s, 'model', true)", [put("b", container(weights()))])
    assert [assumed in notice for notice in notices] == [True] * 3
    notices.clear()
    sql.execute("SELECT pg_llm_export_npz(%s, 'model')", [str(target)])
    sql.execute("SELECT pg_llm_import_npz(%s, 'back')", [str(target)])  # a file of ours does say
    assert notices == []
