"""SQL scripts of the repository, run by psql where the repository is, as their headers say."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_script(dsn: str, script: str, **variables: object) -> str:
    """Run a script, with variables of psql; what it prints, without spaces at line ends."""
    directory = os.environ.get("PG_GPT2_TEST_BINDIR")
    program = f"{directory}/psql" if directory else shutil.which("psql")
    assert program, "there is no psql; set PG_GPT2_TEST_BINDIR"
    given = [f"-v{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        [program, "-X", "-d", dsn, "-f", script, *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PGCLIENTENCODING": "UTF8"},
    )
    assert done.returncode == 0, done.stderr
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").split("\n"))
