"""Reading without writing: all of inference in a read-only transaction, and on a hot standby, with the primary's results.

The standby is made with pg_basebackup beside the throw-away cluster, in its directory and by its server's user, so it goes
when that goes. Afterwards it follows the primary by streaming replication.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

TEXT = "Rows are appended, pages are written, the standby replays what the primary did. "
PROMPT = "The standby"

READING = {
    "generate": "SELECT llm_generate('{p}', 24, seed => 3)",
    "generate, greedy": "SELECT llm_generate('{p}', 24, temperature => 0)",
    "generate past the window": "SELECT llm_generate('{p}', 100, seed => 3, eos_token => -1)",
    "stream": "SELECT (llm_generate_stream('{p}', 12, seed => 3)).*",
    "tokens": "SELECT llm_generate_tokens(ARRAY[1, 2, 3], 12, seed => 3)",
    "batch": "SELECT * FROM llm_generate_batch(ARRAY['{p}', '', 'pages'], 12, seed => 3)",
    "rows": "SELECT * FROM llm_generate_rows($$VALUES (1, '{p}'), (2, NULL)$$, 5, seed => 3, options => '{{\"n\": 2}}')",
    "perplexity of rows": "SELECT * FROM llm_perplexity_rows($$VALUES (1, '{p}'), (2, NULL)$$)",
    "embedding of rows": "SELECT (llm_embedding_rows($$VALUES (1, '{p}'), (2, NULL)$$)).*",
    "beam search": "SELECT * FROM llm_beam_search('{p}', 3, 8)",
    "next token": "SELECT * FROM llm_next_token('{p}')",
    "logits": "SELECT llm_logits(llm_encode('{p}'))",
    "encode": "SELECT llm_encode('{p} <|endoftext|>'), llm_decode(llm_encode('{p}')), llm_token_count('{p}')",
    "tokenize": "SELECT * FROM llm_tokenize('{p}')",
    "trace of merges": "SELECT * FROM llm_bpe_trace('standby')",
    "logprobs": "SELECT * FROM llm_logprobs('{p} replays')",
    "perplexity": "SELECT llm_perplexity('{p} replays'), llm_perplexity(repeat('{p}', 40))",
    "embedding": "SELECT llm_text_embedding('{p}')",
    "loss": "SELECT llm_loss('m', ARRAY[1, 2], ARRAY[2, 3], training => false)",
    "evaluate": "SELECT * FROM llm_evaluate('m', 'train')",
    "adapter": "SELECT llm_generate('{p}', 24, seed => 3, model_name => 'adapter')",
    "adapter, evaluated": "SELECT * FROM llm_evaluate('adapter', 'train')",
    "models": "SELECT * FROM llm_models",
    "model used": "SELECT model FROM llm_model_config WHERE model = current_setting('pg_gpt2.model')",
}
reading = pytest.mark.parametrize("statement", [text.format(p=PROMPT) for text in READING.values()], ids=list(READING))


@pytest.fixture(scope="module")
def model(module_conn: psycopg.Connection) -> psycopg.Connection:
    """The primary, with a model "m" and its vocabulary and data."""
    query = f"SELECT '{TEXT * 10}'"
    # Else what is committed need not be in the log when catch_up looks.
    module_conn.execute("SET synchronous_commit = on")
    module_conn.execute("SELECT llm_train_bpe(%s, 290, 'm'), llm_init_model('m', 2, 2, 32, 48, 290, 5)", [query])
    module_conn.execute("SELECT llm_dataset_load(%s, 'm', 32)", [query])
    module_conn.execute("SELECT llm_train('m', 5, dropout_p => 0, lr_max => 1e-2, log_every => 0)")
    module_conn.execute("SELECT llm_adapter_create('adapter', 'm'), llm_dataset_load(%s, 'adapter', 32)", [query])
    module_conn.execute("SELECT llm_train('adapter', 2, lr_max => 1e-2, log_every => 0)")
    module_conn.execute("SET pg_gpt2.model = 'm'")
    return module_conn


class Standby:
    """A hot standby of the cluster that `primary` is a session of, in a directory beside the cluster's data."""

    def __init__(self, primary_dsn: str, primary: psycopg.Connection) -> None:
        self.primary = primary
        self.primary_dsn = primary_dsn
        cluster = Path(str(conninfo.conninfo_to_dict(primary_dsn)["host"])).parent
        self.directory = cluster / "standby"
        owner = (cluster / "data").stat()
        self.as_server = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.getuid() == 0 else {}
        mirrored = next((cluster / "pg").glob("**/bin/pg_ctl"))  # beside the extension's files, below the real path
        self.pg_ctl = mirrored
        self.real_programs = Path("/") / mirrored.parent.relative_to(cluster / "pg")
        self.directory.mkdir(mode=0o700)
        if self.as_server:
            os.chown(self.directory, owner.st_uid, owner.st_gid)

    def run(self, *command: str | Path, **environment: str) -> None:
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory), "LC_ALL": "C.UTF-8"} | environment,
            **self.as_server,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}\n{self._log()}"

    def _log(self) -> str:
        log = self.directory / "log"
        return log.read_text() if log.exists() else ""

    def start(self) -> None:
        """Copy the primary and start, in the environment that the primary's server has."""
        data = self.directory / "data"
        self.run(
            *(
                self.real_programs / "pg_basebackup",
                "--dbname",
                self.primary_dsn,
                "--pgdata",
                data,
                "--checkpoint=fast",
            ),
            *("--wal-method=stream", "--write-recovery-conf", "--no-sync"),
        )
        options = f"-c unix_socket_directories='{self.directory}' -c listen_addresses='' -c shared_buffers=32MB"
        self.run(
            *(self.pg_ctl, "-D", data, "-l", self.directory / "log", "-o", options, "-w", "-t", "60", "start"),
            **self._environment_of_primary(),
        )

    def _environment_of_primary(self) -> dict[str, str]:
        """Where NumPy is, and what makes its BLAS choose other code on the same machine (OPENBLAS_CORETYPE)."""
        self.primary.execute(
            "CREATE FUNCTION pg_temp.environment() RETURNS text LANGUAGE plpython3u AS"
            " $$import json, os; return json.dumps(dict(os.environ))$$"
        )
        (found,) = self.primary.execute("SELECT pg_temp.environment()").fetchone() or ("{}",)
        return {name: value for name, value in json.loads(found).items() if not name.startswith(("PG", "LC_"))}

    def stop(self) -> None:
        """Stop it, if it runs, and delete it."""
        if (self.directory / "data" / "postmaster.pid").exists():
            self.run(self.pg_ctl, "-D", self.directory / "data", "-m", "immediate", "-w", "stop")
        subprocess.run(["rm", "-rf", self.directory], check=True)

    def connect(self) -> psycopg.Connection:
        """A session in the module's database."""
        return psycopg.connect(
            conninfo.make_conninfo(self.primary_dsn, dbname=self.primary.info.dbname, host=str(self.directory)),
            autocommit=True,
        )

    def catch_up(self, session: psycopg.Connection) -> None:
        """Wait until all that the primary wrote is replayed."""
        (end,) = self.primary.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
        deadline = time.monotonic() + 20
        while session.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [end]).fetchone() != (True,):
            assert time.monotonic() < deadline, f"the standby did not reach {end}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def standby(cluster_dsn: str, model: psycopg.Connection) -> Iterator[Standby]:
    made = Standby(cluster_dsn, model)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def replica(standby: Standby) -> Iterator[psycopg.Connection]:
    """A session of the standby that has replayed the model."""
    with standby.connect() as conn:
        standby.catch_up(conn)
        conn.execute("SET pg_gpt2.model = 'm'")
        yield conn


