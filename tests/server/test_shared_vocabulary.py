"""The file of a large vocabulary that sessions share: what holds for that of a model's weights."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import psycopg.conninfo
import pytest

MAKE = "SELECT llm_train_bpe('SELECT ''low lower lowest newest newest''', 270, 'large')"
FILL = (
    "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) SELECT 'large', id, 'x' || id, ('x' || id)::bytea"
    " FROM generate_series(270, 5000) AS id"
)
ENCODE = "SELECT llm_encode('low lower lowest, newest', 'large')"
DECODE = "SELECT llm_decode('{5000,75,4999}', 'large')"
TRACE = "SELECT array_agg(t) FROM llm_bpe_trace('lower', 'large') AS t"
SHARED = "SELECT shared FROM llm_cache_status() WHERE kind = 'tokenizer' AND model = 'large'"
UPDATE = "UPDATE llm_bpe_vocab SET special = special WHERE model = 'large' AND token_id = 300"
NO_MERGES = "DELETE FROM llm_bpe_merges WHERE model = 'large'"


def one(conn: psycopg.Connection, query: str) -> object:
    return conn.execute(query).fetchone()[0]


@pytest.fixture(scope="module")
def folder(module_conn: psycopg.Connection) -> Path:
    """The server's folder of temporary files; the module's vocabulary is large enough to be shared."""
    module_conn.execute(MAKE)
    module_conn.execute(FILL)
    return Path(one(module_conn, "SHOW data_directory")) / "base" / "pgsql_tmp"


@pytest.fixture
def files(folder: Path, module_conn: psycopg.Connection) -> Iterator:
    """`files()`: names of the files of vocabularies of this module's database; there are none at first."""
    oid = one(module_conn, "SELECT oid FROM pg_database WHERE datname = current_database()")
    one(module_conn, "SELECT llm_cache_clear()")
    assert not list(folder.glob(f"pgsql_tmp_pg_gpt2_base-{oid}-*"))
    return lambda: sorted(path.name for path in folder.glob(f"pgsql_tmp_pg_gpt2_base-{oid}-*.vocabulary.*"))


def test_sessions_map_one_file_and_agree(connect, files):
    """Also with a session that made its own of the rows, since it has written."""
    queries = (ENCODE, DECODE, TRACE)
    own = connect()
    own.execute("BEGIN; CREATE TEMP TABLE written ()")
    found = [one(own, query) for query in queries]
    assert (files(), one(own, SHARED)) == ([], False)
    for session in (connect(), connect()):
        assert [one(session, query) for query in queries] == found
        assert one(session, SHARED) is True
        assert len(files()) == 1
    assert (found[1], len(found[2])) == ("x5000lx4999", 3)


def test_ids_that_are_no_tokens_are_known_from_the_file_as_from_the_rows(connect, files):
    """Nobody needs a tokenizer for that."""
    conn = connect()
    ids = "SELECT llm_generate_tokens('{1,2}', 40, temperature => 9, model_name => 'large', seed => 1, eos_token => -1)"
    tokenizers = "SELECT count(*) FROM llm_cache_status() WHERE kind = 'tokenizer'"
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT llm_init_model('large', 1, 1, 8, 64, 20000, seed => 1)")
        own = one(conn, ids)
    assert files() == []
    one(connect(), ENCODE)
    assert len(files()) == 1
    conn.execute("SELECT llm_init_model('large', 1, 1, 8, 64, 20000, seed => 1)")
    fresh = connect()
    assert one(fresh, ids) == own
    assert one(fresh, tokenizers) == 0
    assert max(own) <= 5000
    conn.execute("DELETE FROM llm_param WHERE model = 'large'; DELETE FROM llm_model_config WHERE model = 'large'")


def test_a_small_vocabulary_is_made_of_its_rows(connect, files):
    conn = connect()
    conn.execute("SELECT llm_train_bpe('SELECT ''low lower''', 260, 'small')")
    assert one(connect(), "SELECT llm_token_count('low', 'small')") == 1
    assert files() == []
    conn.execute("SELECT llm_drop_model('small')")


def test_a_change_is_seen_at_once_and_replaces_the_file(connect, files):
    conn, other = connect(), connect()
    before, old = one(conn, ENCODE), files()
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert one(other, ENCODE) == before
    with conn.transaction(force_rollback=True):
        conn.execute(NO_MERGES)
        assert one(conn, ENCODE) != before
        assert one(conn, SHARED) is False
        assert one(connect(), ENCODE) == before
        assert files() == old, "what is not committed is nobody else's business"
    assert one(conn, ENCODE) == before
    conn.execute(UPDATE)
    assert one(connect(), ENCODE) == before
    assert len(files()) == 1
    assert files() != old
    assert one(other, ENCODE) == before
    other.execute("COMMIT")


def test_who_changes_another_vocabulary_all_the_time_keeps_nobody_from_reading_this_one(connect, files):
    """Statements of one call see what is committed between them; the version is that of all vocabularies."""
    conn, busy = connect(), connect()
    conn.execute("SELECT llm_train_bpe('SELECT ''low lower''', 260, name) FROM unnest('{wide,busy}'::text[]) AS name")
    conn.execute(
        "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) SELECT 'wide', id, 'x' || id, ('x' || id)::bytea"
        " FROM generate_series(260, 40000) AS id"  # which takes long to read
    )
    conn.execute("SELECT llm_init_model('wide', 1, 1, 8, 64, seed => 1)")
    query = "SELECT llm_generate('low lower', 3, temperature => 0, model_name => 'wide', seed => 1)"
    text = one(connect(), query)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            busy.execute("UPDATE llm_bpe_vocab SET special = special WHERE model = 'busy' AND token_id = 0")

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            for _ in range(2):
                reader = connect()
                reader.execute("SET statement_timeout = '10s'")
                assert one(reader, query) == text
        finally:
            ended.set()
        changing.result()
    conn.execute("SELECT llm_drop_model(name) FROM unnest('{wide,busy}'::text[]) AS name")


