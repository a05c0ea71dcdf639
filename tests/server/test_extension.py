"""CREATE and DROP EXTENSION: in any schema, under any search_path, undone by ROLLBACK, and leaving nothing behind."""

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = (
    "-c standard_conforming_strings=off -c array_nulls=off -c bytea_output=escape -c extra_float_digits=-15"
    " -c quote_all_identifiers=on",
    "-c default_transaction_isolation=serializable -c plan_cache_mode=force_generic_plan -c jit=on -c jit_above_cost=0"
    " -c enable_indexscan=off -c enable_bitmapscan=off -c enable_sort=off -c work_mem=64kB",
    "-c parallel_setup_cost=0 -c parallel_tuple_cost=0 -c min_parallel_table_scan_size=0",
)

# Everything that a database has beside system objects.
OBJECTS = """
    SELECT 'relation', c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    UNION ALL SELECT 'function', p.oid::regprocedure::text FROM pg_proc p WHERE p.oid >= 16384
    UNION ALL SELECT 'type', t.oid::regtype::text FROM pg_type t WHERE t.oid >= 16384
    UNION ALL SELECT 'trigger', tgname::text FROM pg_trigger
    UNION ALL SELECT 'schema', nspname::text FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT 'event trigger', evtname::text FROM pg_event_trigger
    UNION ALL SELECT 'extension', extname::text FROM pg_extension
    ORDER BY 1, 2
"""


@pytest.fixture
def empty(new_database):
    """A session in a database with PL/Python but without the extension."""
    with psycopg.connect(new_database("template0"), autocommit=True) as conn:
        conn.execute("CREATE EXTENSION plpython3u")
        yield conn


def use_it(conn: psycopg.Connection, schema: str | None) -> str:
    """Learn, make, train, generate, export; with every name qualified when there is a schema. Returns what was written."""

    def run(statement: str) -> str:
        place = sql.SQL("") if schema is None else sql.Identifier(schema) + sql.SQL(".")
        return conn.execute(sql.SQL(statement).format(place)).fetchone()[0]

    run("SELECT {}llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 265, 'tiny')")
    run("SELECT {}llm_init_model('tiny', 1, 2, 16, 32)")
    run("SELECT {}llm_dataset_load($$VALUES (repeat('low lower ', 40))$$, 'tiny', 8)")
    run("SELECT {}llm_train('tiny', 2, batch_size => 2)")
    run("SELECT {0}llm_import_safetensors(string_agg(c, ''), 'copy') FROM {0}llm_export_safetensors('tiny') AS c")
    assert run("SELECT count(*)::integer FROM {}llm_models WHERE n_params > 0") == 2
    assert run("SELECT ({}llm_get_model_config('copy')).d_model") == 16
    run("SELECT {}llm_grant_usage('public', 'admin')::text")
    return run("SELECT {}llm_generate('low', 8, model_name => 'tiny', seed => 1)")


@pytest.mark.parametrize(
    "schema", ["public", "llm", "My llm", "a b.c-d", "über", "{schema}%s{0}", "@schema@ @package@"]
)
def test_it_works_in_any_schema(empty, schema):
    written = []
    if schema != "public":
        empty.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    before = empty.execute(OBJECTS).fetchall()
    for path in ("public", "pg_catalog", ""):
        empty.execute(sql.SQL("CREATE EXTENSION pg_gpt2 SCHEMA {}").format(sql.Identifier(schema)))
        empty.execute("SELECT set_config('search_path', %s, false)", [path])
        written.append(use_it(empty, schema))
        empty.execute("RESET search_path")
        empty.execute("DROP EXTENSION pg_gpt2")
        assert empty.execute(OBJECTS).fetchall() == before
    assert len(set(written)) == 1


