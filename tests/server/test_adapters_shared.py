"""Adapters in sessions and for roles: the file of the base's weights, what the caches hold, what a tenant must see."""

from pathlib import Path

import psycopg
import pytest

from tests.server.adapters import LOGITS

NUMBERS = "SELECT kind, model, bytes, shared FROM llm_cache_status() WHERE kind = 'weights' ORDER BY model"
OWN = 4 * 2 * (256 * 8 + 8 * 768)  # bytes of an adapter of rank 8 of both layers of `big`


@pytest.fixture(scope="module")
def big(module_conn: psycopg.Connection) -> Path:
    """A base that is large enough to be shared, with adapters x0 to x4; the folder of the files."""
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest' $$, 262, 'big')")
    module_conn.execute("SELECT llm_init_model('big', 2, 4, 256, 64, 4096)")
    module_conn.execute("SELECT llm_adapter_create('x' || i, 'big', seed => i) FROM generate_series(0, 4) AS i")
    module_conn.execute(
        "UPDATE llm_param SET data = pg_llm_tensor(array_fill(0.01, shape))"
        " WHERE model = 'x0' AND name = 'h.0.attn.c_attn.lora_B'"
    )
    (place,) = module_conn.execute("SHOW data_directory").fetchone()
    return Path(place) / "base" / "pgsql_tmp"


def one(conn: psycopg.Connection, query: str, *given: object) -> object:
    return conn.execute(query, given or None).fetchone()[0]


def test_an_adapter_maps_the_file_of_its_base(connect, big):
    """Also in a session that has never used the base; the file is then the base's."""
    conn, other = connect(), connect()
    one(conn, "SELECT llm_cache_clear()")
    assert one(conn, LOGITS, "x0") != one(other, LOGITS, "big")
    status = conn.execute(NUMBERS).fetchall()
    assert (status[0][1], status[0][3]) == ("big", True)
    assert status[1] == ("weights", "x0", OWN, False)
    assert one(other, "SELECT shared FROM llm_cache_status() WHERE model = 'big' AND kind = 'weights'") is True
    database = one(conn, "SELECT oid FROM pg_database WHERE datname = current_database()")
    files = [path for path in big.iterdir() if path.stat().st_size > 1 << 20 and f"base-{database}-" in path.name]
    assert len(files) == 1, "of this database; others may have some"


def test_an_adapter_made_in_a_transaction_maps_the_file_there_too(connect, big):
    one(connect(), LOGITS, "big")
    conn = connect()
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT llm_adapter_create('new', 'big')")
        one(conn, LOGITS, "new")
        assert one(conn, "SELECT shared FROM llm_cache_status() WHERE model = 'big' AND kind = 'weights'") is True


def test_many_adapters_cost_their_own_bytes(connect, big):
    conn = connect()
    for number in range(5):
        one(conn, LOGITS, f"x{number}")
    rows = conn.execute(NUMBERS).fetchall()
    assert [row[1:] for row in rows[1:]] == [(f"x{number}", OWN, False) for number in range(5)]
    assert [row[1] for row in rows].count("big") == 1


def test_a_private_base_is_there_once(connect, big):
    """A transaction that has written has the base in memory of its own, once for all adapters."""
    conn = connect()
    conn.execute("BEGIN")
    conn.execute("UPDATE llm_param SET data = data WHERE model = 'big' AND name = 'ln_f.bias'")
    for model in ("x0", "x1", "big"):
        one(conn, LOGITS, model)
    rows = conn.execute(NUMBERS).fetchall()
    assert [row[1] for row in rows] == ["big", "x0", "x1"]
    whole = rows[0][2]
    conn.execute("ROLLBACK")
    assert one(conn, "SELECT llm_cache_clear()") < whole + 2 * OWN + (1 << 20)


def test_adapters_go_before_their_base_when_memory_is_short(connect, big):
    conn = connect()
    wanted = [one(conn, LOGITS, model) for model in ("x0", "x1", "x2", "big")]
    conn.execute("SET pg_gpt2.max_memory = '60MB'")
    conn.execute("SELECT llm_cache_clear()")
    assert [one(conn, LOGITS, model) for model in ("x0", "x1", "x2", "big")] == wanted


