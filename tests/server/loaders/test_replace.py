"""Loading keeps to what holds for an import of the server: models in training, tensors that models share, adapters of a base."""

import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
import safetensors.numpy

from loaders import common
from loaders.common import Database, LoaderError
from loaders.serve.__main__ import bring
from tests.server.loaders.hub import CONFIG, assert_same, hub_names, load, stored, weights
from tests.server.loaders.test_load_adapter import into, peft, write
from tests.server.loaders.test_load_adapter import weights as adapter_weights

LOGITS = "SELECT llm_logits(ARRAY[1, 2, 3, 299], %s)"
READ = "SELECT count(*), count(DISTINCT (name, token_id)) FROM llm_param_resolved WHERE model = %s"
TENSORS = len(CONFIG.shapes())


@pytest.fixture
def changed(directory):
    """The model of `directory` with other weights."""
    path = directory.with_name("changed")
    path.mkdir()
    safetensors.numpy.save_file(hub_names(weights(1)), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text((directory / "config.json").read_text())
    return path


@pytest.fixture
def adapter(tmp_path):
    """A directory as PEFT writes it."""
    return write(tmp_path / "adapter", peft(adapter_weights()))


def value(conn, query, *parameters):
    return conn.execute(query, parameters).fetchone()[0]


@contextmanager
def training(connect, model):
    """A run of `model` in another session, some steps after its beginning, and what ends it: as one that was asked to end."""
    conn, other = connect(), connect()
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('tables are the truth ', 40)$$, %s, 8)", [model])
    run = "CALL llm_train_run(%s, 1000000, batch_size => 2, log_every => 0, commit_every => 1)"
    failed = []

    def train():
        try:
            other.execute(run, [model])
        except psycopg.Error as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive() and value(conn, "SELECT count(*) FROM llm_train_log WHERE model = %s", model) < 2:
        time.sleep(0.01)

    def stop():
        conn.execute("SELECT llm_train_stop(%s)", [model])
        thread.join(60)
        assert failed == []
        assert value(conn, "SELECT status FROM llm_run WHERE model = %s", model) == "stopped"

    try:
        yield stop
    finally:
        other.cancel()
        thread.join(60)


def waits(conn, dsn, loading):
    """`loading(a session of the loaders)` in a thread that waits for a lock; the thread."""
    session = common.connect(dsn)

    def work():
        with session:
            loading(session)

    thread = threading.Thread(target=work)
    thread.start()
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND pid = %s"
    while not value(conn, waiting, session.info.backend_pid):
        assert thread.is_alive(), "it did not wait"
        time.sleep(0.01)
    return thread


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_a_model_in_training_is_waited_for(conn, dsn, connect, directory, changed, adapter, vocabulary, capsys, what):
    for name in ("vocab.json", "merges.txt"):
        (directory / name).write_text((vocabulary / name).read_text())
    base = f"base of {what}"
    load(conn, directory, base)
    trained, expected = base, weights(1)
    if what == "adapter":
        into(conn, adapter, base, trained := "adapter")
        adapter, expected = write(adapter.with_name("other"), peft(adapter_weights(seed=1))), adapter_weights(seed=1)

    def loading(session):
        if what == "model":
            load(session, changed, trained, replace=True)
        else:
            into(session, adapter, base, trained, replace=True)

    with training(connect, trained) as stop:
        thread = waits(conn, dsn, loading)
        stop()
        thread.join(60)
    assert not thread.is_alive()
    assert_same(stored(conn, trained), expected)
    assert f'waiting for the lock of model "{trained}": session' in capsys.readouterr().err
    conn.execute("SELECT llm_train(%s, 1, batch_size => 2)", [trained])


def test_two_servers_that_begin_at_once_bring_the_shipped_model_once(conn, dsn, connect):
    first, brought = connect(), []
    with first.transaction():
        bring(Database(first))
        thread = waits(conn, dsn, lambda session: brought.append(bring(Database(session))))
    thread.join(60)
    assert brought == [None]
    conn.execute("SELECT llm_generate('The', 2, model_name => 'postgresql-docs')")


@pytest.mark.parametrize("shared", [["wte", "h.1.mlp.c_fc.weight"], list(CONFIG.shapes())])
def test_a_model_that_shares_tensors_has_all_of_its_own_then(conn, directory, changed, shared):
    source, model = (f"{name} of {len(shared)}" for name in ("source", "sharer"))
    load(conn, directory, source)
    load(conn, directory, model)
    for name in shared:
        conn.execute("SELECT llm_share_param(%s, %s, NULL, %s)", [source, name, model])
    with pytest.raises(LoaderError, match=f'model "{model}" has weights already; --replace replaces them'):
        load(conn, changed, model)
    load(conn, changed, model, replace=True)
    assert conn.execute(READ, [model]).fetchone() == (TENSORS, TENSORS)
    assert_same(stored(conn, model), weights(1))
    assert_same(stored(conn, source), weights())
    conn.execute(LOGITS, [model])