def test_a_schema_named_like_what_the_server_replaces_works_or_is_refused_by_it(empty):
    """Young minor releases refuse it, 17.12 among them: they would replace in what they have put there."""
    schema = "@extschema@ @package@"
    empty.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    before = empty.execute(OBJECTS).fetchall()
    try:
        empty.execute(sql.SQL("CREATE EXTENSION pg_gpt2 SCHEMA {}").format(sql.Identifier(schema)))
    except psycopg.errors.InvalidTextRepresentation as error:
        refusal = str(error)
    else:
        use_it(empty, schema)
        return
    assert 'must not contain "@extowner@", "@extschema"' in refusal
    assert empty.execute(OBJECTS).fetchall() == before


def test_one_session_follows_it_to_another_schema(empty):
    empty.execute("CREATE EXTENSION pg_gpt2")
    first = use_it(empty, None)
    empty.execute("DROP EXTENSION pg_gpt2")
    with pytest.raises(psycopg.errors.UndefinedFunction):
        empty.execute("SELECT llm_generate('low')")
    empty.execute("CREATE SCHEMA llm")
    empty.execute("CREATE EXTENSION pg_gpt2 SCHEMA llm")
    assert use_it(empty, "llm") == first


def test_a_rolled_back_create_and_drop_leave_what_was_there(empty):
    before = empty.execute(OBJECTS).fetchall()
    with empty.transaction(force_rollback=True):
        empty.execute("CREATE EXTENSION pg_gpt2")
        first = use_it(empty, None)
    assert empty.execute(OBJECTS).fetchall() == before
    empty.execute("CREATE SCHEMA llm")
    empty.execute("CREATE EXTENSION pg_gpt2 SCHEMA llm")
    assert use_it(empty, "llm") == first
    with empty.transaction(force_rollback=True):
        empty.execute("DROP EXTENSION pg_gpt2")
    assert empty.execute("SELECT llm.llm_generate('low', 8, model_name => 'tiny', seed => 1)").fetchone()[0] == first


def test_cascade_brings_plpython(new_database):
    with psycopg.connect(new_database("template0"), autocommit=True) as conn:
        conn.execute("CREATE EXTENSION pg_gpt2 CASCADE")
        use_it(conn, None)


ENCODINGS = (
    "SELECT pg_encoding_to_char(n) FROM generate_series(0, 34) AS n WHERE pg_encoding_to_char(n) NOT IN ('UTF8', '')"
)


def test_another_encoding_than_utf8_is_refused(cluster_dsn):
    """All that a server can have. Of MULE_INTERNAL, which PL/Python cannot convert, the server says so itself."""
    refused = {}
    with psycopg.connect(cluster_dsn, autocommit=True) as conn:
        encodings = [name for (name,) in conn.execute(ENCODINGS)]
        for encoding in encodings:
            conn.execute(
                f"CREATE DATABASE encoded ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
            )
            try:
                refused[encoding] = refusal_in(conninfo.make_conninfo(cluster_dsn, dbname="encoded"))
            finally:
                conn.execute("DROP DATABASE encoded WITH (FORCE)")
    assert len(refused) > 30
    assert re.search("42883.*MULE_INTERNAL.*UTF8", refused.pop("MULE_INTERNAL"))
    for encoding, output in refused.items():
        assert (
            f"55000: pg_gpt2: a database with the encoding UTF8 is needed, and this one has {encoding}\nHINT" in output
        )


