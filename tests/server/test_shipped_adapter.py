"""The adapter that ships: small, as good as its card says, made by its script without a change of its base.

docker/cluster.sh run .venv/test/bin/python -m tests.server.test_shipped_adapter --update    writes the card's figures anew
"""

import csv
import os
import re
import subprocess
import sys
from collections import defaultdict

import psycopg
import pytest

from tests.server.psql import ROOT, run_script

PLACE = "loaders/shipped/postgresql-topics"
CARD = ROOT / PLACE / "README.md"
ROUNDING = 3  # passages about which another processor may decide otherwise


def part(name: str) -> str:
    """A marked block of the card."""
    found = re.search(rf"^<!-- {name} -->\n```text\n(.*?)^```\n", CARD.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def load(dsn: str) -> None:
    """Base and adapter, as a user does."""
    for command in (
        ["load-model", "postgresql-docs"],
        ["load-adapter", "postgresql-topics", "--base", "postgresql-docs"],
    ):
        subprocess.run(
            [sys.executable, "-m", "loaders", command[0], "--dsn", dsn, *command[1:]],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )


def right(told: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(passages, right ones) by which of them and by model, of what evaluate.sql prints."""
    rows = re.findall(r"^ (\S.*?) +\| (postgresql-\w+) +\| +(\d+) \| +(\d\.\d+)$", told, re.MULTILINE)
    return {(which, model): (int(n), round(int(n) * float(accuracy))) for which, model, n, accuracy in rows}


@pytest.fixture(scope="module")
def shipped(dsn: str, module_conn: psycopg.Connection) -> psycopg.Connection:
    """A session in a database that has both."""
    load(dsn)
    return module_conn


def test_is_small_and_what_the_card_says(shipped: psycopg.Connection) -> None:
    assert (ROOT / PLACE / "adapter_model.safetensors").stat().st_size < 1_000_000
    row = shipped.execute(
        "SELECT base, r, alpha, cardinality(targets) FROM llm_adapter WHERE model = 'postgresql-topics'"
    ).fetchone()
    assert row == ("postgresql-docs", 8, 16, 4)
    own = "SELECT count(*), sum(octet_length(data)) / 4 FROM llm_param WHERE model = 'postgresql-topics'"
    assert shipped.execute(own).fetchone() == (48, 196_608)
    assert "196,608" in CARD.read_text("utf-8")


def test_held_out_accuracy_is_the_card_s(dsn: str, shipped: psycopg.Connection) -> None:
    told = right(part("accuracy"))
    found = right(run_script(dsn, f"{PLACE}/evaluate.sql"))
    assert len(told) == 4
    assert told.keys() == found.keys()
    for key, (n, count) in found.items():
        assert n == told[key][0]
        assert abs(count - told[key][1]) <= ROUNDING, key
    for which in ("all", "not read by the base"):
        assert found[which, "postgresql-topics"][1] > 1.2 * found[which, "postgresql-docs"][1]


def test_losses_are_those_of_peft() -> None:
    """Step by step, as the card says."""
    ours, theirs = (
        [float(row["loss"]) for row in csv.DictReader((ROOT / PLACE / name).read_text("utf-8").splitlines())]
        for name in ("log.csv", "twin.csv")
    )
    assert len(ours) == len(theirs) == 212
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def test_held_out_passages_are_of_sections_that_were_not_learned_from(dsn: str, shipped: psycopg.Connection) -> None:
    with (ROOT / PLACE / "topics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    topics, seen = defaultdict(set), set()
    for row in rows:
        topics[row["section"]].add(row["topic"])
        seen.add(row["body"])
    assert len(seen) == len(rows) == 2257
    assert {len(of) for of in topics.values()} == {1}  # a section is about one topic
    held_out = [row for row in rows if int(row["section"]) % 4 == 0]
    assert {row["topic"] for row in held_out} == {row["topic"] for row in rows}
    again(dsn, shipped)
    learned = "\n".join(text for (text,) in shipped.execute("SELECT llm_decode(tokens, model) FROM llm_dataset"))
    assert sum(row["body"] in learned for row in held_out) == 0
    assert sum(row["body"] in learned for row in rows) == len(rows) - len(held_out)


def again(dsn: str, conn: psycopg.Connection) -> None:
    """Run the script that made it, once, in two steps, under another name."""
    if not conn.execute("SELECT 1 FROM llm_adapter WHERE model = 'again'").fetchone():
        run_script(dsn, f"{PLACE}/train.sql", model="again", n_steps=2)


def test_script_that_made_it_changes_no_row_of_the_base(dsn: str, shipped: psycopg.Connection) -> None:
    base = "SELECT name, token_id, xmin::text, md5(data) FROM llm_param WHERE model = 'postgresql-docs' ORDER BY 1, 2"
    before = shipped.execute(base).fetchall()
    again(dsn, shipped)
    assert shipped.execute(base).fetchall() == before
    row = shipped.execute("SELECT config, status FROM llm_run WHERE model = 'again'").fetchone()
    assert row is not None
    config, status = row
    assert status == "finished"
    assert (config["n_steps"], config["batch_size"], config["dropout_p"], config["seed"]) == (2, 16, 0, 15)
    moved = shipped.execute(
        "SELECT count(*) FROM llm_param WHERE model = 'again' AND name LIKE '%lora_B' AND data <> pg_llm_zeros_like(data)"
    ).fetchone()
    assert moved == (24,)


def update(dsn: str) -> None:
    """Write the figures into the card."""
    load(dsn)
    accuracy, confusion = run_script(dsn, f"{PLACE}/evaluate.sql").split("\n\n", 1)
    text = CARD.read_text("utf-8")
    for name, block in (("accuracy", f"{accuracy}\n"), ("confusion", confusion.strip("\n") + "\n")):
        text = text.replace(f"<!-- {name} -->\n```text\n{part(name)}```\n", f"<!-- {name} -->\n```text\n{block}```\n")
    CARD.write_text(text, "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"] or "PG_GPT2_TEST_DSN" not in os.environ:
        sys.exit(__doc__)
    update(os.environ["PG_GPT2_TEST_DSN"])
