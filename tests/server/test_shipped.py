"""The model that ships: it loads and reads like the manual, its card's figures follow from its log, its script runs.

docker/cluster.sh run .venv/test/bin/python -m tests.server.test_shipped --update    writes figures and samples anew
"""

import os
import re
import subprocess
import sys

import psycopg
import pytest

from tests.server.psql import ROOT, run_script

PLACE = "loaders/shipped/postgresql-docs"
CARD = ROOT / PLACE / "README.md"
EXCERPT = ROOT / "loaders/data/postgresql_docs.txt"


def part(name: str) -> str:
    """A marked block of the model card."""
    found = re.search(rf"^<!-- {name} -->\n```text\n(.*?)^```\n", CARD.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def statement() -> str:
    """The query of the samples."""
    found = re.search(r"^```sql\n(SELECT seed, .*?)^```\n", CARD.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def load(dsn: str) -> None:
    """As a user does."""
    command = [sys.executable, "-m", "loaders.load_model", "--dsn", dsn, "postgresql-docs"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def samples(conn: psycopg.Connection) -> str:
    """The twenty samples, as the card has them."""
    return "".join(f"[{seed}]\n{text.strip()}\n\n" for seed, text in conn.execute(statement()))  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def shipped(dsn: str, module_conn: psycopg.Connection) -> psycopg.Connection:
    """A session in a database that has the model."""
    load(dsn)
    return module_conn


def test_is_what_the_card_says(shipped: psycopg.Connection) -> None:
    row = shipped.execute(
        "SELECT n_layer, n_head, d_model, n_positions, vocab, n_params, eos_token_id FROM llm_models"
        " WHERE model = 'postgresql-docs'"
    ).fetchone()
    assert row == (6, 4, 256, 256, 4096, 5853184, 4095)
    assert "5,853,184" in CARD.read_text("utf-8")
    assert (ROOT / PLACE / "model.safetensors").stat().st_size < 16 << 20


def test_knows_the_manual(shipped: psycopg.Connection) -> None:
    """Better than the words in it: with its words in alphabetical order, the same text is a riddle."""
    section = EXCERPT.read_text("utf-8").split("\n====\n")[20][:600]
    jumbled = " ".join(sorted(section.split()))
    row = shipped.execute(
        "SELECT llm_perplexity(%s, 'postgresql-docs'), llm_perplexity(%s, 'postgresql-docs')", [section, jumbled]
    ).fetchone()
    assert row is not None
    assert row[0] < 40
    assert row[1] > 10 * row[0]


def test_samples_are_what_the_model_writes(shipped: psycopg.Connection) -> None:
    """Most of them anywhere: where two tokens are equally probable to float32, another processor may take the other."""
    told, found = (text.split("\n\n[") for text in (part("samples"), samples(shipped)))
    assert len(told) == len(found) == 20
    assert sum(a.strip() == b.strip() for a, b in zip(told, found, strict=True)) >= 12


def test_figures_of_the_card_follow_from_the_log(dsn: str) -> None:
    assert run_script(dsn, f"{PLACE}/figures.sql") == part("figures")


def test_held_out_loss_is_within_two_percent_of_pytorch_s() -> None:
    rows = re.findall(r"^ +(\d+) \|.* \| ([+-]\d+\.\d+) % +\|", part("figures"), re.MULTILINE)
    assert [int(step) for step, _ in rows] == [500, 1000, 1500, 2000, 2500]
    assert max(abs(float(difference)) for _, difference in rows) < 2


def test_script_that_made_it_runs(dsn: str, shipped: psycopg.Connection) -> None:
    """In small: two steps on the excerpt. The same settings, the same shapes, every twentieth section held out."""
    told = run_script(dsn, f"{PLACE}/train.sql", text=EXCERPT, model="again", n_steps=2, batch_size=1)
    assert "perplexity" in told
    shape = "SELECT n_layer, n_head, d_model, n_positions, vocab FROM llm_models WHERE model = %s"
    assert shipped.execute(shape, ["again"]).fetchone() == shipped.execute(shape, ["postgresql-docs"]).fetchone()
    n_sections = len(EXCERPT.read_text("utf-8").split("\n====\n"))
    held_out, all_ = shipped.execute(
        "SELECT count(*) FILTER (WHERE id % 20 = 0), count(*) FROM postgresql_docs"
    ).fetchone()  # type: ignore[misc]
    assert (held_out, all_) == (n_sections // 20, n_sections)
    row = shipped.execute("SELECT config, status FROM llm_run WHERE model = 'again'").fetchone()
    assert row is not None
    assert row[0]["lr_max"] == 1.5e-3
    assert (row[0]["n_steps"], row[1]) == (2, "finished")


def update(dsn: str) -> None:
    """Write figures and samples into the card."""
    load(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        blocks = {"figures": run_script(dsn, f"{PLACE}/figures.sql"), "samples": samples(conn).rstrip() + "\n"}
    text = CARD.read_text("utf-8")
    for name, block in blocks.items():
        text = text.replace(f"<!-- {name} -->\n```text\n{part(name)}```\n", f"<!-- {name} -->\n```text\n{block}```\n")
    CARD.write_text(text, "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"] or "PG_GPT2_TEST_DSN" not in os.environ:
        sys.exit(__doc__)
    update(os.environ["PG_GPT2_TEST_DSN"])
