"""Nobody's search_path and nobody's names have an effect on the statements of the extension."""

import ast
import re
from pathlib import Path

import psycopg
import pytest

from tests.server.privileges.reading import READING, TABLES


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


def test_only_known_names_are_put_into_the_text_of_statements():
    """A review as a test: what the f-strings with SQL in them interpolate. Names of models, paths and values are parameters."""
    constant_of_sql = re.compile(
        r"(\w+\.)?[A-Z_]+|_slot\(\d\)|_stored\((kind|'(data|m|v)'), '\$\d'\)"
        r"|((store|sharing)\.)?(resolved|trained|changed_too)\(('\$2'|'m\.name'|'llm_run\.model'|model|config)?\)"
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
    for path in sorted((Path(__file__).parents[3] / "plpython" / "pg_gpt2").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            constant = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            if re.search(r"\{schema\}|\b(SELECT .* FROM .* WHERE|pg_advisory|set_config|GRANT )", constant):
                places = {ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)}
                found[f"{path.name}:{node.lineno}"] = {p for p in places - allowed if not constant_of_sql.fullmatch(p)}
    assert found
    assert {place: names for place, names in found.items() if names} == {}


TRIGGERS = [
    ("llm_model_config_changed", "BEFORE INSERT ON mine FOR EACH ROW"),
    ("llm_model_config_changed", "AFTER DELETE ON mine FOR EACH ROW"),
    ("llm_model_config_changed", "AFTER DELETE ON llm_model_config FOR EACH STATEMENT"),
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
