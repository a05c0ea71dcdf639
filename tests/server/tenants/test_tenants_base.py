"""The base that tenants share is nobody's to change, and what is kept of it in memory and in a file has nothing of an adapter."""

from pathlib import Path

import psycopg
import pytest

from tests.server.tenants.victim import warm

BASE = """
    SELECT md5(string_agg(concat_ws(' ', name, token_id, ctid, xmin, md5(data)), ',' ORDER BY name, token_id)),
        (SELECT md5(string_agg(token::text, '' ORDER BY t.token_id)) FROM llm_bpe_vocab AS t WHERE model = 'tiny'),
        (SELECT c::text FROM llm_model_config AS c WHERE model = 'tiny')
    FROM llm_param WHERE model = 'tiny'
"""


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE llm_param SET data = data WHERE model = 'tiny'",
        "DELETE FROM llm_param WHERE model = 'tiny'",
        "UPDATE llm_param SET model = 'tiny' WHERE model = 'north/poet'",
        "DELETE FROM llm_bpe_vocab WHERE model = 'tiny'",
        "UPDATE llm_model_config SET n_head = 1 WHERE model = 'tiny'",
        "DELETE FROM llm_model_config WHERE model = 'tiny'",
        "INSERT INTO llm_param SELECT 'tiny', 'x', token_id, shape, data FROM llm_param WHERE model = 'north/poet'",
        "INSERT INTO llm_param_share VALUES ('north/poet', 'h.0.attn.c_attn.lora_A', 0, 'tiny', 'wpe', 0)",
        "INSERT INTO llm_adapter VALUES ('tiny', 'north/poet', 2, 4, '{attn.c_attn}', 0, NULL)",
        "INSERT INTO llm_dataset (model, split, tokens, target) VALUES ('tiny', 'train', '{1}', '{2}')",
        "INSERT INTO llm_dataset (model, split, tokens, target) VALUES (NULL, 'train', '{1}', '{2}')",
        "SELECT llm_dataset_load($$SELECT repeat('low ', 40)$$, 'tiny', 8)",
        "SELECT llm_drop_model('north/poet'), llm_drop_model('tiny')",
        "SELECT llm_init_model('tiny', 1, 2, 8, 16, 265)",
        "SELECT llm_train_bpe($$VALUES ('low')$$, 260, 'tiny')",
        "SELECT llm_train_step('tiny', '{1}', '{2}')",
        "SELECT llm_checkpoint_save('tiny')",
        "SELECT llm_import_safetensors(string_agg(c, ''), 'tiny', true) FROM llm_export_safetensors('tiny') AS c",
        "INSERT INTO llm_param (model, name, token_id, shape, data) SELECT 'tiny', name, token_id, shape,"
        " pg_llm_tensor(array_fill(1, ARRAY[shape[1] * coalesce(shape[2], 1)])) FROM llm_import_begin('tiny', (SELECT to_jsonb(c)"
        " - '{model,preset,init_seed,chat_template}'::text[] FROM llm_model_config AS c WHERE model = 'tiny'), true)",
        "SELECT pg_llm_import_npz('{folder}/shown.npz', 'tiny', true)",
        "SELECT pg_llm_load_bpe_vocab('{folder}/vocab.json', 'tiny')",
        "SELECT llm_share_param('north/poet', 'wte', NULL, 'tiny')",
        "SELECT llm_unshare_param('tiny', 'wte')",
        "SELECT llm_copy_model('north/poet', 'tiny')",
        "SELECT llm_adapter_create('tiny', 'north/poet')",
        "SELECT llm_adapter_merge('north/poet', 'tiny')",
    ],
)
def test_the_base_is_nobody_s_to_change(session, connect, places, server_files, statement):
    """A tenant with the level admin reads it; what others get from it stays."""
    owner = connect()
    before = owner.execute(BASE).fetchone()
    warm(session)
    session.execute("BEGIN")
    try:
        cursor = session.execute(statement.replace("{folder}", str(server_files)))
        assert cursor.rowcount == 0 or "llm_checkpoint_save" in statement, "nothing was refused, and something done"
    except psycopg.Error:
        pass
    finally:
        session.execute("ROLLBACK")
    assert owner.execute(BASE).fetchone() == before


TEXT = "low lower newer wider " * 60  # long enough to be kept for texts that begin alike, in rows of weights, too


def used(conn: psycopg.Connection) -> dict[str, tuple]:
    """Table -> what this transaction has read of it."""
    rows = conn.execute(
        "SELECT relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname LIKE 'llm%'"
    ).fetchall()
    return {name: tuple(counts) for name, *counts in rows}


def first_token(conn: psycopg.Connection) -> tuple[str, dict]:
    """What the attacker's first token is, and what was read for it."""
    with conn.transaction():
        conn.execute("SET LOCAL ROLE north")
        before = used(conn)
        (text,) = conn.execute(
            f"SELECT llm_generate('{TEXT}', 1, temperature => 0, model_name => 'north/poet')"
        ).fetchone()
        return text, {name: [x - y for x, y in zip(counts, before[name])] for name, counts in used(conn).items()}