@reading
def test_a_read_only_transaction_can_do_all_of_inference(model: psycopg.Connection, statement: str) -> None:
    expected = model.execute(statement).fetchall()
    model.execute("BEGIN READ ONLY")
    try:
        found = model.execute(statement).fetchall()
    finally:
        model.execute("ROLLBACK")
    assert found == expected
    assert found


def test_a_fresh_session_can_begin_read_only(dsn: str, model: psycopg.Connection) -> None:
    """Nothing is warm: the modules, the weights and the vocabulary are loaded inside the transaction."""
    expected = model.execute("SELECT llm_generate(%s, 8, seed => 1)", [PROMPT]).fetchone()
    with psycopg.connect(dsn, options="-c default_transaction_read_only=on -c pg_gpt2.model=m") as conn:
        assert conn.execute("SELECT llm_generate(%s, 8, seed => 1)", [PROMPT]).fetchone() == expected


def test_the_standby_is_one(replica: psycopg.Connection) -> None:
    assert replica.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        replica.execute("UPDATE llm_param SET step = step")


@reading
def test_a_hot_standby_gives_what_the_primary_gives(
    model: psycopg.Connection, replica: psycopg.Connection, statement: str
) -> None:
    assert replica.execute(statement).fetchall() == model.execute(statement).fetchall()


