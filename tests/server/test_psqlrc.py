"""docs/psqlrc in psql: `:write` shows tokens as they are computed, `:runs` the runs, and all settings are as before after it."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.server import psql

PSQLRC = Path(__file__).resolve().parents[2] / "docs" / "psqlrc"
TEXT = "'🐘 the cat sat on the mat; 🐘 the dog sat on the log.'"


@pytest.fixture(autouse=True, scope="module")
def model(module_conn):
    module_conn.execute(f"CREATE TABLE t AS SELECT {TEXT} AS x FROM generate_series(1, 20)")
    module_conn.execute("SELECT llm_train_bpe('SELECT x FROM t', 275, 'm'), llm_init_model('m', 1, 2, 32, 32)")
    module_conn.execute("SELECT llm_dataset_load('SELECT x FROM t', 'm', 16)")
    module_conn.execute("SET client_min_messages = warning")
    module_conn.execute("SELECT llm_train('m', 60, lr_max => 0.01, dropout_p => 0)")


def start(dsn, script):
    """psql, which reads docs/psqlrc, then `script`, and writes all to one pipe."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    return subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" -X -d "$1" <<"EOF" 2>&1\n\\i {PSQLRC}\n{script}\nEOF', psql.program(), dsn],
        stdout=subprocess.PIPE,
        env=environment | {"LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"},
        cwd="/",
    )


def run(dsn, script):
    """All that psql prints, as a terminal shows it: without NULs. Times are left out."""
    output = start(dsn, script).communicate()[0].decode().replace("\0", "")
    return [line.rstrip() for line in output.split("\n")[:-1] if not line.startswith("Time: ")]


WRITE = r"""
SET pg_gpt2.model = 'm';
\set prompt '🐘 the cat'
\set options 'temperature => 0'
:write
"""


def test_write_prints_what_llm_generate_returns(dsn, sql):
    """A character of several tokens comes whole, and the end-of-text token is not shown."""
    text = sql("SELECT llm_generate('🐘 the cat', temperature => 0, model_name => 'm')")
    assert text.startswith("🐘 the cat sat on the mat; 🐘 the dog")
    assert run(dsn, WRITE) == ["SET", text]


def test_tokens_appear_as_they_are_computed(dsn, module_conn):
    module_conn.execute("SELECT llm_init_model('slow', 4, 8, 512, 64, 275)")  # some milliseconds a token
    module_conn.execute("INSERT INTO llm_bpe_vocab SELECT 'slow', token_id, token, score, bytes FROM llm_bpe_vocab")
    process = start(
        dsn,
        r"""
        SET pg_gpt2.model = 'slow';
        SELECT count(*) > 0 AS warm FROM llm_next_token('the cat');
        \set prompt 'the cat'
        \set options 'max_tokens => 50, eos_token => -1, seed => 1'
        \echo BEGIN
        :write
        """,
    )
    arrivals, output = [], b""
    while chunk := os.read(process.stdout.fileno(), 65536):
        arrivals += [time.perf_counter()] if b"BEGIN" in output else []
        output += chunk
    assert process.wait() == 0, output
    assert output.count(b"\0") == 50
    assert len(arrivals) > 25, "tokens came together"


def test_settings_are_as_before(dsn):
    after = r"\echo :QUIET :ON_ERROR_STOP" + "\nSELECT 1 AS one, NULL AS nothing;"
    shown = ["SET", "🐘 the cat sat", "off off", " one | nothing", "-----+---------", "   1 | ∅", "(1 row)", ""]
    assert run(dsn, WRITE.replace("temperature => 0", "max_tokens => 1, temperature => 0") + after) == shown


def test_an_error_is_shown_once_and_leaves_no_transaction(dsn):
    lines = run(dsn, WRITE.replace("temperature => 0", "topp => 2") + "SELECT 1 AS one;")
    assert lines[1:3] == ["ERROR:  pg_gpt2: topp must be between 0 and 1, not 2.0", "HINT:  1 keeps all tokens."]
    assert [line for line in lines if "ERROR" in line or "CONTEXT" in line] == lines[1:2]
    assert lines[-5:] == [" one", "-----", "   1", "(1 row)", ""]


def test_in_a_transaction_it_stays_that(dsn):
    script = "BEGIN;\nCREATE TABLE gone ();" + WRITE * 2 + "ROLLBACK;\nSELECT to_regclass('gone') IS NULL AS gone;"
    lines = run(dsn, script)
    assert [line[:9] for line in lines[:6]] == ["BEGIN", "CREATE TA", *["SET", "🐘 the cat"] * 2]
    assert lines[6:] == ["ROLLBACK", " gone", "------", " t", "(1 row)", ""]


def test_runs(dsn):
    lines = run(dsn, ":runs")
    assert lines[0].split("|")[1].strip() == "model"
    assert "█" in lines[2]
    assert "▁" in lines[2]
    assert lines[3] == "(1 row)"