def test_a_warm_adapter_of_another_does_nothing_for_ones_own(connect, places):
    """The attacker's first token comes of the same reads of tables, whether the victim has read the same text with its adapter in
    this session or not; what was read for the base serves all."""
    base_only, victim_too = connect(), connect()
    for conn in (base_only, victim_too):
        conn.execute(f"SELECT llm_generate('{TEXT}', 1, temperature => 0, model_name => 'tiny')")
    victim_too.execute("SET ROLE south")
    victim_too.execute(f"SELECT llm_generate('{TEXT}', 1, temperature => 0, model_name => 'south/poet')")
    victim_too.execute("RESET ROLE")
    (expected, reads), found = first_token(base_only), first_token(victim_too)
    assert found == (expected, reads)
    _, by_scan, _, by_index = reads["llm_param"]
    assert by_scan + by_index > 0, "its own rows"
    for conn in (base_only, victim_too):
        status = "SELECT kind, model, tokens_saved FROM llm_cache_status() WHERE kind IN ('weights', 'prefix')"
        conn.execute("SET ROLE north")
        assert sorted(conn.execute(status).fetchall(), key=str) == [
            ("prefix", "north/poet", 0),
            ("weights", "north/poet", None),
            ("weights", "tiny", None),
        ]
        first_token(conn)
        saved = conn.execute("SELECT tokens_saved FROM llm_cache_status() WHERE kind = 'prefix'").fetchone()[0]
        assert saved > 0, "the attacker's own text is found again"


def test_nothing_is_kept_under_a_key_that_two_tenants_share(connect, places):
    """Weights, by name and version, and texts, by role as well: an entry is the base's, or one tenant's."""
    conn = connect()
    for role in ("north", "south"):
        conn.execute(f"SET ROLE {role}")
        conn.execute(f"SELECT llm_generate('{TEXT}', 1, model_name => '{role}/poet')")
        conn.execute(f"SELECT llm_generate('{TEXT}', 1, model_name => 'tiny')")
        seen = conn.execute("SELECT kind, model, tokens_saved FROM llm_cache_status() ORDER BY 1, 2").fetchall()
        assert seen == [
            ("prefix", f"{role}/poet", 0),
            ("prefix", "tiny", 0),
            ("tokenizer", "tiny", None),
            ("weights", f"{role}/poet", None),
            ("weights", "tiny", None),
        ]
    conn.execute("RESET ROLE")
    versions = conn.execute("SELECT model, version, bytes FROM llm_cache_status() WHERE kind = 'weights'").fetchall()
    assert sorted(name for name, *_ in versions) == ["north/poet", "south/poet", "tiny"]
    assert len({version for _, version, _ in versions}) == 3


@pytest.fixture
def large(module_conn, places):
    """A base that is large enough for a file of its own, with an adapter each; its name is that of the page's."""
    module_conn.execute("ALTER TABLE llm_param DISABLE ROW LEVEL SECURITY")
    names = "model IN ('large', 'north/large', 'south/large')"
    for table in ("llm_model_config", "llm_param"):
        module_conn.execute(f"CREATE POLICY large ON {table} FOR SELECT USING (model = 'large')")
    module_conn.execute("CREATE POLICY large ON llm_adapter FOR SELECT USING (starts_with(model, current_user || '/'))")
    module_conn.execute(
        "CREATE POLICY large ON llm_param_share FOR SELECT USING (starts_with(target_model, current_user || '/'))"
    )
    module_conn.execute("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY")
    module_conn.execute("SELECT llm_init_model('large', 2, 4, 256, 64, 4096)")
    for role in ("north", "south"):
        module_conn.execute(f"SELECT llm_adapter_create('{role}/large', 'large')")
    yield names
    for name in ("north/large", "south/large", "large"):
        module_conn.execute("SELECT llm_drop_model(%s)", [name])
    for table in ("llm_model_config", "llm_param", "llm_adapter", "llm_param_share"):
        module_conn.execute(f"DROP POLICY large ON {table}")


def test_the_shared_file_has_the_base_and_nothing_else(connect, large):
    conn = connect()
    conn.execute("SELECT llm_cache_clear()")
    (data,) = conn.execute("SHOW data_directory").fetchone()
    (oid,) = conn.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
    files = lambda: {  # noqa: E731
        path.name: path.read_bytes() for path in (Path(data) / "base/pgsql_tmp").glob(f"pgsql_tmp_pg_gpt2_base-{oid}-*")
    }
    conn.execute("SELECT llm_logits('{1,2,3}', 'large')")
    of_base = files()
    assert len(of_base) == 1
    for role in ("south", "north"):
        other = connect()
        other.execute(f"SET ROLE {role}")
        other.execute(f"SELECT llm_logits('{{1,2,3}}', '{role}/large')")
        assert other.execute(
            "SELECT model, shared FROM llm_cache_status() WHERE kind = 'weights' ORDER BY 1"
        ).fetchall() == [("large", True), (f"{role}/large", False)]
    assert files() == of_base, "a file for the base, which using adapters does not change"
    (content,) = of_base.values()
    rows = conn.execute(
        "SELECT name, data FROM llm_param WHERE model LIKE '%/large' AND name LIKE '%.lora_A'"
    ).fetchall()
    assert rows
    assert all(values[:64] not in content for _, values in rows)
    conn.execute("SELECT llm_cache_clear()")
    adapters_first = connect()
    adapters_first.execute("SET ROLE south; SELECT llm_logits('{1,2,3}', 'south/large')")
    assert files() == of_base, "the same file where a tenant is the first to need the base"
