"""A database that is dumped and restored has the same models, vocabularies, data and runs, and goes on from there."""

import os
import subprocess

import psycopg
import pytest

DUMPED = (
    *("llm_model_config", "llm_param", "llm_dataset", "llm_bpe_vocab", "llm_bpe_merges", "llm_run", "llm_train_log"),
    "llm_tape",
)


@pytest.fixture(scope="module")
def original(module_conn):
    """A database with a trained model, a preset that was replaced, one that got weights' room, and presets as they come."""
    conn = module_conn
    conn.execute("SET client_min_messages = warning")
    conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest naïve')$$, 265, 'tiny')")
    conn.execute("SELECT llm_init_model('tiny', 1, 2, 16, 32, seed => 1)")
    conn.execute("SELECT llm_dataset_load($$VALUES (repeat('low lower ', 100))$$, 'tiny', 8, val_fraction => 0.2)")
    conn.execute("SELECT llm_train('tiny', 3, batch_size => 2, seed => 5)")
    conn.execute("INSERT INTO llm_model_config VALUES ('gpt2-large', 1, 2, 8, 16, 265)")
    conn.execute("SELECT llm_init_model('gpt2-xl', 1, 1, 8, 16, 265)")
    return conn


def program(name: str) -> str:
    directory = os.environ.get("PG_GPT2_TEST_BINDIR")
    return os.path.join(directory, name) if directory else name


def restore(dsn: str, into: str, *options: str) -> None:
    """pg_dump dsn | psql into: every error counts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    dump = subprocess.run(
        [program("pg_dump"), *options, dsn], check=True, stdout=subprocess.PIPE, env=environment
    ).stdout
    done = subprocess.run(
        [program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", into],
        input=dump,
        capture_output=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"ERROR" not in done.stderr


def restore_custom(dsn: str, into: str) -> None:
    """pg_dump -Fc, pg_restore -j 2: tables are filled in any order, side by side."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    dump = subprocess.run([program("pg_dump"), "-Fc", dsn], check=True, stdout=subprocess.PIPE, env=environment).stdout
    subprocess.run(
        [program("pg_restore"), "--exit-on-error", "-d", into],
        check=True,
        input=dump,
        env=environment,
        capture_output=True,
    )


@pytest.fixture(scope="module", params=["plain", "inserts", "custom"])
def copy(request, original, dsn, new_database):
    into = new_database("template0")
    if request.param == "custom":
        restore_custom(dsn, into)
    else:
        restore(dsn, into, *(["--column-inserts"] if request.param == "inserts" else []))
    with psycopg.connect(into, autocommit=True) as conn:
        conn.execute("SET client_min_messages = warning")
        yield conn


def both(original, copy, statement):
    first, second = (conn.execute(statement).fetchall() for conn in (original, copy))
    assert first == second
    return first


@pytest.mark.parametrize("table", DUMPED)
def test_every_row_is_there_once(original, copy, table):
    rows = both(original, copy, f"SELECT t::text FROM {table} AS t ORDER BY 1")
    assert rows or table == "llm_checkpoint"


def test_every_table_with_user_data_is_among_those_compared(original):
    dumped = original.execute(
        "SELECT c.relname FROM pg_extension e, unnest(e.extconfig) AS t JOIN pg_class c ON c.oid = t"
        " WHERE extname = 'pg_gpt2' AND relkind = 'r'"
    ).fetchall()
    assert set(DUMPED) <= {name for (name,) in dumped}
    for (name,) in dumped:
        if name not in DUMPED:
            assert original.execute(f"SELECT count(*) FROM {name}").fetchone() is not None


def test_models_and_what_they_say_are_the_same(original, copy):
    both(original, copy, "SELECT * FROM llm_models ORDER BY model")
    both(original, copy, "SELECT llm_logits('{1,2,3}', 'tiny'), llm_logits('{1,2,3}', 'gpt2-xl')")
    both(original, copy, "SELECT llm_generate('lower naïve', 20, model_name => 'tiny', seed => 3)")
    both(original, copy, "SELECT * FROM llm_evaluate('tiny')")


def test_presets_are_presets_and_replaced_ones_replaced(original, copy):
    rows = both(original, copy, "SELECT model, n_layer, preset FROM llm_model_config ORDER BY model")
    assert rows == [
        ("gpt2-large", 1, False),
        ("gpt2-medium", 24, True),
        ("gpt2-small", 12, True),
        ("gpt2-xl", 1, False),
        ("tiny", 1, False),
    ]


def test_ids_go_on_and_so_does_training(original, copy):
    for table, column in (("llm_dataset", "id"), ("llm_run", "run_id"), ("llm_tape", "id"), ("llm_tape", "tape_id")):
        last = both(original, copy, f"SELECT max({column}) FROM {table}")[0][0]
        with copy.transaction(force_rollback=True):
            if table == "llm_dataset":
                copy.execute("INSERT INTO llm_dataset (tokens, target) VALUES ('{1}', '{2}')")
            else:
                copy.execute("SELECT llm_train('tiny', 1)")
            assert copy.execute(f"SELECT max({column}) FROM {table}").fetchone()[0] > last
    weights = []
    for conn in (original, copy):
        with conn.transaction(force_rollback=True):
            conn.execute("SELECT llm_train('tiny', 2, batch_size => 2, seed => 6)")
            state = "SELECT name, data, m, v, step FROM llm_param WHERE model = 'tiny' ORDER BY name"
            weights.append(conn.execute(state).fetchall())
    assert weights[0] == weights[1]


def test_a_restored_vocabulary_is_followed_when_it_changes(copy):
    before = copy.execute("SELECT llm_encode('lower', 'tiny')").fetchone()
    with copy.transaction(force_rollback=True):
        copy.execute("DELETE FROM llm_bpe_merges WHERE model = 'tiny'")
        assert copy.execute("SELECT llm_encode('lower', 'tiny')").fetchone() != before


def test_a_dump_of_another_schema_is_restored_there(new_database):
    first, second = new_database("template0"), new_database("template0")
    with psycopg.connect(first, autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "My llm"; CREATE EXTENSION pg_gpt2 SCHEMA "My llm" CASCADE')
        conn.execute("SELECT \"My llm\".llm_init_model('tiny', 1, 2, 16, 32, 50)")
        expected = conn.execute("SELECT \"My llm\".llm_logits('{1}', 'tiny')").fetchone()
    restore(first, second)
    with psycopg.connect(second, autocommit=True) as conn:
        assert conn.execute("SELECT \"My llm\".llm_logits('{1}', 'tiny')").fetchone() == expected
