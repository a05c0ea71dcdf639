"""Tables are the truth: what a session keeps in memory follows its rows, through every way in which rows change."""

import time
from concurrent.futures import ThreadPoolExecutor, wait

import psycopg
import pytest

TEXT = "low lower lowest newer wider naïve "


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider naïve')$$, 270, 'tiny')")
    module_conn.execute("SELECT llm_init_model('tiny', 2, 2, 16, 32, seed => 1)")
    module_conn.execute("SELECT llm_init_model('other', 2, 2, 16, 32, 270, seed => 2)")
    module_conn.execute("SELECT llm_dataset_load(%s, 'tiny', 16)", [f"VALUES ('{TEXT * 20}')"])


@pytest.fixture
def warm(module_conn):
    """A session that has the model and its tokenizer in memory."""
    module_conn.execute("SET client_min_messages = warning")
    answers(module_conn)
    return module_conn


def answers(conn: psycopg.Connection) -> tuple:
    """What the model says: its logits, and a continuation."""
    return conn.execute(
        "SELECT llm_logits('{1,2,3}', 'tiny'), llm_generate('lower', 12, model_name => 'tiny', seed => 4)"
    ).fetchone()


CHANGES = {
    "training": "SELECT llm_train('tiny', 2, batch_size => 2, lr_max => 0.1)",
    "one step": "SELECT llm_train_step('tiny', lr_max => 0.1)",
    "update by hand": "UPDATE llm_param SET data = (SELECT data FROM llm_param WHERE model = 'other' AND name = 'wte')"
    " WHERE model = 'tiny' AND name = 'wte'",
    # from 0 to 0.5 and back
    "update of one byte": "UPDATE llm_param SET data = set_byte(data, 3, 63 - get_byte(data, 3))"
    " WHERE model = 'tiny' AND name = 'ln_f.bias'",
    "import": "SELECT llm_import_safetensors(string_agg(c, ''), 'tiny', true) FROM llm_export_safetensors('other') AS c",
    "delete and insert": "WITH gone AS (DELETE FROM llm_param WHERE model = 'tiny' AND name = 'wpe' RETURNING *)"
    " SELECT FROM gone; INSERT INTO llm_param (model, name, shape, data)"
    " SELECT 'tiny', name, shape, data FROM llm_param WHERE model = 'other' AND name = 'wpe'",
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@changes
def test_a_change_is_seen_at_once_and_rollback_undoes_it(warm, change):
    before = answers(warm)
    with warm.transaction(force_rollback=True):
        warm.execute(change)
        during = answers(warm)
        assert during[0] != before[0]
        assert answers(warm) == during
    assert answers(warm) == before


@changes
def test_rollback_to_a_savepoint_undoes_it(warm, change):
    before = answers(warm)
    with warm.transaction(force_rollback=True):
        warm.execute("SAVEPOINT a")
        warm.execute(change)
        changed = answers(warm)
        warm.execute("SAVEPOINT b")
        warm.execute("UPDATE llm_param SET data = data WHERE model = 'tiny'")
        warm.execute(
            "UPDATE llm_param SET data = decode(repeat('00', octet_length(data)), 'hex')"
            " WHERE model = 'tiny' AND name = 'ln_f.weight'"
        )
        assert answers(warm)[0] not in (before[0], changed[0])
        warm.execute("ROLLBACK TO b")
        assert answers(warm) == changed
        warm.execute("ROLLBACK TO a")
        assert answers(warm) == before


def test_a_failed_statement_leaves_the_model_as_it_was(warm):
    before = answers(warm)
    with pytest.raises(psycopg.errors.DivisionByZero):
        warm.execute("SELECT llm_train('tiny', 1), 1 / (SELECT count(*) FROM llm_run WHERE model = 'nope')")
    assert answers(warm) == before
    assert warm.execute("SELECT count(*) FROM llm_run").fetchone() == (0,)


def test_truncate_and_refill_in_one_transaction_is_seen(warm):
    """The new rows have the places and the transaction of the old ones."""
    with warm.transaction(force_rollback=True):
        warm.execute("CREATE TEMPORARY TABLE kept AS SELECT * FROM llm_param ORDER BY model, name")
        seen = []
        for byte in (0, 62, 63):
            warm.execute(
                "UPDATE kept SET data = set_byte(data, 3, %s) WHERE model = 'tiny' AND name = 'ln_f.bias'", [byte]
            )
            warm.execute("TRUNCATE llm_param")
            warm.execute("INSERT INTO llm_param SELECT * FROM kept ORDER BY model, name")
            seen.append(answers(warm)[0])
        assert len(set(seen)) == 3


def test_committed_weights_are_seen_by_other_sessions_and_uncommitted_are_not(warm, connect):
    other = connect()
    before = answers(other)
    with warm.transaction():
        warm.execute(CHANGES["update of one byte"])
        changed = answers(warm)
        assert answers(other) == before
    assert answers(other) == changed != before
    other.execute(CHANGES["update of one byte"])
    assert answers(warm) == before


def test_a_repeatable_read_transaction_keeps_its_weights(warm, connect):
    other = connect()
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    before = answers(other)
    warm.execute(CHANGES["update of one byte"])
    assert answers(other) == before
    other.execute("COMMIT")
    assert answers(other) == answers(warm) != before
    warm.execute(CHANGES["update of one byte"])


def test_a_dropped_and_remade_model_is_the_new_one(warm):
    with warm.transaction(force_rollback=True):
        before = answers(warm)
        warm.execute("CREATE TEMPORARY TABLE vocab AS SELECT * FROM llm_bpe_vocab WHERE model = 'tiny'")
        warm.execute("SELECT llm_drop_model('tiny')")
        with pytest.raises(psycopg.errors.UndefinedObject), warm.transaction():
            answers(warm)
        warm.execute("INSERT INTO llm_bpe_vocab SELECT * FROM vocab")
        warm.execute("SELECT llm_init_model('tiny', 1, 2, 16, 32, seed => 1)")
        assert answers(warm)[0] != before[0]


def test_a_changed_configuration_counts(warm):
    with warm.transaction(force_rollback=True):
        before = answers(warm)
        warm.execute("UPDATE llm_model_config SET n_head = 4 WHERE model = 'tiny'")
        assert answers(warm)[0] != before[0]


def pieces(conn: psycopg.Connection, text: str = "lower") -> list[str]:
    return [row[0] for row in conn.execute("SELECT token FROM llm_tokenize(%s, 'tiny') ORDER BY position", [text])]


VOCABULARY_CHANGES = {
    "delete a merge": "DELETE FROM llm_bpe_merges WHERE model = 'tiny' AND \"left\" = 'e' AND \"right\" = 'r'",
    "update a merge": "UPDATE llm_bpe_merges SET \"right\" = 'zz' WHERE model = 'tiny' AND \"left\" = 'e' AND \"right\" = 'r'",
    "truncate merges": "TRUNCATE llm_bpe_merges",
    "merges in a writable CTE": "WITH gone AS (DELETE FROM llm_bpe_merges WHERE model = 'tiny' RETURNING 1)"
    " SELECT count(*) FROM gone",
}


@pytest.mark.parametrize("change", VOCABULARY_CHANGES.values(), ids=VOCABULARY_CHANGES)
def test_a_changed_merge_changes_the_next_encoding_and_rollback_undoes_it(warm, change):
    before = pieces(warm)
    with warm.transaction(force_rollback=True):
        warm.execute(change)
        assert pieces(warm) != before
        warm.execute("SAVEPOINT a")
        assert pieces(warm, "ow") == ["o", "w"]
        warm.execute("UPDATE llm_bpe_vocab SET token = 'ow', bytes = 'ow' WHERE model = 'tiny' AND token_id = 268")
        warm.execute("INSERT INTO llm_bpe_merges (model, rank, \"left\", \"right\") VALUES ('tiny', 99, 'o', 'w')")
        assert pieces(warm, "ow") == ["ow"]
        warm.execute("ROLLBACK TO a")
        assert pieces(warm, "ow") == ["o", "w"]
    assert pieces(warm) == before


def test_a_changed_token_changes_the_next_decoding(warm):
    with warm.transaction(force_rollback=True):
        assert warm.execute("SELECT llm_decode('{64}', 'tiny')").fetchone() == ("a",)
        warm.execute("UPDATE llm_bpe_vocab SET bytes = 'XY' WHERE model = 'tiny' AND token_id = 64")
        assert warm.execute("SELECT llm_decode('{64}', 'tiny')").fetchone() == ("XY",)
    assert warm.execute("SELECT llm_decode('{64}', 'tiny')").fetchone() == ("a",)


def test_a_vocabulary_changed_by_copy_or_with_triggers_as_replica_is_seen(warm):
    """Logical replication applies changes with session_replication_role = replica."""
    before = pieces(warm)
    with warm.transaction(force_rollback=True):
        warm.execute("SET LOCAL session_replication_role = replica")
        warm.execute(VOCABULARY_CHANGES["delete a merge"])
        assert pieces(warm) != before
    with warm.transaction(force_rollback=True):
        assert pieces(warm, "ow") == ["o", "w"]
        warm.execute("UPDATE llm_bpe_vocab SET token = 'ow', bytes = 'ow' WHERE model = 'tiny' AND token_id = 268")
        assert pieces(warm, "ow") == ["o", "w"]
        with warm.cursor().copy('COPY llm_bpe_merges (model, rank, "left", "right") FROM STDIN') as copy:
            copy.write_row(("tiny", 1000, "o", "w"))
        assert pieces(warm, "ow") == ["ow"]
    assert pieces(warm) == before


def test_a_vocabulary_of_another_session_is_seen_when_it_commits(warm, connect):
    before = pieces(warm)
    other = connect()
    with other.transaction():
        other.execute("CREATE TABLE kept_merges AS SELECT * FROM llm_bpe_merges WHERE model = 'tiny'")
        other.execute(VOCABULARY_CHANGES["delete a merge"])
        assert pieces(warm) == before
    assert pieces(warm) != before
    other.execute("DELETE FROM llm_bpe_merges WHERE model = 'tiny'")
    other.execute("INSERT INTO llm_bpe_merges SELECT * FROM kept_merges; DROP TABLE kept_merges")
    assert pieces(warm) == before


def test_an_open_change_of_one_vocabulary_delays_no_other(warm, connect):
    """And of changes that overlap, in whatever order they end, each is seen."""
    one, two = connect(), connect()
    add = "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) VALUES (%s, 0, 'a', %s)"
    decode = "SELECT llm_decode('{0}', 'first'), llm_decode('{0}', 'second')"
    for session in (one, two):
        session.execute("SET lock_timeout = '2s'")
    one.execute(add, ["first", b"a"])
    two.execute(add, ["second", b"a"])
    assert warm.execute(decode).fetchone() == ("a", "a")
    for first, second in ((one, two), (two, one)):
        one.execute("BEGIN; UPDATE llm_bpe_vocab SET bytes = 'b' WHERE model = 'first'")
        two.execute("BEGIN; UPDATE llm_bpe_vocab SET bytes = 'b' WHERE model = 'second'")
        one.execute("UPDATE llm_bpe_vocab SET bytes = 'c' WHERE model = 'first'")
        assert warm.execute(decode).fetchone() == ("a", "a")
        first.execute("COMMIT")
        assert warm.execute(decode).fetchone() == (("c", "a") if first is one else ("a", "b"))
        second.execute("COMMIT")
        assert warm.execute(decode).fetchone() == ("c", "b")
        warm.execute("UPDATE llm_bpe_vocab SET bytes = 'a' WHERE model IN ('first', 'second')")
        assert warm.execute("SELECT count(*) FROM llm_bpe_version").fetchone() == (1,)
    warm.execute("DELETE FROM llm_bpe_vocab WHERE model IN ('first', 'second')")


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_vocabulary_can_be_changed_at_any_isolation_level(warm, connect, level):
    one, two = connect(), connect()
    before = pieces(warm)
    one.execute(f"BEGIN ISOLATION LEVEL {level}")
    assert pieces(one) == before
    two.execute("UPDATE llm_bpe_vocab SET score = 1 WHERE model = 'tiny'")
    one.execute("DELETE FROM llm_bpe_merges WHERE model = 'tiny'")
    assert pieces(one) == list("lower")
    one.execute("ROLLBACK")
    assert pieces(warm) == before


@pytest.mark.parametrize("training", ["llm_train_step('m')", "llm_train('m', 1, log_every => 0)"])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_training_what_a_snapshot_does_not_show_is_a_serialization_failure(connect, level, training):
    one, two = connect(), connect()
    two.execute("SELECT llm_init_model('m', 1, 1, 8, 8, 20)")
    two.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('m', '{1,2}', '{2,3}')")
    one.execute(f"BEGIN ISOLATION LEVEL {level}")
    one.execute("SELECT count(*) FROM llm_param")
    two.execute(f"SELECT {training}")
    with pytest.raises(psycopg.errors.SerializationFailure):
        one.execute(f"SELECT {training}")
    one.execute("ROLLBACK")
    one.execute(f"SELECT {training}")
    two.execute("SELECT llm_drop_model('m')")
    two.execute("DELETE FROM llm_dataset WHERE model = 'm'")


def until_it_waits(conn: psycopg.Connection, pid: int) -> None:
    """Return when the session waits for a lock."""
    for _ in range(200):
        if conn.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() == ("Lock",):
            return
        time.sleep(0.05)
    raise TimeoutError("it does not wait")


@pytest.mark.parametrize(
    "training",
    ["SELECT llm_train('tiny', 1, batch_size => 1)", "SELECT llm_train_step('tiny')", "CALL llm_train_run('tiny', 1)"],
)
def test_training_does_not_overwrite_what_another_session_changed_meanwhile(connect, training):
    one, two = connect(), connect()
    changed = "SELECT md5(data) FROM llm_param WHERE model = 'tiny' AND name = 'ln_f.bias'"
    one.execute("BEGIN")
    one.execute(CHANGES["update of one byte"])
    expected = one.execute(changed).fetchone()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(two.execute, training)
        until_it_waits(connect(), two.info.backend_pid)
        assert not waiting.done()
        one.execute("COMMIT")
        with pytest.raises(psycopg.errors.DataException, match="changed by somebody else"):
            waiting.result(10)
    assert one.execute(changed).fetchone() == expected
    one.execute(CHANGES["update of one byte"])  # back


TABLES = ("llm_model_config", "llm_param", "llm_run", "llm_train_log", "llm_dataset")
IMPORT = "SELECT llm_import_safetensors(string_agg(c, ''), '{}', true) FROM llm_export_safetensors('other') AS c"


@pytest.mark.parametrize(
    ("first", "second", "configured"),
    [
        ("SELECT llm_train('dropped', 2, batch_size => 2)", "SELECT llm_drop_model('dropped')", False),
        ("SELECT llm_drop_model('dropped')", "SELECT llm_train('dropped', 2, batch_size => 2)", False),
        ("SELECT llm_drop_model('dropped')", "CALL llm_train_run('dropped', 2, wait => true)", False),
        ("SELECT llm_drop_model('dropped')", IMPORT.format("dropped"), True),
        (IMPORT.format("dropped"), "SELECT llm_drop_model('dropped')", False),
    ],
)
def test_a_model_dropped_by_one_session_and_changed_by_another_is_whole_or_gone(connect, first, second, configured):
    one, two = connect(), connect()
    one.execute("SELECT llm_copy_model('tiny', 'dropped')")
    one.execute("INSERT INTO llm_dataset (model, tokens, target) SELECT 'dropped', tokens, target FROM llm_dataset")
    one.execute("BEGIN")
    one.execute(first)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(two.execute, second)
        assert wait([waiting], 0.3).not_done
        one.execute("COMMIT")
        waiting.exception(10)  # it may find the model gone
    counts = [one.execute(f"SELECT count(*) FROM {table} WHERE model = 'dropped'").fetchone()[0] for table in TABLES]
    assert counts == ([1, 28, 0, 0, 0] if configured else [0] * 5)
    if configured:
        one.execute("SELECT llm_drop_model('dropped')")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT llm_init_model('contested', 1, 1, 8, 8, 300)",
        "SELECT llm_copy_model('other', 'contested')",
        "SELECT llm_import_safetensors(string_agg(c, ''), 'contested') FROM llm_export_safetensors('other') AS c",
    ],
)
def test_of_two_sessions_that_make_a_model_the_second_waits_and_is_refused(connect, statement):
    first, second = connect(), connect()
    second.execute("SET lock_timeout = '100ms'")
    first.execute("BEGIN")
    first.execute(statement)
    with pytest.raises(psycopg.errors.LockNotAvailable):
        second.execute(statement)
    first.execute("COMMIT")
    with pytest.raises(psycopg.errors.DuplicateObject):
        second.execute(statement)
    first.execute("SELECT llm_drop_model('contested')")


@changes
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_prepared_transaction_counts_from_its_commit_on(warm, connect, change, end):
    """Also in the session that prepared it, which has seen the weights that it wrote."""
    other = connect()
    before = answers(warm)
    kept = warm.execute("SELECT llm_checkpoint_save('tiny')").fetchone()[0]
    try:
        warm.execute("BEGIN")
        warm.execute(change)
        during = answers(warm)
        assert during[0] != before[0]
        warm.execute("PREPARE TRANSACTION 'change'")
        try:
            assert answers(warm) == answers(other) == before
        finally:
            warm.execute(f"{end} PREPARED 'change'")
        assert answers(warm) == answers(other) == answers(connect()) == (during if end == "COMMIT" else before)
    finally:
        warm.execute("SELECT llm_checkpoint_load('tiny', %s)", [kept])
    assert answers(warm) == before
