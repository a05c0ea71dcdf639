"""The recipes that are SQL scripts run in psql from beginning to end, in small, and do what they say."""

import psycopg
import pytest

from tests.server.psql import ROOT, run_script


@pytest.fixture(scope="module")
def nanogpt(dsn: str) -> str:
    return run_script(dsn, "docs/recipes/nanogpt.sql", n_steps=20)


def test_nanogpt_is_the_size_that_nanogpt_says(nanogpt: str, conn: psycopg.Connection) -> None:
    row = conn.execute("SELECT n_layer, n_head, d_model, n_positions, vocab FROM llm_models WHERE model = 'nanogpt'")
    assert row.fetchone() == (4, 4, 128, 64, 93)
    config = conn.execute("SELECT config FROM llm_run WHERE model = 'nanogpt'").fetchone()
    assert config is not None
    assert config[0] | {"data": None} == {
        "lr_max": 1e-3, "min_lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0,
        "warmup": 100, "dropout_p": 0.0, "batch_size": 12, "grad_accum": 1, "n_steps": 20, "seed": 1337, "data": None,
        "lr_schedule": "cosine", "eval_every": 50, "patience": None, "min_delta": 0.0, "keep_best": False, "shards": 1,
        "sync_every": 1, "outer_lr": 0.7, "outer_momentum": 0.9,
    }  # fmt: skip


def test_nanogpt_reads_characters(nanogpt: str, conn: psycopg.Connection) -> None:
    text = (ROOT / "loaders/data/postgresql_docs.txt").read_text("utf-8").strip()
    text = text.translate(str.maketrans("“”—", '""-'))
    counts = dict(
        conn.execute("SELECT split, count(*) FROM llm_dataset WHERE model = 'nanogpt' GROUP BY split").fetchall()
    )
    assert counts == {"train": 12 * 20, "val": (len(text) - len(text) * 9 // 10 - 2) // 64}
    rows = conn.execute(
        "SELECT split, llm_decode(tokens, model), llm_decode(target, model) FROM llm_dataset WHERE model = 'nanogpt'"
    )
    learned, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    for split, tokens, target in rows:
        assert len(tokens) == 64
        assert tokens[1:] == target[:-1]
        assert tokens + target[-1] in (learned if split == "train" else held_out)


def test_nanogpt_learns(nanogpt: str, conn: psycopg.Connection) -> None:
    losses = conn.execute("SELECT loss FROM llm_train_log JOIN llm_run USING (run_id) ORDER BY step").fetchall()
    assert len(losses) == 20
    assert losses[-1][0] < losses[0][0] - 0.5
    assert "validation_loss" in nanogpt
    assert nanogpt.rstrip().endswith("(1 row)")


def test_nanogpt_runs_again(nanogpt: str, dsn: str, conn: psycopg.Connection) -> None:
    """And gives the same: crops, weights and text follow from the seed."""
    assert run_script(dsn, "docs/recipes/nanogpt.sql", n_steps=20).split("sample")[1] == nanogpt.split("sample")[1]
    assert conn.execute("SELECT count(*) FROM llm_run WHERE model = 'nanogpt'").fetchone() == (1,)
