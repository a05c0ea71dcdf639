"""The models of a publisher, and a pair."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import conninfo

from tests.server.publishing.pair import PREPARE, TEXT, Pair


@pytest.fixture(scope="module")
def template(new_database: Callable[..., str]) -> str:
    """Name of a database with the models."""
    made = new_database()
    with psycopg.connect(made, autocommit=True) as conn:
        conn.execute(PREPARE.format(text=TEXT))
    return str(conninfo.conninfo_to_dict(made)["dbname"])


@pytest.fixture
def pair(new_database: Callable[..., str], template: str) -> Iterator[Pair]:
    with (
        psycopg.connect(new_database(template), autocommit=True) as publisher,
        psycopg.connect(new_database(), autocommit=True) as subscriber,
    ):
        publisher.execute("SET synchronous_commit = on")
        made = Pair(publisher, subscriber)
        yield made
        if subscriber.execute("SELECT 1 FROM pg_subscription WHERE subname = %s", [made.name]).fetchone():
            made.unsubscribe()
