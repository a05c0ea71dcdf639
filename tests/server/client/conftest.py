"""Connections and clients of both kinds: a test that takes `conn`, `connect` or `client` runs with each.

Those of the asynchronous kind are `Driven`, which is used as the others are.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pg_llm_client import AsyncPGLLMClient, PGLLMClient
from psycopg import conninfo

from tests.server.client.driven import Driven
from tests.server.client.models import MODEL, make_model


@pytest.fixture(scope="module")
def model(module_conn: psycopg.Connection) -> str:
    """The name of a model of 2 layers with a vocabulary of 300 tokens."""
    make_model(module_conn)
    return MODEL


@pytest.fixture(params=["synchronous", "asynchronous"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop | None]:
    """What runs the asynchronous kind; None for the other."""
    if request.param == "synchronous":
        yield None
        return
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def connect(dsn: str, loop: asyncio.AbstractEventLoop | None) -> Iterator[Callable[..., Any]]:
    """`connect(database=dsn, **parameters)`: a new autocommit session, in this module's database unless told otherwise."""
    opened: list[Any] = []

    def open_session(database: str = dsn, **parameters: Any) -> Any:
        given = conninfo.make_conninfo(database, **parameters)
        if loop is None:
            opened.append(psycopg.connect(given, autocommit=True))
        else:
            opening = psycopg.AsyncConnection.connect(given, autocommit=True)
            opened.append(Driven(loop, loop.run_until_complete(opening)))
        return opened[-1]

    yield open_session
    for conn in opened:
        conn.close()


@pytest.fixture
def client_of(loop: asyncio.AbstractEventLoop | None) -> Callable[..., Any]:
    """`client_of(conn, model=MODEL)`: a client on `conn`."""

    def make(conn: Any, model: str | None = MODEL) -> Any:
        if loop is None:
            return PGLLMClient(conn, model=model)
        return Driven(loop, AsyncPGLLMClient(conn.target, model=model))

    return make


@pytest.fixture
def client(conn: Any, model: str, client_of: Callable[..., Any]) -> Any:
    """A client on `conn`, for the model."""
    return client_of(conn)
