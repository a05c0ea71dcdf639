"""README.md, CONTRIBUTING.md and the pages of docs/ are programs: their blocks, run in order in a session of psql, print what
they say. How a page is run, and its output compared.

A ```sql block is typed into psql, a ```sh or ```python block is run from it; the ```text block after one is its output,
NOTICEs and errors included, and without that it may print anything but an error. A comment before a block loosens this:

    <!-- numbers vary -->           of a text block: numbers, and the width of columns, may differ
    <!-- output varies (why) -->    of a text block: nothing is compared but whether there is an error
    <!-- not run (why) -->          of any block: it is not run at all
    <!-- continues PAGE -->         of a page: its session begins in a copy of the database that the other page leaves
    <!-- begins with the shipped model -->    of a page: its database has the model that ships, as that of `make demo`
    <!-- servers: one two -->       of a page: one.example and two.example are servers of their own, it begins in the first
    <!-- needs PostgreSQL 15 -->    of a page: on an older server it is skipped; `-- needs PostgreSQL 15` in a block skips that

In a sql block, lines that begin with `-->` are the rows that its statements return, as psql -At prints them, and
`/srv/gpt2/` stands for a directory of the server that has a vocabulary's two files. A query without output on the page returns a
row at least, unless `-- or none` stands behind it. A page that runs no CREATE EXTENSION
gets a database with the extension. Programs run in an empty directory, with libpq's variables naming the database.

    docker/cluster.sh run .venv/test/bin/python -m tests.server.docs --update [PAGE...]    writes outputs that are wrong
    docker/cluster.sh run .venv/test/bin/python -m tests.server.docs --renew [PAGE...]     writes all outputs anew
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql

from loaders.common import Database
from loaders.load_model import SHIPPED as SHIPPED_MODELS
from loaders.load_model import load_model
from tests.bench.clusters import Clusters
from tests.server import psql

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
]
HOW_TO = "docs/how-to/"
BLOCK = re.compile(
    r"^(?:<!-- (?P<skip>not run) [^\n]*-->\n)?```(?P<kind>sql|sh|python)\n(?P<code>.*?)^```\n"
    r"(?:\n?(?:<!-- (?P<loose>numbers|output)[^\n]*-->\n)?```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
ROW = re.compile(r"^--> ?(.*)$", re.MULTILINE)
QUERY = re.compile(r"^(?:SELECT|WITH|TABLE|VALUES)\b.*?(?:;|\\gset.*?)$", re.MULTILINE | re.DOTALL)
CONTINUES = re.compile(r"^<!-- continues (.*) -->$", re.MULTILINE)
SERVERS = re.compile(r"^<!-- servers: (.*) -->$", re.MULTILINE)
NEEDS = re.compile(r"-- needs PostgreSQL (\d+)")
SHIPPED = "<!-- begins with the shipped model -->\n"
MODEL = "postgresql-docs"
ERROR = re.compile(r"^(?:psql:.*|.*/program\.\w+: .*|error: .*|Traceback .*|ERROR: .*)$", re.MULTILINE)
ROWS_ONLY = "\\set QUIET on\n\\pset format unaligned\n\\pset tuples_only on\n"
TABLES_AGAIN = "\\pset format aligned\n\\pset tuples_only off\n\\set QUIET off\n"
LEARNED = ROOT / "tests" / "golden" / "tokenizer" / "learned"
DATABASES = itertools.count()  # of all sessions of the process


@dataclass(frozen=True)
class Block:
    """A block of code and its output, with the span of the output in the file; `loose`: numbers, output or rows."""

    line: int
    kind: str
    code: str
    output: str | None
    span: tuple[int, int]
    loose: str | None


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(text: str) -> list[Block]:
    return [
        Block(
            text.count("\n", 0, m.start("code")),
            m["kind"],
            m["code"],
            "\n".join(ROW.findall(m["code"])) or m["output"],
            m.span("output"),
            "rows" if ROW.search(m["code"]) else m["loose"],
        )
        for m in BLOCK.finditer(text)
        if not m["skip"]
    ]


BLOCKS = {page: blocks_of(read_page(page)) for page in PAGES}


def numbered(pages: Iterable[str]) -> pytest.MarkDecorator:
    """A test for each block of some pages."""
    return pytest.mark.parametrize(
        ("page", "number"),
        [
            pytest.param(page, number, id=f"{page}:{block.line}")
            for page in pages
            for number, block in enumerate(BLOCKS[page])
        ],
    )


def needed(page: str, block: Block) -> int:
    """The major version of PostgreSQL that a block says it needs, or its page above the first block; 0 for none."""
    said = NEEDS.findall(page.split("```")[0]) + NEEDS.findall(block.code)
    return max(map(int, said), default=0)


class Session:
    """Runs pages, each once, in databases of their own."""

    def __init__(self, dsn: str, server_files: Path, clusters: Clusters) -> None:
        self.dsn = dsn
        self.clusters = clusters
        self.places = {"/srv/gpt2/": f"{server_files}/docs_"}
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(LEARNED / name, f"{self.places['/srv/gpt2/']}{name}")
        self.done: dict[str, tuple[str, list[str]]] = {}

    def database(self, page: str) -> str:
        """Name of the page's database, after its run."""
        return self._run(page)[0]

    def outputs(self, page: str) -> list[str]:
        """What psql prints for each block."""
        return self._run(page)[1]

    def _run(self, page: str) -> tuple[str, list[str]]:
        if page not in self.done and (servers := SERVERS.search(read_page(page))):
            names = servers[1].split()
            hosts = {f"{name}.example": self.clusters.host(name) for name in names}
            dsn = conninfo.make_conninfo(self.clusters[names[0]], dbname="postgres")
            self.done[page] = "postgres", run(dsn, BLOCKS[page], self.places | hosts)
        elif page not in self.done:
            before = CONTINUES.search(read_page(page))
            creates = any("CREATE EXTENSION" in block.code for block in BLOCKS[page])
            template = "template0" if creates else "template_pg_gpt2"
            if before:
                template = self.database(before[1])
            name = f"docs_{os.getpid()}_{next(DATABASES)}"
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                conn.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
                )
            dsn = conninfo.make_conninfo(self.dsn, dbname=name)
            if SHIPPED in read_page(page):
                load_shipped(dsn, name)
            self.done[page] = name, run(dsn, BLOCKS[page], self.places)
        return self.done[page]


