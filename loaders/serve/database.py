"""Sessions of the database for requests: bounded, each in a transaction of its own, as the role that the request names.

Whoever leaves a session by an exception, a cancelled task among them, ends the statement that runs there: psycopg sends
the cancel and waits for the server to obey.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import psycopg
from pg_llm_client.statements import FIND_SCHEMA, statement
from psycopg import errors, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from starlette.requests import HTTPConnection

from ..common import EXACT_VALUES
from .errors import Busy, Forbidden, NoRole
from .settings import Settings

Connection = psycopg.AsyncConnection[TupleRow]
LOOKS = 4  # sessions for what takes a moment, which generations do not fill
LOOKERS = 256  # who may wait for them
OPENING = 30.0  # seconds that a connection may take


class Turns:
    """Some at a time, and some more in a queue. psycopg_pool's own counts who has left it."""

    def __init__(self, size: int, queue: int, patience: float) -> None:
        self._free = anyio.Semaphore(size)
        self._queue, self._patience = queue, patience

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait, and have a turn. Busy where the queue is full, or the wait too long."""
        if not self._free.value and self._free.statistics().tasks_waiting >= self._queue:
            raise Busy(f"{self._queue} requests wait already")
        try:
            with anyio.fail_after(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise Busy(f"no session of the database was free for {self._patience:g} seconds") from None
        try:
            yield
        finally:
            self._free.release()


class Database:
    """The database that is served. `async with database.session(request) as conn:` lends a connection in a transaction."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._schema = ""  # that the extension is in
        self._pools = {True: self._pool("generating", settings.pool_size), False: self._pool("looking", LOOKS)}
        self._turns: dict[bool, Turns] = {}  # by whether it is for generating, as the pools

    def _pool(self, name: str, size: int) -> AsyncConnectionPool[Connection]:
        settings = {"autocommit": True, "client_encoding": "utf8", "application_name": "pg_gpt2 serve"}
        return AsyncConnectionPool(
            self.settings.dsn,
            kwargs={**settings, "prepare_threshold": None},  # a pooler may be in between
            min_size=1,
            max_size=size,
            timeout=OPENING,
            open=False,
            name=name,
        )

    async def open(self) -> None:
        """Connect; a psycopg.Error where that fails."""
        for generating, pool in self._pools.items():
            await pool.open(wait=True, timeout=OPENING)
            queue = self.settings.queue_size if generating else LOOKERS
            self._turns[generating] = Turns(pool.max_size, queue, self.settings.queue_timeout)
        async with self._pools[False].connection() as conn:
            found = await (await conn.execute(FIND_SCHEMA)).fetchone()
        if found is None:
            raise psycopg.ProgrammingError(
                "the database does not have pg_gpt2; run CREATE EXTENSION pg_gpt2 CASCADE in it"
            )
        self._schema = found[0]

    async def close(self) -> None:
        """Disconnect."""
        for pool in self._pools.values():
            await pool.close()

    def query(self, text: str) -> sql.Composed:
        """The statement `text`, in which {name} stands for an object of the extension and %s or %(name)s for a parameter."""
        return statement(text, self._schema)

    @asynccontextmanager
    async def session(
        self, request: HTTPConnection, *, generating: bool = False, writing: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection in a transaction of `request`: as its role, and read-only unless `writing`.

        `generating` is for what keeps a core busy: it waits its turn, and what does not is not behind it. Busy when too many
        wait already, Forbidden where `writing` is not allowed, NoRole where the request names no role and has to.
        """
        if writing and not self.settings.allow_training:
            raise Forbidden("this server only reads; pg-gpt2 serve --allow-training lets requests write")
        role = self.role(request)
        async with self._turns[generating].turn(), _lent(self._pools[generating]) as conn:
            await conn.set_read_only(not writing)
            async with conn.transaction():
                await conn.execute(EXACT_VALUES)
                if role is not None:
                    await _become(conn, role)
                yield conn

    def role(self, request: HTTPConnection) -> str | None:
        """The role that a request works as, None for that of the DSN; NoRole where it has to name one and does not."""
        header = self.settings.role_header
        if header is None:
            return None
        named = request.headers.getlist(header)  # several where a proxy adds its own to that of a client
        role = named[0].encode("latin-1").decode(errors="replace") if len(named) == 1 else ""
        if not role or role == "none":  # SQL's word for giving a role back
            raise NoRole(f"the header {header} must name a role of the database, and be there once")
        return role


@asynccontextmanager
async def _lent(pool: AsyncConnectionPool[Connection]) -> AsyncIterator[Connection]:
    """A connection that is alive. Where one is not, the server was restarted, and all are looked at: the pool's own check would
    try them one after the other, and wait longer each time."""
    async with pool.connection() as conn:
        if await _is_alive(conn):
            yield conn
            return
    await pool.check()
    async with pool.connection() as conn:
        yield conn


async def _is_alive(conn: Connection) -> bool:
    try:
        await AsyncConnectionPool.check_connection(conn)
    except psycopg.OperationalError:
        return False
    return True


async def _become(conn: Connection, role: str) -> None:
    """SET LOCAL ROLE, with the role as a parameter. Forbidden for one that there is not, or that this session may not become."""
    try:
        await conn.execute("SELECT pg_catalog.set_config('role', %s, true)", [role])
    except (errors.InvalidParameterValue, errors.InsufficientPrivilege, psycopg.DataError):
        raise Forbidden(f'requests may not work as role "{role}"') from None
