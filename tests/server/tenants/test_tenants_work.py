"""What a tenant can do with its own adapters, and who restores a database."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.server.tenants.victim import POLICIES
from tests.server.test_dump import BINDIR
from tests.server.test_hidden_models import visible_models


def test_a_tenant_can_work_with_what_is_its_own(connect, places):
    """With the level admin: make, teach, save, compare, go back, copy, record, fill, drop; but not take a vocabulary along."""
    conn = connect(options="-c role=north -c client_min_messages=warning")
    conn.execute("SELECT llm_adapter_create('north/new', 'tiny', targets => '{mlp.c_proj}')")
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 40)$$, 'north/new', 8)")
    conn.execute("SELECT llm_train('north/new', 2, batch_size => 2, audit => 'full')")
    conn.execute("CALL llm_train_run('north/new', 1, batch_size => 2, audit => 'tape')")
    (saved,) = conn.execute("SELECT llm_checkpoint_save('north/new')").fetchone()
    conn.execute("SELECT llm_train_step('north/new')")
    assert conn.execute("SELECT bool_or(changed) FROM llm_checkpoint_diff(%s)", [saved]).fetchone() == (True,)
    conn.execute("SELECT llm_checkpoint_load('north/new', %s)", [saved])
    assert conn.execute("SELECT bool_or(changed) FROM llm_checkpoint_diff(%s)", [saved]).fetchone() == (False,)
    conn.execute("SELECT llm_copy_model('north/new', 'north/newer')")
    assert visible_models(conn) == ["north/new", "north/newer", "north/poet", "tiny"]
    with conn.transaction():
        conn.execute("SET LOCAL pg_gpt2.autograd = on")
        conn.execute("SELECT llm_loss('north/new', '{1,2}', '{2,3}')")
        conn.execute("SELECT llm_backprop(model => 'north/new')")
    (run,) = conn.execute("SELECT min(run_id) FROM llm_run").fetchone()
    assert conn.execute("SELECT count(*) > 0 FROM llm_replay(%s)", [run]).fetchone() == (True,)
    conn.execute(
        "INSERT INTO llm_param (model, name, token_id, shape, data) SELECT 'north/new', name, token_id, shape,"
        " pg_llm_tensor(array_fill(0.1, ARRAY[shape[1] * shape[2]]))"
        """ FROM llm_import_begin('north/new', '{"base": "tiny", "r": 2}', true)"""
    )
    assert conn.execute("SELECT r FROM llm_adapter WHERE model = 'north/new'").fetchone() == (2,)
    conn.execute("SELECT llm_logits('{1}', 'north/new')")
    for statement in ("llm_adapter_merge('north/new', 'north/merged')", "llm_copy_model('tiny', 'north/copy')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"policy for table .llm_bpe_vocab"):
            conn.execute(f"SELECT {statement}")
    conn.execute("SELECT llm_checkpoint_drop(%s)", [saved])
    conn.execute("SELECT llm_drop_model('north/new'), llm_drop_model('north/newer')")


def test_tenants_train_at_the_same_time(connect, places):
    """On one base, and each gets what it gets alone."""
    load = "SELECT llm_dataset_load($$SELECT repeat('low lower ', 40)$$, 'north/poet', 8)"
    train = "SELECT llm_train('{0}/poet', 2, batch_size => 1, seed => 3)"
    weights = "SELECT md5(string_agg(data, '' ORDER BY name)) FROM llm_param WHERE model = '{0}/poet'"

    def trained(role: str) -> str:
        with connect() as conn:
            conn.execute(f"SET ROLE {role}; BEGIN")
            conn.execute(train.format(role))
            (found,) = conn.execute(weights.format(role)).fetchone()
            conn.execute("ROLLBACK")
            return found

    owner = connect()
    owner.execute(load)
    try:
        alone = [trained(role) for role in ("north", "south")]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(trained, ("north", "south")))
    finally:
        owner.execute("DELETE FROM llm_dataset WHERE model = 'north/poet'")
    assert together == alone


def test_a_restored_database_needs_the_policies_again(new_database, dsn, places):
    """pg_dump keeps what was granted on tables of an extension, not their policies; the page says so."""
    restored = new_database("template0")
    dump = subprocess.run([f"{BINDIR}/pg_dump", dsn], check=True, capture_output=True).stdout
    subprocess.run(
        [f"{BINDIR}/psql", "-XqAt", "-v", "ON_ERROR_STOP=1", restored], input=dump, check=True, capture_output=True
    )
    with psycopg.connect(restored, autocommit=True) as conn:
        adapters = "SELECT array_agg(model ORDER BY model) FROM llm_adapter"
        conn.execute("SET ROLE north")
        assert conn.execute(adapters).fetchone() == (["north/poet", "south/poet"],)
        conn.execute("RESET ROLE")
        conn.execute(POLICIES)
        conn.execute("SET ROLE north")
        assert conn.execute(adapters).fetchone() == (["north/poet"],)
        conn.execute("SELECT llm_generate('low', 1, model_name => 'north/poet')")
        conn.execute("RESET ROLE")
        assert conn.execute("SELECT count(*) FROM llm_generate('low', 1, model_name => 'south/poet')").fetchone() == (
            1,
        )
        conn.execute("DROP OWNED BY north, south")


def test_a_stranger_is_told_of_the_right_that_is_missing_and_not_of_policies(connect, places):
    """Who was granted nothing may not read the tables at all, whatever policies say."""
    conn = connect()
    with conn.transaction(force_rollback=True):
        conn.execute("CREATE ROLE stranger; SET LOCAL ROLE stranger")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="llm_model_config") as raised:
            conn.execute("SELECT llm_generate('low', 1, model_name => 'tiny')")
    assert "llm_grant_usage('stranger', 'read')" in (raised.value.diag.message_hint or "")
