"""The file of a model's weights that sessions share: one for each committed version, and never a wrong one."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

LOGITS = "SELECT md5(llm_logits(ARRAY[1, 2, 3], 'big'))"
SHARED = "SELECT shared FROM llm_cache_status() WHERE kind = 'weights' AND model = 'big'"


def one(conn: psycopg.Connection, query: str) -> object:
    return conn.execute(query).fetchone()[0]


@pytest.fixture(scope="module")
def folder(module_conn: psycopg.Connection) -> Path:
    """The server's folder of temporary files; the module's model is large enough to be shared."""
    module_conn.execute("SELECT llm_init_model('big', 2, 4, 256, 64, 4096)")
    return Path(one(module_conn, "SHOW data_directory")) / "base" / "pgsql_tmp"


@pytest.fixture
def files(folder: Path, module_conn: psycopg.Connection) -> Iterator:
    """`files()`: names of the shared files of this module's database; there are none at first."""
    stem = f"pgsql_tmp_pg_gpt2_{one(module_conn, 'SELECT oid FROM pg_database WHERE datname = current_database()')}_"
    one(module_conn, "SELECT llm_cache_clear()")
    assert not list(folder.glob(stem + "*"))
    return lambda: sorted(path.name for path in folder.glob(stem + "*"))


def test_sessions_map_one_file_and_agree(connect, files):
    first, second = connect(), connect()
    logits = one(first, LOGITS)
    assert len(files()) == 1
    assert one(second, LOGITS) == logits
    assert len(files()) == 1
    assert (one(first, SHARED), one(second, SHARED)) == (True, True)


def test_sessions_that_start_together_write_one_file(connect, files):
    sessions = [connect() for _ in range(8)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        logits = set(pool.map(lambda session: one(session, LOGITS), sessions))
    assert len(logits) == 1
    assert len(files()) == 1
    assert all(one(session, SHARED) for session in sessions)


def test_uncommitted_weights_are_not_shared(connect, files):
    conn, other = connect(), connect()
    before = one(other, LOGITS)
    conn.execute("BEGIN")
    conn.execute("UPDATE llm_param SET data = set_byte(data, 3, 66) WHERE model = 'big' AND name = 'ln_f.weight'")
    changed = one(conn, LOGITS)
    assert changed != before
    assert one(conn, SHARED) is False
    assert one(other, LOGITS) == before
    assert len(files()) == 1
    conn.execute("ROLLBACK")
    assert one(conn, LOGITS) == before
    assert one(conn, SHARED) is True


def test_a_new_version_replaces_the_file_and_open_sessions_go_on(connect, files):
    conn, other = connect(), connect()
    before = one(conn, LOGITS)
    old = files()
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert one(other, LOGITS) == before
    conn.execute("UPDATE llm_param SET data = set_byte(data, 3, 65) WHERE model = 'big' AND name = 'ln_f.weight'")
    after = one(conn, LOGITS)
    assert after != before
    assert len(files()) == 1
    assert files() != old
    assert one(other, LOGITS) == before
    other.execute("COMMIT")
    assert one(other, LOGITS) == after


def test_only_the_owner_removes_the_files(connect, files):
    conn = connect()
    one(conn, LOGITS)
    conn.execute("CREATE ROLE reader")
    try:
        conn.execute("SELECT llm_grant_usage('reader', 'read')")
        conn.execute("SET ROLE reader")
        one(conn, "SELECT llm_cache_clear()")
        assert len(files()) == 1
        conn.execute("RESET ROLE")
        one(conn, "SELECT llm_cache_clear()")
        assert files() == []
    finally:
        conn.execute("RESET ROLE")
        conn.execute("DROP OWNED BY reader")
        conn.execute("DROP ROLE reader")


def test_a_role_that_may_not_read_the_weights_gets_none_from_the_file(connect, files):
    conn = connect()
    one(conn, LOGITS)
    conn.execute("CREATE ROLE weightless; SELECT llm_grant_usage('weightless', 'read'); SET ROLE weightless")
    try:
        conn.execute(LOGITS)
        conn.execute("RESET ROLE; REVOKE SELECT ON llm_param FROM weightless; SET ROLE weightless")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="llm_param"):
            conn.execute(LOGITS)
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY weightless; DROP ROLE weightless")


