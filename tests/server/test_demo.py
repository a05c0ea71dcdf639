"""`python -m loaders.demo`, in its short form: it runs from beginning to end, again, and in any schema."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

ROOT = Path(__file__).resolve().parents[2]


def run_demo(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loaders.demo", "--dsn", dsn, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def told(dsn: str) -> str:
    done = run_demo(dsn, "--quick")
    assert done.returncode == 0, done.stderr
    return done.stdout


def generations(told: str) -> list[str]:
    """What llm_generate wrote, in order."""
    return re.findall(r"^ +llm_generate\n-+\n (.*)$", told, re.MULTILINE)


def test_is_plain_text_without_a_terminal(told: str) -> None:
    assert "\x1b" not in told
    assert "\r" not in told


def test_streams_before_and_after_training(told: str) -> None:
    before, after = told.split("FROM llm_train_log")
    assert len(re.findall(r"^\(\d+ tokens in", before, re.MULTILINE)) == 1
    assert len(re.findall(r"^\(\d+ tokens in", after, re.MULTILINE)) == 2


def test_shows_the_loss_as_it_falls(told: str) -> None:
    shown = [float(loss) for loss in re.findall(r"^NOTICE:  step \d+/20: loss ([\d.]+)", told, re.MULTILINE)]
    assert len(shown) > 5
    assert shown[-1] < shown[0]


def test_every_statement_can_be_typed_into_psql(told: str, conn: psycopg.Connection) -> None:
    prompt = rf"{conn.info.dbname}[=-]\*?# "
    text = "\n".join(re.sub(f"^{prompt}", "", line) for line in told.splitlines() if re.match(prompt, line))
    statements = [part.strip() for part in re.split(r";(?:  --.*)?$", text, flags=re.MULTILINE) if part.strip()]
    assert len(statements) > 20
    for statement in statements:
        if not statement.startswith(("BEGIN", "ROLLBACK", "COPY", "FETCH", "DECLARE", "CREATE", "ALTER", "DELETE")):
            conn.execute(f"EXPLAIN {statement}")


def test_rollback_brings_the_old_model_back(told: str) -> None:
    before, _, after = generations(told)
    assert before == after


def test_leaves_a_model_that_is_the_default(told: str, conn: psycopg.Connection) -> None:
    assert conn.execute("SELECT llm_generate('The server', 4, seed => 1)").fetchone()
    assert conn.execute("SELECT step FROM llm_models WHERE model = 'demo'").fetchone() == (20,)


def test_runs_again(told: str, dsn: str) -> None:
    again = run_demo(dsn, "--quick")
    assert again.returncode == 0, again.stderr
    assert "SELECT llm_drop_model('demo')" in again.stdout
    assert generations(again.stdout) == generations(told)


def test_finds_the_extension_in_another_schema(new_database: Callable[..., str]) -> None:
    other = new_database("template0")
    with psycopg.connect(other, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA llm")
        conn.execute("CREATE EXTENSION pg_gpt2 SCHEMA llm CASCADE")
    done = run_demo(other, "--quick")
    assert done.returncode == 0, done.stderr


def test_says_what_is_missing_without_the_extension(new_database: Callable[..., str]) -> None:
    other = new_database("template0")
    done = run_demo(other)
    assert done.returncode == 1
    name = conninfo.conninfo_to_dict(other)["dbname"]
    assert done.stderr == (
        f'error: database "{name}" does not have pg_gpt2; run CREATE EXTENSION pg_gpt2 CASCADE in it\n'
    )
