"""The file of a model's weights that sessions share: one for each committed version, and never a wrong one."""

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

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
    oid = one(module_conn, "SELECT oid FROM pg_database WHERE datname = current_database()")
    stem = f"pgsql_tmp_pg_gpt2_base-{oid}-"
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


def test_sessions_that_have_a_model_in_memory_are_known(connect, conn, files):
    """Also after DISCARD ALL, and of an older version; not those that ended, nor any of a model that the role may not see."""
    users = "SELECT array_agg(pid ORDER BY pid) FROM llm_model_sessions() WHERE model = 'big'"
    assert one(conn, users) is None
    first, second = connect(), connect()
    pids = sorted(session.info.backend_pid for session in (first, second))
    for session in (first, second):
        one(session, LOGITS)
        session.execute("DISCARD ALL")
    assert one(conn, users) == pids
    conn.execute("UPDATE llm_param SET data = data WHERE model = 'big' AND name = 'wpe'")
    one(second, LOGITS)
    assert one(conn, users) == pids
    conn.execute("CREATE ROLE onlooker")
    conn.execute("SELECT llm_grant_usage('onlooker')")
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL ROLE onlooker")
        assert one(conn, users) == pids
        conn.execute("RESET ROLE")
        conn.execute("ALTER TABLE llm_model_config ENABLE ROW LEVEL SECURITY")
        conn.execute("SET LOCAL ROLE onlooker")
        assert one(conn, users) is None
    conn.execute("DROP OWNED BY onlooker")
    conn.execute("DROP ROLE onlooker")
    first.close()
    deadline = time.monotonic() + 20
    while one(conn, users) != [second.info.backend_pid]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


def test_no_role_can_keep_others_from_sharing(connect, files):
    """Any role can take any advisory lock; that of who writes a file is a lock of the server's own file."""
    conn, other = connect(), connect()
    with conn.transaction():
        seen = "SELECT array_agg(DISTINCT locktype) FROM pg_locks WHERE pid = %s"
        with ThreadPoolExecutor(1) as pool:
            building = pool.submit(one, other, LOGITS)
            while not building.done():
                locks = conn.execute(seen, [other.info.backend_pid]).fetchone()[0]
                assert "advisory" not in (locks or ())
    assert one(other, SHARED) is True
    assert len(files()) == 1


