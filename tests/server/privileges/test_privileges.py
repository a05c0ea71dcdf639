"""Everything runs with the caller's rights, also from a warm session."""

from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from tests.server.privileges.reading import READING, TABLES

DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def role(module_conn):
    """A new role that owns nothing and may do nothing beside what PUBLIC may."""
    module_conn.execute("CREATE ROLE reader")
    yield "reader"
    module_conn.execute("DROP OWNED BY reader; DROP ROLE reader")


@contextmanager
def acting_as(conn, role):
    conn.execute(f"SET ROLE {role}")
    try:
        yield
    finally:
        conn.execute("RESET ROLE")


@pytest.mark.parametrize("statement", READING.values(), ids=READING)
def test_set_role_in_a_warm_session_loses_what_the_role_may_not_read(warm, role, statement):
    expected = warm.execute(statement).fetchall()
    with acting_as(warm, role), pytest.raises(DENIED):
        warm.execute(statement)
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}")
    with acting_as(warm, role):
        assert warm.execute(statement).fetchall() == expected
    warm.execute(f"REVOKE ALL ON {TABLES} FROM {role}")
    with acting_as(warm, role), pytest.raises(DENIED):
        warm.execute(statement)


@pytest.mark.parametrize("column", ["data", "shape"])
def test_a_role_that_may_read_other_columns_only_gets_nothing_from_the_cache(warm, role, column):
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}; REVOKE SELECT ON llm_param FROM {role}")
    columns = {"model", "name", "token_id", "shape", "data", "grad", "m", "v", "step"} - {column}
    warm.execute(f"GRANT SELECT ({', '.join(columns)}) ON llm_param TO {role}")
    with acting_as(warm, role), pytest.raises(DENIED, match="llm_param"):
        warm.execute(READING["logits"])


@pytest.mark.parametrize(
    "table", ["llm_model_config", "llm_param", "llm_param_share", "llm_bpe_vocab", "llm_bpe_merges"]
)
def test_every_table_that_generation_reads_is_checked(warm, role, table):
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}; REVOKE SELECT ON {table} FROM {role}")
    with acting_as(warm, role), pytest.raises(DENIED, match=table):
        warm.execute(READING["generate"])


def test_a_security_definer_function_lends_its_rights(warm, role):
    warm.execute(
        "CREATE FUNCTION ask(text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog"
        " AS $$SELECT public.llm_generate($1, 3, model_name => 'tiny', seed => 1)$$"
    )
    expected = warm.execute(READING["generate"]).fetchone()
    with acting_as(warm, role):
        assert warm.execute("SELECT ask('low')").fetchone() == expected
        with pytest.raises(DENIED):
            warm.execute(READING["generate"])
    warm.execute("DROP FUNCTION ask")