TENANT = """
    CREATE ROLE tenant;
    SELECT llm_grant_usage('tenant', 'train');
    ALTER TABLE llm_model_config ENABLE ROW LEVEL SECURITY;
    ALTER TABLE llm_adapter ENABLE ROW LEVEL SECURITY;
    ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY;
    ALTER TABLE llm_param_share ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON llm_model_config TO tenant USING (model = 'x0');
    CREATE POLICY own ON llm_adapter TO tenant USING (model = 'x0');
    CREATE POLICY own ON llm_param TO tenant USING (model = 'x0');
    CREATE POLICY base ON llm_param FOR SELECT TO tenant USING (model = 'big');
    CREATE POLICY own ON llm_param_share TO tenant USING (target_model = 'x0');
"""
WITHOUT_TENANT = """
    RESET ROLE;
    DROP POLICY own ON llm_model_config; DROP POLICY own ON llm_adapter; DROP POLICY own ON llm_param;
    DROP POLICY base ON llm_param;
    DROP POLICY own ON llm_param_share;
    ALTER TABLE llm_model_config DISABLE ROW LEVEL SECURITY;
    ALTER TABLE llm_adapter DISABLE ROW LEVEL SECURITY;
    ALTER TABLE llm_param DISABLE ROW LEVEL SECURITY;
    ALTER TABLE llm_param_share DISABLE ROW LEVEL SECURITY;
    DROP OWNED BY tenant; DROP ROLE tenant
"""


@pytest.fixture
def tenant(connect, big):
    """A session of a role that sees adapter x0, and of the base nothing but its weights."""
    conn = connect()
    conn.execute(TENANT)
    conn.execute("SET ROLE tenant")
    yield conn
    conn.execute(WITHOUT_TENANT)


def test_a_role_that_sees_an_adapter_and_the_rows_of_its_base_can_use_and_train_it(tenant, connect):
    expected = one(connect(), LOGITS, "x0")
    assert one(tenant, LOGITS, "x0") == expected
    assert one(tenant, "SELECT array_agg(model) FROM llm_models") == ["x0"]
    tenant.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('x0', '{1,2,3}', '{2,3,4}')")
    one(tenant, "SELECT llm_train_step('x0')")
    assert one(tenant, LOGITS, "x0") != expected


def test_it_maps_the_file_of_a_base_that_it_may_not_name(tenant, connect):
    one(connect(), LOGITS, "big")
    one(tenant, LOGITS, "x0")
    tenant.execute("RESET ROLE")
    assert one(tenant, "SELECT shared FROM llm_cache_status() WHERE kind = 'weights' AND model = 'big'") is True


@pytest.mark.parametrize("model", ["big", "x1", "nosuch"])
def test_other_adapters_and_the_base_do_not_exist_for_it(tenant, model):
    """From a session in which a superuser has just used them."""
    tenant.execute("RESET ROLE")
    for warm in ("x0", "x1", "big"):
        one(tenant, LOGITS, warm)
    tenant.execute("SET ROLE tenant")
    with pytest.raises(psycopg.errors.UndefinedObject, match=f'model "{model}" does not exist'):
        one(tenant, LOGITS, model)
    assert tenant.execute("SELECT model FROM llm_cache_status() WHERE kind = 'weights'").fetchall() == [("x0",)]


def test_a_base_whose_rows_a_role_may_not_read_is_not_found(tenant):
    tenant.execute("RESET ROLE")
    one(tenant, LOGITS, "x0")
    tenant.execute("ALTER POLICY base ON llm_param USING (false)")
    tenant.execute("SET ROLE tenant")
    with pytest.raises(psycopg.Error, match='adapter "x0" finds no row of its base') as caught:
        one(tenant, LOGITS, "x0")
    assert caught.value.sqlstate == "22000"


def test_rows_of_ones_own_do_not_pass_for_those_of_a_hidden_base(tenant):
    """A role that may write the rows of its adapter cannot give other rows the name of a base that it does not see."""
    tenant.execute("RESET ROLE")
    with tenant.transaction(force_rollback=True):
        tenant.execute("SELECT llm_copy_model('big', 'mine')")
        tenant.execute(
            "ALTER POLICY own ON llm_param USING (model IN ('x0', 'mine')); ALTER POLICY base ON llm_param USING (false)"
        )
        tenant.execute("GRANT UPDATE ON llm_param_share TO tenant; SET LOCAL ROLE tenant")
        assert tenant.execute("UPDATE llm_param_share SET source_model = 'mine'").rowcount > 0
        with pytest.raises(psycopg.Error, match='adapter "x0" finds no row of its base'):
            one(tenant, LOGITS, "x0")
