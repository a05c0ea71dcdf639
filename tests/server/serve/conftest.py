"""A database with a small model and a slow one, and a server on it."""

from collections.abc import Iterator

import httpx
import psycopg
import pytest

from tests.server.client.models import MODEL, make_model
from tests.server.serve.serving import serving

SLOW = "slow"


@pytest.fixture(scope="module")
def model(module_conn: psycopg.Connection) -> str:
    """The name of a model of 2 layers with a vocabulary of 300 tokens; beside it there is one that takes long."""
    make_model(module_conn)
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, %s)", [SLOW])
    module_conn.execute("SELECT llm_init_model(%s, 12, 8, 512, 1024, seed => 1)", [SLOW])
    return MODEL


@pytest.fixture(scope="module")
def http(dsn: str, model: str) -> Iterator[httpx.Client]:
    """A client of a server with the defaults."""
    with serving(dsn) as client:
        yield client