def test_those_who_share_its_tensors_share_the_new_ones(conn, directory, changed):
    """As after an import with `replace`."""
    load(conn, directory, "shared")
    load(conn, directory, "other")
    conn.execute("SELECT llm_share_param('shared', 'wpe', NULL, 'other')")
    load(conn, changed, "shared", replace=True)
    (found,) = conn.execute("SELECT data FROM llm_param_resolved WHERE model = 'other' AND name = 'wpe'").fetchone()
    assert found == weights(1)["wpe"].tobytes()


def outside(conn, model):
    """Let the model have a tensor that is another's."""
    conn.execute("SELECT llm_copy_model(%s, %s)", [model, f"donor of {model}"])
    conn.execute("SELECT llm_share_param(%s, 'wte', NULL, %s)", [f"donor of {model}", model])


def in_other_blocks(conn, model):
    """Cut a tensor of the model into blocks of 100 rows, as somebody who writes rows may."""
    (data,) = conn.execute("SELECT data FROM llm_param WHERE model = %s AND name = 'wte'", [model]).fetchone()
    conn.execute("DELETE FROM llm_param WHERE model = %s AND name = 'wte'", [model])
    conn.cursor().executemany(
        "INSERT INTO llm_param (model, name, token_id, shape, data) VALUES (%s, 'wte', %s, '{100,16}', %s)",
        [(model, first, data[64 * first : 64 * (first + 100)]) for first in (0, 100, 200)],
    )


@pytest.mark.parametrize("before", [None, outside, in_other_blocks])
def test_adapters_of_a_base_use_its_new_weights(conn, directory, changed, before):
    base = f"base before {before and before.__name__}"
    load(conn, directory, base)
    if before is not None:
        before(conn, base)
    conn.execute("SELECT llm_adapter_create(%s, %s)", [f"adapter of {base}", base])
    old = value(conn, LOGITS, base)
    load(conn, changed, base, replace=True)
    assert value(conn, LOGITS, f"adapter of {base}") == value(conn, LOGITS, base) != old, "a new adapter adds zeros"
    assert value(conn, READ, f"adapter of {base}") == TENSORS + 2 * CONFIG.n_layer
    assert value(conn, "SELECT count(*) FROM llm_param_share WHERE source_model = %s", base) == TENSORS


@pytest.mark.parametrize("kind", ["of a base", "of an ordinary model", "without weights"])
def test_another_shape_is_refused_and_nothing_changes(conn, directory, changed, kind):
    """Whatever a model has beside its weights, adapters and checkpoints among them, fits its shape."""
    model = f"shape {kind}"
    rows = "SELECT jsonb_agg(to_jsonb(c)) FROM llm_model_config AS c WHERE model = %s"
    if kind == "without weights":
        conn.execute("INSERT INTO llm_model_config VALUES (%s, 2, 2, 16, 32, 301)", [model])
    else:
        load(conn, directory, model)
        conn.execute("UPDATE llm_model_config SET n_head = 4 WHERE model = %s", [model])
    if kind == "of a base":
        conn.execute("SELECT llm_adapter_create(%s, %s)", [f"adapter of {model}", model])
    before, logits = value(conn, rows, model), kind != "without weights" and value(conn, LOGITS, model)
    with pytest.raises(
        psycopg.errors.DataException, match=rf'says (n_head|vocab) = \d+, and model "{model}"'
    ) as raised:
        load(conn, changed, model, replace=True)
    assert raised.value.diag.message_hint.startswith("Import it under another name, or change llm_model_config")
    assert value(conn, rows, model) == before
    if logits:
        assert value(conn, LOGITS, model) == logits


def test_the_level_admin_loads_and_no_level_below(conn, connect, directory, changed, adapter, vocabulary):
    for name in ("vocab.json", "merges.txt"):
        (directory / name).write_text((vocabulary / name).read_text())
    conn.execute("CREATE ROLE loader")
    try:
        conn.execute("SELECT llm_grant_usage('loader', 'train')")
        session = connect(options="-c role=loader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="llm_import_begin"):
            load(session, directory, "of a role")
        conn.execute("SELECT llm_grant_usage('loader', 'admin')")
        load(session, directory, "of a role")
        into(session, adapter, "of a role", "adapter of a role")
        load(session, changed, "of a role", replace=True)
        into(session, adapter, "of a role", "adapter of a role", replace=True)
        assert_same(stored(session, "of a role"), weights(1))
        assert_same(stored(session, "adapter of a role"), adapter_weights())
    finally:
        conn.execute("DROP OWNED BY loader; DROP ROLE loader")
