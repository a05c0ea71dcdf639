"""`pg-gpt2 serve` as a process of its own, spoken to over HTTP."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def serving(dsn: str, *arguments: str) -> Iterator[httpx.Client]:
    """A client of `pg-gpt2 serve` on `dsn`, at a port that was free; it is stopped at the end."""
    command = [sys.executable, "-m", "loaders", "serve", "--dsn", dsn, "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, f"it ended with status {process.wait()}"
            with httpx.Client(base_url=address, timeout=60) as client:
                yield client
        finally:
            process.terminate()


def events(response: httpx.Response) -> list[Any]:
    """What a stream of events sent, up to [DONE]."""
    data = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(event) for event in data if event != "[DONE]"] + (["[DONE]"] if data[-1] == "[DONE]" else [])