def test_the_views_that_look_at_locks_answer_on_the_standby(replica: psycopg.Connection) -> None:
    """There are none to look at: a run is as its row says, and whether somebody trains is not told."""
    status = "SELECT DISTINCT p.status = r.status FROM llm_train_progress AS p JOIN llm_run AS r USING (run_id)"
    assert replica.execute(status).fetchall() == [(True,)]
    found = dict(
        replica.execute("SELECT metric, count(*) FROM llm_metrics WHERE model = 'm' GROUP BY metric").fetchall()
    )
    assert found["pg_gpt2_step"] == 1
    assert "pg_gpt2_training" not in found


def test_a_cursor_streams_on_the_standby(replica: psycopg.Connection) -> None:
    """A million tokens would take minutes; the first of them are there at once."""
    with replica.transaction(), replica.cursor("events") as cursor:
        replica.execute("SET LOCAL statement_timeout = '10s'")
        cursor.itersize = 1
        cursor.execute("SELECT (llm_generate_stream(%s, 1000000, eos_token => -1)).*", [PROMPT])
        assert [cursor.fetchone()[0] for _ in range(3)] == [1, 2, 3]  # type: ignore[index]


def test_a_session_of_the_standby_sees_new_weights_and_vocabulary(
    standby: Standby, model: psycopg.Connection, replica: psycopg.Connection
) -> None:
    statement = "SELECT llm_generate('The standby', 24, temperature => 0), llm_encode('The standby')"
    before = replica.execute(statement).fetchone()
    model.execute("SELECT llm_train('m', 5, dropout_p => 0, lr_max => 1e-2, log_every => 0)")
    model.execute("DELETE FROM llm_bpe_merges WHERE model = 'm' AND rank > 5")
    standby.catch_up(replica)
    found = replica.execute(statement).fetchone()
    assert found == model.execute(statement).fetchone()
    assert before is not None
    assert found is not None
    assert found[0] != before[0]
    assert found[1] != before[1]


@pytest.mark.parametrize("statement", ["SELECT llm_init_model('new', 1, 1, 8, 8, 8)", "SELECT llm_train('m', 1)"])
def test_what_writes_says_so(replica: psycopg.Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        replica.execute(statement)
    assert replica.execute("SELECT llm_generate('The standby', 2, seed => 1)").fetchone()


def test_a_promoted_copy_trains_on_as_the_primary_does(
    standby: Standby, model: psycopg.Connection, replica: psycopg.Connection
) -> None:
    """A physical backup is a server of its own. The last test: afterwards the standby is none."""
    standby.catch_up(replica)
    assert replica.execute("SELECT pg_promote()").fetchone() == (True,)
    found = []
    for conn in (model, replica):
        loss = conn.execute("SELECT llm_train_step('m', lr_max => 0.01, seed => 5)").fetchone()
        conn.execute("SELECT llm_train('m', 2, batch_size => 2, log_every => 0)")
        state = "SELECT md5(string_agg(md5(data) || md5(m) || md5(v), '' ORDER BY name, token_id)) FROM llm_param"
        found.append((loss, conn.execute(state).fetchone()))
    assert found[0] == found[1]
