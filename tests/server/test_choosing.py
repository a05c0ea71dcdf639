"""Choosing in SQL: what a caller may choose from, and that it makes no difference how many rows are asked about at once, what the
session has read before, and by which forms of the ops."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

DENIED = psycopg.errors.InsufficientPrivilege
LABELS = '{" low"," lower"," newest and wider"," n"," newer"}'
NORMALIZATIONS = ("none", "tokens", "bytes", "prior")


def rows(conn: psycopg.Connection, query: str, *args: object) -> list[tuple[Any, ...]]:
    return conn.execute(query, args or None).fetchall()


@pytest.fixture(autouse=True, scope="module")
def model(module_conn: psycopg.Connection) -> None:
    """m, and texts about which to ask: most begin alike, some are NULL or empty."""
    module_conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider the and')$$, 270, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 3, 4, 64, 256, seed => 1)")
    module_conn.execute("UPDATE llm_param SET data = data WHERE model = 'm'")
    module_conn.execute(
        """CREATE TABLE ticket AS SELECT i AS id, CASE WHEN i % 11 = 0 THEN NULL WHEN i % 13 = 0 THEN '' ELSE
           CASE WHEN i % 5 < 3 THEN repeat('low lower newer wider ', 12) WHEN i % 5 = 3 THEN repeat('the and low ', 25)
           ELSE '' END || 'number ' || i * i || CASE WHEN i % 7 = 0 THEN ' ' ELSE '' END END AS body
           FROM generate_series(1, 60) AS i"""
    )


@pytest.fixture
def role(module_conn: psycopg.Connection) -> Iterator[str]:
    """A role that may use models, and no more."""
    module_conn.execute("CREATE ROLE chooser; SELECT llm_grant_usage('chooser', 'read')")
    yield "chooser"
    module_conn.execute("DROP OWNED BY chooser; DROP ROLE chooser")


# ---- whose choices


def test_row_level_security_limits_what_the_model_can_answer(connect, module_conn, role) -> None:
    module_conn.execute(
        """CREATE TABLE answer (body text, team text); INSERT INTO answer VALUES (' low', 'chooser'), (' lower', 'others'),
           (' newer', 'chooser'), (' wider', 'others'); ALTER TABLE answer ENABLE ROW LEVEL SECURITY;
           CREATE POLICY own ON answer USING (team = current_user); GRANT SELECT ON answer TO chooser"""
    )
    query = (
        "SELECT choice, round(logprob::numeric, 4) FROM llm_choose_from('the', 'SELECT body FROM answer', 'none', 'm')"
    )
    conn = connect()
    everything = dict(rows(conn, query))
    assert set(everything) == {" low", " lower", " newer", " wider"}
    conn.execute(f"SET ROLE {role}")
    assert dict(rows(conn, query)) == {choice: everything[choice] for choice in (" low", " newer")}
    conn.execute("RESET ROLE")
    assert dict(rows(conn, query)) == everything
    module_conn.execute("DROP TABLE answer")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM llm_choose_from('the', 'SELECT body FROM ticket', 'none', 'm')",
        f"SELECT * FROM llm_choose_rows('SELECT id, body FROM ticket', '{LABELS}', 'none', 'm')",
    ],
)
def test_a_source_is_read_with_the_callers_rights(connect, module_conn, role, query) -> None:
    conn = connect()
    module_conn.execute("UPDATE ticket SET body = 'x' WHERE body = ''")
    assert rows(conn, query)
    conn.execute(f"SET ROLE {role}")
    with pytest.raises(DENIED, match="ticket"):
        rows(conn, query)
    conn.execute("RESET ROLE; GRANT SELECT ON ticket TO chooser; SET ROLE chooser")
    assert rows(conn, query)


def test_the_level_read_is_enough_and_none_is_not(connect, module_conn, role) -> None:
    conn = connect()
    query = f"SELECT llm_classify('the', '{LABELS}', 'none', 'm')"
    expected = rows(conn, query)
    conn.execute("CREATE ROLE nobody; SET ROLE nobody")
    with pytest.raises(DENIED):
        rows(conn, query)
    conn.execute(f"RESET ROLE; DROP ROLE nobody; SET ROLE {role}")
    assert rows(conn, query) == expected


def test_a_source_is_looked_up_on_the_callers_path(connect) -> None:
    conn = connect()
    conn.execute("CREATE SCHEMA mine; CREATE TABLE mine.label AS SELECT ' low' AS body; SET search_path = mine, public")
    assert rows(conn, "SELECT choice FROM llm_choose_from('the', 'SELECT body FROM label', 'none', 'm')") == [(" low",)]
    query = "SELECT key FROM llm_choose_rows('SELECT body, body FROM label', '{a}', 'none', 'm')"
    assert rows(conn, query) == [(" low",)]
    conn.execute("SET search_path = public; DROP SCHEMA mine CASCADE")


# ---- the same, however it is asked

ONE_BY_ONE = """
    SELECT id::text, best.choice, best.probability FROM ticket
    LEFT JOIN LATERAL (SELECT * FROM llm_choose(body, %s, %s, 'm') WHERE rank = 1) AS best ON true ORDER BY ticket.id
