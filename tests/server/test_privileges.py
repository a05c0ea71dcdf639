"""Everything runs with the caller's rights and under nobody's search_path, also from a warm session."""

import ast
import re
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

DENIED = psycopg.errors.InsufficientPrivilege
TABLES = (
    "llm_model_config, llm_adapter, llm_param, llm_param_share, llm_bpe_vocab, llm_bpe_merges, llm_dataset, llm_run,"
    " llm_train_log"
)


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 265, 'tiny')")
    module_conn.execute("SELECT llm_init_model('tiny', 1, 2, 16, 32, seed => 1)")
    module_conn.execute("CREATE TABLE documents AS SELECT repeat('low lower ', 30) AS body")


@pytest.fixture
def role(module_conn):
    """A new role that owns nothing and may do nothing beside what PUBLIC may."""
    module_conn.execute("CREATE ROLE reader")
    yield "reader"
    module_conn.execute("DROP OWNED BY reader; DROP ROLE reader")


@pytest.fixture
def warm(module_conn):
    """A session that has the model and its tokenizer in memory."""
    module_conn.execute("SELECT llm_generate('low', 3, model_name => 'tiny', seed => 1)")
    return module_conn


@contextmanager
def acting_as(conn, role):
    conn.execute(f"SET ROLE {role}")
    try:
        yield
    finally:
        conn.execute("RESET ROLE")


READING = {
    "generate": "SELECT llm_generate('low', 3, model_name => 'tiny', seed => 1)",
    "stream": "SELECT (llm_generate_stream('low', 3, model_name => 'tiny', seed => 1)).text",
    "logits": "SELECT llm_logits('{1}', 'tiny')",
    "encode": "SELECT llm_encode('low', 'tiny')",
    "export": "SELECT llm_export_safetensors('tiny')",
}


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


def test_a_source_is_read_under_the_callers_search_path(warm):
    with warm.transaction(force_rollback=True):
        warm.execute("CREATE SCHEMA mine; CREATE TABLE mine.documents AS SELECT 'zzzz zzzz zzzz'::text AS body")
        warm.execute("CREATE FUNCTION mine.lower(text) RETURNS text LANGUAGE sql AS $$SELECT 'qqqq qqqq'$$")
        warm.execute("SET LOCAL search_path = mine, public, pg_catalog")
        warm.execute("SELECT llm_train_bpe('SELECT body FROM documents', 258, 'mine')")
        assert warm.execute("SELECT \"left\" FROM llm_bpe_merges WHERE model = 'mine'").fetchone() == ("z",)
        warm.execute("SELECT llm_train_bpe('SELECT lower(body) FROM documents', 258, 'mine2')")
        assert warm.execute("SELECT \"left\" FROM llm_bpe_merges WHERE model = 'mine2'").fetchone() == ("q",)
        warm.execute("SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 4)")
        assert "z" in warm.execute("SELECT llm_decode(tokens, 'tiny') FROM llm_dataset").fetchone()[0]
        assert warm.execute("SHOW search_path").fetchone() == ("mine, public, pg_catalog",)


def test_a_failing_source_leaves_the_search_path(warm):
    warm.execute("SET search_path = public, pg_temp")
    with pytest.raises(psycopg.errors.DivisionByZero):
        warm.execute("SELECT llm_train_bpe('SELECT (1 / (300 - x))::text FROM generate_series(1, 400) AS x', 260, 'x')")
    assert warm.execute("SHOW search_path").fetchone() == ("public, pg_temp",)


def test_objects_of_the_caller_earlier_in_the_search_path_have_no_effect(warm):
    """Tables, operators, functions and casts of the caller, also temporary ones."""
    expected = {name: warm.execute(statement).fetchall() for name, statement in READING.items()}
    with warm.transaction(force_rollback=True):
        warm.execute("CREATE SCHEMA trap")
        for place in ("trap", "pg_temp"):
            for table in TABLES.split(", "):
                warm.execute(f"CREATE TABLE {place}.{table} (LIKE public.{table})")
        for body, name, arguments in (
            ("true", "eq", "text, text"),
            ("true", "eq", "integer, integer"),
        ):
            warm.execute(f"CREATE FUNCTION trap.{name}({arguments}) RETURNS boolean LANGUAGE sql AS 'SELECT {body}'")
            left, right = arguments.split(", ")
            warm.execute(f"CREATE OPERATOR trap.= (FUNCTION = trap.{name}, LEFTARG = {left}, RIGHTARG = {right})")
        warm.execute("CREATE FUNCTION trap.md5(text) RETURNS text LANGUAGE sql AS $$SELECT 'same'$$")
        warm.execute(
            "CREATE FUNCTION trap.concat_ws(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS $$SELECT 'same'$$"
        )
        warm.execute(
            "CREATE FUNCTION trap.current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$SELECT 'nope'$$"
        )
        warm.execute("SET LOCAL search_path = pg_temp, trap, public, pg_catalog")
        for name, statement in READING.items():
            assert warm.execute(statement).fetchall() == expected[name]
        warm.execute(
            "UPDATE public.llm_param SET data = set_bit(data, 0, 1 - get_bit(data, 0))"
            " WHERE model OPERATOR(pg_catalog.=) 'tiny'"
        )
        assert warm.execute(READING["logits"]).fetchall() != expected["logits"]
        warm.execute("SELECT llm_copy_model('tiny', 'copy'); SELECT llm_drop_model('tiny')")
        assert warm.execute(
            "SELECT count(*) FROM public.llm_param WHERE model OPERATOR(pg_catalog.=) 'tiny'"
        ).fetchone() == (0,)


