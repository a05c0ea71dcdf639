"""Errors on their way out: an exception of Python as the PostgreSQL error that a caller of SQL sees."""

import linecache
import re
import traceback
from typing import Any

import plpy

from ..errors import OutOfMemory, PgGpt2Error, of_system
from . import db

# PL/Python prefixes a message with the name of the exception's class; this name makes a prefix that a user can read.
ServerError = type("pg_gpt2", (plpy.Error,), {"__module__": "builtins"})
SHOWN = 4000  # characters of each end of a message
READ_ONLY = (  # the server's words name a statement that the caller did not write, such as SELECT for one that takes a lock
    "Nothing can be written here: the transaction is read-only, or the server a standby. Generating, scoring and looking"
    " inside work all the same."
)
_ROOT = __name__.partition(".")[0]


def for_sql(error: Exception) -> Exception:
    """The error that SQL gets for `error`."""
    if isinstance(error, plpy.SPIError):
        return _from_server(error)
    if isinstance(error, ServerError):
        return error
    if isinstance(error, plpy.Error):  # a cancel that came while a NOTICE was sent
        return server_error(str(error), error.sqlstate, error.detail, error.hint)
    if isinstance(error, OSError):
        error = of_system(error, f'"{error.filename}"' if error.filename else "a file of the server")
    if isinstance(error, PgGpt2Error):
        return server_error(error.message, error.sqlstate, error.detail, error.hint)
    if isinstance(error, MemoryError):
        hint = "Use a shorter input, a smaller batch or a smaller model."
        return server_error(str(error) or "out of memory", OutOfMemory.sqlstate, None, hint)
    _give_lines(error)
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    hint = "This is a defect in pg_gpt2: please report it with the DETAIL."
    return server_error(f"unexpected {type(error).__name__}: {error}", "XX000", trace, hint)


def _give_lines(error: BaseException | None) -> None:
    """Let the traceback of an error show lines of our modules: a session has only their code, and the table their sources."""
    files = set()
    while error is not None:
        files |= {frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)}
        error = error.__cause__ or error.__context__
    ours = {f"pg_gpt2{file[len(_ROOT) + 1 : -1]}": file for file in files if file.startswith(f"<{_ROOT}")}
    for row in db.query("SELECT name, source FROM {schema}.llm_module WHERE name = ANY ($1)", ["text[]"], list(ours)):
        lines, file = row["source"].splitlines(keepends=True), ours[row["name"]]
        linecache.cache[file] = (len(row["source"]), None, lines, file)


def server_error(message: str, sqlstate: str, detail: str | None, hint: str | None) -> Exception:
    """An error with these fields, which PL/Python passes on to the client."""
    error = ServerError(_sendable(message))
    error.sqlstate, error.detail, error.hint = sqlstate, detail and _sendable(detail), hint and _sendable(hint)
    return error


def _sendable(text: str) -> str:
    """`text` as it can reach a reader: names in a file may have U+0000, or half of a pair of UTF-16, and one of
    megabytes would go to the client and into the server's log whole."""
    if len(text) > 2 * SHOWN:
        text = f"{text[:SHOWN]} ... {text[-SHOWN:]}"
    return db.storable(text).encode("utf-8", "replace").decode()


def _from_server(error: Any) -> Exception:
    """The server's own error, with all its fields but without the class name that PL/Python would prefix."""
    _, detail, hint, _query, _position, *names = error.spidata or (None,) * 10
    message = str(error).removeprefix("pg_gpt2: ")  # of our own error in a query that was given as source
    if error.sqlstate == "42501" and not hint:
        hint = _who_gives_the_right(message)
    if error.sqlstate == "25006" and not hint:
        hint = READ_ONLY
    copy = server_error(message, error.sqlstate, detail, hint)
    for field, value in zip(("schema_name", "table_name", "column_name", "datatype_name", "constraint_name"), names):
        setattr(copy, field, value)
    return copy


def _who_gives_the_right(message: str) -> str | None:
    """The hint for an object of ours that the server's refusal names, in whatever language; None when it is somebody else's."""
    found = re.search(r"\b(?:pg_)?llm_\w+", message)
    if found is None:
        return None
    refused = db.row(
        "SELECT quote_literal(current_user) AS role,"  # what a policy refuses is to write a row
        " bool_or(row_security_active(o.oid)) AND current_setting('row_security') = 'off' AS unfiltered,"
        " bool_or(row_security_active(o.oid) AND has_table_privilege(o.oid, 'INSERT, UPDATE')) AS filtered,"
        " has_table_privilege('{schema}.llm_param', 'SELECT')"
        " AND coalesce(bool_and(has_table_privilege(o.oid, 'SELECT')), true) AS reads"
        " FROM (SELECT CASE WHEN relkind <> 'S' THEN oid END AS oid FROM pg_class"
        " WHERE relname = $1 AND relnamespace = '{schema}'::regnamespace"
        " UNION ALL SELECT NULL FROM pg_proc WHERE proname = $1 AND pronamespace = '{schema}'::regnamespace) AS o"
        " HAVING count(*) > 0",
        ["text"],
        found[0],
    )
    if refused is None:
        return None
    if refused["unfiltered"]:
        return (
            f"{found[0]} has row-level security, and this session asks for all rows or an error: SET row_security = on."
        )
    if refused["filtered"]:
        return f"{found[0]} has row-level security: its policies say which rows this role may read and write."
    level, more = ("train", "or 'admin'") if refused["reads"] else ("read", "or 'train' or 'admin', to write")
    call = f"{db.qualified('llm_grant_usage')}({refused['role']}, '{level}')"
    return f"The owner of the extension gives it: SELECT {call}; {more}."
