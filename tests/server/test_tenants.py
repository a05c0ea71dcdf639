"""Tenants on one base, attacked: all that a tenant can do with another's adapter is what it could do if there were none.

The policies are those of docs/how-to/tenants.md. The attacker has the level admin, reads and writes files of the server, and
shares its session with its victim, as behind a pooler: the victim has just used its adapter, and the caches are warm.
"""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.server.test_dump import BINDIR
from tests.server.test_hidden_models import (
    CASES,
    NO_ROWS_OF_MODELS,
    OWN_TAPE,
    ROWS,
    SAME_FOR_ALL,
    VIEWS,
    outcome,
    prepared,
    remove_files,
)

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "tenants.md"
POLICIES = re.search(r"```sql\n(DO .*?)```", PAGE.read_text(), re.DOTALL)[1]

PREPARE = """
    SET client_min_messages = warning;
    SELECT setval('llm_run_run_id_seq', 51001), setval('llm_checkpoint_id_seq', 62001); -- ids that nothing else has
    SELECT setval('llm_tape_tape_id_seq', 73001), setval('llm_handle_seq', 840001);
    SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 265, 'tiny');
    SELECT llm_init_model('tiny', 1, 2, 8, 1024, seed => 1);
    SELECT llm_adapter_create('south/poet', 'tiny', 2, 4, '{attn.c_attn,mlp.c_fc}');
    SELECT llm_dataset_load($$SELECT repeat('low lower ', 40)$$, 'south/poet', 8);
    SELECT llm_train('south/poet', 2, batch_size => 2, audit => 'full', lr_max => 0.1);
    SELECT llm_checkpoint_save('south/poet');
    SELECT llm_checkpoint_save('south/poet', file_path => '{folder}/hidden.npz');
    SELECT llm_checkpoint_load('south/poet', (SELECT min(id) FROM llm_checkpoint));
    SELECT llm_train('south/poet', 1, batch_size => 2, audit => 'full', lr_max => 0.1);
    SELECT llm_adapter_create('north/poet', 'tiny', seed => 2);
    SELECT llm_checkpoint_save('north/poet', file_path => '{folder}/elsewhere.npz');
    SELECT pg_llm_export_safetensors('{folder}/shown.safetensors', 'tiny');
    SELECT pg_llm_export_npz('{folder}/shown.npz', 'tiny');
    DELETE FROM llm_checkpoint WHERE model = 'north/poet';
    SELECT llm_grant_usage('north', 'admin'), llm_grant_usage('south', 'train');
    GRANT pg_read_server_files, pg_write_server_files TO north;
    REVOKE TRUNCATE ON ALL TABLES IN SCHEMA public FROM north;
"""

# What adapters are made of and made into, and what is written without the functions.
ATTACKS = [
    "SELECT llm_adapter_create('north/of_it', '{m}')",
    "SELECT llm_adapter_create('{m}', 'tiny')",
    "SELECT llm_adapter_merge('{m}', 'north/merged')",
    "SELECT llm_adapter_merge('north/poet', '{m}')",
    "SELECT llm_share_param('{m}', 'h.0.attn.c_attn.lora_A', NULL, 'north/poet')",
    "SELECT llm_share_param('north/poet', 'h.0.attn.c_attn.lora_A', NULL, '{m}')",
    "SELECT llm_unshare_param('{m}', 'wte')",
    "INSERT INTO llm_adapter VALUES ('north/of_it', '{m}', 2, 4, '{{attn.c_attn}}', 0, NULL)",
    "INSERT INTO llm_adapter VALUES ('{m}', 'tiny', 2, 4, '{{attn.c_attn}}', 0, NULL)",
    "UPDATE llm_adapter SET base = '{m}' WHERE model = 'north/poet' RETURNING 1",
    "UPDATE llm_adapter SET alpha = 5 WHERE model = '{m}' RETURNING 1",
    "UPDATE llm_param SET model = '{m}' WHERE model = 'north/poet' RETURNING 1",
    "UPDATE llm_param SET data = data WHERE model = '{m}' RETURNING 1",
    "DELETE FROM llm_param WHERE model = '{m}' RETURNING 1",
    "DELETE FROM llm_adapter WHERE model = '{m}' RETURNING 1",
    "INSERT INTO llm_param_share VALUES ('{m}', 'h.0.attn.c_attn.lora_A', 0, 'north/poet', 'h.0.attn.c_attn.lora_A', 0)",
    "INSERT INTO llm_param_share VALUES ('tiny', 'wpe', 0, '{m}', 'h.0.attn.c_attn.lora_A', 0)",
    "INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES ('{m}', 1, 2, 8, 16, 265)",
    "INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES ('{m}', 1, 2, 8, 16, 265)"
    " ON CONFLICT DO NOTHING",
    "INSERT INTO llm_dataset (model, split, tokens, target) VALUES ('{m}', 'train', '{{1}}', '{{2}}')",
    "INSERT INTO llm_run (model) VALUES ('{m}')",
    "SELECT llm_generate('low', 3, seed => 1) FROM set_config('pg_gpt2.model', '{m}', true)",
]
BASES_ONLY = {"llm_bpe_vocab", "llm_bpe_merges"}  # no adapter has rows of these
ALL = sorted({statement: name for name, statement in CASES}.items()) + [(attack, "") for attack in ATTACKS]


