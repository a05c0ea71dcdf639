"""What the loaders share: arguments, connection, the extension's schema, COPY, files, progress, errors without traceback."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from pg_gpt2.errors import PgGpt2Error
from pg_gpt2.formats.source import LFS_POINTER, shown
from pg_llm_client.statements import FIND_SCHEMA, statement
from psycopg import sql
from psycopg.rows import tuple_row
from tqdm import tqdm

# Else a role or a database may say that numbers come rounded and moments in a form that psycopg does not read. For a transaction:
# a pooler may be in between.
EXACT_VALUES = (
    "SELECT pg_catalog.set_config('extra_float_digits', '1', true), pg_catalog.set_config('DateStyle', 'ISO', true)"
)


class LoaderError(Exception):
    """An error that the user can put right: the program prints its message and exits with status 1."""


@contextmanager
def as_loader_error() -> Iterator[None]:
    """An error of the engine becomes a LoaderError."""
    try:
        yield
    except PgGpt2Error as error:
        raise LoaderError(f"{error.message} ({error.hint})") from None


class Database:
    """A connection to a database that has pg_gpt2, in whichever schema; LoaderError when it does not have it.

    In the transaction that it begins, or that is open, values come as they are, whatever the role has set.
    """

    def __init__(self, conn: psycopg.Connection) -> None:
        self.conn = conn
        found = self._cursor().execute(FIND_SCHEMA).fetchone()
        if found is None:
            raise LoaderError(
                f'database "{conn.info.dbname}" does not have pg_gpt2; run CREATE EXTENSION pg_gpt2 CASCADE in it'
            )
        self.schema: str = found[0]
        self._cursor().execute(EXACT_VALUES)

    def query(self, text: str) -> sql.Composed:
        """The statement `text`, in which {name} stands for an object of the extension and %s for a parameter."""
        return statement(text, self.schema)

    def execute(self, text: str, *args: Any) -> psycopg.Cursor:
        """Run `text` with the parameters `args`."""
        return self._cursor().execute(self.query(text), args)

    def _cursor(self) -> psycopg.Cursor[tuple[Any, ...]]:
        """One that gives tuples, whatever those of the connection do."""
        return psycopg.Cursor(self.conn, row_factory=tuple_row)

    def base_of(self, model: str) -> str | None:
        """The model that `model` adapts; None when it is no adapter."""
        row = self.execute("SELECT base FROM {llm_adapter} WHERE model = %s", model).fetchone()
        return row[0] if row else None

    def copy(self, table: str, types: dict[str, str], rows: Iterable[Sequence[Any]]) -> None:
        """COPY `rows`, in binary, into columns of `table`; `types` maps column -> type. LoaderError when not all arrive."""
        copying = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            sql.Identifier(self.schema, table), sql.SQL(", ").join(map(sql.Identifier, types))
        )
        sent = 0
        with self._cursor() as cursor:
            try:
                with cursor.copy(copying) as copy:
                    copy.set_types(list(types.values()))
                    for row in rows:
                        copy.write_row(row)
                        sent += 1
            except psycopg.errors.QueryCanceled as error:
                # What psycopg 3.1 makes of an error of `rows`, or of an interrupt.
                if isinstance(error.__context__, LoaderError | OSError | KeyboardInterrupt):
                    raise error.__context__ from None
                raise
            except psycopg.errors.FeatureNotSupported:  # the server's hint is for whoever writes statements
                raise LoaderError(
                    f"rows of {table} are sent by COPY, which a role that policies of the table apply to may not do: connect as"
                    " the owner of the extension, or as a role with BYPASSRLS; data to learn from can be loaded in SQL, by"
                    " llm_dataset_load"
                ) from None
            if cursor.rowcount != sent:
                raise LoaderError(f"{sent} rows were sent to {table}, and {cursor.rowcount} arrived")


def fetched(cursor: psycopg.ServerCursor[Any], size: int) -> Iterator[Any]:
    """All rows of a cursor, `size` of them fetched at a time. psycopg 3.3.0's own iteration ends after the first ones."""
    more = True
    while more:
        rows = cursor.fetchmany(size)
        yield from rows
        more = len(rows) == size


def connect(dsn: str) -> psycopg.Connection:
    """A session in UTF-8; what `dsn` leaves out comes from the environment, as with psql. What the server tells goes to stderr,
    as that a model in training is waited for.

    Nothing is prepared, since a pooler in transaction mode may be in between.
    """
    conn = psycopg.connect(dsn, client_encoding="utf8", application_name="pg_gpt2 loader", prepare_threshold=None)
    conn.add_notice_handler(lambda said: print(said.message_primary, file=sys.stderr))
    return conn


def arguments(description: str | None, *, dsn: bool = True) -> argparse.ArgumentParser:
    """A parser of command lines; with the option --dsn unless `dsn` is false."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if dsn:
        parser.add_argument("--dsn", default="", help="connection string or URI; default: PGHOST, PGDATABASE and so on")
    return parser


def bar(total: int | None, what: str, unit: str = "B") -> tqdm:
    """A progress bar on stderr, shown on a terminal only; `total` None is unknown."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=None, file=sys.stderr)


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, beside it: at the end it is renamed to `path`, after an error it is removed.

    Of a symbolic link the target is meant. LoaderError where there is something else than a file.
    """
    if path.exists() and not path.is_file():
        raise LoaderError(f"{path} is there already, and is no file")
    path = Path(os.path.realpath(path))
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """A file to write where the user says: what is there and is no file, as a device or a pipe, is written to as it is."""
    if path.is_dir():
        raise LoaderError(f"{path} is a directory; name a file")
    if path.exists() and not path.is_file():
        yield path
    else:
        with complete(path) as partial:
            yield partial


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; LoaderError when there is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise LoaderError(f"{path} does not exist") from None
    except ValueError as error:
        raise LoaderError(f"{path} is not UTF-8: {error}") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        pointer = " but a git-LFS pointer" if text.startswith(LFS_POINTER.decode()) else f": {error}"
        raise LoaderError(f"{path} is not JSON{pointer}") from None
    if not isinstance(found, dict):
        raise LoaderError(f"{path} is not a JSON object")
    return found


def run(program: Callable[[], None]) -> None:
    """Run a loader's main function; an error that the user can put right is told without a traceback, with status 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a path need not be text
    try:
        _told(program)
    finally:
        _flush()


def _told(program: Callable[[], None]) -> None:
    try:
        program()
    except LoaderError as error:
        raise SystemExit(f"error: {error}") from None
    except psycopg.Error as error:
        lines = [str(error).strip().split("\n")[0]]
        lines += [f"{label}: {text}" for label, text in (("DETAIL", error.diag.message_detail),) if text]
        lines += [f"HINT: {error.diag.message_hint}"] if error.diag.message_hint else []
        raise SystemExit("error: " + "\n".join(lines)) from None
    except BrokenPipeError:  # whoever reads what is written has enough
        raise SystemExit(1) from None
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    except UnicodeEncodeError as error:  # of the command line, on its way to the server
        raise SystemExit(f"error: {shown(error.object)} is not UTF-8") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


def _flush() -> None:
    """Write what was printed: the interpreter, which would do it at its end, tells of an error there in its own way."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where it goes when it is tried again
        raise SystemExit(1 if isinstance(error, BrokenPipeError) else f"error: {error}") from None
