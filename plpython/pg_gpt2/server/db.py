"""The one module that talks to the server: queries, settings, notices, cancel, and errors on their way out.

In SQL text `{schema}` stands for the extension's schema, and never for what a user called something: values are parameters, and
names go through `command`. Everything else is in pg_catalog, because every function pins its
search_path. Statements are prepared once a session.
"""

import functools
import inspect
import re
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import plpy

from ..errors import (
    InvalidParameter,
    InvalidTransactionTermination,
    MalformedData,
    OutOfMemory,
    PgGpt2Error,
    TriggerProtocolViolated,
    of_system,
)
from ..limits import MOST_IDS
from .importer import is_set_oddly, own_settings

Row = dict[str, Any]
Function = Callable[..., Any]

# PL/Python prefixes a message with the name of the exception's class; this name makes a prefix that a user can read.
ServerError = type("pg_gpt2", (plpy.Error,), {"__module__": "builtins"})

OUR_PATH = "pg_catalog, pg_temp"  # the search_path that every function pins

_schema = ""
_callers_path = OUR_PATH  # that of who called a committing procedure
sources_digest = ""
_plans: dict[tuple[str, tuple[str, ...]], Any] = {}
_checked = 0.0
_in_set = False
_open_cursors = 0
_END = object()
PL_PYTHON = frozenset(("GD", "SD", "plpy"))  # what the globals of a PL/Python function have beside its arguments
PLANNED = 4 << 20  # bytes of parameters that a planner may copy: setting its mode costs 50 us
SHOWN = 4000  # characters of each end of a message
ELEMENTS = {  # of a type: the oid, and what array_send has of an element, for struct and for NumPy
    name: (oid, struct.Struct(f">i{code}"), np.dtype(f">i,>{code}"))
    for name, oid, code in (("integer", 23, "i"), ("bigint", 20, "q"), ("double precision", 701, "d"))
}
NULL_LENGTH = b"\xff" * 4  # of an element, as array_send has it
CHECK_EVERY = 0.02  # seconds between looks for a cancel: it takes effect in 0.5 s, and a look costs 15 us
CHECK_IN_SET = 0.2  # the same inside a row of a set


def connect(schema: str, digest: str) -> None:
    """Remember the extension's schema (a quoted identifier) and the sources' digest."""
    global _schema, sources_digest
    _schema, sources_digest = schema, digest


def entry(function: Function, matrices: bool = False) -> Callable[[dict[str, Any]], Any]:
    """Make `function` callable from SQL, where a body hands over its `globals()`: arguments are taken out of them, and errors,
    also those of a generator that is returned, become PostgreSQL errors. A function that ends in **keywords gets those that
    follow its own parameters by their names in SQL. `matrices`: arrays may have several dimensions."""
    own = _own_parameters(function)

    @functools.wraps(function)
    def guarded(scope: dict[str, Any]) -> Any:
        args, named = _taken(scope, own)
        try:
            with own_settings() if is_set_oddly() else nullcontext(), np.errstate(all="ignore"):
                if not matrices:
                    _refuse_nested_arrays(function, args, named)
                result = function(*args, **named)
        except Exception as error:  # nothing is swallowed: a cancel, too, goes on to the server
            raise _for_sql(error) from None
        return _guarded_rows(result) if isinstance(result, Iterator) else result

    return guarded


def _own_parameters(function: Function) -> int | None:
    """How many arguments go to `function` by their place; None for all."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return len(kinds) - 1 if inspect.Parameter.VAR_KEYWORD in kinds else None


def _taken(scope: dict[str, Any], own: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, the first `own` of them by place and the others by name; a trigger's one argument is TD.

    PL/Python leaves them in the function's globals, each by its name and all as `args`, until the next call of the same function:
    a session that once called seven kernels on 200 MB would hold 1.7 GB until its end.
    """
    args = scope.get("args") if "TD" not in scope else [scope["TD"]]
    names = scope.get("__names")
    if names is None:
        names = scope["__names"] = [name for name in scope if name not in PL_PYTHON and not name.startswith("__")]
    named = {} if own is None else {name: scope[name] for name in names[own:] if name != "args"}
    for name in names:
        scope[name] = None
    return tuple(args or ())[:own], named