def load_shipped(dsn: str, database: str) -> None:
    """Load the model that ships, and make it the default of the database, as `make demo` does."""
    with psycopg.connect(dsn) as conn:
        load_model(Database(conn), SHIPPED_MODELS / MODEL, MODEL)
        conn.execute(sql.SQL("ALTER DATABASE {} SET pg_gpt2.model = {}").format(sql.Identifier(database), MODEL))


def run(dsn: str, blocks: list[Block], places: dict[str, str]) -> list[str]:
    """What psql prints for each block in the database `dsn`; `places` has what stands for a directory or a host of the page."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place, "work")
        work.mkdir()
        script = "".join(
            f"\\echo <block {number}>\n{typed(block, Path(place, str(number)))}\n"
            for number, block in enumerate(blocks)
        )
        done = subprocess.run(
            [psql.program(), "-X"],
            input=replaced(script, places),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env=environment(dsn, Path(place), Path(psql.program()).parent),
            cwd=work,
        )
    printed = replaced(done.stdout, {real: shown for shown, real in places.items()})
    return [tidy(part) for part in re.split(r"<block \d+>\n", printed)[1:]]


def replaced(text: str, by: dict[str, str]) -> str:
    """`text` with something in the place of something else."""
    for old, new in by.items():
        text = text.replace(old, new)
    return text


def typed(block: Block, directory: Path) -> str:
    """What is typed into psql for a block: a program is written to a file first."""
    if block.loose == "rows":
        return f"{ROWS_ONLY}{block.code}\n{TABLES_AGAIN}"
    if block.kind == "sql":
        return block.code
    directory.mkdir()
    program = directory / f"program.{block.kind}"
    program.write_text(block.code, encoding="utf-8")
    return f"\\! {'sh -e' if block.kind == 'sh' else 'python'} {program} 2>&1"


def environment(dsn: str, place: Path, bindir: Path) -> dict[str, str]:
    """libpq's variables for `dsn`; commands `python` and `pg-gpt2` of the Python that runs the tests."""
    commands = place / "bin"
    commands.mkdir()
    for name, arguments in (("python", ""), ("pg-gpt2", " -m loaders")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (commands / name).chmod(0o755)
    parts = conninfo.conninfo_to_dict(dsn)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))},
        **{variable: str(parts[part]) for part, variable in names.items() if part in parts},
        "LC_ALL": "C.UTF-8",
        "PGCLIENTENCODING": "UTF8",
        "PATH": os.pathsep.join([str(commands), str(bindir), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "loaders", "plpython")),
    }


def tidy(output: str) -> str:
    """Without spaces at line ends and empty lines around."""
    return "\n".join(line.rstrip() for line in output.strip("\n").split("\n")).strip("\n")


def unaligned(output: str) -> str:
    """With every run of spaces or of dashes the same."""
    return re.sub(r" +", " ", re.sub(r"--+", "--", output))


def blurred(output: str) -> str:
    """With every number the same, and every run of spaces or dashes."""
    return re.sub(r"[ -]+", " ", re.sub(r"-?\d[\d.,]*(e[-+]\d+)?", "0", output))


def returns_nothing(block: Block, output: str) -> bool:
    """Whether a query of a block returned no row, where nothing on the page says that it shall not."""
    if block.kind != "sql" or "-- or none\n" in block.code:
        return False
    if block.loose == "rows":
        queries = [query for query in QUERY.findall(block.code) if "\\gset" not in query]
        return len(ROW.findall(block.code)) < len(queries)
    return block.output is None and "\n(0 rows)" in output


def problem(block: Block, output: str) -> str | None:
    """What is wrong with the output of a block, if anything is."""
    if returns_nothing(block, output):
        return output
    if block.output is None or block.loose == "output":
        expected = bool(ERROR.search(block.output or ""))
        return None if bool(ERROR.search(output)) == expected else output
    if block.loose == "rows":
        output = "\n".join(line for line in output.split("\n") if not line.startswith("NOTICE:"))
    if block.loose == "numbers":
        return None if blurred(output) == blurred(tidy(block.output)) else output
    expected = tidy(block.output)
    if psql.major_version() < 15 and not expected.isascii():  # it takes some characters of two columns for one
        output, expected = unaligned(output), unaligned(expected)
    return None if output == expected else output


def check(session: Session, page: str, number: int) -> None:
    """That a block prints what the page says."""
    block = BLOCKS[page][number]
    if psql.major_version() < (version := needed(read_page(page), block)):
        pytest.skip(f"needs PostgreSQL {version}")
    output = session.outputs(page)[number]
    if wrong := problem(block, output):
        assert wrong == tidy(block.output or "(no error)")
