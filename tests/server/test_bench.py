"""That `make bench` runs: with a very small model, and without rivals. What it measures is not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tests" / "bench" / "bench.py"
SEVERAL_ROWS = (
    "verify",
    "encode",
    "rows",
    "long",
    "adapters",
    "variants",
    "serve",
    "servers",
)  # topics of which no row has the name
WITHOUT_RIVALS = ("decode", "position", "prefix", "adamw", "workers", "memory", *SEVERAL_ROWS)


def test_bench_runs_without_rivals(cluster_dsn, tmp_path):
    file = tmp_path / "bench.json"
    command = f"{BENCH} --smoke --alone --patience 0 --json {file} --only {' --only '.join(WITHOUT_RIVALS)}".split()
    done = subprocess.run(
        [sys.executable, *command, "--dsn", cluster_dsn],
        env=os.environ | {"PYTHONPATH": str(ROOT / "plpython")},  # where make bench has the package installed
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["machine"]["length"] == "smoke"
    assert {row["key"] for row in result["rows"]} >= {*WITHOUT_RIVALS} - {*SEVERAL_ROWS}
    assert all(row["values"]["pg_gpt2"] > 0 for row in result["rows"])
    assert "decode at position 900" in done.stdout
    assert "bound: memory read" in done.stdout
