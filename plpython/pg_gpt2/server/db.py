"""Statements, settings, notices, commits and cancels: what goes to the server goes through here, but for queries of callers
(`caller_query`) and what loads this package (`importer`).

In SQL text `{schema}` stands for the extension's schema, and never for what a user called something: values are parameters, and
names go through `command`. Everything else is in pg_catalog, because every function pins its
search_path. Statements are prepared once a session.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import plpy

from ..errors import InvalidParameter, InvalidTransactionTermination

Row = dict[str, Any]

OUR_PATH = "pg_catalog, pg_temp"  # the search_path that every function pins

_schema = ""
_callers_path = OUR_PATH  # that of whoever called a committing procedure
sources_digest = ""
_plans: dict[tuple[str, tuple[str, ...]], Any] = {}
_checked = 0.0
_in_set = False
_open_cursors = 0
PLANNED = 4 << 20  # bytes of parameters that a planner may copy: setting its mode costs 50 us
CHECK_EVERY = 0.02  # seconds between looks for a cancel: it takes effect in 0.5 s, and a look costs 15 us
CHECK_IN_SET = 0.2  # the same inside a row of a set


def connect(schema: str, digest: str) -> None:
    """Remember the extension's schema (a quoted identifier) and the sources' digest."""
    global _schema, sources_digest
    _schema, sources_digest = schema, digest


def qualified(name: str) -> str:
    """`name` in the extension's schema, as text that casts to regclass."""
    return f"{_schema}.{name}"


def query(sql: str, types: Sequence[str] = (), *args: Any) -> list[Row]:
    """Rows of a statement whose `$1...` have `types`."""
    return list(plpy.execute(_plan(sql, types), list(args)))


def run(sql: str, types: Sequence[str] = (), *args: Any) -> int:
    """Execute a statement; the number of rows it processed."""
    return plpy.execute(_plan(sql, types), list(args)).nrows()


def row(sql: str, types: Sequence[str] = (), *args: Any) -> Row | None:
    """The first row, or None."""
    rows = plpy.execute(_plan(sql, types), list(args), 1)
    return rows[0] if rows.nrows() else None


@contextmanager
def planned_once(n_bytes: int) -> Iterator[None]:
    """Around a statement whose parameters have `n_bytes`: a planner that sees the values copies each of them twice, so it is
    not shown large ones.

    The setting for this ends here, or with the rollback after an error.
    """
    if n_bytes < PLANNED:
        yield
        return
    with _setting("plan_cache_mode", "force_generic_plan"):
        yield


@contextmanager
def without_nested_loops() -> Iterator[None]:
    """Around a statement that joins many rows with many. Where the planner has no or old statistics of them it may take them for
    few, and try every pair. It ends as `planned_once` does."""
    with _setting("enable_nestloop", "off"):
        yield


@contextmanager
def exact_floats() -> Iterator[None]:
    """Around statements that make text or JSON of floats: with all their digits, whatever the session has set. It ends as
    `planned_once` does."""
    with _setting("extra_float_digits", "1"):
        yield


@contextmanager
def _setting(name: str, value: str) -> Iterator[None]:
    before = (row("SELECT pg_catalog.current_setting($1) AS value", ["pg_catalog.text"], name) or {})["value"]
    _set(name, value)
    yield
    _set(name, before)


def _set(name: str, value: str) -> None:
    # A procedure calls this under its caller's path, which may have a type "text" of its own.
    run("SELECT pg_catalog.set_config($1, $2, true)", ["pg_catalog.text"] * 2, name, value)


def command(sql: str, **names: str) -> list[Row]:
    """Execute a statement that cannot be prepared, such as GRANT; its rows. `{name}` in its text stands for the one of `names`,
    which is quoted: all are put in at once, so that a name which looks like one of the placeholders stays what it is."""
    return list(plpy.execute(sql.format(schema=_schema, **names)))


def quote_identifier(name: str) -> str:
    """`name` as an identifier in SQL text."""
    return plpy.quote_ident(name)


def cursor(sql: str, types: Sequence[str] = (), *args: Any) -> Iterator[Row]:
    """Rows one at a time, for results that are too large to hold. Not across the rows of a set: see `entry`."""
    return _counted(plpy.cursor(_plan(sql, types), list(args)))


def open_cursors() -> int:
    """How many cursors of ours have rows left."""
    return _open_cursors


def _counted(rows: Iterator[Row]) -> Iterator[Row]:
    """`rows`, of a cursor that is counted as open until they end."""
    global _open_cursors
    _open_cursors += 1
    try:
        yield from rows
    finally:
        _open_cursors -= 1


def open_cursor(source: str) -> Any:
    """A cursor over a query that a caller wrote, which is executed as it stands."""
    return plpy.cursor(source)


def columns(portal: str) -> list[tuple[str, int]]:
    """Names of the columns of an open cursor of the server, and oids of their types."""
    found = plpy.execute(f"FETCH 0 FROM {quote_identifier(portal)}")
    return list(zip(found.colnames(), found.coltypes()))