@pytest.fixture(scope="module")
def places(module_conn, server_files):
    """What stands for the victim's adapter and what is its, and for one that there is not."""
    module_conn.execute("CREATE ROLE north; CREATE ROLE south")
    yield prepared(module_conn, server_files, PREPARE, POLICIES)
    module_conn.execute("RESET ROLE; DROP OWNED BY north, south; DROP ROLE north, south")
    remove_files(server_files)


@pytest.fixture(scope="module")
def session(dsn, places):
    """One session for all: the victim and its attacker by turns."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def warm(conn: psycopg.Connection) -> int:
    """As the victim: weights, tokenizer, texts read, training state and the session's tape are those of its adapter. A handle."""
    conn.execute("SET ROLE south")
    conn.execute("SELECT llm_generate('low', 2, model_name => 'south/poet')")
    conn.execute("BEGIN; SELECT llm_train_step('south/poet'); ROLLBACK")
    conn.execute("SET pg_gpt2.autograd = on; SELECT llm_loss('south/poet', '{1,2}', '{2,3}'); RESET pg_gpt2.autograd")
    (handle,) = conn.execute("SELECT max(id) FROM llm_tensor_rt").fetchone()
    conn.execute("SET ROLE north")
    return handle


@pytest.mark.parametrize(("statement", "function"), ALL)
def test_anothers_adapter_is_as_one_that_was_never_made(session, places, statement, function):
    """By name, in all functions and by SQL: the same rows or the same error, whatever the session has in memory."""
    hidden, absent = places
    hidden = hidden | {"handle": warm(session)}
    assert outcome(session, statement, hidden) == outcome(session, statement, absent)


def test_the_victim_can_do_what_the_attacker_tries(session, places):
    """So that it is the policies that keep the attacker away, not a mistake in the statements."""
    hidden, absent = places
    hidden = hidden | {"handle": warm(session)}
    session.execute("RESET ROLE")
    for statement, function in ALL:
        told = statement.startswith("SELECT") and statement.format(**hidden) != statement.format(**absent)
        if told and "-adapter" not in statement and function not in SAME_FOR_ALL | OWN_TAPE | {"llm_adapter_create"}:
            assert outcome(session, statement, hidden) != outcome(session, statement, absent), statement


@pytest.mark.parametrize(
    "relation", sorted(ROWS.keys() - {"llm_bpe_vocab", "llm_bpe_merges"})
)  # an adapter has none of these
def test_no_row_of_anothers_adapter_is_seen(session, places, relation):
    warm(session)
    session.execute("RESET ROLE")
    condition = (ROWS | {"llm_adapter": "model = 'south/poet'"})[relation]
    keys = "ctid" if relation not in VIEWS else sql.Identifier(relation).as_string(None)
    found = session.execute(f"SELECT {keys}::text FROM {relation} WHERE {condition}").fetchall()
    assert found, "there are rows to be hidden"
    session.execute("SET ROLE north")
    assert not set(found) & set(session.execute(f"SELECT {keys}::text FROM {relation}").fetchall())


def test_its_name_is_nowhere(session, places):
    """In the doctor's words, the caches' status, any row, or the errors about the base that it shares."""
    warm(session)
    places = ("llm_doctor()", "llm_cache_status()", "llm_checkpoint_list()", *ROWS)
    for place in (*places, *NO_ROWS_OF_MODELS - {"llm_module"}):
        assert session.execute(f"SELECT count(*) FROM {place} AS t WHERE t::text ~ 'south'").fetchone() == (0,), place
    assert {model for (model,) in session.execute("SELECT model FROM llm_cache_status()")} <= {"tiny", "north/poet"}
    with pytest.raises(
        psycopg.errors.DependentObjectsStillExist, match='"tiny" is the base of "north/poet"\n'
    ) as error:
        session.execute("SELECT llm_drop_model('tiny')")
    assert "south" not in str(error.value.diag.message_hint)