def test_a_builder_that_hangs_delays_others_but_does_not_stop_them(connect, files, folder):
    conn = connect()
    one(conn, LOGITS)
    path = folder / "pgsql_tmp_pg_gpt2.lock"
    assert path.stat().st_mode & 0o777 == 0o600
    one(conn, "SELECT llm_cache_clear()")
    with path.open("r+b") as holder:
        fcntl.lockf(holder, fcntl.LOCK_EX)  # every byte, hence every model
        conn.execute("SET statement_timeout = '1s'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute(LOGITS)
        conn.execute("RESET statement_timeout")
        one(conn, LOGITS)
        assert one(conn, SHARED) is False
    one(connect(), LOGITS)
    assert len(files()) == 1


def test_files_of_dropped_databases_and_extensions_are_removed_by_the_next_builder(conn, files, folder, new_database):
    gone, emptied = new_database(), new_database()
    made = set()
    for dsn in (gone, emptied):
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("SELECT llm_init_model('big', 2, 4, 256, 64, 4096)")
            one(other, LOGITS)
            oid = one(other, "SELECT oid FROM pg_database WHERE datname = current_database()")
            assert len(list(folder.glob(f"*-{oid}-*"))) == 1
            made.add(str(oid))
            (folder / f"pgsql_tmp_pg_gpt2_base-{oid}-1.killed.new").touch()
            if dsn == emptied:
                other.execute("DROP EXTENSION pg_gpt2")
    conn.execute(f"DROP DATABASE {conninfo.conninfo_to_dict(gone)['dbname']}")
    one(conn, LOGITS)
    oids = {name.split("-")[1] for name in os.listdir(folder) if name.startswith("pgsql_tmp_pg_gpt2_")}
    assert str(one(conn, "SELECT oid FROM pg_database WHERE datname = current_database()")) in oids
    assert not oids & made
    assert len(files()) == 1
    conn.execute(f"DROP DATABASE {conninfo.conninfo_to_dict(emptied)['dbname']}")


def test_after_vacuum_full_of_everything_one_file_is_made_anew(connect, files):
    conn = connect()
    logits, before = one(conn, LOGITS), files()
    conn.execute("VACUUM FULL llm_module")
    assert one(connect(), LOGITS) == logits
    assert len(files()) == 1
    assert files() != before


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


@pytest.mark.parametrize("kind", ["FIFO", "link", "directory", "somebody else's"])
def test_what_is_no_file_of_the_servers_user_is_not_opened(connect, files, folder, kind):
    logits = one(connect(), LOGITS)
    (name,) = files()
    path, kept = folder / name, folder.parent / "kept"
    path.rename(kept)
    try:
        if kind == "FIFO":
            os.mkfifo(path)
            os.chown(path, kept.stat().st_uid, -1)
        elif kind == "link":
            path.symlink_to(kept)
        elif kind == "directory":
            path.mkdir()
        elif os.getuid():
            pytest.skip("only root can give a file away")
        else:
            path.write_bytes(kept.read_bytes())
            path.chmod(0o666)
        conn = connect()
        conn.execute("SET statement_timeout = '20s'")
        assert one(conn, LOGITS) == logits
        assert one(conn, SHARED) is (kind != "directory"), "a file takes its place"
    finally:
        kept.unlink()
        if kind == "directory":
            path.rmdir()


@pytest.mark.parametrize("place", ["first byte", "last byte", "description", "end"])
def test_one_flipped_byte_is_seen_when_a_file_is_mapped(connect, files, folder, place):
    logits = one(connect(), LOGITS)
    (name,) = files()
    path = folder / name
    data = bytearray(path.read_bytes())
    described = data.index(b'{"wte": ')  # which the end of the file is about
    data[{"first byte": 0, "last byte": described - 64, "description": described + 9, "end": -1}[place]] ^= 4
    with path.open("r+b") as file:
        file.write(data)
    conn = connect()
    assert one(conn, LOGITS) == logits
    assert one(conn, SHARED) is True
    assert path.read_bytes() != data, "a file takes its place"


def test_the_doctor_finds_a_flipped_byte(conn, files, folder):
    one(conn, LOGITS)
    finding = "SELECT value, status, hint FROM llm_doctor() WHERE item = 'shared weights of big'"
    assert conn.execute(finding).fetchone()[1:] == ("ok", None)
    (name,) = files()
    with (folder / name).open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    value, status, hint = conn.execute(finding).fetchone()
    assert ("was written" in value, status, "llm_cache_clear" in hint) == (True, "error", True)
    conn.execute("SELECT llm_cache_clear()")
    one(conn, LOGITS)
    assert conn.execute(finding).fetchone()[1:] == ("ok", None)


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o300, 0o400, 0o600])
def test_a_folder_that_cannot_be_used_is_no_error(connect, files, folder, mode):
    logits = one(connect(), LOGITS)
    conn = connect()
    conn.execute("SELECT llm_copy_model('big', 'copy')")
    folder.chmod(mode)
    try:
        assert one(conn, LOGITS) == logits
        if mode != 0o300:  # whose names can be made, but not listed
            found = conn.execute("SELECT status FROM llm_doctor() WHERE item = 'shared weights'").fetchone()
            assert found == ("warn",)
        assert one(conn, "SELECT llm_cache_clear()") is not None
        conn.execute("SELECT llm_drop_model('copy')")
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("call", ["mmap.mmap", "os.pread", "os.preadv", "os.write", "os.fstat", "fcntl.lockf"])
@pytest.mark.parametrize("code", ["EIO", "ENOMEM"])
def test_errors_of_the_disk_and_of_memory_leave_a_session_with_a_copy_of_its_own(connect, files, call, code):
    conn, other = connect(), connect()
    module, name = call.split(".")
    conn.execute("SELECT count(*) FROM llm_cache_status()")
    if call != "os.write":
        logits = one(other, LOGITS)
    conn.execute(f"""
        CREATE FUNCTION pg_temp.fail() RETURNS void LANGUAGE plpython3u AS $$
import errno, os, sys
module = next(m for n, m in sys.modules.items() if n.endswith('.shared_file') and n.startswith('pg_gpt2_'))
def fail(*args, **names):
    raise OSError(errno.{code}, os.strerror(errno.{code}))
real = module.{module}
module.{module} = type('module', (), dict(vars(real), {name}=fail))
        $$""")
    conn.execute("SELECT pg_temp.fail()")
    found = one(conn, LOGITS)
    assert found == (one(other, LOGITS) if call == "os.write" else logits)
    assert one(conn, SHARED) is (call == "fcntl.lockf")
    assert not [name for name in files() if name.endswith(".new")]
