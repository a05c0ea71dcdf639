"""`python -m loaders.demo`, in its short form: it runs from beginning to end, again, and in any schema."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from loaders.demo.story import Size

ROOT = Path(__file__).resolve().parents[2]


def run_demo(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loaders.demo", "--dsn", dsn, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


def weights(conn: psycopg.Connection) -> object:
    """A digest of all weights of the model."""
    query = (
        "SELECT md5(string_agg(md5(data), '' ORDER BY name, token_id)) FROM llm_param WHERE model = 'postgresql-docs'"
    )
    row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


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


def test_streams_and_tells_when_the_first_text_came(told: str) -> None:
    before, after = told.split("The first text came ")
    assert len(re.findall(r"^\(\d+ tokens in", before, re.MULTILINE)) == 2
    assert float(after.split()[0]) < 30


def test_shows_next_tokens_and_attention(told: str) -> None:
    probabilities = [float(p) for p in re.findall(r"^ +\d \| '.*' +\| +(\d\.\d+) ", told, re.MULTILINE)]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    lines = re.findall(r"^ .* \| ([·░▒▓█]+) +\| ", told, re.MULTILINE)
    assert [len(line) for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) > 10


def test_chooses_and_fills_a_column(told: str) -> None:
    chapter = told.split("\nDeciding\n")[1].split("\nA model that is another")[0]
    topics = ("backup", "index", "privileges", "replication")
    probabilities = dict(re.findall(r"^ (\w+) +\| +(\d\.\d+) \|", chapter, re.MULTILINE))
    assert sorted(probabilities) == list(topics)
    assert abs(sum(map(float, probabilities.values())) - 1) < 0.003
    filled = re.findall(r"^ (\S.*[?.]) +\| (\w+)$", chapter, re.MULTILINE)
    assert [topic for _, topic in filled] == list(topics)
    assert re.search(r"^ (backup|index) +\| +[123]$", chapter, re.MULTILINE)


def test_adapter_is_small_and_better_than_its_base(told: str) -> None:
    chapter = told.split("\nA model that is another")[1].split("\nLooking inside\n")[0]
    assert "$ pg-gpt2 load-adapter postgresql-topics --base postgresql-docs" in chapter
    weights = re.findall(r"^ (postgresql-\w+) +\| +\d+ \| +(\d+ \w+) +\| (\w{8})$", chapter, re.MULTILINE)
    assert [row[:2] for row in weights] == [("postgresql-docs", "22 MB")] * 2 + [("postgresql-topics", "768 kB")]
    assert weights[0] == weights[1]
    accuracy = dict(re.findall(r"^ (postgresql-\w+) +\| +21 \| +(\d\.\d+) \| █+$", chapter, re.MULTILINE))
    assert float(accuracy["postgresql-topics"]) > float(accuracy["postgresql-docs"])
    answers = re.findall(r"^ \w.*[?.] +\| (\w+) +\| (\w+)$", chapter, re.MULTILINE)
    assert [adapter for _, adapter in answers][:4] == ["locks", "backup", "types", "triggers"]


def test_shows_the_loss_as_it_falls(told: str) -> None:
    shown = [float(loss) for loss in re.findall(r"^NOTICE:  step \d+/6: loss ([\d.]+)", told, re.MULTILINE)]
    assert len(shown) == 6
    assert shown[-1] < shown[0]
    assert re.search(r"^ [▁▂▃▄▅▆▇█]{6}$", told, re.MULTILINE)


def test_walks_the_graph_of_a_step(told: str) -> None:
    assert "\n linear → gelu → linear → add → layernorm → lm_head_loss\n" in told
    assert re.search(r"^ causal_attention \| +6$", told, re.MULTILINE)


def test_rollback_and_checkpoint_bring_the_old_model_back(told: str) -> None:
    before, learned, after, spoilt, restored = generations(told)
    assert before == after
    assert learned != before
    assert spoilt != restored


def test_leaves_the_model_as_it_ships(told: str, conn: psycopg.Connection, dsn: str) -> None:
    before = weights(conn)
    conn.execute("SELECT llm_copy_model('postgresql-docs', 'kept')")
    conn.execute("SELECT llm_drop_model('postgresql-topics'), llm_drop_model('postgresql-docs')")
    command = [sys.executable, "-m", "loaders.load_model", "--dsn", dsn, "postgresql-docs"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert weights(conn) == before
    assert conn.execute("SELECT to_regclass('letter'), count(*) FROM llm_dataset").fetchone() == (None, 0)


def test_every_statement_can_be_typed_into_psql(told: str, conn: psycopg.Connection) -> None:
    prompt = rf"{conn.info.dbname}[=-]\*?# "
    text = "\n".join(re.sub(f"^{prompt}", "", line) for line in told.splitlines() if re.match(prompt, line))
    statements = [part.strip() for part in re.split(r";(?:  --.*)?$", text, flags=re.MULTILINE) if part.strip()]
    assert len(statements) > 25
    for statement in statements:
        skipped = ("BEGIN", "ROLLBACK", "COPY", "FETCH", "DECLARE", "CREATE", "ALTER", "DELETE", "SET")
        if not statement.startswith(skipped) and not re.search(
            "FROM letter|FROM passage|UPDATE question|INTO question|INTO entry", statement
        ):
            conn.execute(f"EXPLAIN {statement}")


def test_leaves_a_model_that_is_the_default(told: str, conn: psycopg.Connection) -> None:
    assert conn.execute("SELECT llm_generate('The server', 4, seed => 1)").fetchone()
    assert conn.execute("SHOW pg_gpt2.model").fetchone() == ("postgresql-docs",)


def test_runs_again_on_text_of_the_viewer(told: str, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Ship's log: the wind was kind and the whales sang.\n\n" * 5)
    again = run_demo(dsn, "--quick", "--text", str(tmp_path / "mine.txt"))
    assert again.returncode == 0, again.stderr
    assert "from an earlier time" in again.stdout
    assert "Ship''s log:" in again.stdout
    assert generations(again.stdout)[-2:] == generations(told)[-2:]


def test_says_what_it_learns_from(told: str, dsn: str, tmp_path: Path) -> None:
    assert "\n8 lines; 6 steps of 2 rows, so each is read " in told
    (tmp_path / "long.txt").write_text("".join(f"Line {n} of a long log: all is well.\n" for n in range(1000)))
    done = run_demo(dsn, "--quick", "--text", str(tmp_path / "long.txt"))
    assert done.returncode == 0, done.stderr
    (part,) = re.findall(r"\n1,000 lines; 15 steps of 2 rows, and there is time for (\d+)% of the rows", done.stdout)
    assert 5 < int(part) < 50
    assert "generate_series(1, 1)" in done.stdout


@pytest.mark.parametrize(
    ("tokens", "copies", "n_steps"), [(200, 4, 32), (2_048, 4, 32), (2_100, 1, 32), (100_000, 1, 391), (10**7, 1, 1171)]
)
def test_learns_from_all_that_time_admits(tokens: int, copies: int, n_steps: int) -> None:
    assert Size().lesson(tokens) == (copies, n_steps)


def test_too_little_text_is_refused(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Ahoy!")
    done = run_demo(dsn, "--quick", "--text", str(tmp_path / "mine.txt"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "has fewer than 20 words" in done.stderr


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
