"""A server that computes shards of a run, as the run's session sees it: what is said to it, and what it did.

A conversation is a generator that gives way while it waits; fleet.py lets those of all workers go on.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import FeatureNotSupported, PgGpt2Error, WrongState
from ...training.flat import Flat
from ...training.shards import Part
from .. import db
from . import remote, shard_work, wire
from .remote import Lost, Wait

# Values at a time. Larger pieces are not faster, and what goes down fits into what a connection takes without waiting.
PIECE_DOWN, PIECE_UP = 30 << 10, 48 << 10
AT_ONCE = 64  # pieces that are asked for at a time
RETRY, LONGEST = 30.0, 600.0  # seconds until a lost worker is tried again: at first, and at most; doubled each time
NEW = 0.5  # how much the last shard counts in a server's pace

HELLO = (
    "SELECT pg_catalog.json_build_object('path', pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),"
    " 'digits', pg_catalog.set_config('extra_float_digits', '1', false),"
    " 'output', pg_catalog.set_config('bytea_output', 'hex', false),"
    " 'schema', (SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension AS e"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace"
    " WHERE e.extname OPERATOR(pg_catalog.=) 'pg_gpt2'), 'version', (SELECT extversion FROM pg_catalog.pg_extension"
    " WHERE extname OPERATOR(pg_catalog.=) 'pg_gpt2'), 'server', pg_catalog.current_setting('server_version'))"
)


@dataclass
class Share:
    """What a server did for one step."""

    shards: list[int] = field(default_factory=list)
    compute: float = 0.0  # seconds
    transfer: float = 0.0
    idle: float = 0.0
    sent: int = 0  # bytes
    received: int = 0
    failure: str | None = None

    def told(self) -> dict[str, Any]:
        """As a value of JSON."""
        times = {name: round(getattr(self, name), 6) for name in ("compute", "transfer", "idle")}
        failure = {} if self.failure is None else {"failure": self.failure}
        return {"shards": self.shards, **times, "sent": self.sent, "received": self.received, **failure}


def _nothing() -> None:
    """There is nothing to do meanwhile."""


class Worker:
    """A server that computes shards, as this session sees it."""

    def __init__(self, link: remote.Connection) -> None:
        self.name, self.link = link.name, link
        self.environment: dict[str, Any] = {}
        self.pace: float | None = None  # seconds a shard; None: not known yet
        self.share = Share()
        self.talk: Wait | None = None
        self.shard: int | None = None  # that it computes
        self.is_there = self.has_weights = False
        self.wait, self.retry_at = RETRY, 0.0
        self._schema = ""

    def begin(self, run: dict[str, Any], version: str) -> Wait:
        """Greet it, and let it take on the run; sets `environment`. Lost with the reason where it cannot."""
        hello = json.loads((yield from self.link.ask(HELLO + "::pg_catalog.text", "text", _nothing)))
        if hello["schema"] is None:
            raise Lost(
                WrongState(
                    f'server "{self.name}" does not have the extension pg_gpt2',
                    hint="CREATE EXTENSION pg_gpt2 CASCADE in the database that CREATE SERVER names.",
                )
            )
        if hello["version"] != version:
            raise Lost(
                FeatureNotSupported(
                    f'server "{self.name}" has pg_gpt2 {hello["version"]}, and this one {version}',
                    hint="All servers of a run need the same version: ALTER EXTENSION pg_gpt2 UPDATE.",
                )
            )
        self._schema = hello["schema"]
        said = json.loads((yield from self.call("begin", _literal(run), "text")))
        self.environment = said["environment"] | {"server": hello["server"]}

    def call(self, function: str, arguments: str, kind: str, meanwhile: Callable[[], None] = _nothing) -> Wait:
        """What a function llm_worker_... of that server gives; `meanwhile` is done before that is awaited."""
        statement = self._asked(function, arguments) + ("::pg_catalog.text" if kind == "text" else "")
        return (yield from self.link.ask(statement, kind, meanwhile))

    def _asked(self, function: str, arguments: str) -> str:
        return "SELECT " + self._schema + ".llm_worker_" + function + "(" + arguments + ")"

    def send(self, first: int, n: int, piece: Callable[[int], str]) -> Wait:
        """Send the weights of places `first` to `n`; `piece` gives those from a place on as text."""
        began = time.monotonic()
        ahead = [piece(first)]
        while first < n:
            arguments, after = str(first) + ", $$" + ahead.pop() + "$$", first + PIECE_DOWN

            def look_ahead(after: int = after) -> None:  # while the worker reads this one
                ahead.append(piece(after) if after < n else "")

            first = yield from self.call("weights", arguments, "int8", look_ahead)
            yield True
        self.share.transfer += time.monotonic() - began

    def compute(self, part: Part, chunk: int, how: dict[str, Any], values: np.ndarray) -> Wait:
        """What it finds for a part, with the weights that it has; `values` takes the numbers, all but the loss."""
        began = time.monotonic()
        answers = []
        for shard, said in part.calls(how):
            asked = _literal(shard_work.to_json(shard, chunk, said))
            answers.append((yield from self.call("shard", asked, "float8[]")))
            yield True
        computed = time.monotonic()
        self.share.compute += computed - began
        if answers:
            yield from self._fetch(values)
        ended = time.monotonic()
        self.share.transfer += ended - computed
        self.pace = slowly(self.pace, ended - began)
        return part.answered(answers, values)

    def _fetch(self, values: np.ndarray) -> Wait:
        """Fill `values` with what it has found; it goes on to the next piece while one is read here."""
        places = range(0, values.size, PIECE_UP)
        for group in (places[n : n + AT_ONCE] for n in range(0, len(places), AT_ONCE)):
            pieces = [values[place : place + PIECE_UP] for place in group]
            self.link.send([self._asked("gradients", f"{at}, {piece.size}") for at, piece in zip(group, pieces)])
            for piece in pieces:
                text = yield from self.link.answer("text")
                try:
                    wire.read(text, piece)
                except ValueError:
                    raise Lost(remote.no_answer(self.name)) from None
                yield True
            self.link.end()

    def join(self) -> None:
        """It has taken on the run, and can be asked."""
        self.is_there, self.wait = True, RETRY

    def lose(self, error: PgGpt2Error) -> None:
        """Give it up for a while, and say so."""
        if self.is_there or not self.retry_at:
            db.notice(f"{error.message}; others compute its shards")
        self.is_there, self.talk, self.shard = False, None, None
        self.share.failure = error.message
        self.retry_at, self.wait = time.monotonic() + self.wait, min(2 * self.wait, LONGEST)
        self.link.close()


def _literal(value: Any) -> str:
    """A value of JSON as a literal of SQL, whatever the other server says about backslashes."""
    text = json.dumps(value).replace("\\", "\\\\").replace("'", "''")
    return "E'" + text + "'::pg_catalog.jsonb"


def sent(row: Flat, first: int) -> str:
    """Some numbers of a row from place `first` on, as text."""
    return wire.to_text(row[first : first + PIECE_DOWN])


def slowly(pace: float | None, seconds: float) -> float:
    """Seconds a shard, after one that took `seconds`."""
    return seconds if pace is None else (1 - NEW) * pace + NEW * seconds
