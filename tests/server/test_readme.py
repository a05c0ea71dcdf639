"""The README is a program: its SQL blocks, run in order in one session of psql, print what it says they print.

A ```sql block runs in a fresh database without the extension, and the ```text block after it is the output, NOTICEs and
errors included; a block without one may print anything but an error. A comment before the ```text block loosens that:
`<!-- numbers vary -->` lets numbers (and the width of columns) differ, `<!-- output varies -->` compares nothing
but whether there is an error.

    docker/cluster.sh run .venv/test/bin/python tests/server/test_readme.py --update    writes the outputs anew
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(
    r"^```sql\n(?P<sql>.*?)^```\n(?:\n?(?:<!-- (?P<loose>numbers|output)[^\n]*-->\n)?```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of SQL and its output, with the span of the output in the file."""

    line: int
    sql: str
    output: str | None
    span: tuple[int, int]
    loose: str | None


def read_blocks() -> list[Block]:
    text = README.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, m.start()) + 1, m["sql"], m["output"], m.span("output"), m["loose"])
        for m in BLOCK.finditer(text)
    ]


BLOCKS = read_blocks()


def run(dsn: str) -> list[str]:
    """What psql prints for each block."""
    directory = os.environ.get("PG_GPT2_TEST_BINDIR")
    psql = f"{directory}/psql" if directory else shutil.which("psql")
    assert psql, "there is no psql; set PG_GPT2_TEST_BINDIR"
    script = "".join(f"\\echo <block {number}>\n{block.sql}\n" for number, block in enumerate(BLOCKS))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    done = subprocess.run(
        [psql, "-X", "-d", dsn],
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env=environment | {"LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"},
        cwd="/",
    )
    return [tidy(part) for part in re.split(r"^<block \d+>\n", done.stdout, flags=re.MULTILINE)[1:]]


def tidy(output: str) -> str:
    """Without spaces at line ends and empty lines around."""
    return "\n".join(line.rstrip() for line in output.strip("\n").split("\n")).strip("\n")


def blurred(output: str) -> str:
    """With every number the same, and every run of spaces or dashes."""
    return re.sub(r"[ -]+", " ", re.sub(r"-?\d[\d.,]*(e[-+]\d+)?", "0", output))


@pytest.fixture(scope="module")
def database(new_database: Callable[..., str]) -> str:
    return new_database("template0")


@pytest.fixture(scope="module")
def outputs(database: str) -> list[str]:
    return run(database)


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[f"line{block.line}" for block in BLOCKS])
def test_block_prints_what_the_readme_says(outputs: list[str], number: int) -> None:
    block, output = BLOCKS[number], outputs[number]
    if block.output is None:
        assert "ERROR:" not in output
    elif block.loose == "numbers":
        assert blurred(output) == blurred(tidy(block.output))
    elif block.loose == "output":
        assert ("ERROR:" in output) == ("ERROR:" in block.output)
    else:
        assert output == tidy(block.output)


def test_python_runs(outputs: list[str], database: str, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(program.replace("dbname=mine", database), {})
    assert capsys.readouterr().out


def test_reference_names_every_public_function_and_table(conn: psycopg.Connection) -> None:
    rows = conn.execute(
        "SELECT p.proname FROM pg_depend AS d JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid"
        " JOIN pg_extension AS e ON e.oid = d.refobjid AND d.deptype = 'e'"
        " WHERE e.extname = 'pg_gpt2' AND p.prorettype <> 'trigger'::regtype"
        " AND obj_description(p.oid, 'pg_proc') NOT LIKE 'Compatibility:%'"
        " UNION SELECT c.relname FROM pg_depend AS d JOIN pg_class AS c ON d.classid = 'pg_class'::regclass"
        " AND c.oid = d.objid JOIN pg_extension AS e ON e.oid = d.refobjid AND d.deptype = 'e'"
        " WHERE e.extname = 'pg_gpt2' AND c.relkind IN ('r', 'v') AND c.relname NOT LIKE 'pg\\_%'"
    ).fetchall()
    text = README.read_text(encoding="utf-8")
    assert sorted(name for (name,) in rows if f"`{name}" not in text) == []


def update(dsn: str) -> None:
    """Write the outputs that changed into the README."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE readme TEMPLATE template0")
    text = README.read_text(encoding="utf-8")
    outputs = run(f"{dsn} dbname=readme")
    for block, output in reversed(list(zip(BLOCKS, outputs, strict=True))):
        same = blurred(output) == blurred(tidy(block.output or "")) if block.loose == "numbers" else False
        if block.output is not None and not same:
            text = text[: block.span[0]] + output + "\n" + text[block.span[1] :]
        elif block.output is None and "ERROR:" in output:
            print(f"README.md:{block.line}: {output}", file=sys.stderr)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"] or "PG_GPT2_TEST_DSN" not in os.environ:
        sys.exit(__doc__)
    update(os.environ["PG_GPT2_TEST_DSN"])
