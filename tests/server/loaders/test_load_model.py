"""Models: what is loaded comes out as it went in, and what is refused leaves nothing behind."""

import json
import sys
from itertools import islice

import numpy as np
import psycopg
import pytest
import safetensors.numpy
from psycopg.rows import dict_row

from loaders import convert_gpt2_checkpoint, load_model, save_model
from loaders.common import Database, LoaderError, fetched
from loaders.hub_model import Config, HubModel
from tests.server.loaders.hub import (
    CONFIG,
    assert_same,
    bfloat16_file,
    hub_names,
    load,
    run,
    stored,
    truncated_to_bfloat16,
    weights,
)


def test_model_goes_in_and_comes_out(conn, directory, tmp_path):
    load(conn, directory, "round")
    assert_same(stored(conn, "round"), weights())
    row = conn.execute(
        "SELECT n_layer, n_head, d_model, n_positions, vocab, eos_token_id FROM llm_model_config WHERE model = 'round'"
    ).fetchone()
    assert Config(*row) == CONFIG
    with conn.transaction():
        save_model.save_model(Database(conn), "round", tmp_path / "saved")
    assert_same(safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors"), hub_names(weights()))
    assert HubModel(tmp_path / "saved").config == CONFIG
    assert not list((tmp_path / "saved").glob("*.partial"))


def test_half_the_size(conn, directory, tmp_path):
    load(conn, directory, "half")
    with conn.transaction():
        save_model.save_model(Database(conn), "half", tmp_path / "saved", half=True)
    expected = {name: values.astype(np.float16) for name, values in hub_names(weights()).items()}
    assert_same(safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors"), expected)
    load(conn, tmp_path / "saved", "half again")
    conn.execute("UPDATE llm_param SET data = pg_llm_tensor(ARRAY[70000]) || substr(data, 5) WHERE name = 'wpe'")
    with conn.transaction(), pytest.raises(LoaderError, match=r"wpe\.weight has a value beyond float16's 65504"):
        save_model.save_model(Database(conn), "half", tmp_path / "saved", half=True)
    assert not list((tmp_path / "saved").glob("*.partial"))


def test_loaded_model_runs(conn, directory):
    load(conn, directory, "runs")
    (logits,) = conn.execute("SELECT llm_logits(ARRAY[1, 2, 3], 'runs')").fetchone()
    assert len(logits) == 3 * CONFIG.vocab * 4


def test_large_tensors_are_split_as_the_server_splits_them(conn, tmp_path):
    config = Config(n_layer=1, n_head=2, d_model=512, n_positions=8, vocab=5000, eos_token_id=None)
    tensors = {name: np.full(shape, 0.5, np.float32) for name, shape in config.shapes().items()}
    safetensors.numpy.save_file(hub_names(tensors), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hub()))
    load(conn, tmp_path, "split")
    conn.execute("SELECT llm_init_model('split server', 1, 2, 512, 8, 5000)")
    layout = "SELECT name, token_id, shape FROM llm_param WHERE model = %s ORDER BY 1, 2"
    ours = conn.execute(layout, ["split"]).fetchall()
    assert ours == conn.execute(layout, ["split server"]).fetchall()
    assert ("wte", 2048, [2048, 512]) in ours
    assert_same(stored(conn, "split"), tensors)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision(conn, directory, dtype):
    if dtype == "f16":
        tensors = {name: values.astype(np.float16) for name, values in weights().items()}
        safetensors.numpy.save_file(hub_names(tensors), directory / "model.safetensors")
        expected = {name: values.astype(np.float32) for name, values in tensors.items()}
    else:
        bfloat16_file(directory / "model.safetensors", hub_names(weights()))
        expected = {name: truncated_to_bfloat16(values) for name, values in weights().items()}
    load(conn, directory, dtype)
    assert_same(stored(conn, dtype), expected)


def test_shards_prefixes_masks_and_tied_head(conn, directory):
    (directory / "model.safetensors").unlink()
    tensors = {f"_orig_mod.{name}": values for name, values in hub_names(weights()).items()}
    tensors["lm_head.weight"] = weights()["wte"]
    tensors["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), bool))
    names = list(tensors)
    index = {}
    for shard, part in enumerate((names[:9], names[9:])):
        file = f"model-{shard}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, directory / file)
        index |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load(conn, directory, "shards")
    assert_same(stored(conn, "shards"), weights())


def test_preset_gets_its_weights_by_loading(conn, directory):
    load(conn, directory, "gpt2-medium")
    assert conn.execute("SELECT d_model, preset FROM llm_model_config WHERE model = 'gpt2-medium'").fetchall() == [
        (16, False)
    ]


def test_replace(conn, directory):
    load(conn, directory, "again")
    with pytest.raises(LoaderError, match='model "again" has weights already'):
        load(conn, directory, "again")
    safetensors.numpy.save_file(hub_names(weights(1)), directory / "model.safetensors")
    load(conn, directory, "again", replace=True)
    assert_same(stored(conn, "again"), weights(1))


def changed(change):
    tensors = weights()
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("tensor h.1.ln_2.bias is missing", lambda t: t.pop("h.1.ln_2.bias")),
        ("tensor h.7.ln_2.bias is not part", lambda t: t.update({"h.7.ln_2.bias": np.zeros(16, np.float32)})),
        (r"tensor wpe has shape \[32, 3\]", lambda t: t.update(wpe=np.zeros((32, 3), np.float32))),
        ("tensor ln_f.bias has a value that is not finite", lambda t: t["ln_f.bias"].put(3, np.nan)),
        ("tensor transformer.wpe.weight has dtype F64", lambda t: t.update(wpe=t["wpe"].astype(np.float64))),
    ],
)
def test_refused_model_changes_nothing(conn, directory, message, change):
    safetensors.numpy.save_file(hub_names(changed(change)), directory / "model.safetensors")
    with pytest.raises(LoaderError, match=message):
        load(conn, directory, "refused")
    assert conn.execute("SELECT count(*) FROM llm_models WHERE model = 'refused'").fetchone() == (0,)