def test_the_session_tape_is_its_maker_s(session, places):
    """Values of the victim's adapter are on the tape that the session goes on with."""
    handle = warm(session)
    for query in ("SELECT * FROM llm_tensor_rt WHERE id = %s", "SELECT * FROM llm_tape WHERE output = %s"):
        assert session.execute(query, [handle]).fetchall() == [], query
    with pytest.raises(psycopg.errors.UndefinedObject, match="does not exist"):
        session.execute("SELECT llm_value(%s)", [handle])


def test_a_tenant_can_work_with_what_is_its_own(connect, places):
    """With the level admin: make, teach, save, compare, go back, copy, record, drop; but not take a vocabulary along."""
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
    assert conn.execute("SELECT array_agg(model ORDER BY model) FROM llm_models").fetchone() == (
        ["north/new", "north/newer", "north/poet", "tiny"],
    )
    with conn.transaction():
        conn.execute("SET LOCAL pg_gpt2.autograd = on")
        conn.execute("SELECT llm_loss('north/new', '{1,2}', '{2,3}')")
        conn.execute("SELECT llm_backprop(model => 'north/new')")
    (run,) = conn.execute("SELECT min(run_id) FROM llm_run").fetchone()
    assert conn.execute("SELECT count(*) > 0 FROM llm_replay(%s)", [run]).fetchone() == (True,)
    for statement in ("llm_adapter_merge('north/new', 'north/merged')", "llm_copy_model('tiny', 'north/copy')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"policy for table .llm_bpe_vocab"):
            conn.execute(f"SELECT {statement}")
    conn.execute("SELECT llm_checkpoint_drop(%s)", [saved])
    conn.execute("SELECT llm_drop_model('north/new'), llm_drop_model('north/newer')")


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


def test_estimates_do_not_tell_that_a_name_is_there(connect, places):
    """EXPLAIN shows what the planner expects of a name that somebody guesses; it has no statistics of names."""
    owner = connect()
    with owner.transaction(force_rollback=True):
        owner.execute("INSERT INTO llm_dataset (model, split, tokens, target)"
                      " SELECT 'south/poet', 'train', '{1}', '{2}' FROM generate_series(1, 2000)")  # fmt: skip
        owner.execute("INSERT INTO llm_param SELECT 'south/poet', 'x' || i, 0, shape, data FROM generate_series(1, 1000) AS i,"
                      " (SELECT shape, data FROM llm_param LIMIT 1) AS p")  # fmt: skip
        owner.execute("ANALYZE")
        columns = owner.execute(
            "SELECT attrelid::regclass::text, attname FROM pg_attribute WHERE attrelid::regclass::text IN ({}) AND atttypid"
            " = 'text'::regtype".format(", ".join(f"'{name}'" for name in ROWS.keys() - VIEWS - BASES_ONLY))
        ).fetchall()
        assert len(columns) > 12
        owner.execute("SET LOCAL ROLE north")
        for table, column in columns:
            for operator in ("=", "<", ">"):
                plans = [
                    [
                        line.replace(name, "<m>")
                        for (line,) in owner.execute(f"EXPLAIN SELECT FROM {table} WHERE {column} {operator} '{name}'")
                    ]
                    for name in ("south/poet", "south/none", "nobody/none")
                ]
                assert plans[0] == plans[1] == plans[2], (table, column, operator)


# Functions of the level train, which a tenant needs, while the victim's adapter is in training.
TRAINING = [
    (name, statement)
    for name, statement in CASES
    if re.match("llm_(train|dataset|accumulate|generate|loss|evaluate|backprop)", name) and name != "llm_train_bpe"
]


def test_a_tenant_does_not_wait_for_another_s_training(connect, places):
    """Nor is it told that somebody trains: what is locked is not asked for before the caller is seen to see it."""
    hidden, absent = places
    victim, attacker = connect(), connect()
    attacker.execute("SET lock_timeout = '5s'; SET ROLE north")
    heard = []
    attacker.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    with victim.transaction(force_rollback=True):
        victim.execute("SET LOCAL ROLE south; SELECT llm_train('south/poet', 1, batch_size => 2)")
        for name, statement in TRAINING:
            heard.clear()
            if name not in OWN_TAPE:
                expected = outcome(attacker, statement, absent)
                assert outcome(attacker, statement, hidden) == expected, statement
            assert not any("lock" in message for message in heard), statement


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
