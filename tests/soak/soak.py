"""A soak: generators, a trainer, imports, drops, cancels and kills at random on one cluster, and what must hold throughout.

Every text is known beforehand, so a wrong one is seen at once: `fixed` never changes, and `flip` and its vocabulary change
between two states, of which each answer is one. Workers go on after cancels and kills.
"""

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from pg_gpt2.core.config import GPT2Config
from psycopg import conninfo, errors

PROMPTS = ("low lower", "the newest", "wider and lower")
TEXT = "SELECT repeat(w, 40) FROM (VALUES ('low lower lowest newer newest the wider and '), ('the lowest newer low ')) AS t (w)"
TRAINED = GPT2Config(2, 2, 32, 32, 270)
LARGE = "n_layer => 3, n_head => 4, d_model => 256, n_positions => 64, vocab => 270"  # so large that sessions share its file
EXPECTED = (errors.QueryCanceled, errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow)
WRONG = (errors.DeadlockDetected, errors.InternalError_)
MOST_MEMORY = 600 << 10  # kB of its own that a session may have
KILL_EVERY = 7.5  # seconds; the server restarts after each

Work = Callable[[psycopg.Connection], Any]


class Soak:
    """The workers, and what they have seen."""

    def __init__(self, dsn: str, seed: int, folder: Path, kills: bool = True) -> None:
        # Throw-away clusters do not wait for the disk, and then a commit may be lost in a kill.
        self.dsn = conninfo.make_conninfo(dsn, options="-c synchronous_commit=on -c client_min_messages=warning")
        self.seed, self.folder, self.kills = seed, folder, kills
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.memory = 0
        self._stop = threading.Event()
        self._known: dict[str, set[str]] = {}
        self._states: list[bytes] = []
        self._steps = 0

    # --- before and after ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the models, and note what they say in each state."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("SELECT llm_train_bpe(%s, 270, 'fixed')", [TEXT])
            conn.execute(f"SELECT llm_init_model('fixed', {LARGE}, seed => 1)")
            for model, seed in (("flip", 2), ("other", 3)):
                conn.execute(f"SELECT llm_init_model('{model}', {LARGE}, seed => {seed})")
            conn.execute("INSERT INTO llm_bpe_vocab SELECT 'flip', token_id, token, score, bytes FROM llm_bpe_vocab")
            conn.execute(
                'CREATE TABLE merges AS SELECT rank, "left", "right" FROM llm_bpe_merges WHERE model = \'fixed\''
            )
            for model in ("other", "flip"):
                (state,) = conn.execute(
                    "SELECT string_agg(c, '') FROM llm_export_safetensors(%s) AS c", [model]
                ).fetchone() or (b"",)
                self._states.append(state)
            conn.execute("SELECT llm_checkpoint_save('flip'), llm_drop_model('other')")
            for merges in (True, False):
                self._swap_merges(conn, merges)
                for state in self._states:
                    self._flip(conn, state)
                    for name, question in QUESTIONS.items():
                        self._known.setdefault(name, set()).add(_answer(conn, question))
            conn.execute(
                "SELECT llm_init_model('train', %s, %s, %s, %s, %s)",
                [TRAINED.n_layer, TRAINED.n_head, TRAINED.d_model, TRAINED.n_positions, TRAINED.vocab],
            )
            conn.execute(
                "INSERT INTO llm_bpe_vocab SELECT 'train', token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'fixed'"
            )
            conn.execute("SELECT llm_dataset_load(%s, 'train', 16)", [TEXT])

    def run(self, seconds: float) -> None:
        """Let everything happen for so long."""
        workers = [self._generate, self._generate, self._generate, self._flip_at_random, self._train, self._make]
        workers += [self._disturb, self._watch]
        threads = [
            threading.Thread(target=self._work, args=(work, random.Random(f"{self.seed} {place}")))
            for place, work in enumerate(workers)
        ]
        for thread in threads:
            thread.start()
        self._stop.wait(seconds)
        self._stop.set()
        for thread in threads:
            thread.join(60)
            if thread.is_alive():
                self.failures.append("a worker did not end within a minute")

    def check_at_the_end(self) -> None:
        """In peace: nothing is left of what was cancelled or killed, and every answer is still one of those."""
        with self._connect() as conn:
            end = time.monotonic() + 20
            others = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            while _one(conn, others) and time.monotonic() < end:
                time.sleep(0.1)
            self._check(_one(conn, others) == 0, "sessions are left")
            self._check_training(conn)
            for name, question in QUESTIONS.items():
                self._check_answer(name, _answer(conn, question))
            left = conn.execute(ORPHANS).fetchall()
            self._check(not left, f"rows of models that are not there: {left}")
            locks = _one(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
                         " (SELECT oid FROM pg_database WHERE datname = current_database())")  # fmt: skip
            self._check(locks == 0, f"{locks} advisory locks are left")
            conn.execute("UPDATE llm_param SET step = step WHERE model = 'fixed'")
            self._check_answer("fixed", _answer(conn, QUESTIONS["fixed"]))  # a new file, whose writer tidies up
            names = self._shared_files(conn)
            models = conn.execute("SELECT left(md5(model), 16) FROM llm_model_config").fetchall()
            owners = [(name.split(".")[1],) for name in names]  # a scratch model stays when its session was killed
            self._check(
                set(owners) <= set(models)
                and len(set(owners)) == len(names)
                and not any(".new" in name for name in names),
                f"files are left: {names}",
            )
            left_over = [path.name for path in self.folder.glob(".pg_gpt2-*")]
            self._check(len(left_over) <= 1, f"files of exports are left: {left_over}")
            self._check(
                _one(conn, "SELECT count(*) FROM llm_bpe_version") == 1 or self._tidies(conn), "versions pile up"
            )

    def report(self) -> str:
        """What happened, for the reader."""
        lines = [f"{name}: {count}" for name, count in sorted(self.counts.items())]
        lines.append(f"largest memory of a session's own: {self.memory >> 10} MB")
        lines += [f"FAILURE {failure}" for failure in self.failures] or ["no failure"]
        return "\n".join(lines)

    def _check(self, good: bool, problem: str) -> None:
        if not good:
            self.failures.append(problem)

    # --- workers ------------------------------------------------------------------------------------------------------------

    def _work(self, work: Callable[[psycopg.Connection, random.Random], None], chance: random.Random) -> None:
        """Do it again and again, in one session until that is cancelled away."""
        conn: psycopg.Connection | None = None
        while not self._stop.is_set():
            try:
                if conn is None or conn.closed or chance.random() < 0.02:
                    if conn is not None:
                        conn.close()
                    conn = self._connect()
                work(conn, chance)
            except EXPECTED as error:
                self.counts[f"error {type(error).__name__}"] += 1
            except WRONG as error:
                self.failures.append(f"{work.__name__}: {error.sqlstate} {error}")
            except psycopg.OperationalError as error:  # the connection is gone, which a kill explains
                self.counts["error of a lost connection"] += 1
                self._check(
                    error.sqlstate is None or error.sqlstate[:2] in ("55", "57", "08"), f"{work.__name__}: {error}"
                )
                conn = None
            except Exception as error:
                self.failures.append(f"{work.__name__}: {type(error).__name__}: {error}")
            if conn is not None and not conn.closed:
                with contextlib.suppress(psycopg.Error):
                    conn.rollback() if not conn.autocommit else None
        if conn is not None:
            conn.close()

    def _connect(self) -> psycopg.Connection:
        """A session; the server may be on its way back."""
        for attempt in range(600):
            try:
                return psycopg.connect(self.dsn, autocommit=True)
            except psycopg.OperationalError:
                if attempt == 599:
                    raise
                time.sleep(0.05)
        raise AssertionError

    def _generate(self, conn: psycopg.Connection, chance: random.Random) -> None:
        """Ask something whose answers are known, sometimes with too little time."""
        name = chance.choice(list(QUESTIONS))
        timeout = chance.choice((0, 0, 0, 5, 50))
        conn.execute("SELECT set_config('statement_timeout', %s, false)", [f"{timeout}ms"])
        found = _answer(conn, QUESTIONS[name])
        self.counts[f"answers of {name}"] += 1
        self._check_answer(name, found)
        self._look_at_memory(conn)

    def _check_answer(self, name: str, found: Any) -> None:
        self._check(found in self._known[name], f"wrong text of {name}: {found!r:.300}")

    def _flip_at_random(self, conn: psycopg.Connection, chance: random.Random) -> None:
        """Change weights or vocabulary of `flip`, or begin to and roll back."""
        with conn.transaction(force_rollback=chance.random() < 0.3):
            match chance.randrange(3):
                case 0:
                    self._flip(conn, chance.choice(self._states))
                case 1:
                    conn.execute("SELECT llm_checkpoint_load('flip', min(id)) FROM llm_checkpoint WHERE model = 'flip'")
                case 2:
                    self._swap_merges(conn, chance.random() < 0.5)
            self._check_answer("flip", _answer(conn, QUESTIONS["flip"]))
        self.counts["changes of weights and vocabulary"] += 1
        self._stop.wait(chance.random())

    def _flip(self, conn: psycopg.Connection, state: bytes) -> None:
        conn.execute("SELECT llm_import_safetensors(%s, 'flip', true)", [state])

    def _swap_merges(self, conn: psycopg.Connection, merges: bool) -> None:
        with conn.transaction():
            conn.execute("DELETE FROM llm_bpe_merges WHERE model = 'flip'")
            if merges:
                conn.execute(
                    'INSERT INTO llm_bpe_merges (model, rank, "left", "right") SELECT \'flip\', rank, "left", "right" FROM merges'
                )

    def _train(self, conn: psycopg.Connection, chance: random.Random) -> None:
        """Train with commits on the way, or in one transaction; now and then a checkpoint."""
        match chance.randrange(4):
            case 0:
                with conn.transaction(force_rollback=chance.random() < 0.3):
                    conn.execute("SELECT llm_train('train', 3, batch_size => 2, log_every => 0)")
            case 1:
                conn.execute("SELECT llm_checkpoint_save('train'), llm_checkpoint_prune('train', 2)")
            case _:
                conn.execute(
                    "CALL llm_train_run('train', 60, batch_size => 2, log_every => 0, commit_every => 5, flush_seconds => 0)"
                )
        self.counts["training"] += 1

    def _make(self, conn: psycopg.Connection, chance: random.Random) -> None:
        """Make a model in one of the ways, use it, and drop it, perhaps in one transaction, which may be rolled back."""
        name = f"scratch {chance.randrange(3)}"
        path = str(self.folder / f"{name}.{chance.choice(('npz', 'safetensors'))}")
        kind = path.rpartition(".")[2]
        steps = [
            chance.choice(
                (
                    f"SELECT llm_init_model('{name}', 1, 2, 16, 32, 270)",
                    f"SELECT llm_copy_model('fixed', '{name}')",
                    f"SELECT llm_import_safetensors(string_agg(c, ''), '{name}') FROM llm_export_safetensors('train') AS c",
                )
            ),
            f"SELECT llm_logits('{{1,2,3}}', '{name}')",
            f"SELECT pg_llm_export_{kind}('{path}', '{name}')",
            f"SELECT pg_llm_import_{kind}('{path}', '{name}', true)",
            f"SELECT llm_drop_model('{name}')",
        ]
        with (
            _suppressing_other_sizes(),
            contextlib.suppress(errors.DuplicateObject, errors.UndefinedObject, errors.ObjectNotInPrerequisiteState),
        ):
            if chance.random() < 0.3:
                with conn.transaction(force_rollback=chance.random() < 0.5):
                    for step in steps:
                        conn.execute(step)
            else:
                for step in steps:
                    conn.execute(step)
        with contextlib.suppress(errors.UndefinedObject):
            conn.execute(f"SELECT llm_drop_model('{name}')")
        self.counts["models made and dropped"] += 1

    def _disturb(self, conn: psycopg.Connection, chance: random.Random) -> None:
        """Cancel or terminate somebody; at longer intervals, kill."""
        began = time.monotonic()
        while time.monotonic() - began < KILL_EVERY and not self._stop.is_set():
            self._stop.wait(chance.uniform(0.05, 0.6))
            pid = self._somebody(conn, chance)
            if pid is not None:
                function = chance.choice(("pg_cancel_backend", "pg_cancel_backend", "pg_terminate_backend"))
                conn.execute(f"SELECT {function}(%s)", [pid])
                self.counts[f"faults: {function}"] += 1
        pid = self._somebody(conn, chance)
        if self.kills and pid is not None and not self._stop.is_set():
            self.counts["faults: kill -9"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._vacuum()

    def _vacuum(self) -> None:
        """Recovery forgets how many rows are dead, and autovacuum waits for that many again: for ever, at this rate."""
        for _ in range(100):
            try:  # a session may yet begin before the server has noticed that it goes down
                with self._connect() as conn:
                    conn.execute("VACUUM llm_param")
                self.counts["VACUUM after a kill"] += 1
                return
            except psycopg.OperationalError:
                self._stop.wait(0.1)
        self._check(False, "no VACUUM after a kill")

    def _somebody(self, conn: psycopg.Connection, chance: random.Random) -> int | None:
        rows = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state = 'active' AND backend_type = 'client backend' AND query !~ 'pg_stat_activity|watcher'"
        ).fetchall()
        return chance.choice(rows)[0] if rows else None

    def _watch(self, conn: psycopg.Connection, chance: random.Random) -> None:
        """Look at what must hold at any moment."""
        self._check_training(conn)
        names = self._shared_files(conn)
        # one file a model: of fixed, flip, and at most three scratch ones; and those that are being written
        self._check(len([name for name in names if ".new" not in name]) <= 8, f"files pile up: {names}")
        self.counts["looks at the invariants"] += 1
        self._stop.wait(2)

    # --- invariants ---------------------------------------------------------------------------------------------------------

    def _check_training(self, conn: psycopg.Connection) -> None:
        """Weights of `train` are those of the last logged step, and steps are never lost."""
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ /* watcher */")
            rows = conn.execute(
                "SELECT name, data, step FROM llm_param WHERE model = 'train' ORDER BY name, token_id"
            ).fetchall()
            logged = conn.execute(
                "SELECT weights_digest FROM llm_train_log WHERE model = 'train' AND weights_digest IS NOT NULL"
                " ORDER BY at DESC LIMIT 1"
            ).fetchone()
        steps = {step for _, _, step in rows}
        self._check(len(steps) == 1, f"tensors of train are of steps {steps}")
        self._check(max(steps) >= self._steps, f"train went back from step {self._steps} to {max(steps)}")
        self._steps = max(self._steps, *steps)
        if logged is not None:
            tensors = {name: data for name, data, _ in rows}
            digest = hashlib.sha256(b"".join(tensors[name] for name in TRAINED.param_shapes())).hexdigest()
            self._check(digest == logged[0], f"weights of train at step {max(steps)} are not those that were logged")

    def _shared_files(self, conn: psycopg.Connection) -> list[str]:
        data, oid = conn.execute(
            "SELECT current_setting('data_directory'), oid FROM pg_database WHERE datname = current_database()"
        ).fetchone() or ("", 0)
        return sorted(path.name for path in Path(data, "base", "pgsql_tmp").glob(f"pgsql_tmp_pg_gpt2_base-{oid}-*"))

    def _look_at_memory(self, conn: psycopg.Connection) -> None:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{conn.info.backend_pid}/status").read_text()
            if "RssAnon:" in text:  # a process that was just killed has none
                own = int(text.partition("RssAnon:")[2].split()[0])
                self.memory = max(self.memory, own)
                self._check(own < MOST_MEMORY, f"a session has {own >> 10} MB of its own")

    def _tidies(self, conn: psycopg.Connection) -> bool:
        conn.execute("UPDATE llm_bpe_vocab SET score = 0 WHERE model = 'flip' AND token_id = 0")
        return _one(conn, "SELECT count(*) FROM llm_bpe_version") == 1


