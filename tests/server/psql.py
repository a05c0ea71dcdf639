"""psql: where it is, which it is, and SQL scripts of the repository run by it where the repository is, as their headers say."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def program() -> str:
    """The psql of the server under test."""
    directory = os.environ.get("PG_GPT2_TEST_BINDIR")
    found = f"{directory}/psql" if directory else shutil.which("psql")
    assert found, "there is no psql; set PG_GPT2_TEST_BINDIR"
    return found


@cache
def major_version() -> int:
    """Its major version."""
    return int(re.findall(r"\d+", subprocess.check_output([program(), "--version"], text=True))[0])


def run_script(dsn: str, script: str, **variables: object) -> str:
    """Run a script, with variables of psql; what it prints, without spaces at line ends."""
    given = [f"-v{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        [program(), "-X", "-d", dsn, "-f", script, *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PGCLIENTENCODING": "UTF8"},
    )
    assert done.returncode == 0, done.stderr
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").split("\n"))