def test_a_role_gets_from_the_file_what_it_may_read(connect, files):
    conn = connect()
    ids = one(conn, ENCODE)
    conn.execute("CREATE ROLE wordless; SELECT llm_grant_usage('wordless', 'read')")
    tables = ("llm_bpe_vocab", "llm_bpe_merges")
    try:
        for table in tables:
            conn.execute(f"REVOKE SELECT ON {table} FROM wordless; SET ROLE wordless")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=table):
                conn.execute(ENCODE)
            conn.execute(f"RESET ROLE; GRANT SELECT ON {table} TO wordless")
        conn.execute("ALTER TABLE llm_bpe_vocab ENABLE ROW LEVEL SECURITY")
        for policy, error in (
            ("false", psycopg.errors.UndefinedObject),
            ("bytes <> 'l'", psycopg.errors.DataException),
        ):
            conn.execute(f"CREATE POLICY part ON llm_bpe_vocab TO wordless USING ({policy}); SET ROLE wordless")
            for session in (conn, connect()):
                session.execute("SET ROLE wordless")
                with pytest.raises(error):
                    session.execute("SELECT llm_encode('l', 'large')")
            conn.execute("RESET ROLE; DROP POLICY part ON llm_bpe_vocab")
        conn.execute("CREATE POLICY part ON llm_bpe_vocab TO wordless USING (model = 'large'); SET ROLE wordless")
        assert one(conn, ENCODE) == ids
        assert one(conn, SHARED) is True
    finally:
        conn.execute("RESET ROLE; DROP POLICY IF EXISTS part ON llm_bpe_vocab")
        conn.execute("ALTER TABLE llm_bpe_vocab DISABLE ROW LEVEL SECURITY; DROP OWNED BY wordless; DROP ROLE wordless")


def test_a_role_that_may_read_some_columns_only_gets_none(connect, files):
    conn = connect()
    assert one(conn, ENCODE)
    conn.execute("CREATE ROLE half; SELECT llm_grant_usage('half', 'read'); REVOKE SELECT ON llm_bpe_vocab FROM half")
    conn.execute("GRANT SELECT (model, token_id) ON llm_bpe_vocab TO half")
    try:
        for session in (conn, connect()):
            session.execute("SET ROLE half")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="llm_bpe_vocab"):
                session.execute(DECODE)
        conn.execute("RESET ROLE; GRANT SELECT ON llm_bpe_vocab TO half; REVOKE SELECT ON llm_bpe_merges FROM half")
        conn.execute("GRANT SELECT (model, rank) ON llm_bpe_merges TO half; SET ROLE half")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="llm_bpe_merges"):
            conn.execute(ENCODE)
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY half; DROP ROLE half")


def test_files_of_dropped_databases_are_removed_by_the_next_builder(connect, files, folder, new_database):
    gone = new_database()
    with psycopg.connect(gone, autocommit=True) as other:
        other.execute(MAKE)
        other.execute(FILL)
        assert one(other, ENCODE)
        oid = one(other, "SELECT oid FROM pg_database WHERE datname = current_database()")
    assert len(list(folder.glob(f"*-{oid}-*"))) == 1
    conn = connect()
    conn.execute(f"DROP DATABASE {psycopg.conninfo.conninfo_to_dict(gone)['dbname']}")
    assert one(conn, ENCODE)
    assert not list(folder.glob(f"*-{oid}-*"))
    assert len(files()) == 1


def test_a_dropped_model_leaves_none(connect, files):
    conn = connect()
    conn.execute(
        "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) SELECT 'copy', token_id, token, bytes FROM llm_bpe_vocab"
        " WHERE model = 'large'"
    )
    query = "SELECT llm_encode('x4999', 'copy')"
    ids = one(connect(), query)
    assert one(connect(), ENCODE)
    assert len(files()) == 2, "one for each, of the same version"
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT llm_drop_model('copy')")
        assert files() == []
    assert one(connect(), query) == ids, "it is made again"
    conn.execute("SELECT llm_drop_model('copy')")
    assert files() == []


def test_a_damaged_file_is_not_used(connect, files, folder):
    ids = one(connect(), ENCODE)
    (name,) = files()
    data = bytearray((folder / name).read_bytes())
    for place in (0, 100, len(data) // 2, -1):
        changed = data.copy()
        changed[place] ^= 4
        with (folder / name).open("r+b") as file:
            file.write(changed)
        conn = connect()
        assert one(conn, ENCODE) == ids
        assert one(conn, SHARED) is True
    os.truncate(folder / name, 1000)
    assert one(connect(), ENCODE) == ids


def test_where_nothing_can_be_written_a_session_keeps_its_own(connect, files, folder):
    ids = one(connect(), ENCODE)
    for name in files():
        (folder / name).unlink()
    folder.chmod(0o500)
    try:
        conn = connect()
        assert one(conn, ENCODE) == ids
        assert one(conn, SHARED) is False
    finally:
        folder.chmod(0o700)
    assert files() == []