def test_types_and_functions_of_the_caller_have_no_effect_on_a_procedure(connect, warm):
    """It cannot have a SET clause: its first statement runs under the caller's search_path."""
    warm.execute("SELECT llm_init_model('run', 1, 1, 8, 8, 20); CREATE SCHEMA snare")
    warm.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('run', '{1,2}', '{2,3}')")
    warm.execute(
        "CREATE FUNCTION snare.fail() RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'snare'; END$$;"
        " CREATE DOMAIN snare.text AS pg_catalog.text CHECK (snare.fail());"
        " CREATE FUNCTION snare.set_config(pg_catalog.text, pg_catalog.text, boolean) RETURNS pg_catalog.text LANGUAGE sql"
        " AS 'SELECT snare.fail()::pg_catalog.text'"
    )
    conn = connect(options="-c search_path=snare,public,pg_catalog")
    try:
        for steps in (1, 2):
            conn.execute(f"CALL llm_train_run('run', {steps}, batch_size => 1, log_every => 0, commit_every => 1)")
        assert conn.execute("SHOW search_path").fetchone() == ("snare,public,pg_catalog",)
    finally:
        warm.execute(
            "DROP SCHEMA snare CASCADE; SELECT llm_drop_model('run'); DELETE FROM llm_dataset WHERE model = 'run'"
        )


def test_public_may_read_no_model(conn, role):
    with acting_as(conn, role):
        for table in TABLES.split(", "):
            with pytest.raises(DENIED):
                conn.execute(f"SELECT FROM {table}")
        with pytest.raises(DENIED):
            conn.execute("SELECT FROM llm_models")
        assert conn.execute("SELECT count(*) > 0 FROM llm_module").fetchone() == (True,)


def test_only_known_names_are_put_into_the_text_of_statements():
    """A review as a test: what the f-strings with SQL in them interpolate. Names of models, paths and values are parameters."""
    constant_of_sql = re.compile(
        r"(\w+\.)?[A-Z_]+|_slot\(\d\)|(store\.)?(resolved|trained)\(('\$2'|'m\.name'|model|config)?\)"
    )
    allowed = {"table", "column", "kind"}  # from tuples of names in the source
    allowed |= {
        "model",
        "source",
        "state",
        "condition",
        "row_version",
        "as_saved",
        "used",
        "key",
        "pieces",
        "rows",
        "digest",
        "trained",
        "rows.part",
        "which",
        "but",
    }  # parameters and variables of SQL
    found: dict[str, set[str]] = {}
    for path in sorted((Path(__file__).parents[2] / "plpython" / "pg_gpt2").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            constant = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            if re.search(r"\{schema\}|\b(SELECT .* FROM .* WHERE|pg_advisory|set_config|GRANT )", constant):
                places = {ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)}
                found[f"{path.name}:{node.lineno}"] = {p for p in places - allowed if not constant_of_sql.fullmatch(p)}
    assert found
    assert {place: names for place, names in found.items() if names} == {}


def test_what_is_refused_names_who_gives_the_right(warm, role):
    """Of tables, sequences and functions of the extension; of somebody else's the server's words are enough."""

    def hint(statement: str) -> str | None:
        with acting_as(warm, role), pytest.raises(DENIED) as raised:
            warm.execute(statement)
        return raised.value.diag.message_hint

    warm.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    assert hint(READING["generate"]) == (
        "The owner of the extension gives it: SELECT public.llm_grant_usage('reader', 'read'); or 'train' or 'admin', to write."
    )
    assert "llm_grant_usage" in hint("SELECT llm_init_model('mine', 1, 1, 2, 2, 3)")
    assert hint("SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)")
    warm.execute(f"GRANT SELECT ON {TABLES} TO {role}; GRANT INSERT ON llm_dataset TO {role}")
    assert hint("SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)") is None, "somebody else's"
    warm.execute(f"GRANT SELECT ON documents TO {role}")
    warm.execute(f"GRANT INSERT ON llm_tape, llm_tensor_rt TO {role}")
    assert hint("SELECT llm_tape_id()") == (
        "The owner of the extension gives it: SELECT public.llm_grant_usage('reader', 'train'); or 'admin'."
    ), "a sequence, which the level read that the role has does not give"
    warm.execute(f"ALTER TABLE llm_dataset ENABLE ROW LEVEL SECURITY; GRANT USAGE ON llm_dataset_id_seq TO {role}")
    try:
        assert "row-level security" in hint("SELECT llm_dataset_load('SELECT body FROM documents', 'tiny', 8)")
    finally:
        warm.execute("ALTER TABLE llm_dataset DISABLE ROW LEVEL SECURITY")