@contextlib.contextmanager
def _suppressing_other_sizes() -> Iterator[None]:
    """Another worker, or one that was killed, made a model of this name with other sizes than the file's."""
    try:
        yield
    except errors.DataException as error:
        if "metadata says" not in str(error):
            raise


def _one(conn: psycopg.Connection, query: str) -> Any:
    return (conn.execute(query).fetchone() or (None,))[0]


def _answer(conn: psycopg.Connection, question: str) -> str:
    return repr(conn.execute(question).fetchall())


QUESTIONS = {
    "fixed": f"SELECT llm_generate('{PROMPTS[0]}', 6, 0, model_name => 'fixed', eos_token => -1)",
    "fixed, sampled": f"SELECT llm_generate('{PROMPTS[1]}', 6, seed => 5, model_name => 'fixed', eos_token => -1)",
    "fixed, streamed": f"SELECT token_id FROM llm_generate_stream('{PROMPTS[1]}', 4, 0, model_name => 'fixed', eos_token => -1)",
    "fixed, a batch": f"SELECT text FROM llm_generate_batch(ARRAY{list(PROMPTS)}, 3, 0, model_name => 'fixed', eos_token => -1)",
    "fixed, beams": f"SELECT token_ids FROM llm_beam_search('{PROMPTS[2]}', 2, 3, model_name => 'fixed', eos_token => -1)",
    "flip": "SELECT llm_generate_tokens('{1,2,3}', 5, 0, model_name => 'flip', eos_token => -1)",
    "flip, logits": "SELECT md5(llm_logits('{1,2,3}', 'flip'))",
    "flip, text": f"SELECT llm_encode('{PROMPTS[2]}', 'flip')",
}
ORPHANS = " UNION ALL ".join(
    f"SELECT '{table}', model, count(*) FROM {table} WHERE model NOT IN (SELECT model FROM llm_model_config) GROUP BY model"
    for table in (
        "llm_param",
        "llm_bpe_vocab",
        "llm_bpe_merges",
        "llm_dataset",
        "llm_run",
        "llm_train_log",
        "llm_checkpoint",
    )
)
