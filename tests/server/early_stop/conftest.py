"""What a session said, and what the run of runs.py leaves when nothing interrupts it."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.server.early_stop.runs import Notices, call, make_model, outcome


@pytest.fixture
def said(conn: psycopg.Connection) -> Iterator[Notices]:
    """What NOTICEs of `conn` said."""
    found: Notices = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        found.append(notice.message_primary)

    conn.add_notice_handler(note)
    yield found
    conn.remove_notice_handler(note)


@pytest.fixture(autouse=True)
def _clean(conn: psycopg.Connection) -> Iterator[None]:
    yield
    conn.execute("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")


@pytest.fixture
def uninterrupted(conn: psycopg.Connection) -> tuple:
    """What PATIENT gives in one transaction."""
    make_model(conn, "whole")
    conn.execute(call("whole"))
    return outcome(conn, "whole")
