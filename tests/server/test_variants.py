"""GPT-2's relatives in SQL: what llm_model_config says of an architecture holds for everything that is done with the model."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import ACTIVATIONS, ARCHITECTURE, GPT2Config
from pg_gpt2.core.tape import Eager
from psycopg import errors

from loaders.common import Database
from loaders.hub_model import HubModel
from loaders.load_model import load_model
from loaders.save_model import save_model

Sql = Callable[..., object]

KINDS: dict[str, dict[str, object]] = {
    "exact gelu and scaled by layer": {"activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True},
    "everything": {
        "activation_function": "relu",
        "n_inner": 40,
        "layer_norm_epsilon": 1e-4,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "tie_word_embeddings": False,
    },
}
COLUMNS = ", ".join(ARCHITECTURE)
BINDIR = os.environ.get("PG_GPT2_TEST_BINDIR") or str(Path(shutil.which("pg_dump") or "").parent)
STATE = """
    SELECT md5(string_agg(concat_ws(' ', name, step, md5(data), md5(m), md5(v)), ',' ORDER BY name, token_id))
    FROM llm_param WHERE model = %s
"""
GENERATE = "SELECT llm_generate('low', 8, model_name => %s, seed => 1)"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, object]:
    """What is not as in GPT-2."""
    return KINDS[request.param]


@pytest.fixture
def model(sql: Sql, kind: dict[str, object]) -> Iterator[str]:
    """A model of that kind, made in the way that the COMMENT of llm_init_model says."""
    make(sql, "v", kind)
    yield "v"
    sql("RESET pg_gpt2.fast")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE base IS NOT NULL")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
    sql("DELETE FROM llm_dataset")


def make(sql: Sql, name: str, kind: dict[str, object]) -> None:
    """A model with a vocabulary and rows to learn from."""
    sql(f"SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider' $$, 262, '{name}')")
    columns = {"n_layer": 2, "n_head": 2, "d_model": 16, "n_positions": 16, "vocab": 262} | kind
    places = ", ".join(["%s"] * len(columns))
    sql(f"INSERT INTO llm_model_config (model, {', '.join(columns)}) VALUES ('{name}', {places})", *columns.values())
    sql(f"SELECT llm_init_model('{name}', seed => 3)")
    sql(f"UPDATE llm_model_config SET eos_token_id = 261 WHERE model = '{name}'")
    sql(f"""
        INSERT INTO llm_dataset (model, split, tokens, target)
        SELECT '{name}', CASE WHEN n > 26 THEN 'val' ELSE 'train' END, ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5]
        FROM generate_series(6, 30) n
    """)


def config(sql: Sql, name: str) -> GPT2Config:
    """As the engine has it."""
    row = sql(f"SELECT to_jsonb(c) FROM (SELECT {COLUMNS} FROM llm_model_config WHERE model = %s) AS c", name)
    return GPT2Config(2, 2, 16, 16, 262, **row)  # type: ignore[arg-type]


def params(conn: psycopg.Connection, name: str) -> dict[str, np.ndarray]:
    """The weights."""
    rows = conn.execute("SELECT name, shape, data FROM llm_param_resolved WHERE model = %s", [name]).fetchall()
    return {name: np.frombuffer(data, "<f4").reshape(shape) for name, shape, data in rows}


def logits(conn: psycopg.Connection, name: str, ids: list[int]) -> np.ndarray:
    """[T, V], as the server computes them."""
    (found,) = conn.execute("SELECT pg_llm_values(llm_logits(%s, %s))", [ids, name]).fetchone()  # type: ignore[misc]
    return np.array(found).reshape(len(ids), -1)


def train(sql: Sql, name: str, steps: int = 4, **more: object) -> object:
    given = {"batch_size": 2, "lr_max": 0.02, "warmup": 0, "log_every": 0, "eval_every": 2, **more}
    return sql(f"SELECT llm_train('{name}', {steps}, {', '.join(f'{k} => {v}' for k, v in given.items())})")


def test_the_server_computes_what_the_row_says(conn, sql, model, kind):
    train(sql, model)
    ids = [3, 1, 200, 7, 3]
    wanted = gpt2.logits(Eager(), params(conn, model), np.array(ids), config(sql, model))
    for fast in ("on", "off"):
        sql(f"SET pg_gpt2.fast = {fast}")
        np.testing.assert_allclose(logits(conn, model, ids), wanted, atol=1e-5 * np.abs(wanted).max())
    for name, value in kind.items():  # and another value is another model
        if name in ("n_inner", "tie_word_embeddings", "reorder_and_upcast_attn"):
            continue
        conn.execute("BEGIN")
        conn.execute(f"UPDATE llm_model_config SET {name} = DEFAULT WHERE model = %s", [model])
        assert np.abs(logits(conn, model, ids) - wanted).max() > 1e-6, (name, value)
        conn.execute("ROLLBACK")
    np.testing.assert_allclose(logits(conn, model, ids), wanted, atol=1e-5 * np.abs(wanted).max())


def test_it_generates_the_same_with_and_without_the_fast_paths(conn, sql, model):
    train(sql, model)
    found = []
    for fast in ("on", "off"):
        sql(f"SET pg_gpt2.fast = {fast}")
        text = sql("SELECT llm_generate('low', 8, model_name => %s, temperature => 0)", model)
        batch = sql(
            "SELECT array_agg(text) FROM llm_generate_batch('{low,low}', 8, model_name => %s, temperature => 0)", model
        )
        assert all(text.endswith(one) for one in batch)
        scores = conn.execute("SELECT logprob FROM llm_logprobs('low lower newer', %s)", [model]).fetchall()
        choice = sql("SELECT llm_classify('low', '{er,est}', model_name => %s)", model)
        found.append((text, choice, [row[0] for row in scores]))
    assert found[0][:2] == found[1][:2]
    assert found[0][2][1:] == pytest.approx(found[1][2][1:], abs=1e-5)


def test_its_trace_has_its_activation_and_its_scores(conn, sql, model, kind):
    names = {row[0] for row in conn.execute("SELECT name FROM llm_trace('low lower', %s)", [model])}
    assert f"h.1.mlp.{ACTIVATIONS[kind['activation_function']]}" in names
    weights = conn.execute("SELECT weight FROM llm_attention_weights('low lower', 1, 0, %s)", [model]).fetchall()
    assert sum(row[0] for row in weights) == pytest.approx(
        len({*range(len(sql("SELECT llm_encode('low lower', %s)", model)))})
    )


def test_llm_models_says_what_is_not_as_in_gpt2(conn, sql, model, kind):
    (said,) = conn.execute("SELECT architecture FROM llm_models WHERE model = 'v'").fetchone()
    assert said.startswith("gpt2: ")
    words = {True: "true", False: "false", 1e-4: "0.0001"}
    assert said.removeprefix("gpt2: ").split(", ") == [
        f"{name} {words.get(value, value)}" for name, value in kind.items()
    ]
    sql("SELECT llm_init_model('plain', 1, 2, 8, 16, 50)")
    sql("UPDATE llm_model_config SET n_inner = 32 WHERE model = 'plain'")  # which is GPT-2's own
    assert sql("SELECT architecture FROM llm_models WHERE model = 'plain'") == "gpt2"
    assert sql("SELECT count(*) FROM llm_models WHERE preset AND architecture <> 'gpt2'") == 0


def test_a_run_is_replayed_and_its_tape_audited(sql, model):
    run = train(sql, model, audit="'full'")
    assert sql("SELECT what FROM llm_replay(%s)", run) is None
    assert sql("SELECT exact FROM llm_replay(%s)", run)
    sql("SET pg_gpt2.fast = off")
    losses = sql("SELECT array_agg(loss::float8 ORDER BY step) FROM llm_train_log WHERE run_id = %s", run)
    make(sql, "w", {name: sql(f"SELECT {name} FROM llm_model_config WHERE model = 'v'") for name in ARCHITECTURE})
    slow = train(sql, "w")
    others = sql("SELECT array_agg(loss::float8 ORDER BY step) FROM llm_train_log WHERE run_id = %s", slow)
    assert others == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(conn, sql, connect, model, adapter):
    name = model
    if adapter:
        sql("SELECT llm_adapter_create('a', %s, r => 2, targets => '{attn.c_attn,mlp.c_fc,mlp.c_proj}')", model)
        name = "a"
    sql("SELECT llm_copy_model(%s, 'whole')", name)
    sql("INSERT INTO llm_dataset (model, split, tokens, target) SELECT 'whole', split, tokens, target FROM llm_dataset")
    sql("UPDATE llm_dataset SET model = NULL WHERE model = 'v'")
    sql("DELETE FROM llm_dataset WHERE model IS NOT NULL")
    call = "CALL llm_train_run('{}', 6, batch_size => 2, lr_max => 0.02, commit_every => 2, flush_seconds => 0, log_every => 0)"
    conn.execute(call.format("whole"))
    with pytest.raises(errors.QueryCanceled):
        stop_after(connect, call.format(name), name)
    conn.execute(call.format(name))
    assert sql(STATE, name) == sql(STATE, "whole")
    assert sql("SELECT what FROM llm_replay((SELECT max(run_id) FROM llm_run WHERE model = %s))", name) is None


def stop_after(connect, call, name):
    """Run `call`, cancelled once it has committed some steps."""
    session, watcher = connect(), connect()
    watcher.execute(
        "CREATE OR REPLACE FUNCTION stop_it() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN IF NEW.step >= 4 THEN RAISE query_canceled; END IF; RETURN NEW; END$$"
    )
    watcher.execute("CREATE TRIGGER stop_it BEFORE INSERT ON llm_train_log FOR EACH ROW EXECUTE FUNCTION stop_it()")
    try:
        session.execute(call)
    finally:
        watcher.execute("DROP TRIGGER stop_it ON llm_train_log")


def test_a_checkpoint_has_the_architecture(conn, sql, model, kind, server_files):
    path = server_files / "variant.safetensors"
    first = sql("SELECT llm_checkpoint_save(%s)", model)
    stated, text = sql(STATE, model), sql(GENERATE, model)
    train(sql, model)
    second = sql("SELECT llm_checkpoint_save(%s, file_path => %s)", model, str(path))
    try:
        trained = sql(STATE, model)
        changed = conn.execute("SELECT name, changed FROM llm_checkpoint_diff(%s, %s)", [first, second]).fetchall()
        assert {name for name, _ in changed} == params(conn, model).keys()
        assert all(changes for name, changes in changed)
        assert ("lm_head.weight", True) in changed or "tie_word_embeddings" not in kind
        assert {k: sql("SELECT config -> %s FROM llm_checkpoint WHERE id = %s", k, first) for k in kind} == kind
        sql("UPDATE llm_model_config SET activation_function = 'tanh' WHERE model = %s", model)
        sql("SELECT llm_checkpoint_load(%s, %s)", model, first)
        assert (sql(STATE, model), sql(GENERATE, model)) == (stated, text)
        sql("SELECT llm_copy_model(%s, 'then', %s)", model, second)
        assert sql(STATE, "then") == trained
        assert config(sql, "then") == config(sql, model)
        sql("SELECT llm_checkpoint_drop(%s)", second)
    finally:
        path.unlink(missing_ok=True)


def test_of_a_plain_model_a_checkpoint_says_what_it_always_said(sql):
    sql("SELECT llm_init_model('plain', 1, 2, 8, 16, 50)")
    sql("SELECT llm_checkpoint_save('plain')")
    said = sql("SELECT config FROM llm_checkpoint WHERE model = 'plain'")
    assert said.keys() == {"n_layer", "n_head", "d_model", "n_positions", "vocab", "eos_token_id", "stop_token_ids"}
    sql("SELECT llm_drop_model('plain')")


def test_a_copy_and_an_adapter_have_the_architecture(conn, sql, model, kind):
    sql("SELECT llm_copy_model(%s, 'copy')", model)
    assert config(sql, "copy") == config(sql, model)
    assert sql(GENERATE, "copy") == sql(GENERATE, model)
    sql("SELECT llm_adapter_create('a', %s, r => 2, targets => '{attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj}')", model)
    assert config(sql, "a") == config(sql, model)
    assert sql(GENERATE, "a") == sql(GENERATE, model)
    sql("UPDATE llm_dataset SET model = NULL")
    run = train(sql, "a", lr_max=0.1)
    assert sql("SELECT what FROM llm_replay(%s)", run) is None
    sql("SELECT llm_adapter_merge('a', 'merged')")
    assert config(sql, "merged") == config(sql, model)
    ids = [5, 6, 7, 1]
    adapted = logits(conn, "a", ids)
    np.testing.assert_allclose(logits(conn, "merged", ids), adapted, atol=2e-5 * np.abs(adapted).max())
    assert np.abs(adapted - logits(conn, model, ids)).max() > 1e-3


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_a_file_of_the_server_carries_the_architecture(sql, model, target, form):
    sql(f"SELECT pg_llm_export_{form}(%s, %s)", str(target), model)
    sql(f"SELECT pg_llm_import_{form}(%s, 'back')", str(target))
    assert config(sql, "back") == config(sql, model)
    assert sql(STATE.replace("md5(m), md5(v)", "''"), "back") == sql(STATE.replace("md5(m), md5(v)", "''"), model)
    sql("SELECT llm_init_model('plain', 2, 2, 16, 16, 262)")
    with pytest.raises(errors.DataException, match="metadata says"):
        sql(f"SELECT pg_llm_import_{form}(%s, 'plain', true)", str(target))


def test_a_directory_saved_and_loaded_is_the_model(conn, sql, model, kind, tmp_path):
    """As transformers has them, and back; tests/oracle opens such directories there."""
    train(sql, model)
    database = Database(conn)
    with conn.transaction():
        save_model(database, model, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert {name: said[name] for name in ARCHITECTURE} == ARCHITECTURE | kind
    assert HubModel(tmp_path).notes[-1].startswith("not as in GPT-2: ")
    load_model(database, tmp_path, "back")
    assert config(sql, "back") == config(sql, model)
    assert sql(GENERATE, "back") == sql(GENERATE, model)
    sql("SELECT llm_drop_model('back')")
    sql("SELECT pg_llm_import_safetensors(%s, 'back')", readable(tmp_path))
    assert config(sql, "back") == config(sql, model)


def readable(directory: Path) -> str:
    """The path of the weights, which the server may read."""
    for path in (directory, *directory.parents[:3]):
        path.chmod(0o755)
    return str(directory / "model.safetensors")


def test_a_dump_has_it(dsn, sql, model, new_database, tmp_path):
    text = sql(GENERATE, model)
    there = new_database("template0")
    dump = tmp_path / "dump.sql"
    subprocess.run([f"{BINDIR}/pg_dump", "-f", dump, dsn], check=True)
    subprocess.run(
        [f"{BINDIR}/psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, there], check=True, stdout=subprocess.DEVNULL
    )
    with psycopg.connect(there, autocommit=True) as conn:
        assert conn.execute(GENERATE, [model]).fetchone() == (text,)


def test_columns_refuse_what_no_architecture_has(conn, sql):
    sql("INSERT INTO llm_model_config VALUES ('c', 1, 2, 8, 16, 50)")
    for change in (
        "activation_function = 'mish'",
        "activation_function = NULL",
        "n_inner = 0",
        "layer_norm_epsilon = 0",
        "layer_norm_epsilon = 1.5",
        "layer_norm_epsilon = 'NaN'",
        "tie_word_embeddings = NULL",
    ):
        with pytest.raises((errors.CheckViolation, errors.NotNullViolation)):
            sql(f"UPDATE llm_model_config SET {change} WHERE model = 'c'")
    names = sql(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'llm_model_config'::regclass"
        " AND pg_get_constraintdef(oid) LIKE '%%gelu_new%%'"
    )
    assert all(f"'{name}'" in names for name in ACTIVATIONS)
    assert names.count("::text") == len(ACTIVATIONS)
    sql("SELECT llm_drop_model('c')")


def test_the_columns_have_the_engines_defaults(conn, sql):
    sql("INSERT INTO llm_model_config VALUES ('c', 1, 2, 8, 16, 50)")
    row = conn.execute(f"SELECT {COLUMNS} FROM llm_model_config WHERE model = 'c'").fetchone()
    assert dict(zip(ARCHITECTURE, row, strict=True)) == ARCHITECTURE
    sql("SELECT llm_drop_model('c')")


def test_an_output_layer_can_be_shared(conn, sql, model, kind):
    """It is a tensor like the others, of the shape of a vocabulary."""
    sql("SELECT llm_copy_model('v', 'other')")
    sql("UPDATE llm_dataset SET model = NULL")
    share = "SELECT llm_share_param('v', 'lm_head.weight', NULL, 'other')"
    if "tie_word_embeddings" not in kind:
        with pytest.raises(errors.UndefinedObject, match="lm_head"):
            sql(share)
        return
    sql(share)
    sql("SELECT llm_checkpoint_save('other')")
    before = sql("SELECT md5(data) FROM llm_param WHERE model = 'v' AND name = 'lm_head.weight'")
    run = train(sql, "other")
    assert sql("SELECT md5(data) FROM llm_param WHERE model = 'v' AND name = 'lm_head.weight'") != before
    assert sql("SELECT what FROM llm_replay(%s)", run) is None
    sql("SELECT llm_unshare_param('other', 'lm_head.weight', NULL)")
    sql("SELECT llm_drop_model('other')")
