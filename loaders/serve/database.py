"""Sessions of the database for requests: bounded, each in a transaction of its own, as the role that the request names.

Whoever leaves a session by an exception, a cancelled task among them, ends the statement that runs there: psycopg sends
the cancel and waits for the server to obey.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from pg_llm_client.statements import FIND_SCHEMA, quoted
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from starlette.requests import HTTPConnection

from .errors import Busy, Forbidden, NoRole
from .settings import Settings

Connection = psycopg.AsyncConnection[TupleRow]
LOOKS = 2  # sessions for what takes a moment, which generations do not fill
PATIENCE = 10.0  # seconds that such a request waits at most
OPENING = 30.0  # seconds until the first connection must be there


class Database:
    """The database that is served. `async with database.session(request) as conn:` lends a connection in a transaction."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._schema = ""  # that the extension is in
        self._generating = self._pool("generating", settings.pool_size, settings.queue_timeout)
        self._looking = self._pool("looking", LOOKS, PATIENCE)

    def _pool(self, name: str, size: int, timeout: float) -> AsyncConnectionPool[Connection]:
        settings = {"autocommit": True, "client_encoding": "utf8", "application_name": "pg_gpt2 serve"}
        return AsyncConnectionPool(
            self.settings.dsn,
            kwargs={**settings, "prepare_threshold": None},  # a pooler may be in between
            min_size=1,
            max_size=size,
            max_waiting=self.settings.queue_size,
            timeout=timeout,
            check=AsyncConnectionPool.check_connection,  # the server may have been restarted
            open=False,
            name=name,
        )

    async def open(self) -> None:
        """Connect; PoolTimeout (a psycopg.OperationalError) where that fails."""
        await self._generating.open(wait=True, timeout=OPENING)
        await self._looking.open(wait=True, timeout=OPENING)
        async with self._looking.connection() as conn:
            found = await (await conn.execute(FIND_SCHEMA)).fetchone()
        if found is None:
            raise psycopg.ProgrammingError(
                "the database does not have pg_gpt2; run CREATE EXTENSION pg_gpt2 CASCADE in it"
            )
        self._schema = found[0]

    async def close(self) -> None:
        """Disconnect."""
        await self._generating.close()
        await self._looking.close()

    def query(self, text: str) -> sql.Composed:
        """The statement `text`, in which {name} stands for an object of the extension and %s or %(name)s for a parameter."""
        names = {part.split("}")[0] for part in text.split("{")[1:]}
        return sql.SQL(text).format(**{name: sql.SQL(f"{quoted(self._schema)}.{quoted(name)}") for name in names})

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
        role = self._role(request)
        pool = self._generating if generating else self._looking
        try:
            conn = await pool.getconn()
        except TooManyRequests:
            raise Busy(f"{self.settings.queue_size} requests wait already") from None
        except PoolTimeout:
            raise Busy(f"no session of the database was free for {pool.timeout:g} seconds") from None
        try:
            await conn.set_read_only(not writing)
            async with conn.transaction():
                if role is not None:
                    await conn.execute("SELECT pg_catalog.set_config('role', %s, true)", [role])
                yield conn
        finally:
            await pool.putconn(conn)

    def _role(self, request: HTTPConnection) -> str | None:
        header = self.settings.role_header
        if header is None:
            return None
        role = request.headers.get(header)
        if not role or role == "none":  # SQL's word for giving a role back
            raise NoRole(f"the header {header} must name a role of the database")
        return role