def batches(sql: str, types: Sequence[str] = (), *args: Any) -> Iterator[Row]:
    """Rows, of which there may be millions: fetched a thousand at a time, with a look for an interrupt in between."""
    return _counted(_in_batches(plpy.cursor(_plan(sql, types), list(args))))


def _in_batches(found: Any) -> Iterator[Row]:
    while rows := found.fetch(1000):
        yield from rows
        check_interrupts()


def _plan(sql: str, types: Sequence[str]) -> Any:
    key = (sql, tuple(types))
    if key not in _plans:
        _plans[key] = plpy.prepare(sql.replace("{schema}", _schema), list(types))
    return _plans[key]


def set_search_path(path: str) -> None:
    """Set search_path until the transaction ends."""
    _set("search_path", path)


@contextmanager
def savepoint() -> Iterator[None]:
    """Whatever ends it with an error undoes what was done within it, and lets go the locks that were taken."""
    with plpy.subtransaction():
        yield


@contextmanager
def committing(procedure: str) -> Iterator[None]:
    """Around a procedure that commits as it goes: a call inside a transaction block fails here, before any work.

    The caller's search_path is there again afterwards; after an error, which undoes the transaction, it is so by itself.
    """
    set_search_path(OUR_PATH)
    try:
        commit()
    except plpy.SPIError as error:
        if error.sqlstate != "2D000":
            raise
        raise InvalidTransactionTermination(
            f"{procedure} commits as it goes, so it cannot run inside a transaction block or a function",
            hint="Call it in autocommit mode, alone in its statement string: outside BEGIN, by a psql -c of its own, with"
            " autocommit=True in psycopg.",
        ) from None
    yield
    set_search_path(_callers_path)


def commit() -> None:
    """Commit; procedures cannot have a SET clause, and what they set themselves ends with the transaction."""
    global _callers_path
    plpy.commit()
    _callers_path = (row("SELECT pg_catalog.current_setting('search_path') AS path") or {})["path"]
    set_search_path(OUR_PATH)


def setting(name: str, default: str | None = None) -> str | None:
    """Value of `pg_gpt2.name`, else `default`. After a rolled-back SET the value is '' and not null."""
    found = row("SELECT nullif(current_setting($1, true), '') AS value", ["text"], f"pg_gpt2.{name}")
    return default if found is None or found["value"] is None else found["value"]


def is_owner() -> bool:
    """Whether the current role owns the extension, as a member of its owner or as a superuser."""
    return bool(
        row("SELECT 1 FROM pg_extension WHERE extname = 'pg_gpt2' AND pg_has_role(current_user, extowner, 'USAGE')")
    )


def has_written() -> bool:
    """Whether this transaction has written, so that it may see rows that nobody else sees yet."""
    return row("SELECT 1 WHERE pg_current_xact_id_if_assigned() IS NOT NULL") is not None


def may_read(*relations: str) -> bool:
    """Whether the caller has SELECT on `relations` of the extension."""
    found = row(
        "SELECT bool_and(has_table_privilege(name, 'SELECT')) AS held FROM unnest($1) AS name",
        ["text[]"],
        [qualified(name) for name in relations],
    )
    return (found or {})["held"]


def flag(name: str, default: str) -> bool:
    """Value of the boolean setting `pg_gpt2.name`. 22023 when it is none."""
    return as_flag(name, setting(name, default) or default)


def as_flag(name: str, text: str) -> bool:
    """The boolean that the setting `pg_gpt2.name` says. 22023 when it is none."""
    for value, words in ((True, ("on", "true", "yes", "1", "t", "y")), (False, ("off", "false", "no", "0", "f", "n"))):
        if text.strip().lower() in words:
            return value
    raise InvalidParameter(f"pg_gpt2.{name} must be on or off, not '{text}'", hint=f"RESET pg_gpt2.{name};")


def storable(text: str) -> str:
    """`text` without U+0000, which a text cannot hold: PostgreSQL would cut it there silently."""
    return text.replace("\0", "\ufffd")


@contextmanager
def within_a_row() -> Iterator[None]:
    """Around the making of one row of a set: a cancel is looked for less often, because PL/Python wraps an error that comes
    between rows in "error fetching next item from iterator"."""
    global _in_set, _checked
    _in_set, _checked = True, time.monotonic()
    try:
        yield
    finally:
        _in_set = False


def check_interrupts() -> None:
    """Let a cancel, a timeout or a termination of this session take effect; cheap enough for inner loops."""
    global _checked
    now = time.monotonic()
    if now - _checked >= (CHECK_IN_SET if _in_set else CHECK_EVERY):
        _checked = now
        plpy.execute(_plan("SELECT 1", ()))


def notice(message: str) -> None:
    """Tell the client something, as a NOTICE."""
    plpy.notice(message)
