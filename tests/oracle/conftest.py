"""The server of the tests that have one: the throw-away cluster of `make test-oracle`."""

import os
from collections.abc import Iterator

import psycopg
import pytest


@pytest.fixture(scope="session")
def dsn() -> str:
    """Of the cluster."""
    if "PG_GPT2_TEST_DSN" not in os.environ:
        pytest.skip("needs a server: make test-oracle")
    return os.environ["PG_GPT2_TEST_DSN"]


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection]:
    """A session, of which nothing remains."""
    with psycopg.connect(dsn) as conn:
        yield conn
        conn.rollback()
