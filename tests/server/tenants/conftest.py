"""Tenants on one base, attacked: all that a tenant can do with another's adapter is what it could do if there were none.

The policies are those of docs/how-to/tenants.md. The attacker has the level admin, reads and writes files of the server, and
shares its session with its victim, as behind a pooler: the victim has just used its adapter, and the caches are warm.
"""

import psycopg
import pytest

from tests.server.tenants.victim import POLICIES, PREPARE
from tests.server.test_hidden_models import prepared, remove_files


@pytest.fixture(scope="module")
def places(module_conn, server_files):
    """What stands for the victim's adapter and what is its, and for one that there is not."""
    module_conn.execute("CREATE ROLE north; CREATE ROLE south")
    yield prepared(module_conn, server_files, PREPARE, POLICIES)
    module_conn.execute("RESET ROLE; DROP OWNED BY north, south; DROP ROLE north, south")
    remove_files(server_files)


@pytest.fixture(scope="module")
def session(dsn, places):
    """One session for all: the victim and its attacker by turns."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn
