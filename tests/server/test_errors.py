"""docs/errors.md lists every error: each is provoked, with its SQLSTATE and hint as the page has them, and no other is known."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pg_gpt2 import errors

from docs.make_errors import Entry, entries
from tests.server.provoked import CALLS, FILES, HOOKED, PREPARE, STATEMENTS

PACKAGE = Path(errors.__file__).parent
LISTED = entries(PACKAGE)
VARIES = re.compile(r"<\w+>|…")


def pattern(words: str) -> re.Pattern[str]:
    """What a message or hint looks like. Before it may stand which row or input it is about."""
    return re.compile(".*".join(map(re.escape, VARIES.split(words))) + r"\Z", re.DOTALL)


PATTERNS = {entry: (pattern(entry.message), pattern(entry.hint)) for entry in LISTED}


def found(sqlstate: str | None, message: str, hint: str | None) -> Entry | None:
    """The entry of an error: of those that could be it, the one that leaves least open."""
    fit = [
        entry
        for entry, (words, advice) in PATTERNS.items()
        if entry.sqlstate == sqlstate and words.search(message) and advice.match(hint or "")
    ]
    return max(fit, key=lambda entry: len(VARIES.sub("", entry.message + entry.hint)), default=None)


def provoke(conn: psycopg.Connection, statement: str) -> Entry | None:
    """The entry of the error that a statement gives, which is undone."""
    try:
        conn.execute(statement if statement.startswith(("BEGIN", "CALL")) else f"BEGIN; {statement}")
    except psycopg.Error as error:
        return found(error.sqlstate, str(error.diag.message_primary), error.diag.message_hint)
    finally:
        conn.execute("ROLLBACK")
    return None


@pytest.fixture(scope="module")
def provoked(dsn: str, server_files: Path) -> Iterator[dict[str, Entry | None]]:
    """What was done -> the entry whose error it gave, or None."""
    for name, data in FILES.items():
        (server_files / name).write_bytes(data if isinstance(data, bytes) else data())
        (server_files / name).chmod(0o644)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(PREPARE.replace("{folder}", str(server_files)))
    whole = bytearray((server_files / "c.safetensors").read_bytes())
    whole[-1] ^= 1
    (server_files / "altered.safetensors").write_bytes(whole)
    (server_files / "altered.safetensors").chmod(0o644)
    outcome: dict[str, Entry | None] = {}
    with psycopg.connect(dsn, autocommit=True) as conn, psycopg.connect(dsn) as holder:
        holder.execute("SELECT pg_advisory_lock('llm_param'::regclass::oid::integer, hashtext('held'))")
        for statement in STATEMENTS:
            outcome[statement] = provoke(conn, statement.replace("{folder}", str(server_files)))
        for statement in HOOKED:
            with psycopg.connect(dsn, autocommit=True) as session:
                outcome[statement] = provoke(session, statement.replace("{folder}", str(server_files)))
    for number, call in enumerate(CALLS):
        outcome[f"call {number}"] = None
        try:
            call()
        except errors.PgGpt2Error as error:
            outcome[f"call {number}"] = found(error.sqlstate, error.message, error.hint)
    yield outcome
    for name in (*FILES, "c.safetensors", "altered.safetensors", "small.safetensors"):
        (server_files / name).unlink()


def test_every_statement_gives_an_error_of_the_page(provoked):
    assert [statement for statement, entry in provoked.items() if entry is None] == []


def test_every_error_of_the_page_is_provoked(provoked):
    assert [entry for entry in LISTED if entry not in provoked.values()] == []


@pytest.mark.parametrize(
    "call", ["llm_tape_id()", "llm_train_bpe($$VALUES ('low')$$, 257, 'q')", "llm_grant_usage('public')"]
)
def test_what_writes_says_in_a_read_only_transaction_that_it_is_one(conn, call):
    """The server's words name a statement that the caller did not write."""
    conn.execute("BEGIN READ ONLY")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
        conn.execute(f"SELECT {call}")
    conn.execute("ROLLBACK")
    assert caught.value.diag.message_hint.startswith("Nothing can be written here")


def test_an_error_of_ours_in_a_source_is_told_as_it_is(conn):
    with pytest.raises(psycopg.errors.UndefinedObject) as caught:
        conn.execute("SELECT llm_train_bpe($$SELECT llm_decode('{1}', 'nosuch')$$, 300, 'q')")
    assert caught.value.diag.message_primary == 'pg_gpt2: model "nosuch" does not exist'
    assert caught.value.diag.message_hint
