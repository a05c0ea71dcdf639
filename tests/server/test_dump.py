"""A database that was dumped and restored, in each form, has every row and goes on with the same results and ids."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

BINDIR = os.environ.get("PG_GPT2_TEST_BINDIR") or str(Path(shutil.which("pg_dump") or "").parent)
TABLES = (
    *("llm_model_config", "llm_param", "llm_dataset", "llm_bpe_vocab", "llm_bpe_merges", "llm_run", "llm_train_log"),
    *(
        "llm_checkpoint",
        "llm_checkpoint_blob",
        "llm_checkpoint_part",
        "llm_checkpoint_restore",
        "llm_param_share",
        "llm_adapter",
        "llm_tape",
    ),
)
NOT_OF_THE_USER = {
    "llm_bpe_version",
    "llm_limit",
}  # a version of rows, which are new rows; what the test below looks at
STATE = "SELECT md5(string_agg(md5(data) || md5(m) || md5(v), '' ORDER BY model, name, token_id)) FROM llm_param"
NEXT = (
    "SELECT llm_generate('low', 8, model_name => 'm', seed => 1)",
    "SELECT llm_loss('m', ARRAY[1, 2], ARRAY[2, 3], training => false)",
    "SELECT llm_train_step('m', dropout_p => 0.1, seed => 5)",
    STATE,
    "SELECT llm_train_step('sharing', batch => ARRAY[1])",
    STATE,
    "SELECT llm_generate('low', 8, model_name => 'adapter', seed => 1)",
    "SELECT llm_train_step('adapter', batch => ARRAY[1])",
    "SELECT llm_checkpoint_load('adapter', (SELECT min(id) FROM llm_checkpoint WHERE model = 'adapter'))",
    STATE,
    "SELECT llm_train('m', 2, batch_size => 2, log_every => 0)",
    "INSERT INTO llm_dataset (model, tokens, target) VALUES ('m', '{1}', '{2}') RETURNING id",
    "SELECT llm_checkpoint_save('m')",
    "SELECT llm_checkpoint_load('m', 1)",
    STATE,
    "SELECT max(id) FROM llm_checkpoint_restore",
    "SELECT max(id), max(tape_id), max(run_id) FROM llm_tape",
    "SELECT * FROM llm_evaluate('m', 'train')",
    "DELETE FROM llm_bpe_merges WHERE model = 'm' AND rank > 1 RETURNING rank",
    "SELECT llm_encode('lower', 'm')",
    "SELECT llm_train_step('m', seed => 5)",
    STATE,
)


@pytest.fixture(scope="module")
def source(dsn: str) -> str:
    """A database that has everything: vocabulary, data, runs, checkpoints, a run by hand, a load, a shared tensor."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in (
            "SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider' $$, 262, 'm')",
            "UPDATE llm_bpe_vocab SET added = true, lstrip = true, roles = '{pad}' WHERE model = 'm' AND token = 'low'",
            "SELECT llm_init_model('m', 2, 2, 16, 16)",
            "UPDATE llm_model_config SET stop_token_ids = '{7, 8}' WHERE model = 'm'",
            "SELECT llm_dataset_load($$SELECT repeat('low lower ', 50)$$, 'm', 16)",
            "SELECT llm_dataset_load_pairs($$VALUES ('low', ' lower', 2.5), ('new', ' wider', 1)$$, 'm')",
            "UPDATE llm_dataset SET model = NULL",
            "SELECT llm_train('m', 2, batch_size => 2, log_every => 0)",
            "SELECT llm_checkpoint_save('m', 'first')",
            "SELECT llm_train_step('m')",
            "SELECT llm_checkpoint_save('m')",
            "SELECT llm_checkpoint_load('m', 1)",
            "SELECT llm_train_step('m')",
            "SELECT llm_train('m', 1, log_every => 0)",  # steps by hand begin another run in new rows, and so they do here
            "SELECT llm_init_model('gpt2-small', 1, 2, 8, 16, 50)",  # the name of a preset
            "INSERT INTO llm_model_config VALUES ('gpt2-large', 1, 2, 8, 16, 265)",
            "SELECT llm_copy_model('m', 'sharing')",
            "SELECT llm_share_param('m', 'wte', NULL, 'sharing')",
            "SELECT llm_adapter_create('adapter', 'm', r => 2)",
            "SELECT llm_train('adapter', 2, batch_size => 2, log_every => 0)",
            "SELECT llm_checkpoint_save('adapter')",
        ):
            conn.execute(statement)
    return dsn