def refusal_in(dsn: str) -> str:
    """What psql says to CREATE EXTENSION; clients that convert to UTF-8 cannot open every database."""
    command = ["psql", "-X", "-v", "VERBOSITY=verbose", "-d", dsn, "-c", "CREATE EXTENSION pg_gpt2 CASCADE"]
    done = subprocess.run(
        command, env=os.environ | {"PGCLIENTENCODING": "SQL_ASCII"}, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.stderr


def test_the_script_is_ascii():
    """A database in an encoding that lacks one of its characters would say that, and not what it needs."""
    assert (ROOT / "pg_gpt2--1.0.sql").read_bytes().isascii()


@pytest.mark.parametrize("schema", ["a\nb", "a\rb", "it's", 'a"b', "a\\b", "$1"])
def test_a_schema_that_no_program_can_name_is_refused(empty, schema):
    """Line breaks by us; quotes, backslash and dollar sign by servers of 2023 and later, else by us."""
    before = empty.execute(OBJECTS).fetchall()
    with empty.transaction(force_rollback=True):
        empty.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        refusal = (psycopg.errors.InvalidParameterValue, psycopg.errors.InvalidTextRepresentation)
        with pytest.raises(refusal, match="schema"), empty.transaction():
            empty.execute(sql.SQL("CREATE EXTENSION pg_gpt2 SCHEMA {}").format(sql.Identifier(schema)))
    assert empty.execute(OBJECTS).fetchall() == before


def test_settings_of_the_session_do_not_matter(new_database):
    """Those that change how statements are read, planned or printed."""
    written = []
    for options in ("", *SETTINGS):
        with psycopg.connect(new_database("template0"), autocommit=True, options=options) as conn:
            conn.execute("CREATE EXTENSION pg_gpt2 CASCADE")
            written.append(use_it(conn, None))
    assert len(set(written)) == 1


def test_it_stays_in_its_schema(conn):
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        conn.execute("ALTER EXTENSION pg_gpt2 SET SCHEMA pg_catalog")


def test_a_schema_that_was_renamed_works_again_under_its_old_name(empty):
    with empty.transaction(force_rollback=True):
        empty.execute("CREATE SCHEMA first; CREATE EXTENSION pg_gpt2 SCHEMA first CASCADE")
        made = "SELECT {0}.llm_init_model('m', 1, 2, 8, 16, 50), {0}.llm_logits('{{1}}', 'm')"
        empty.execute("ALTER SCHEMA first RENAME TO second")
        with pytest.raises(psycopg.Error) as caught, empty.transaction():
            empty.execute(made.format("second"))
        assert caught.value.sqlstate in ("42P01", "3F000")
        empty.execute("ALTER SCHEMA second RENAME TO first")
        assert empty.execute(made.format("first")).fetchone()[1]


def test_only_a_superuser_creates_it(empty):
    empty.execute("CREATE ROLE creator; GRANT ALL ON SCHEMA public TO creator")
    empty.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO creator").format(sql.Identifier(empty.info.dbname)))
    try:
        empty.execute("SET ROLE creator")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            empty.execute("CREATE EXTENSION pg_gpt2")
    finally:
        empty.execute("RESET ROLE")
        empty.execute("DROP OWNED BY creator; DROP ROLE creator")


# A session imports NumPy on its first call; a module of that name in the way is what a server without NumPy looks like.
def test_a_server_without_numpy_says_what_to_install(new_database):
    with psycopg.connect(new_database("template0"), autocommit=True) as conn:
        conn.execute("CREATE EXTENSION plpython3u")
        conn.execute("DO LANGUAGE plpython3u $$import sys; sys.modules['numpy'] = None$$")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as raised:
            conn.execute("CREATE EXTENSION pg_gpt2")
    message, hint = raised.value.diag.message_primary, raised.value.diag.message_hint
    assert message.startswith("pg_gpt2: NumPy is needed")
    assert "/bin/python3" in message, "the interpreter is named"
    assert "apt" in hint
    assert "pip" in hint


def test_a_server_with_an_old_python_says_so(new_database):
    with psycopg.connect(new_database("template0"), autocommit=True) as conn:
        conn.execute("CREATE EXTENSION plpython3u")
        conn.execute("DO LANGUAGE plpython3u $$import sys; sys.version_info = (3, 9, 2)$$")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"Python 3\.10 .*/bin/python3") as raised:
            conn.execute("CREATE EXTENSION pg_gpt2")
    assert raised.value.diag.message_hint


def test_the_installed_script_is_the_one_of_the_sources():
    subprocess.run(["/usr/bin/python3", ROOT / "build.py", "--check"], check=True)