"""
AT_ONCE = "SELECT * FROM llm_choose_rows('SELECT id, body FROM ticket ORDER BY id', %s, %s, 'm')"


@pytest.mark.parametrize("fast", ["on", "off"])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_rows_get_the_choices_and_bits_that_each_gets_alone(connect, normalize, fast) -> None:
    conn = connect()
    conn.execute(f"SET pg_gpt2.fast = {fast}")
    found = {}
    for size in ("0", "64MB"):
        conn.execute(f"SET pg_gpt2.prefix_cache = '{size}'")
        found[size] = rows(conn, ONE_BY_ONE, LABELS, normalize)
        assert rows(conn, AT_ONCE, LABELS, normalize) == found[size]
        assert rows(conn, AT_ONCE, LABELS, normalize) == found[size], "also the second time"
    assert found["0"] == found["64MB"]
    assert [key for key, choice, _ in found["0"] if choice is None] == [str(n) for n in range(11, 61, 11)]
    assert len({probability for *_, probability in found["0"]}) > 50, "the prompts matter"


def test_a_second_question_with_the_same_instructions_reads_only_the_difference(connect) -> None:
    conn = connect()
    instructions = "low lower newer wider " * 25
    query = f"SELECT llm_classify(%s, '{LABELS}', 'none', 'm')"
    saved = "SELECT sum(tokens_saved) FROM llm_cache_status() WHERE kind = 'prefix'"
    conn.execute("SET pg_gpt2.prefix_cache = '64MB'")
    rows(conn, query, instructions + "one")
    rows(conn, query, instructions + "two")
    ((before,),) = rows(conn, saved)
    ((n,),) = rows(conn, "SELECT llm_token_count(%s, 'm')", instructions)
    assert before in (n - 2, n - 1, n, n // 128 * 128), "whole passes where rows of one influence each other"


def test_the_plain_ops_choose_the_same(connect) -> None:
    conn = connect()
    query = f"SELECT choice, logprob FROM llm_choose('the low', '{LABELS}', 'none', 'm')"
    fast = rows(conn, query)
    conn.execute("SET pg_gpt2.fast = off")
    plain = rows(conn, query)
    assert [choice for choice, _ in plain] == [choice for choice, _ in fast]
    assert [logprob for _, logprob in plain] == pytest.approx([logprob for _, logprob in fast], abs=1e-4)


def test_a_change_of_the_weights_is_seen_at_once_and_a_rollback_undoes_it(connect) -> None:
    conn = connect()
    query = f"SELECT choice, logprob FROM llm_choose('low lower newer wider the and low', '{LABELS}', 'none', 'm')"
    before = rows(conn, query)
    conn.execute("BEGIN")
    conn.execute(
        "UPDATE llm_param SET data = (SELECT data FROM llm_param WHERE model = 'm' AND name = 'h.1.mlp.c_fc.weight')"
        " WHERE model = 'm' AND name = 'h.0.mlp.c_fc.weight'"
    )
    assert rows(conn, query) != before
    conn.execute("ROLLBACK")
    assert rows(conn, query) == before


def test_thousands_of_choices_are_all_scored(connect) -> None:
    conn = connect()
    conn.execute("CREATE TEMP TABLE many AS SELECT ' low ' || md5(i::text) AS body FROM generate_series(1, 3000) AS i")
    found = rows(conn, "SELECT * FROM llm_choose_from('the', 'SELECT body FROM many', 'none', 'm')")
    assert [rank for rank, *_ in found] == list(range(1, 3001))
    assert [logprob for _, _, logprob, *_ in found] == sorted((row[2] for row in found), reverse=True)
    assert sum(probability for *_, probability, _ in found) == pytest.approx(1)
    for _, choice, logprob, _, tokens in found[::500]:
        scored = "SELECT sum(logprob), count(*) FROM llm_logprobs('the' || %s, 'm') WHERE \"position\" > 0"
        assert rows(conn, scored, choice) == [(pytest.approx(logprob, abs=1e-3), tokens)]


# ---- rows as they come


def test_rows_are_given_while_the_source_is_read(connect) -> None:
    conn = connect()
    conn.execute("CREATE TEMP SEQUENCE seen")
    source = "SELECT nextval('pg_temp.seen'), 'low ' || i FROM generate_series(1, 100000) AS i"
    with conn.transaction(), conn.cursor("c") as cursor:
        cursor.itersize = 1
        cursor.execute("SELECT (llm_choose_rows(%s, %s, 'none', 'm')).key", [source, LABELS])
        assert [cursor.fetchone()[0] for _ in range(3)] == ["1", "2", "3"]
    ((last,),) = rows(conn, "SELECT last_value FROM pg_temp.seen")
    assert last < 2000
    assert rows(conn, AT_ONCE, LABELS, "none")


def test_a_prompt_that_cannot_be_answered_is_told_and_ends_nothing(connect) -> None:
    conn = connect()
    told: list[str | None] = []
    conn.add_notice_handler(lambda notice: told.append(notice.message_primary))
    query = "SELECT * FROM llm_choose_rows('VALUES (7, $$l$$), (8, $$lo$$), (9, $$lo$$)', '{w}', 'none', 'm')"
    assert rows(conn, query) == [("7", "w", 1.0), ("8", None, None), ("9", None, None)]
    assert len(told) == 1
    assert (told[0] or "").startswith("2 rows have no result; first: key 8: choice 'w' has no token of its own")
    rows(conn, "SELECT * FROM llm_choose_rows('VALUES (8, $$lo$$)', '{w}', 'none', 'm')")
    assert (told[1] or "").startswith("1 row has no result (key 8: choice 'w' has no token of its own")


def test_a_prompt_too_long_for_the_window_is_told(connect) -> None:
    conn = connect()
    told: list[str | None] = []
    conn.add_notice_handler(lambda notice: told.append(notice.message_primary))
    assert len(rows(conn, f"SELECT * FROM llm_choose(repeat('low ', 300), '{LABELS}', 'none', 'm')")) == 5
    assert told
    assert "the prompt is too long for the model's window" in (told[0] or "")
    told.clear()
    # with a choice, of prompts that are shorter than the window as well
    rows(
        conn, "SELECT * FROM llm_choose_rows('SELECT 1, repeat($$low $$, 255)', '{\" low low low low\"}', 'none', 'm')"
    )
    rows(
        conn,
        f"SELECT * FROM llm_choose_rows('SELECT i, repeat($$low $$, 300) FROM generate_series(1, 2) i', '{LABELS}', 'none', 'm')",
    )
    assert told == [
        "1 prompt did not fit the 256-token window together with a choice; its beginning was dropped",
        "2 prompts did not fit the 256-token window together with a choice; their beginnings were dropped",
    ]


def test_the_hint_about_an_empty_choice_is_for_queries_too(connect) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="choice 2 is empty") as caught:
        rows(connect(), "SELECT * FROM llm_choose_from('the', 'VALUES ($$low$$), ($$$$)', 'none', 'm')")
    assert "or in a query WHERE" in (caught.value.diag.message_hint or "")


def test_memory_is_asked_for_before_it_is_taken(connect) -> None:
    conn = connect()
    conn.execute("SET pg_gpt2.max_memory = '3MB'")
    with pytest.raises(psycopg.errors.OutOfMemory, match="choices"):
        rows(
            conn,
            "SELECT * FROM llm_choose('the', ARRAY(SELECT i::text FROM generate_series(1, 20000) AS i), 'none', 'm')",
        )
    with pytest.raises(psycopg.errors.OutOfMemory, match="choices"):
        rows(conn, "SELECT * FROM llm_choose_from('a', 'SELECT i::text FROM generate_series(1, 40000) i', 'none', 'm')")


def test_a_cancel_among_ten_thousand_choices_takes_effect_within_half_a_second(connect) -> None:
    conn = connect()
    query = "SELECT llm_classify('the', ARRAY(SELECT md5(i::text) FROM generate_series(1, 10000) AS i), 'none', 'm')"
    rows(conn, f"SELECT llm_classify('the', '{LABELS}', 'none', 'm')")
    late = []
    for wait in (0.2, 0.6, 1.1):
        at = []
        timer = threading.Timer(wait, lambda at=at: (at.append(time.monotonic()), conn.cancel()))
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            rows(conn, query)
        late.append(time.monotonic() - at[0])
        timer.join()
    assert sorted(late)[1] < 0.5, "one of them may be unlucky on a busy machine"
