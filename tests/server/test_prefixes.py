"""pg_gpt2.prefix_cache: what a session has read is gone on from, is never stale, and belongs to who may see the model."""

import contextlib
import random

import psycopg
import pytest

from tests.server.test_transactions import CHANGES

WORDS = "low lower lowest newer wider"
INSTRUCTIONS = "low lower lowest newer wider naive " * 20  # more tokens than a pass that can be used again has
USED = "SELECT entries, tokens_saved, bytes FROM llm_cache_status() WHERE kind = 'prefix' AND model = 'tiny'"
CALLS = {
    "generate": "SELECT llm_generate(%s, 9, model_name => 'tiny', seed => 4)",
    "stream": "SELECT (llm_generate_stream(%s, 9, model_name => 'tiny', temperature => 0)).*",
    "batch": "SELECT * FROM llm_generate_batch(ARRAY[%s, 'low'], 5, model_name => 'tiny', seed => 4)",
    "next token": "SELECT * FROM llm_next_token(%s, 5, model_name => 'tiny')",
    "beams": "SELECT * FROM llm_beam_search(%s, 4, 3, model_name => 'tiny')",
    "perplexity": "SELECT llm_perplexity(%s, 'tiny')",
    "logprobs": "SELECT * FROM llm_logprobs(%s, 'tiny')",
}
POLICIES = """
    CREATE POLICY not_all ON {table} USING (model <> 'tiny' OR current_user <> 'prefix_reader');
    ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
"""


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider naive')$$, 270, 'tiny')")
    module_conn.execute("SELECT llm_init_model('tiny', 2, 2, 64, 1024, seed => 1)")
    module_conn.execute("SELECT llm_init_model('other', 2, 2, 64, 1024, 270, seed => 2)")
    module_conn.execute("SELECT llm_dataset_load(%s, 'tiny', 16)", [f"VALUES ('{WORDS * 20}')"])


@pytest.fixture
def session(conn):
    """A session that says what it gives without NOTICEs."""
    conn.execute("SET client_min_messages = warning")
    return conn


def answers(conn: psycopg.Connection, text: str = INSTRUCTIONS) -> list[list[tuple]]:
    """What each call gives."""
    return [conn.execute(call, [text]).fetchall() for call in CALLS.values()]


def used(conn: psycopg.Connection) -> tuple[int, int, int]:
    """(entries, tokens saved, bytes) of the model."""
    return conn.execute(USED).fetchone() or (0, 0, 0)


def off(conn: psycopg.Connection, text: str = INSTRUCTIONS) -> list[list[tuple]]:
    """What each call gives when it reads all of it."""
    conn.execute("SET pg_gpt2.prefix_cache = 0")
    found = answers(conn, text)
    assert used(conn) == (0, 0, 0)
    conn.execute("RESET pg_gpt2.prefix_cache")
    return found


@pytest.mark.parametrize("fast", ["on", "off"])
def test_calls_give_the_same_with_and_without_what_was_read(session, fast):
    session.execute(f"SET pg_gpt2.fast = {fast}")
    choose = random.Random(1)
    texts = [INSTRUCTIONS + " ".join(choose.choices(WORDS.split(), k=12)) for _ in range(4)]
    without = {text: off(session, text) for text in texts}
    for text in choose.choices(texts, k=12):
        some = choose.sample(range(len(CALLS)), 4)
        found = [session.execute(list(CALLS.values())[number], [text]).fetchall() for number in some]
        assert found == [without[text][number] for number in some]
    assert used(session)[1] > 1000


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_read_is_never_stale(session, change):
    """After a change, its rollback, and the rollback of a savepoint."""
    before = off(session)
    assert answers(session) == before
    with session.transaction(force_rollback=True):
        session.execute("SAVEPOINT a")
        session.execute(change)
        during = answers(session)
        assert during != before
        assert during == off(session) == answers(session)
        session.execute("SAVEPOINT b")
        session.execute(
            "UPDATE llm_param SET data = decode(repeat('00', octet_length(data)), 'hex')"
            " WHERE model = 'tiny' AND name = 'wpe'"
        )
        assert answers(session) == off(session)
        session.execute("ROLLBACK TO b")
        assert answers(session) == during
        session.execute("ROLLBACK TO a")
        assert answers(session) == before
    assert answers(session) == before


def test_what_others_commit_is_seen(session, connect):
    before = answers(session)
    other = connect()
    for _ in range(2):
        other.execute(CHANGES["update of one byte"])
        assert answers(session) == off(session)
    assert answers(session) == before


def test_another_vocabulary_or_shape_finds_nothing_wrong(session):
    before = answers(session)
    for change in (
        "DELETE FROM llm_bpe_merges WHERE model = 'tiny' AND rank < 5",
        "UPDATE llm_model_config SET n_head = 4 WHERE model = 'tiny'",
    ):
        with session.transaction(force_rollback=True):
            session.execute(change)
            assert answers(session) != before
            assert answers(session) == off(session)
        assert answers(session) == before


def test_cursors_by_turns_and_closed_ones_change_nothing(session):
    query = "SELECT (llm_generate_stream('" + INSTRUCTIONS + "', 12, model_name => 'tiny', temperature => 0)).text"
    whole = session.execute(query).fetchall()
    with session.transaction():
        for name in ("a", "b", "c"):
            session.execute(f"DECLARE {name} CURSOR FOR {query}")
        found: dict[str, list] = {"a": [], "b": [], "c": []}
        for name in "aababbbcca":
            found[name] += session.execute(f"FETCH {name}").fetchall()
        session.execute("CLOSE a")
        for name in "bcb":
            found[name] += session.execute(f"FETCH 6 FROM {name}").fetchall()
        session.execute("FETCH ALL FROM c")
    for rows in found.values():
        assert rows == whole[: len(rows)]
    assert session.execute(query).fetchall() == whole