@pytest.mark.parametrize("table", ["llm_param", "llm_bpe_vocab", "llm_bpe_merges", "llm_model_config"])
def test_row_level_security_hides_a_model_from_a_warm_session(warm, role, table):
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}")
    expected = warm.execute(READING["generate"]).fetchall()
    with acting_as(warm, role):
        assert warm.execute(READING["generate"]).fetchall() == expected
    warm.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    try:
        with acting_as(warm, role):
            if table == "llm_bpe_merges":  # without merges a vocabulary is one of bytes
                assert warm.execute("SELECT cardinality(llm_encode('lower', 'tiny'))").fetchone() == (5,)
            else:
                with pytest.raises((psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.UndefinedObject)):
                    warm.execute(READING["generate"])
        assert warm.execute(READING["generate"]).fetchall() == expected, "a superuser is not filtered"
        warm.execute(f"CREATE POLICY all_of_it ON {table} TO {role} USING (model = 'tiny')")
        with acting_as(warm, role):
            assert warm.execute(READING["generate"]).fetchall() == expected
    finally:
        warm.execute(f"DROP POLICY IF EXISTS all_of_it ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


def test_row_level_security_on_single_rows_counts(warm, role):
    """A policy that shows only some of the rows is a model with missing tensors, or a vocabulary with fewer tokens."""
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}")
    warm.execute("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY")
    warm.execute(f"CREATE POLICY most ON llm_param TO {role} USING (name <> 'wpe')")
    warm.execute("ALTER TABLE llm_bpe_vocab ENABLE ROW LEVEL SECURITY")
    warm.execute(f"CREATE POLICY most ON llm_bpe_vocab TO {role} USING (token_id <> 64)")
    try:
        with acting_as(warm, role):
            with pytest.raises(psycopg.errors.DataException, match="wpe"):
                warm.execute(READING["logits"])
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                warm.execute("SELECT llm_decode('{64}', 'tiny')")
        assert warm.execute("SELECT llm_decode('{64}', 'tiny')").fetchone() == ("a",)
    finally:
        for table in ("llm_param", "llm_bpe_vocab"):
            warm.execute(f"DROP POLICY most ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


@pytest.mark.parametrize(
    "policy",
    [
        "token_id <> 64",
        "llm_bpe_vocab::text !~ '^.tiny,64,'",
        "NOT EXISTS (SELECT FROM generate_series(64, 64) AS n WHERE n = token_id)",
        "ctid NOT IN (SELECT ctid FROM llm_bpe_vocab WHERE token_id = 64)",
        "model <> 'tiny' OR bytes <> 'a'",
    ],
)
def test_a_policy_that_shows_a_part_of_a_vocabulary_is_seen_whatever_it_goes_by(warm, role, policy):
    """While one that goes by the model shows all of it or nothing, and the rows are not looked at."""
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}; ALTER TABLE llm_bpe_vocab ENABLE ROW LEVEL SECURITY")
    own = "starts_with(model, 't') AND current_user <> 'nobody' AND (SELECT count(*) FROM generate_series(1, 2)) > 1"
    version = "SELECT version FROM llm_cache_status() WHERE kind = 'tokenizer' AND model = 'tiny'"
    if "SELECT ctid" in policy:  # of its own table, which a policy cannot read
        warm.execute(
            "CREATE VIEW place AS SELECT ctid FROM llm_bpe_vocab WHERE token_id = 64; GRANT SELECT ON place TO PUBLIC"
        )
        policy = "ctid NOT IN (SELECT ctid FROM place)"
    decode = "SELECT llm_decode('{64}', 'tiny')"
    try:
        for condition, shows_all in ((own, True), (policy, False)):
            warm.execute(f"CREATE POLICY part ON llm_bpe_vocab TO {role} USING ({condition})")
            warm.execute(decode)  # a superuser's, which stays in memory
            expected = warm.execute(version).fetchone()
            with acting_as(warm, role):
                if shows_all:
                    assert warm.execute(decode).fetchone() == ("a",)
                    assert warm.execute(version).fetchone() == expected, "the tokenizer that was there"
                else:
                    with pytest.raises(psycopg.errors.InvalidParameterValue):
                        warm.execute(decode)
            warm.execute("DROP POLICY part ON llm_bpe_vocab")
    finally:
        warm.execute("DROP POLICY IF EXISTS part ON llm_bpe_vocab; DROP VIEW IF EXISTS place")
        warm.execute("ALTER TABLE llm_bpe_vocab DISABLE ROW LEVEL SECURITY")


CHANGING = {
    "init": "SELECT llm_init_model('mine', 1, 2, 8, 16, 50)",
    "copy": "SELECT llm_copy_model('tiny', 'mine')",
    "drop": "SELECT llm_drop_model('tiny')",
    "train": "SELECT llm_train('tiny', 1)",
    "step": "SELECT llm_train_step('tiny')",
    "vocabulary": "SELECT llm_train_bpe('SELECT body FROM documents', 260, 'mine')",
    "data": "SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)",
}


@pytest.mark.parametrize("statement", CHANGING.values(), ids=CHANGING)
def test_what_changes_models_needs_execute_and_the_rights_to_write(warm, role, statement):
    warm.execute(f"GRANT SELECT ON {TABLES}, documents TO {role}")
    with acting_as(warm, role), pytest.raises(DENIED, match="permission denied for function"):
        warm.execute(statement)
    warm.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    warm.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('tiny', '{1,2}', '{2,3}')")
    with acting_as(warm, role), pytest.raises(DENIED, match=r"permission denied for (table|view)"):
        warm.execute(statement)
    warm.execute(f"DELETE FROM llm_dataset; REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM {role}")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT llm_train_bpe('SELECT body FROM documents', 260, 'mine')",
        "SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)",
    ],
)
def test_a_source_is_read_with_the_callers_rights(warm, role, statement):
    warm.execute(
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
    )
    warm.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}; REVOKE ALL ON documents FROM {role}")
    with warm.transaction(force_rollback=True):
        warm.execute(f"SET LOCAL ROLE {role}")
        with pytest.raises(DENIED, match="documents"), warm.transaction():
            warm.execute(statement)
        warm.execute("RESET ROLE")
        warm.execute(f"GRANT SELECT ON documents TO {role}")
        warm.execute(f"SET LOCAL ROLE {role}")
        warm.execute(statement)


