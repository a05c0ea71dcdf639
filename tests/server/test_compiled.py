"""The code of the package that llm_module has beside its sources: what runs it, and what never does."""

import psycopg
import pytest

CALL = "SELECT llm_sparkline('{1,2}')"
OURS = "pg_gpt2.sparkline"
# Puts code in the place of that of a module: one that tells that it ran.
PLANT = f"""
    DO LANGUAGE plpython3u $$
    import marshal
    code = marshal.dumps(compile("raise RuntimeError('the kept code ran')", "planted", "exec"))
    plan = plpy.prepare("UPDATE llm_module SET code = $1 WHERE name = '{OURS}'", ["bytea"])
    plpy.execute(plan, [code])
    $$
"""
DOCTOR = "SELECT value, status, hint FROM llm_doctor() WHERE item = 'compiled modules'"


@pytest.fixture
def dsn(new_database):
    return new_database()


def drawn(dsn: str) -> str:
    """What a new session gives."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(CALL).fetchone()[0]


@pytest.fixture
def owner(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def test_a_session_runs_the_code_that_is_kept(dsn, owner):
    owner.execute(PLANT)
    with pytest.raises(psycopg.Error, match="the kept code ran"):
        drawn(dsn)
    owner.execute("SELECT llm_compile()")
    assert drawn(dsn) == "▁█"


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE llm_module SET source = source || '#' WHERE name = '{OURS}'",
        "UPDATE llm_module SET code_of = replace(code_of, 'cpython-', 'cpython-9')",
        "UPDATE llm_module SET code_of = NULL",
    ],
    ids=["another source", "another Python", "of nothing"],
)
def test_code_of_another_source_or_another_python_is_never_run(dsn, owner, change):
    """And a session does what it would with the code."""
    owner.execute(PLANT)
    owner.execute(change)
    assert drawn(dsn) == "▁█"
    n, of = map(int, owner.execute(DOCTOR).fetchone()[0].split(" of "))
    assert n < of
    owner.execute("SELECT llm_compile()")
    assert owner.execute(DOCTOR).fetchone() == (f"{of} of {of}", "ok", None)
    assert drawn(dsn) == "▁█"


def test_an_open_session_goes_on_with_what_it_has(dsn, owner):
    """Also where it has not needed a module yet: a package is all of one time."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("SELECT llm_boot()")
        owner.execute("UPDATE llm_module SET source = 'raise RuntimeError', code = NULL")
        assert session.execute(CALL).fetchone() == ("▁█",)


def test_the_detail_of_a_defect_has_lines_of_the_source(dsn, owner):
    defect = "def broken(*_):\n    return None + 1  # the line\n"
    owner.execute(
        f"UPDATE llm_module SET source = source || %s WHERE name = '{OURS}'", [f"\n{defect}sparkline = broken\n"]
    )
    for compiled in (False, True):
        if compiled:
            owner.execute("SELECT llm_compile()")
        with pytest.raises(psycopg.errors.InternalError, match="unexpected TypeError") as caught:
            drawn(dsn)
        assert "return None + 1  # the line" in caught.value.diag.message_detail