def test_another_head_of_a_tied_model_is_refused(conn, directory):
    tensors = hub_names(weights()) | {"lm_head.weight": weights()["wte"] + 1}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    with pytest.raises(LoaderError, match=r"lm_head\.weight differs from wte"):
        load(conn, directory, "untied")


@pytest.mark.parametrize(
    ("field", "value"), [("activation_function", "mish"), ("n_inner", "x"), ("model_type", "bert"), ("n_embd", None)]
)
def test_other_architectures_are_refused(directory, field, value):
    config = CONFIG.to_hub() | {field: value}
    if value is None:
        del config[field]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoaderError, match=field):
        HubModel(directory)


def test_damaged_and_absent_files(directory, tmp_path):
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(LoaderError, match=r"model\.safetensors"):
        HubModel(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(LoaderError, match=r"has no model\.safetensors, pytorch_model\.bin, ckpt\.pt or GGUF file"):
        HubModel(directory)
    for named in (
        {"a": "../b.safetensors"},
        {},
        {"a": 1},
        {"a": "b.safetensors", "c": None},
        {"a": "\0"},
        None,
        ["a"],
        1,
    ):
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
        with pytest.raises(LoaderError, match="of its own directory"):
            HubModel(directory)
    for nowhere in (str(tmp_path / "nowhere"), "~nobody.of.this.name/model"):
        with pytest.raises(LoaderError, match="does not exist"):
            load_model.locate(nowhere)


def test_a_file_or_revision_of_what_is_here_is_not_passed_over(directory):
    for source in (str(directory), "postgresql-docs"):
        assert load_model.locate(source, file="config.json").name == "config.json"
        with pytest.raises(OSError, match=r"nosuch\.gguf"):
            HubModel(load_model.locate(source, file="nosuch.gguf"))
        with pytest.raises(LoaderError, match="no model of the hub: it has no revision main"):
            load_model.locate(source, "main")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548105171\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_git_lfs_pointer_says_what_it_is(directory, name):
    (directory / name).write_bytes(POINTER)
    with pytest.raises(LoaderError, match="git-LFS pointer"):
        HubModel(directory)


@pytest.mark.parametrize(("package", "start"), [("gguf", b"GGUF"), ("torch", b"PK\3\4")])
def test_a_file_that_needs_a_package_says_which(directory, monkeypatch, package, start):
    monkeypatch.setitem(sys.modules, package, None)
    (directory / "weights").write_bytes(start)
    with pytest.raises(LoaderError, match=rf"pip install 'pg_gpt2\[{package}\]'"):
        HubModel(directory / "weights")


def test_what_a_configuration_says_is_not_said_again(directory):
    (directory / "config.json").write_text("\ufeff" + (directory / "config.json").read_text())
    assert HubModel(directory).config == CONFIG
    with pytest.raises(LoaderError, match=r"config\.json says which activation function the model has"):
        HubModel(directory, "gelu_new")


def test_one_file_wins_over_the_index_of_an_earlier_save(directory):
    """As in transformers, which then looks at neither the index nor its shards."""
    (directory / "model.safetensors.index.json").write_text(
        '{"weight_map": {"wte": "model-00001-of-00002.safetensors"}}'
    )
    assert set(HubModel(directory).tensors) == set(CONFIG.shapes())


@pytest.mark.parametrize("change", ["head alone", "module.", "Linear", "no biases"])
def test_weights_that_others_write(conn, directory, change):
    tensors = hub_names(weights())
    expected = weights()
    if change == "head alone":
        tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    elif change == "module.":
        tensors = {f"module.{name}": values for name, values in tensors.items()}
    elif change == "Linear":
        tensors = {n: v.T.copy() if ".h." in n else v for n, v in tensors.items()}
    else:
        tensors = {name: values for name, values in tensors.items() if not name.endswith(".bias")}
        expected |= {name: np.zeros_like(values) for name, values in expected.items() if name.endswith(".bias")}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    load(conn, directory, change)
    assert_same(stored(conn, change), expected)


def test_a_transfer_that_loses_something_is_an_error(conn, directory, tmp_path, monkeypatch):
    """Whatever a driver does with a stream, as psycopg 3.3.0 did."""
    load(conn, directory, "lossy")
    monkeypatch.setattr(save_model, "fetched", lambda cursor, size: islice(fetched(cursor, size), 5))
    with conn.transaction(), pytest.raises(LoaderError, match=r"\d+ of \d+ bytes of the weights came"):
        save_model.save_model(Database(conn), "lossy", tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("model*"))
    monkeypatch.setattr(psycopg.Copy, "write_row", lambda copy, row: None)
    with pytest.raises(LoaderError, match="rows were sent to llm_param, and 0 arrived"):
        load(conn, directory, "lost")
    assert conn.execute("SELECT count(*) FROM llm_models WHERE model = 'lost'").fetchone() == (0,)


@pytest.mark.parametrize("stopped", [LoaderError("damaged"), OSError("gone"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("release", ["this one", "3.1"])
def test_what_stops_a_transfer_is_told_as_it_is(conn, directory, monkeypatch, stopped, release):
    """psycopg 3.1 raises the server's word for a COPY that was ended, while it handles what ended it."""

    def stop(*_):
        raise stopped

    def cancelled(*_):
        raise psycopg.errors.QueryCanceled("COPY from stdin failed")

    monkeypatch.setattr(HubModel, "rows", stop)
    if release == "3.1":
        end = psycopg.Copy.__exit__
        monkeypatch.setattr(psycopg.Copy, "__exit__", lambda *args: end(*args) or cancelled())
    with pytest.raises(type(stopped)) as raised:
        load(conn, directory, "stopped")
    assert raised.value is stopped
    assert stored(conn, "stopped") == {}


def test_connections_of_dicts(conn, directory, tmp_path):
    conn.row_factory = dict_row
    load(conn, directory, "dicts")
    with conn.transaction():
        save_model.save_model(Database(conn), "dicts", tmp_path)
    assert_same(safetensors.numpy.load_file(tmp_path / "model.safetensors"), hub_names(weights()))


def test_npz_is_what_the_server_imports(conn, directory, tmp_path, server_files, monkeypatch):
    """The tokens that end texts with it."""
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 299]}')
    output = tmp_path / "model.npz"
    run(convert_gpt2_checkpoint, monkeypatch, "--source", directory, "--output", output)
    with np.load(output, allow_pickle=False) as found:
        assert_same(dict(found), weights())
    shared = server_files / "converted.npz"
    shared.write_bytes(output.read_bytes())
    shared.chmod(0o644)
    conn.execute("SELECT pg_llm_import_npz(%s, 'converted')", [str(shared)])
    ends = conn.execute("SELECT eos_token_id, stop_token_ids FROM llm_model_config WHERE model = 'converted'")
    assert ends.fetchone() == (299, [7, 299])
    assert_same(stored(conn, "converted"), weights())