def test_row_level_security_holds_for_the_file(connect, files):
    conn = connect()
    logits = one(conn, LOGITS)
    conn.execute("CREATE ROLE filtered; SELECT llm_grant_usage('filtered', 'read')")
    conn.execute("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY")
    try:
        for policy in ("USING (false)", "USING (name <> 'wpe')"):
            conn.execute(f"CREATE POLICY part ON llm_param TO filtered {policy}; SET ROLE filtered")
            with pytest.raises((psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.DataException)):
                conn.execute(LOGITS)
            conn.execute("RESET ROLE; DROP POLICY part ON llm_param")
        conn.execute("CREATE POLICY part ON llm_param TO filtered USING (model = 'big'); SET ROLE filtered")
        assert one(conn, LOGITS) == logits
        assert one(conn, SHARED) is True
    finally:
        conn.execute("RESET ROLE; DROP POLICY IF EXISTS part ON llm_param")
        conn.execute("ALTER TABLE llm_param DISABLE ROW LEVEL SECURITY; DROP OWNED BY filtered; DROP ROLE filtered")


def test_who_holds_the_builders_lock_delays_others_but_does_not_stop_them(connect, files):
    """Any role can take an advisory lock."""
    conn, holder = connect(), connect()
    holder.execute("SELECT pg_advisory_lock('llm_model_config'::regclass::oid::integer, hashtext('big'))")
    logits = one(conn, LOGITS)
    assert one(conn, SHARED) is False
    holder.execute("SELECT pg_advisory_unlock_all()")
    assert one(connect(), LOGITS) == logits
    assert len(files()) == 1


def test_a_dropped_model_leaves_no_file(connect, files):
    conn, other = connect(), connect()
    conn.execute("SELECT llm_copy_model('big', 'copy')")
    logits = one(other, "SELECT md5(llm_logits('{1}', 'copy'))")
    assert len(files()) == 1
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT llm_drop_model('copy')")
    assert one(connect(), "SELECT md5(llm_logits('{1}', 'copy'))") == logits, "the file is made again"
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    other.execute("SELECT FROM llm_param LIMIT 1")
    conn.execute("SELECT llm_drop_model('copy')")
    assert files() == []
    other.execute("SELECT llm_cache_clear()")
    assert one(other, "SELECT md5(llm_logits('{1}', 'copy'))") == logits, "by whom it is there for"
    other.execute("COMMIT")
    one(conn, LOGITS)
    assert len(files()) == 1, "and whoever makes the next file removes it"


def test_a_cancelled_builder_leaves_no_file(connect, files, folder):
    conn = connect()
    conn.execute("SELECT llm_generate_tokens('{1}', 1, model_name => 'big')")
    conn.execute("SELECT llm_cache_clear()")
    for milliseconds in range(2, 60, 3):
        conn.execute(f"SET statement_timeout = {milliseconds}")
        try:
            conn.execute(LOGITS)
        except psycopg.errors.QueryCanceled:
            assert not [name for name in files() if "new" in name]
        conn.execute("RESET statement_timeout; SELECT llm_cache_clear()")


def test_a_damaged_file_is_not_used(connect, files, folder):
    """Cut short by somebody who may write there, which only the server's own user may."""
    logits = one(connect(), LOGITS)
    (name,) = files()
    os.truncate(folder / name, 1000)
    fresh = connect()
    assert one(fresh, LOGITS) == logits
    assert (folder / name).stat().st_size > 8 << 20


def test_where_nothing_can_be_written_a_session_keeps_a_copy_of_its_own(connect, files, folder):
    logits = one(connect(), LOGITS)
    for name in files():
        (folder / name).unlink()
    folder.chmod(0o500)
    try:
        conn = connect()
        assert one(conn, LOGITS) == logits
        assert one(conn, SHARED) is False
    finally:
        folder.chmod(0o700)
    assert files() == []


def test_the_file_is_its_owners_only(connect, files, folder):
    one(connect(), LOGITS)
    (name,) = files()
    assert (folder / name).stat().st_mode & 0o777 == 0o600