def test_public_may_read_no_model(conn, role):
    with acting_as(conn, role):
        for table in TABLES.split(", "):
            with pytest.raises(DENIED):
                conn.execute(f"SELECT FROM {table}")
        with pytest.raises(DENIED):
            conn.execute("SELECT FROM llm_models")
        assert conn.execute("SELECT count(*) > 0 FROM llm_module").fetchone() == (True,)


@pytest.mark.parametrize("name", ["AppX", "john.doe@x", "r'o\\ \"x", "first last", "16384", "-"])
def test_a_role_may_have_any_name(connect, name):
    """It is no identifier that somebody wrote: another role may have it in lower case."""
    conn = connect()
    with conn.transaction(force_rollback=True):
        conn.execute("CREATE ROLE appx")
        conn.execute(sql.SQL("CREATE ROLE {0}; ALTER ROLE {0} SET pg_gpt2.modle = 'm'").format(sql.Identifier(name)))
        conn.execute("SELECT llm_grant_usage('appx', 'admin'), llm_grant_usage(%s, 'admin')", [name])
        conn.execute("SET LOCAL pg_gpt2.tape = 'session'; SET LOCAL SESSION AUTHORIZATION appx")
        (of_appx,) = conn.execute("SELECT llm_tape_id()").fetchone()
        conn.execute(sql.SQL("SET LOCAL SESSION AUTHORIZATION {}").format(sql.Identifier(name)))
        assert conn.execute("SELECT llm_tape_id()").fetchone() != (of_appx,)
        conn.execute("SELECT llm_op('gelu', ARRAY[llm_variable(pg_llm_tensor('{1,2}'), '{2}', true)])")
        conn.execute("SELECT llm_backprop()")
        recorded = "SELECT DISTINCT recorded_by FROM {} WHERE tape_id = llm_tape_id()"
        for table in ("llm_tape", "llm_tensor_rt"):
            assert conn.execute(recorded.format(table)).fetchall() == [(name,)]
        conn.execute("SELECT llm_init_model('own', 1, 2, 8, 16, 50)")
        conn.execute("INSERT INTO llm_dataset (model, split, tokens, target) VALUES ('own', 'train', '{1,2}', '{2,3}')")
        conn.execute("SELECT llm_train('own', 1, batch_size => 1)")
        assert conn.execute("SELECT value FROM llm_doctor() WHERE item = 'pg_gpt2.modle'").fetchall() == [("m",)]


def test_what_is_refused_names_who_gives_the_right(warm, role):
    """Of tables, sequences and functions of the extension; of somebody else's the server's words are enough."""

    def hint(statement: str) -> str | None:
        with acting_as(warm, role), pytest.raises(DENIED) as raised:
            warm.execute(statement)
        return raised.value.diag.message_hint

    warm.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    call = "The owner of the extension gives it: SELECT public.llm_grant_usage"
    to_read = f"{call}('reader', 'read'); or 'train' or 'admin', to write."
    assert hint(READING["generate"]) == to_read
    warm.execute(f"GRANT SELECT ON llm_param, llm_model_config TO {role}")
    assert hint(READING["generate"]) == to_read, "some of the level read is not all of it"
    assert "llm_grant_usage" in hint("SELECT llm_init_model('mine', 1, 1, 2, 2, 3)")
    assert hint("SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)")
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}; GRANT INSERT ON llm_dataset TO {role}")
    assert hint("SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)") is None, "somebody else's"
    warm.execute(f"GRANT SELECT ON documents TO {role}")
    warm.execute(f"GRANT INSERT ON llm_tape, llm_tensor_rt TO {role}")
    assert hint("SELECT llm_tape_id()") == f"{call}('reader', 'train'); or 'admin'.", (
        "a sequence, which the level read that the role has does not give"
    )
    warm.execute("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY; SET row_security = off")
    try:
        assert hint(READING["generate"]).endswith("SET row_security = on.")
    finally:
        warm.execute("ALTER TABLE llm_param DISABLE ROW LEVEL SECURITY; RESET row_security")
    warm.execute(f"ALTER TABLE llm_dataset ENABLE ROW LEVEL SECURITY; GRANT USAGE ON llm_dataset_id_seq TO {role}")
    try:
        assert "row-level security" in hint("SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)")
    finally:
        warm.execute("ALTER TABLE llm_dataset DISABLE ROW LEVEL SECURITY")