def test_a_cancelled_call_changes_nothing(session):
    query = "SELECT llm_generate(%s, 400, model_name => 'tiny', temperature => 0, eos_token => -1)"
    expected = session.execute(query, [INSTRUCTIONS]).fetchone()
    for milliseconds in (20, 35, 50):
        session.execute(f"SET statement_timeout = {milliseconds}")
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            assert session.execute(query, [INSTRUCTIONS]).fetchone() == expected
        with contextlib.suppress(psycopg.errors.QueryCanceled):  # where the time was up as the call ended
            session.execute("SELECT")
        session.execute("RESET statement_timeout")
        assert session.execute(query, [INSTRUCTIONS]).fetchone() == expected


# --- whose it is ------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(session):
    """A role that may read; its session is another role's as well."""
    session.execute("CREATE ROLE prefix_reader")
    session.execute("SELECT llm_grant_usage('prefix_reader')")
    yield "prefix_reader"
    session.execute("RESET ROLE")
    for table in ("llm_model_config", "llm_param"):
        session.execute(f"DROP POLICY IF EXISTS not_all ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    session.execute("DROP OWNED BY prefix_reader; DROP ROLE prefix_reader")


def test_a_role_that_may_not_see_the_model_any_more_learns_nothing(session, reader):
    """Neither by a call nor by llm_cache_status, in a session that has read for others."""
    before = answers(session)
    session.execute(f"SET ROLE {reader}")
    assert answers(session) == before
    assert used(session)[1] > 0
    session.execute("RESET ROLE")
    for table in ("llm_model_config", "llm_param"):
        session.execute(POLICIES.format(table=table))
    session.execute(f"SET ROLE {reader}")
    assert used(session) == (0, 0, 0)
    for call in CALLS.values():
        with pytest.raises((psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState)):
            session.execute(call, [INSTRUCTIONS])
    session.execute("RESET ROLE")
    assert answers(session) == before


def test_what_one_role_has_read_tells_another_nothing(session, reader):
    """Guesses at a prompt of somebody else, as of a function with its owner's rights, save no tokens."""
    session.execute(CALLS["next token"], [INSTRUCTIONS])
    session.execute(f"SET ROLE {reader}")
    assert used(session) == (0, 0, 0)
    session.execute(CALLS["next token"], [INSTRUCTIONS + "low"])
    assert used(session)[1] == 0
    session.execute(CALLS["next token"], [INSTRUCTIONS + "lower"])
    assert used(session)[1] > 0
    session.execute("RESET ROLE")
    assert used(session)[1] == 0


def test_a_role_that_sees_other_rows_of_a_model_reads_for_itself(session, reader):
    """Policies may show each role weights of its own under one name: what others read is of another version."""
    before = answers(session)
    session.execute("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY")
    session.execute("CREATE POLICY not_all ON llm_param USING (model <> 'tiny' OR name <> 'wpe')")
    session.execute(f"SET ROLE {reader}")
    with pytest.raises(psycopg.errors.DataException, match="wpe"):
        session.execute(CALLS["next token"], [INSTRUCTIONS])
    session.execute("RESET ROLE")
    assert answers(session) == before


# --- how much ---------------------------------------------------------------------------------------------------------


def test_the_setting_and_max_memory_bound_what_is_kept(session):
    assert session.execute("SELECT setting FROM llm_settings WHERE name = 'pg_gpt2.prefix_cache'").fetchone() == (
        "64MB",
    )
    answers(session)
    entries, _, size = used(session)
    assert entries > 0
    assert size > 1024
    session.execute("SET pg_gpt2.prefix_cache = '100kB'")
    answers(session)
    assert used(session)[2] <= 100 << 10
    session.execute("SET pg_gpt2.prefix_cache = '0'; SELECT llm_next_token('low', model_name => 'tiny')")
    assert used(session) == (0, 0, 0)
    session.execute("RESET pg_gpt2.prefix_cache")
    held = session.execute(
        "SELECT sum(bytes) FROM llm_cache_status() WHERE kind = 'weights' AND NOT shared"
    ).fetchone()[0]
    session.execute("SELECT set_config('pg_gpt2.max_memory', %s, false)", [f"{(int(held) >> 10) + 200}kB"])
    text = session.execute(CALLS["generate"], ["low lower lowest " * 12]).fetchone()
    assert used(session)[2] <= 200 << 10
    session.execute("RESET pg_gpt2.max_memory")
    assert session.execute(CALLS["generate"], ["low lower lowest " * 12]).fetchone() == text


def test_llm_cache_clear_drops_it(session):
    before = answers(session)
    _, _, size = used(session)
    held = session.execute(
        "SELECT sum(bytes) FROM llm_cache_status() WHERE kind <> 'tokenizer' AND NOT shared"
    ).fetchone()[0]
    assert session.execute("SELECT llm_cache_clear()").fetchone()[0] == held >= size > 0
    assert used(session) == (0, 0, 0)
    assert answers(session) == before


@pytest.mark.parametrize("value", ["much", "-1", "64 MiB", "1e3"])
def test_a_size_that_is_none_is_refused_by_its_name(session, value):
    session.execute("SELECT set_config('pg_gpt2.prefix_cache', %s, false)", [value])
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"pg_gpt2\.prefix_cache must be a size") as caught:
        session.execute(CALLS["generate"], ["low"])
    assert "RESET pg_gpt2.prefix_cache" in caught.value.diag.message_hint