def _refuse_nested_arrays(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """text[] is the type of a matrix, too, which arrives as a list of lists."""
    for place, value in [*enumerate(args), *named.items()]:
        if type(value) is list and value and type(value[0]) is list:
            raise _not_one_dimension(
                place if isinstance(place, str) else inspect.unwrap(function).__code__.co_varnames[place]
            )


def _not_one_dimension(name: str) -> InvalidParameter:
    return InvalidParameter(
        f"{name} must be an array of one dimension", hint="ARRAY(SELECT unnest(a)) makes one of all its elements."
    )


def received(**types: str) -> Callable[[Function], Function]:
    """For a function that SQL hands arrays of numbers in their binary form: their names, and what they are of. It gets lists."""

    def of(function: Function) -> Function:
        names = list(inspect.signature(function).parameters)
        arrays = [(names.index(name), name, kind) for name, kind in types.items()]

        @functools.wraps(function)
        def receiving(*args: Any, **named: Any) -> Any:
            given = list(args)
            for place, name, kind in arrays:
                if given[place] is not None:
                    given[place] = _elements_sent(given[place], name, kind)
            return function(*given, **named)

        return receiving

    return of


def _guarded_rows(rows: Iterator[Any]) -> Iterator[Any]:
    """Rows of a set. A cancel is left to the executor, which looks between rows, unless a row takes long: PL/Python wraps our
    error in "error fetching next item from iterator".

    No cursor is open between rows: where the statement is cancelled there, PL/Python closes it while the server closes all, which
    can end in a crash of the server.
    """
    global _in_set, _checked
    while True:
        _in_set, _checked, before = True, time.monotonic(), _open_cursors
        try:
            with own_settings() if is_set_oddly() else nullcontext(), np.errstate(all="ignore"):
                row = next(rows, _END)
            if _open_cursors > before and row is not _END:
                raise RuntimeError("a cursor is open between the rows of a set")
        except Exception as error:
            raise _for_sql(error) from None
        finally:
            _in_set = False
        if row is _END:
            return
        yield row


def _for_sql(error: Exception) -> Exception:
    """The error as SQL shall see it."""
    if isinstance(error, plpy.SPIError):
        return _from_server(error)
    if isinstance(error, ServerError):
        return error
    if isinstance(error, plpy.Error):  # a cancel that came while a NOTICE was sent
        return _error(str(error), error.sqlstate, error.detail, error.hint)
    if isinstance(error, OSError):
        error = of_system(error, f'"{error.filename}"' if error.filename else "a file of the server")
    if isinstance(error, PgGpt2Error):
        return _error(error.message, error.sqlstate, error.detail, error.hint)
    if isinstance(error, MemoryError):
        hint = "Use a shorter input, a smaller batch or a smaller model."
        return _error(str(error) or "out of memory", OutOfMemory.sqlstate, None, hint)
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    hint = "This is a defect in pg_gpt2: please report it with the DETAIL."
    return _error(f"unexpected {type(error).__name__}: {error}", "XX000", trace, hint)


def _error(message: str, sqlstate: str, detail: str | None, hint: str | None) -> Exception:
    error = ServerError(_sendable(message))
    error.sqlstate, error.detail, error.hint = sqlstate, detail and _sendable(detail), hint and _sendable(hint)
    return error


def _sendable(text: str) -> str:
    """`text` as it can reach a reader: names in a file may have U+0000, or half of a pair of UTF-16, and one of
    megabytes would go to the client and into the server's log whole."""
    if len(text) > 2 * SHOWN:
        text = f"{text[:SHOWN]} ... {text[-SHOWN:]}"
    return storable(text).encode("utf-8", "replace").decode()


def _from_server(error: Any) -> Exception:
    """The server's own error, with all its fields but without the class name that PL/Python would prefix."""
    _, detail, hint, _query, _position, *names = error.spidata or (None,) * 10
    message = str(error).removeprefix("pg_gpt2: ")  # of our own error in a query that was given as source
    if error.sqlstate == "42501" and not hint:
        hint = _who_gives_the_right(message)
    copy = _error(message, error.sqlstate, detail, hint)
    for field, value in zip(("schema_name", "table_name", "column_name", "datatype_name", "constraint_name"), names):
        setattr(copy, field, value)
    return copy


def _who_gives_the_right(message: str) -> str | None:
    """The hint for an object of ours that the server's refusal names, in whatever language; None when it is somebody else's."""
    found = re.search(r"\b(?:pg_)?llm_\w+", message)
    if found is None:
        return None
    refused = row(
        "SELECT quote_literal(current_user) AS role, bool_or(row_security_active(o.oid)) AS filtered"
        " FROM (SELECT oid FROM pg_class WHERE relname = $1 AND relnamespace = '{schema}'::regnamespace"
        " UNION ALL SELECT NULL FROM pg_proc WHERE proname = $1 AND pronamespace = '{schema}'::regnamespace) AS o"
        " HAVING count(*) > 0",
        ["text"],
        found[0],
    )
    if refused is None:
        return None
    if refused["filtered"]:
        return f"{found[0]} has row-level security: its policies say which rows this role may read and write."
    call = f"{_schema}.llm_grant_usage({refused['role']}, 'read')"
    return f"The owner of the extension gives it: SELECT {call}; or 'train' or 'admin', to write."


def require_trigger_of(trigger: dict[str, Any], what: str, *tables: str) -> None:
    """39P01 unless it is the trigger `what`, such as "BEFORE INSERT ROW", of one of our own `tables`."""
    kind = " ".join(trigger[key] for key in ("when", "event", "level"))
    ours = row(
        "SELECT $1::oid = ANY ($2::regclass[]) AS ours", ["text", "text[]"], trigger["relid"], [*map(qualified, tables)]
    )
    if not (ours or {})["ours"] or not kind.startswith(what):
        raise TriggerProtocolViolated(
            f'trigger "{trigger["name"]}", {kind}, of table "{trigger["table_name"]}" cannot use this function, which serves'
            f" {' and '.join(tables)} of pg_gpt2 only",
            hint="DROP TRIGGER it, and write a function of your own for your table.",
        )


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
    """For statements whose parameters have `n_bytes`: a planner that has their values copies each twice, so large ones are kept
    from it.

    What it sets ends with a rollback, as after an error within, and here.
    """
    if n_bytes < PLANNED:
        yield
        return
    before = (row("SELECT pg_catalog.current_setting('plan_cache_mode') AS mode") or {})["mode"]
    _set_plan_cache_mode("force_generic_plan")
    yield
    _set_plan_cache_mode(before)


def _set_plan_cache_mode(mode: str) -> None:
    run("SELECT pg_catalog.set_config('plan_cache_mode', $1, true)", ["pg_catalog.text"], mode)


def command(sql: str, **names: str) -> None:
    """Execute a statement that cannot be prepared, such as GRANT. `{name}` in its text stands for the one of `names`, which is
    quoted: all are put in at once, so that a name which looks like one of the placeholders stays what it is."""
    plpy.execute(sql.format(schema=_schema, **names))


def quote_identifier(name: str) -> str:
    """`name` as an identifier in SQL text."""
    return plpy.quote_ident(name)


def cursor(sql: str, types: Sequence[str] = (), *args: Any) -> Iterator[Row]:
    """Rows one at a time, for results that are too large to hold. Not across the rows of a set: see `_guarded_rows`."""
    return _counted(plpy.cursor(_plan(sql, types), list(args)))


def _counted(rows: Iterator[Row]) -> Iterator[Row]:
    """`rows`, of a cursor that is counted as open until they end."""
    global _open_cursors
    _open_cursors += 1
    try:
        yield from rows
    finally:
        _open_cursors -= 1


def batches(sql: str, types: Sequence[str] = (), *args: Any) -> Iterator[Row]:
    """Rows of what may be millions, fetched a thousand at a time, with a look for an interrupt between."""
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


def source_texts(source: str, search_path: str) -> Iterator[str]:
    """Texts of a caller's query, which runs with the caller's rights under the caller's `search_path`; NULLs are skipped.

    The path is set only while the query runs, so that it cannot lead our own statements astray.
    """
    with _search_path(search_path):
        open_before = _portals()
        try:
            rows = plpy.cursor(source)
        except plpy.spiexceptions.InvalidCursorDefinition:
            raise InvalidParameter(
                "source must be one query", hint="Example: 'SELECT body FROM documents', without a second statement."
            ) from None
        except plpy.SPIError as error:
            if not error.sqlstate.startswith("42") or error.sqlstate == "42501":
                raise
            # not a query at all, or of something that is not there
            hint = "source is the text of a query, such as 'SELECT body FROM documents'."
            raise _error(f"source: {error}", error.sqlstate, None, hint) from None
        names = _columns(_portals() - open_before)
        if len(names) != 1:
            raise _not_one_text(names)
        batch = rows.fetch(100)
    while batch.nrows():
        for fetched in batch:
            if not isinstance(value := fetched[names[0]], str | None):
                raise _not_one_text(names)
            if value is not None:
                yield value
        with _search_path(search_path):
            batch = rows.fetch(100)
    rows.close()


def _portals() -> set[str]:
    """Names of the cursors that are open in this session."""
    return {row["name"] for row in query("SELECT name FROM pg_catalog.pg_cursors")}


def _columns(portals: set[str]) -> list[str]:
    """Names of the columns of a cursor that was just opened. What a cursor fetches is a dict a row, in which columns of the same
    name are one, and has no colnames(); what FETCH gives has."""
    return plpy.execute(f"FETCH 0 FROM {quote_identifier(max(portals))}").colnames()


def _not_one_text(names: list[str]) -> InvalidParameter:
    return InvalidParameter(
        f"source must return one text column, not ({', '.join(names)})", hint="Example: 'SELECT body FROM documents'."
    )


@contextmanager
def _search_path(path: str) -> Iterator[None]:
    try:
        _set_search_path(path)
    except plpy.spiexceptions.InvalidParameterValue as error:
        raise InvalidParameter(
            f"source_path: {error}", hint="source_path is written as SET search_path has it."
        ) from None
    try:
        yield
    finally:
        _set_search_path(OUR_PATH)


def _set_search_path(path: str) -> None:
    # A procedure calls this under its caller's path, which may have a type "text" of its own.
    run("SELECT pg_catalog.set_config('search_path', $1, true)", ["pg_catalog.text"], path)


@contextmanager
def committing(procedure: str) -> Iterator[None]:
    """Around a procedure that commits as it goes: a call inside a transaction block fails here, before any work.

    The caller's search_path is there again afterwards; after an error, which undoes the transaction, it is so by itself.
    """
    _set_search_path(OUR_PATH)
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
    _set_search_path(_callers_path)


def commit() -> None:
    """Commit; procedures cannot have a SET clause, and what they set themselves ends with the transaction."""
    global _callers_path
    plpy.commit()
    _callers_path = (row("SELECT pg_catalog.current_setting('search_path') AS path") or {})["path"]
    _set_search_path(OUR_PATH)


def setting(name: str, default: str | None = None) -> str | None:
    """Value of `pg_gpt2.name`, else `default`. After a rolled-back SET the value is '' and not null."""
    found = row("SELECT nullif(current_setting($1, true), '') AS value", ["text"], f"pg_gpt2.{name}")
    return default if found is None or found["value"] is None else found["value"]


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


def _elements_sent(sent: bytes, name: str, kind: str) -> list[Any]:
    """The elements of an array that SQL passed as array_send(name), or as '' where it has more than MOST_IDS.

    The form: number of dimensions, whether there are nulls, type; of each dimension size and lower bound; of each element length
    and value, big-endian. A null has the length -1 and no value.
    """
    oid, element, pair = ELEMENTS[kind]
    if not sent or len(sent) > 20 + element.size * MOST_IDS:
        raise InvalidParameter(
            f"{name} has more than {MOST_IDS} elements", hint=f"Give a part of them: ({name})[1:1000000], for example."
        )
    dimensions, nulls, given, size = struct.unpack(">4i", sent[:16].ljust(16, b"\0"))  # an empty array has no size
    if given == oid:
        if dimensions > 1:
            raise _not_one_dimension(name)
        if nulls:
            found = _elements_or_nulls(sent, element)
            if len(found) == size:
                return found
        elif len(sent) == 12 + 8 * dimensions + element.size * size:
            return np.frombuffer(sent[12 + 8 * dimensions :], pair)["f1"].tolist()
    raise MalformedData(f"{name} is not what array_send gives", hint=f"array_send({name}), with {name} {kind}[].")


def _elements_or_nulls(sent: bytes, element: struct.Struct) -> list[Any]:
    """Elements of an array of one dimension, as far as they are there."""
    found: list[Any] = []
    place = 20
    while place <= len(sent) - len(NULL_LENGTH):
        if sent.startswith(NULL_LENGTH, place):
            found.append(None)
            place += len(NULL_LENGTH)
        elif place + element.size > len(sent):
            break
        else:
            found.append(element.unpack_from(sent, place)[1])
            place += element.size
        if not len(found) % 50_000:
            check_interrupts()
    return found


def storable(text: str) -> str:
    """`text` without U+0000, which a text cannot hold: PostgreSQL would cut it there silently."""
    return text.replace("\0", "\ufffd")


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
