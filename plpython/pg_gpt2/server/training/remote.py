"""A session on another server, through dblink: statements are sent and answered without waiting.

CREATE SERVER and CREATE USER MAPPING say where the server is, and who to be there. dblink waits without looking for a cancel, so
that an answer is taken only once it is all there; what is sent at a time fits into what a connection that still works takes.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import plpy

from ...errors import ConnectionFailed, InsufficientPrivilege, PgGpt2Error, UndefinedObject, WrongState
from .. import db

CANCELLED = "57014"
Wait = Generator[bool, None, Any]  # gives whether something has happened, and returns the answer
FUNCTIONS = {"connect": 2, "disconnect": 1, "get_connections": 0, "send_query": 2, "is_busy": 1, "error_message": 1}
REACH = "CREATE SERVER says where the server is, and CREATE USER MAPPING who to be there and the password."
TYPES = ("text", "int8", "float8[]")


class Lost(Exception):
    """A server that does not answer, or refuses: the error that a caller would see."""

    def __init__(self, error: PgGpt2Error) -> None:
        super().__init__(error.message)
        self.error = error


def dblink_schema() -> str:
    """The schema of the extension dblink, as an identifier. 55000 without the extension, 42501 without leave to use it."""
    row = db.row(
        "SELECT extnamespace::regnamespace::text AS name, has_schema_privilege(extnamespace, 'USAGE') AS may"
        " FROM pg_extension WHERE extname = 'dblink'"
    )
    if row is None:
        raise WrongState(
            "workers are called through dblink, and this database does not have that extension",
            hint="CREATE EXTENSION dblink; it comes with PostgreSQL (contrib).",
        )
    if not row["may"]:
        raise InsufficientPrivilege(
            f"permission denied for schema {row['name']}, through whose dblink workers are called",
            hint="Its owner gives it: GRANT USAGE ON SCHEMA.",
        )
    return row["name"]


def require_server(name: str) -> None:
    """Refuse a name of no foreign server (42704), or of one that the caller may not use (42501)."""
    row = db.row(
        "SELECT has_server_privilege(oid, 'USAGE') AS may FROM pg_foreign_server WHERE srvname = $1", ["text"], name
    )
    if row is None:
        raise UndefinedObject(
            f'server "{name}" does not exist',
            hint="CREATE SERVER and CREATE USER MAPPING say where a worker is, and who to be there.",
        )
    if not row["may"]:
        raise InsufficientPrivilege(
            f'permission denied for server "{name}"', hint="Its owner gives it: GRANT USAGE ON FOREIGN SERVER."
        )


class Connection:
    """A session on the server `name`; `number` tells those of one run apart."""

    def __init__(self, name: str, number: int, schema: str, timeout: float) -> None:
        self.name, self.timeout = name, timeout
        self.sent = self.received = 0  # bytes, about as they travel
        self._key, self._is_asked = f"pg_gpt2_worker_{number}", False
        arguments = ("()", "($1)", "($1, $2)")
        self._call = {
            (function, count): "SELECT " + schema + ".dblink_" + function + arguments[count] + " AS value"
            for function, count in FUNCTIONS.items()
        }
        self._get = {
            kind: "SELECT value FROM " + schema + ".dblink_get_result($1) AS t (value " + kind + ")" for kind in TYPES
        }

    def open(self) -> None:
        """Connect. Lost where that is refused."""
        self.close()
        try:
            self._query("connect", ["text", "text"], self._key, self.name)
        except plpy.SPIError as error:
            if error.sqlstate == CANCELLED:
                raise
            raise Lost(_refused(self.name, error)) from None

    def close(self) -> None:
        """Disconnect, where there is a connection; what the other server computes for it ends."""
        if self._key in (self._query("get_connections") or ()):
            self._query("disconnect", ["text"], self._key)

    def ask(self, statement: str, kind: str, meanwhile: Callable[[], None]) -> Wait:
        """Send a statement, and return the value of type `kind` that it gives; `meanwhile` is done before that is awaited."""
        self.send([statement])
        meanwhile()
        value = yield from self.answer(kind)
        self.end()
        return value

    def send(self, statements: Sequence[str]) -> None:
        """Send statements that give a value each. The server goes on to the next while the value of one is read here."""
        text = "; ".join(statements)
        with self._reached():
            self._is_asked = bool(self._query("send_query", ["text", "text"], self._key, text))
        self.sent += len(text)

    def answer(self, kind: str) -> Wait:
        """The value of type `kind` of the next of the statements that were sent."""
        with self._reached():
            deadline = time.monotonic() + self.timeout
            while self._is_asked and self._query("is_busy", ["text"], self._key):
                if time.monotonic() > deadline:
                    raise Lost(
                        ConnectionFailed(
                            f'server "{self.name}" has not answered for {self.timeout:g} seconds',
                            hint="worker_timeout is how long a worker may be silent.",
                        )
                    )
                yield False
            found = db.query(self._get[kind], ["text"], self._key)
        if not found or (value := found[0]["value"]) is None:
            raise Lost(no_answer(self.name))
        self.received += len(str(value))
        return value

    def end(self) -> None:
        """All answers have come, and the next statements may be sent."""
        with self._reached():
            db.query(self._get["text"], ["text"], self._key)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Within it, an error of the other server or of the way to it makes that one Lost."""
        try:
            yield
        except plpy.SPIError as error:
            if error.sqlstate == CANCELLED and self._query("error_message", ["text"], self._key) == "OK":
                raise  # it is this session that was cancelled
            raise Lost(_refused(self.name, error)) from None

    def _query(self, function: str, types: Sequence[str] = (), *values: str) -> Any:
        """What a function of dblink gives."""
        return db.query(self._call[function, len(types)], types, *values)[0]["value"]


def no_answer(server: str) -> PgGpt2Error:
    """The error for an answer that is none, or not the one that was asked for."""
    return ConnectionFailed(
        f'server "{server}" has not answered what it was asked',
        hint="Its log says why; is it one with this version of pg_gpt2?",
    )


def _refused(server: str, error: Any) -> PgGpt2Error:
    """The error of another server, or of the way to it, as one of ours that names the server; libpq's lines become one."""
    _, detail, hint, *_ = error.spidata or (None, None, None)
    message = " ".join(str(error).removeprefix("pg_gpt2: ").split())
    made = ConnectionFailed(f'server "{server}": {message}', hint=hint or REACH, detail=detail)
    if not (error.sqlstate or "08").startswith("08"):
        made.sqlstate = error.sqlstate
    return made
