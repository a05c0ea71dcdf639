"""Files of the server: for which roles, by which paths, and what is left of them."""

import os
import time

import psycopg
import pytest
from psycopg import errors


@pytest.fixture(autouse=True, scope="module")
def configuration(module_conn):
    module_conn.execute("INSERT INTO llm_model_config VALUES ('model', 2, 2, 16, 32, 50)")


@pytest.fixture
def sql(module_conn):
    """The module's session; what a test made is gone after it."""
    with module_conn.transaction(force_rollback=True):
        yield module_conn


FUNCTIONS = {
    "pg_llm_import_safetensors": ("pg_read_server_files", errors.UndefinedFile),
    "pg_llm_import_npz": ("pg_read_server_files", errors.UndefinedFile),
    "pg_llm_load_bpe_vocab": ("pg_read_server_files", errors.UndefinedFile),
    "pg_llm_load_bpe_merges": ("pg_read_server_files", errors.UndefinedFile),
    "pg_llm_export_safetensors": ("pg_write_server_files", errors.UndefinedFile),
    "pg_llm_export_npz": ("pg_write_server_files", errors.UndefinedFile),
}
CALLS = {  # of all that take a path
    **{name: (needed, f"SELECT {name}({{}}, 'model')") for name, (needed, _) in FUNCTIONS.items()},
    "llm_checkpoint_attach": ("pg_read_server_files", "SELECT llm_checkpoint_attach({})"),
    "llm_checkpoint_save": ("pg_write_server_files", "SELECT llm_checkpoint_save('model', '', {})"),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_files_are_for_the_roles_that_may_touch_them(sql, function):
    """EXECUTE alone does not do, and of a NOINHERIT member's roles only the one that is set counts."""
    needed, reached = FUNCTIONS[function]
    call = f"SELECT {function}('/no/such/directory/file', 'model')"
    sql.execute("SELECT llm_init_model('model')")
    sql.execute("CREATE ROLE someone NOINHERIT; GRANT ALL ON ALL TABLES IN SCHEMA public TO someone")
    sql.execute("SET LOCAL ROLE someone")
    with pytest.raises(errors.InsufficientPrivilege, match="function"), sql.transaction():
        sql.execute(call)
    sql.execute("RESET ROLE; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO someone; SET LOCAL ROLE someone")
    with pytest.raises(errors.InsufficientPrivilege, match="files on the server") as raised, sql.transaction():
        sql.execute(call)
    assert needed in raised.value.diag.message_hint
    sql.execute(f"RESET ROLE; GRANT {needed} TO someone; SET LOCAL ROLE someone")
    with pytest.raises(errors.InsufficientPrivilege, match="files on the server"), sql.transaction():
        sql.execute(call)
    # Granted anew: since 16 a grant keeps the inheritance that its role had when it was made.
    again = f"REVOKE {needed} FROM someone; ALTER ROLE someone INHERIT; GRANT {needed} TO someone"
    sql.execute(f"RESET ROLE; {again}; SET LOCAL ROLE someone")
    with pytest.raises(reached), sql.transaction():
        sql.execute(call)


@pytest.mark.parametrize("function", CALLS)
def test_the_right_to_files_is_asked_before_a_path_is_looked_at(sql, function, server_files):
    """Whatever the path is: a link to a known checkpoint, none of ours, too long, or no path at all."""
    needed, call = CALLS[function]
    sql.execute("SELECT llm_init_model('model')")
    sql.execute("SELECT llm_checkpoint_save('model', file_path => %s)", [f"{server_files}/c.npz"])
    link = server_files / "link.npz"
    link.symlink_to(server_files / "c.npz")
    paths = [str(link), "/no/such.npz", "/etc/passwd", "relative", "", "/" + 1_000_000 * "a/" + "x.npz"]
    try:
        sql.execute("CREATE ROLE someone; SELECT llm_grant_usage('someone', 'admin'); SET LOCAL ROLE someone")
        for path in paths:
            began = time.monotonic()
            with pytest.raises(errors.InsufficientPrivilege, match="files on the server"), sql.transaction():
                sql.execute(call.format("%s"), [path])
            assert time.monotonic() - began < 1
        sql.execute(f"RESET ROLE; GRANT {needed} TO someone; SET LOCAL ROLE someone")
        began = time.monotonic()
        with pytest.raises(errors.InvalidParameterValue, match="longer than 4095"), sql.transaction():
            sql.execute(call.format("%s"), [paths[-1]])
        assert time.monotonic() - began < 1
    finally:
        link.unlink()
        (server_files / "c.npz").unlink()


def test_all_functions_that_take_a_path_are_among_those_tested(sql):
    rows = sql.execute(
        "SELECT DISTINCT proname FROM pg_proc WHERE proname ~ '^(pg_)?llm_' AND proargnames[1:pronargs] && '{path,file_path}'"
    )
    assert {name for (name,) in rows} == set(CALLS)


@pytest.mark.parametrize("function", CALLS)
def test_what_is_missing_on_the_way_to_a_file_is_named(sql, server_files, function):
    sql.execute("SELECT llm_init_model('model')")
    for path, missing in (
        (f"{server_files}/nowhere/deep/x.npz", f"{server_files}/nowhere"),
        ("/etc/passwd/x.npz", "/etc/passwd"),
    ):
        with pytest.raises(errors.UndefinedFile, match=f'"{missing}"'), sql.transaction():
            sql.execute(CALLS[function][1].format("%s"), [path])


def test_links_are_resolved_before_a_file_is_written(sql, server_files, put):
    """Writing replaces what a link leads to, not the link; a link to nowhere or to a directory is refused."""
    sql.execute("SELECT llm_init_model('model')")
    target, link = put("target", b"before"), server_files / "link"
    link.symlink_to(target)
    try:
        size = sql.execute("SELECT pg_llm_export_safetensors(%s, 'model')", [str(link)]).fetchone()[0]
        assert link.is_symlink()
        assert os.stat(target).st_size == size
        for elsewhere in ("/proc/1/mem", server_files):
            link.unlink()
            link.symlink_to(elsewhere)
            for function in FUNCTIONS:
                with pytest.raises((errors.IoError, errors.UndefinedFile)), sql.transaction():
                    sql.execute(f"SELECT {function}(%s, 'model')", [str(link)])
    finally:
        link.unlink()


INSIDE = """
    CREATE FUNCTION pg_temp.inside() RETURNS text LANGUAGE plpython3u AS $$
    import sys
    files = next(module for name, module in sys.modules.items() if name.endswith('.server.storage.server_files'))
    {}
    $$
"""


@pytest.fixture
def prefix(sql):
    """What the names of the temporary files of this server begin with."""
    sql.execute("SELECT llm_init_model('model'); SELECT llm_export_safetensors('model')")
    sql.execute(INSIDE.format("return files._prefix()"))
    return sql.execute("SELECT pg_temp.inside()").fetchone()[0]


def test_what_a_killed_export_left_is_removed_by_the_next(sql, server_files, target, prefix):
    """But not what another writes: a process here, or one of another server, whose numbers say nothing here."""
    left = server_files / f"{prefix}999999999-abc_1234"
    whose = (f"{prefix}{os.getpid()}", ".pg_gpt2-0123456789abcdef-999999999", ".pg_gpt2-999999999")
    others = [server_files / f"{start}-abc_1234" for start in whose]
    for path in (left, *others):
        path.write_bytes(b"half")
    sql.execute("SELECT pg_llm_export_safetensors(%s, 'model')", [str(target)])
    assert not left.exists()
    for path in others:
        path.unlink()


def test_the_name_of_a_temporary_file_says_whose_it_is(sql, prefix):
    """A copy of this cluster is another server, and so is one in another container; what the server is called lasts."""
    sql.execute("DROP FUNCTION pg_temp.inside")
    sql.execute(
        INSIDE.format("""
    import os
    said = []
    class Elsewhere:
        def __getattr__(self, name):
            return getattr(os, name)
        def stat(self, path):
            return os.stat('base')
    class Socket:
        gethostname = staticmethod(lambda: 'another')
    before = files.os, files.socket
    said.append(files._prefix())
    for files.os, files.socket in (before, (Elsewhere(), before[1]), (before[0], Socket), before):
        said.append(files._prefix())
    return ' '.join(said)
    """)
    )
    first, same, copied, elsewhere, again = sql.execute("SELECT pg_temp.inside()").fetchone()[0].split()
    assert first == same == again == prefix
    assert len({prefix, copied, elsewhere}) == 3


def test_the_disk_has_the_name_of_a_file_before_a_row_names_it(sql, server_files, target, prefix):
    """After a loss of power a file that was renamed is there only if its folder was written, too."""
    sql.execute("DROP FUNCTION pg_temp.inside")
    sql.execute(
        INSIDE.format(f"""
    import os
    written = []
    class Watched:
        def __getattr__(self, name):
            return getattr(os, name)
        def fsync(self, file):
            written.append((os.readlink(f'/proc/self/fd/{{file}}'), os.path.exists({str(target)!r})))
            os.fsync(file)
    files.os = Watched()
    try:
        plpy.execute("SELECT pg_llm_export_safetensors('{target}', 'model')")
    finally:
        files.os = os
    return str(written[-1])
    """)
    )
    assert sql.execute("SELECT pg_temp.inside()").fetchone()[0] == str((str(server_files), True))


def test_a_new_file_is_not_put_in_the_place_of_one_that_came_meanwhile(sql, server_files, target, prefix):
    sql.execute("DROP FUNCTION pg_temp.inside")
    sql.execute(
        INSIDE.format(f"""
    def fill(file):
        file.write(b'ours')
        open({str(target)!r}, 'wb').write(b'theirs')
    files.write({str(target)!r}, fill, is_new=True)
    """)
    )
    with pytest.raises(psycopg.Error, match=f'file "{target}" already exists'), sql.transaction():
        sql.execute("SELECT pg_temp.inside()")
    assert target.read_bytes() == b"theirs"
    assert not list(server_files.glob(".pg_gpt2-*"))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_paths_that_are_no_files(sql, server_files, function):
    sql.execute("SELECT llm_init_model('model')")
    for path, error in (
        (str(server_files), (errors.IoError, errors.WrongObjectType)),
        ("/etc/passwd/file", errors.UndefinedFile),
        ("relative", errors.InvalidParameterValue),
        ("", errors.InvalidParameterValue),
        (None, errors.NullValueNotAllowed),
    ):
        with pytest.raises(error) as raised, sql.transaction():
            sql.execute(f"SELECT {function}(%s, 'model')", [path])
        assert raised.value.diag.message_hint


def test_a_named_pipe_is_not_waited_for(sql, server_files):
    pipe = server_files / "pipe"
    os.mkfifo(pipe, 0o666)
    try:
        with sql.transaction(force_rollback=True):
            sql.execute("SET LOCAL statement_timeout = '5s'")
            with pytest.raises(errors.IoError, match="regular file"):
                sql.execute("SELECT pg_llm_import_safetensors(%s, 'model')", [str(pipe)])
    finally:
        pipe.unlink()