def run(program: str, *arguments: str) -> None:
    """A program of PostgreSQL, which must succeed and say nothing."""
    done = subprocess.run([f"{BINDIR}/{program}", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def contents(dsn: str) -> dict[str, object]:
    """Number of rows and a digest of each table."""
    with psycopg.connect(dsn) as conn:
        return {
            name: conn.execute(
                f"SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))) FROM {name} AS t"
            ).fetchone()
            for name in TABLES
        }


def next_results(dsn: str) -> list[object]:
    """What the next statements return, ids included."""
    with psycopg.connect(dsn) as conn:
        return [conn.execute(statement).fetchone() for statement in NEXT]


@pytest.mark.parametrize("form", ["plain", "inserts", "custom", "parallel"])
def test_a_restored_database_is_and_does_the_same(source, new_database, tmp_path, form):
    target, dump = new_database("template0"), str(tmp_path / "dump")
    if form in ("plain", "inserts"):
        run("pg_dump", *(["--column-inserts"] if form == "inserts" else []), "-f", dump, source)
        run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, "-f", dump, "-d", target)
    elif form == "custom":
        run("pg_dump", "-Fc", "-f", dump, source)
        run("pg_restore", "--exit-on-error", "-d", target, dump)
    else:
        run("pg_dump", "-Fd", "-j2", "-f", dump, source)
        run("pg_restore", "--exit-on-error", "-j2", "-d", target, dump)
    assert contents(target) == contents(source)
    copy = new_database(psycopg.conninfo.conninfo_to_dict(source)["dbname"])
    assert next_results(target) == next_results(copy)


def test_every_table_of_the_user_is_among_those_compared(source):
    with psycopg.connect(source) as conn:
        dumped = conn.execute(
            "SELECT c.relname FROM pg_extension e, unnest(e.extconfig) AS t JOIN pg_class c ON c.oid = t"
            " WHERE extname = 'pg_gpt2' AND relkind = 'r'"
        ).fetchall()
        presets = conn.execute(
            "SELECT model, preset FROM llm_model_config WHERE model LIKE 'gpt2-%' ORDER BY 1"
        ).fetchall()
    assert {name for (name,) in dumped} - NOT_OF_THE_USER == set(TABLES)
    assert presets == [("gpt2-large", False), ("gpt2-medium", True), ("gpt2-small", False), ("gpt2-xl", True)]


def test_a_dump_of_another_schema_is_restored_there(new_database, tmp_path):
    first, second, dump = new_database("template0"), new_database("template0"), str(tmp_path / "dump")
    with psycopg.connect(first, autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "My llm"; CREATE EXTENSION pg_gpt2 SCHEMA "My llm" CASCADE')
        conn.execute("SELECT \"My llm\".llm_init_model('tiny', 1, 2, 16, 32, 50)")
        expected = conn.execute("SELECT \"My llm\".llm_logits('{1}', 'tiny')").fetchone()
    run("pg_dump", "-f", dump, first)
    run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, "-f", dump, "-d", second)
    with psycopg.connect(second, autocommit=True) as conn:
        assert conn.execute("SELECT \"My llm\".llm_logits('{1}', 'tiny')").fetchone() == expected


def test_data_go_to_a_role_that_is_no_superuser(source, new_database, tmp_path):
    """A superuser creates the extension; who was granted its tables restores into them."""
    target, dump = new_database(), str(tmp_path / "dump")
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute("CREATE ROLE restorer LOGIN")
        try:
            conn.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO restorer")
            conn.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO restorer")
            run("pg_dump", "--data-only", "-Fc", "-f", dump, source)
            as_restorer = psycopg.conninfo.make_conninfo(target, user="restorer")
            run("pg_restore", "--exit-on-error", "--no-owner", "-d", as_restorer, dump)
            assert contents(target) == contents(source)
        finally:
            conn.execute("DROP OWNED BY restorer")
            conn.execute("DROP ROLE restorer")


ENABLED = (
    "SELECT array_agg(concat_ws(' ', tgrelid::regclass, tgname, tgenabled) ORDER BY tgrelid::regclass::text, tgname)"
    " FROM pg_trigger WHERE NOT tgisinternal"
)


@pytest.mark.parametrize("presets", [True, False])
def test_the_doctor_says_what_a_dump_with_disable_triggers_leaves_and_how_to_mend_it(
    source, new_database, tmp_path, presets
):
    """While there are presets the configurations are refused, as a key that is there already."""
    target, dump = new_database(), str(tmp_path / "dump")
    wrong = "SELECT item, hint FROM llm_doctor() WHERE item LIKE 'triggers of %' OR item LIKE 'weights without %' ORDER BY 1"
    run("pg_dump", "--data-only", "--disable-triggers", "-f", dump, source)
    with psycopg.connect(target, autocommit=True) as conn:
        installed = conn.execute(ENABLED).fetchone()
        assert conn.execute(wrong).fetchall() == []
        if not presets:
            conn.execute("DELETE FROM llm_model_config WHERE preset")
        done = subprocess.run(
            [f"{BINDIR}/psql", "-X", "-q", "-o", os.devnull, "-f", dump, "-d", target], capture_output=True, text=True
        )
        assert ("llm_model_config_pkey" in done.stderr) is presets
        found = dict(conn.execute(wrong).fetchall())
        assert ("weights without a configuration" in found) is presets
        statements = [hint for item, hint in found.items() if item.startswith("triggers of ")]
        assert len(statements) == 3
        for statement in statements:
            conn.execute(statement)
        assert conn.execute(ENABLED).fetchone() == installed
        if not presets:
            assert conn.execute(wrong).fetchall() == []
            assert contents(target) == contents(source)


def test_a_tensor_as_large_as_wte_of_gpt2_xl(new_database: Callable[..., str]) -> None:
    """50257 x 1600 values, 322 MB in blocks of 4 MiB, from pg_dump to psql without a file between."""
    source, target = new_database(), new_database("template0")
    with psycopg.connect(source, autocommit=True) as conn:
        conn.execute("""
            INSERT INTO llm_param (model, name, token_id, shape, data)
            SELECT 'gpt2-xl', 'wte', first, ARRAY[rows, 1600], decode(repeat(md5(first::text), rows * 400), 'hex')
            FROM generate_series(0, 50256, 655) AS first, LATERAL (SELECT least(655, 50257 - first)) AS block (rows)
        """)
    dumping = subprocess.Popen([f"{BINDIR}/pg_dump", source], stdout=subprocess.PIPE)
    restoring = [f"{BINDIR}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, "-d", target]
    done = subprocess.run(restoring, stdin=dumping.stdout, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert dumping.wait() == 0
    state = "SELECT count(*), sum(octet_length(data)), md5(string_agg(md5(data), '' ORDER BY token_id)) FROM llm_param"
    found = []
    for dsn in (source, target):
        with psycopg.connect(dsn) as conn:
            found.append(conn.execute(state).fetchone())
    assert found[0] == found[1]
    assert found[0][:2] == (77, 50257 * 1600 * 4)
