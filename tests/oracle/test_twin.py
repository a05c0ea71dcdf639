"""The PyTorch twin of a run: nanoGPT's recipe, in small, gives torch's losses."""

import csv
import os
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.oracle.twin import Run, Twin, train

ROOT = Path(__file__).resolve().parents[2]
N_STEPS = 24


@pytest.fixture(scope="module")
def run(dsn):
    """The recipe's run in the throw-away cluster of `make test-oracle`."""
    bindir = os.environ["PG_GPT2_TEST_BINDIR"]
    command = [
        f"{bindir}/psql",
        "-X",
        "-d",
        dsn,
        "-f",
        "docs/recipes/nanogpt.sql",
        f"-vn_steps={N_STEPS}",
        "-vmodel=twin",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute("SELECT run_id FROM llm_run WHERE model = 'twin'").fetchone()
        yield Run(conn, row[0])
        conn.execute("SELECT llm_drop_model('twin')")


def test_every_loss_is_torch_s(run, tmp_path):
    """Training and validation, to the tolerance of the specification for 50 steps."""
    train(run, Twin(run, 1337), N_STEPS, tmp_path / "twin.csv")
    theirs = list(csv.DictReader((tmp_path / "twin.csv").open()))
    ours = run.conn.execute(
        "SELECT step, loss, grad_norm, tokens, val_loss FROM llm_train_log WHERE run_id = %s ORDER BY step",
        [run.run_id],
    ).fetchall()
    assert len(theirs) == len(ours) == N_STEPS
    for (step, loss, norm, tokens, val_loss), row in zip(ours, theirs, strict=True):
        assert (int(row["step"]), int(row["tokens"])) == (step, tokens)
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(row["grad_norm"]) == pytest.approx(norm, rel=1e-3)
        assert (val_loss is None) == (row["val_loss"] == "")
        if val_loss is not None:
            assert float(row["val_loss"]) == pytest.approx(val_loss, rel=1e-4)


def test_a_twin_goes_on_where_it_was(run, tmp_path):
    whole = train(run, Twin(run, 1337), 12, tmp_path / "whole.csv")
    train(run, Twin(run, 1337), 6, tmp_path / "parts.csv", state=tmp_path / "state.pt")
    parts = train(run, Twin(run, 1337), 12, tmp_path / "parts.csv", state=tmp_path / "state.pt")
    assert [float(row["loss"]) for row in parts] == pytest.approx([row["loss"] for row in whole], rel=1e-6)