TRIGGERS = [
    ("llm_model_config_replaces_preset", "BEFORE INSERT ON mine FOR EACH ROW"),
    ("llm_model_config_replaces_preset", "AFTER DELETE ON mine FOR EACH ROW"),
    ("llm_model_config_replaces_preset", "AFTER DELETE ON llm_model_config FOR EACH STATEMENT"),
    ("llm_bpe_changed", "AFTER INSERT ON mine FOR EACH STATEMENT"),
    ("llm_bpe_changed", "BEFORE INSERT ON llm_bpe_vocab FOR EACH ROW"),
    ("llm_autograd_mode_update", "BEFORE UPDATE ON mine FOR EACH ROW"),
    ("llm_autograd_mode_update", "AFTER TRUNCATE ON mine FOR EACH STATEMENT"),
]


@pytest.mark.parametrize(("function", "place"), TRIGGERS)
def test_a_trigger_function_of_ours_on_another_table_explains(warm, function, place):
    with warm.transaction(force_rollback=True):
        warm.execute("CREATE TABLE mine (a integer, model text); INSERT INTO mine VALUES (1, 'gpt2-xl')")
        warm.execute(f"CREATE TRIGGER odd {place} EXECUTE FUNCTION {function}()")
        with pytest.raises(psycopg.errors.TriggerProtocolViolated, match="odd") as raised:
            warm.execute(
                "INSERT INTO mine VALUES (2, 'gpt2-xl'); UPDATE mine SET a = 3; DELETE FROM mine; TRUNCATE mine;"
                " DELETE FROM llm_model_config WHERE model = 'gpt2-xl'; INSERT INTO llm_bpe_vocab VALUES ('v', 1, 'a', 1, 'a')"
            )
        assert raised.value.diag.message_hint


PLACEHOLDERS = [
    "{schema}",
    "{0}",
    "{}",
    "{",
    "@extschema@",
    "@package@",
    "$1",
    "%s",
    "%(a)s",
    "a'b",
    'a"b',
    "a\nb",
    "\\",
    ";--",
]


def test_names_made_of_placeholders_stay_what_they_are(new_database, cluster_dsn):
    """Of roles, models and databases: what the code puts into its statements is never put into a name."""
    name = "".join(PLACEHOLDERS)
    with psycopg.connect(cluster_dsn, autocommit=True) as other:
        roles = [*PLACEHOLDERS, name]
        quoted = [psycopg.sql.Identifier(role + "_team") for role in roles]
        database = psycopg.sql.Identifier(name)
        other.execute(psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE template_pg_gpt2").format(database))
        try:
            with psycopg.connect(cluster_dsn, dbname=name, autocommit=True) as conn:
                for role, identifier in zip(roles, quoted):
                    conn.execute(psycopg.sql.SQL("CREATE ROLE {}").format(identifier))
                    conn.execute("SELECT llm_grant_usage(%s, 'admin')", [f"{role}_team"])
                    use_as(conn, identifier, role)
                    conn.execute(psycopg.sql.SQL("DROP OWNED BY {}").format(identifier))
        finally:
            other.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
            for identifier in quoted:
                other.execute(psycopg.sql.SQL("DROP ROLE IF EXISTS {}").format(identifier))


def use_as(conn, role, model):
    """Make, teach, save, compare, use and drop a model, as a role."""
    conn.execute(psycopg.sql.SQL("SET ROLE {}").format(role))
    source = f"SELECT {conn.execute('SELECT quote_literal(%s)', [model + ' low lower']).fetchone()[0]}::text"
    conn.execute("SELECT llm_train_bpe(%s, 260, %s)", [source, model])
    conn.execute("SELECT llm_init_model(%s, 1, 1, 4, 8)", [model])
    conn.execute("SELECT llm_dataset_load(%s, %s, 2)", [source, model])
    conn.execute("SELECT llm_train(%s, 1, batch_size => 1)", [model])
    saved = conn.execute("SELECT llm_checkpoint_save(%s, %s)", [model, model]).fetchone()[0]
    assert conn.execute("SELECT count(*) FROM llm_checkpoint_diff(%s)", [saved]).fetchone()[0]
    text = conn.execute("SELECT llm_generate(%s, 3, temperature => 0, model_name => %s)", [model, model]).fetchone()[0]
    assert text.startswith(model)
    assert conn.execute("SELECT model FROM llm_models WHERE n_params > 0").fetchall() == [(model,)]
    conn.execute("SELECT llm_copy_model(%s, %s), llm_drop_model(%s)", [model, model + "2", model])
    conn.execute("SELECT llm_drop_model(%s)", [model + "2"])
    conn.execute("RESET ROLE")
