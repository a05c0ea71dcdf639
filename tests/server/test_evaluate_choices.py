"""llm_evaluate_choices: that its counts are of what llm_choose_rows and llm_choose give, and what becomes of rows that are not as
they should be. That its accuracies are those of lm-evaluation-harness, tests/oracle/test_choosing_oracle.py."""

from typing import Any

import psycopg
import pytest

LABELS = '{" low"," lower"," newest and wider"," n"," newer"}'
NORMALIZATIONS = ("none", "tokens", "bytes", "prior")
EVALUATE = "SELECT accuracy, accuracy_norm, n FROM llm_evaluate_choices(%s, %s, %s, 'm')"
CONFUSION = "SELECT c.* FROM llm_evaluate_choices(%s, %s, %s, 'm'), unnest(confusion) AS c"


def rows(conn: psycopg.Connection, query: str, *args: object) -> list[tuple[Any, ...]]:
    return conn.execute(query, args or None).fetchall()


@pytest.fixture(autouse=True, scope="module")
def model(module_conn: psycopg.Connection) -> None:
    """m, and questions: with an answer among LABELS, and some of them, in another order, as choices of their own."""
    module_conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider the and')$$, 270, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 3, 4, 64, 64, seed => 1)")
    module_conn.execute(
        f"""CREATE TABLE ask AS SELECT i AS id, CASE WHEN i % 3 = 0 THEN repeat('low lower newer ', 6) ELSE '' END
            || 'number ' || i * i || CASE WHEN i % 7 = 0 THEN ' ' ELSE '' END AS body,
            label[1 + i % 5] AS answer, label[1 + i % 5 :] || label[2 : 3] AS own
            FROM generate_series(1, 60) AS i, CAST('{LABELS}' AS text[]) AS label"""
    )
    module_conn.execute("SELECT llm_dataset_load_pairs('SELECT body, answer FROM ask WHERE id % 2 = 0', 'm')")
    module_conn.execute("SELECT llm_train('m', 40, batch_size => 8, lr_max => 3e-3, dropout_p => 0, log_every => 0)")


@pytest.fixture
def told(conn: psycopg.Connection) -> list[str]:
    """NOTICEs of this test's session."""
    found: list[str] = []
    conn.add_notice_handler(lambda notice: found.append(notice.message_primary or ""))
    return found


# ---- what is counted


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_accuracy_and_confusion_count_what_llm_choose_rows_chooses(conn, told, normalize) -> None:
    expected = rows(
        conn,
        "SELECT answer, choice, count(*) FROM llm_choose_rows('SELECT id, body FROM ask', %s, %s, 'm')"
        " JOIN ask ON id = key::integer GROUP BY 1, 2",
        *(LABELS, normalize),
    )
    source = "SELECT body, answer FROM ask"
    assert sorted(rows(conn, CONFUSION, source, LABELS, normalize)) == sorted(expected)
    ((accuracy, accuracy_norm, n),) = rows(conn, EVALUATE, source, LABELS, normalize)
    assert n == 60
    assert accuracy == pytest.approx(sum(count for answer, choice, count in expected if answer == choice) / 60)
    by_character = (
        "SELECT avg((best.choice = answer)::integer)::float8 FROM ask, LATERAL (SELECT choice FROM"
        " llm_choose(body, %s, 'none', 'm') ORDER BY logprob / length(choice) DESC LIMIT 1) AS best"
    )
    assert rows(conn, by_character, LABELS) == [(pytest.approx(accuracy_norm),)]
    assert told == []


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_rows_own_choices_are_those_of_llm_choose(conn, told, normalize) -> None:
    expected = rows(
        conn,
        "SELECT answer, llm_classify(body, own, %s, 'm'), count(*) FROM ask GROUP BY 1, 2",
        normalize,
    )
    source = "SELECT body, answer, own FROM ask"
    found = rows(conn, CONFUSION, source, None, normalize)
    assert sorted(found) == sorted(expected)
    assert found == sorted(found), "in order"
    assert rows(conn, EVALUATE, source, None, normalize)[0][0] == pytest.approx(
        sum(count for answer, choice, count in expected if answer == choice) / 60
    )
    assert told == []


def test_a_row_without_choices_of_its_own_has_those_of_the_parameter(conn, told) -> None:
    mixed = "SELECT body, answer, CASE id % 3 WHEN 0 THEN own WHEN 1 THEN '{}' END FROM ask"
    expected = rows(
        conn,
        "SELECT answer, llm_classify(body, CASE id %% 3 WHEN 0 THEN own ELSE %s END, 'none', 'm'), count(*)"
        " FROM ask GROUP BY 1, 2",
        LABELS,
    )
    assert sorted(rows(conn, CONFUSION, mixed, LABELS, "none")) == sorted(expected)
    assert told == []


def test_answers_of_any_type_are_compared_as_texts(conn) -> None:
    conn.execute("CREATE TYPE pg_temp.topic AS ENUM ('low', 'newer')")
    for answer in ("'low'::pg_temp.topic", "'low'::varchar", "'low'::name"):
        source = f"SELECT 'the ', {answer}"
        assert rows(conn, CONFUSION, source, "{low}", "none") == [("low", "low", 1)]
    assert rows(conn, CONFUSION, "SELECT 'the ', 7, '{7}'::integer[]", None, "none") == [("7", "7", 1)]


# ---- rows that are not as they should be


def test_rows_with_a_null_are_not_counted_and_told(conn, told) -> None:
    source = "VALUES ('the', ' low', %s), (NULL, ' low', %s), ('the', NULL, %s), ('the', ' low', NULL), ('the', ' low', '{}')"
    source = source.replace("%s", "ARRAY[' low']")
    assert rows(conn, EVALUATE, source, None, "none") == [(1, 1, 1)]
    assert told == ["skipped 4 rows with a NULL or without choices"]
    assert rows(conn, EVALUATE, "VALUES ('the', NULL::text)", LABELS, "none") == [(None, None, 0)]
    assert told[1:] == ["skipped 1 row with a NULL or without choices"]


def test_an_answer_that_is_no_choice_counts_as_wrong_and_is_told(conn, told) -> None:
    source = "VALUES ('the', ' low'), ('the', 'low'), ('the', repeat('x', 50))"
    assert rows(conn, EVALUATE, source, '{" low"}', "none") == [(pytest.approx(1 / 3), pytest.approx(1 / 3), 3)]
    assert told == ["the answers of 2 rows are none of their choices and count as wrong; first: row 2: 'low'"]
    assert rows(conn, CONFUSION, "VALUES ('the', 'low')", '{" low"}', "none") == [("low", " low", 1)]
    assert told[1:] == ["the answer of 1 row is none of its choices and counts as wrong (row 1: 'low')"]


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ("'{a,NULL}'", "choice 2 is null"),
        ("ARRAY['a', '']", "choice 2 is empty"),
        ("'{{a,b},{c,d}}'", "choices must be an array of one dimension"),
        ("ARRAY[repeat('low ', 99)]", "tokens, more than the window of 64"),
    ],
)
def test_a_row_that_cannot_be_answered_counts_as_wrong_and_ends_nothing(conn, told, own, says) -> None:
    source = f"VALUES ('the', ' low', '{{\" low\"}}'::text[]), ('the', 'a', {own}), ('the', ' low', '{{\" low\"}}')"
    assert rows(conn, CONFUSION, source, None, "none") == [(" low", " low", 2), ("a", None, 1)]
    assert len(told) == 1
    assert told[0].startswith("1 row has no result and counts as wrong (row 2: ")
    assert says in told[0]
    assert rows(conn, EVALUATE, source, None, "none") == [(pytest.approx(2 / 3), pytest.approx(2 / 3), 3)]


def test_a_choice_that_melts_into_the_prompt_counts_as_wrong(conn, told) -> None:
    found = rows(conn, CONFUSION, "VALUES ('l', 'w'), ('lo', 'w'), ('lo', 'x')", "{w}", "none")
    assert found == [("w", "w", 1), ("w", None, 1), ("x", None, 1)]
    assert told[0] == "the answer of 1 row is none of its choices and counts as wrong (row 3: 'x')"
    assert told[1].startswith(
        "2 rows have no result and count as wrong; first: row 2: choice 'w' has no token of its own"
    )


def test_a_prompt_too_long_for_the_window_loses_its_beginning_and_is_told(conn, told) -> None:
    source = "SELECT repeat('low ', 99), ' low' UNION ALL SELECT 'low', ' low'"
    assert rows(conn, EVALUATE, source, '{" low"}', "none") == [(1, 1, 2)]
    assert told == ["1 prompt did not fit the 64-token window together with a choice; its beginning was dropped"]


def test_nothing_to_choose_from_is_an_error(conn) -> None:
    for choices in (None, "{}"):
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match="three columns, prompt, answer and choices"
        ) as e:
            rows(conn, EVALUATE, "SELECT body, answer FROM ask", choices, "none")
        assert "or give the parameter choices" in (e.value.diag.message_hint or "")
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match="choices of source must be an array of texts, not of"
    ):
        rows(conn, EVALUATE, "SELECT body, answer, 'a' AS choices FROM ask", None, "none")


# ---- whose rows, and how many


def test_a_source_is_read_with_the_callers_rights_and_path(conn, module_conn) -> None:
    module_conn.execute(
        """CREATE ROLE examiner; SELECT llm_grant_usage('examiner', 'read'); CREATE SCHEMA exam;
           CREATE TABLE exam.sheet AS SELECT body, answer, id % 2 = 0 AS seen FROM ask; GRANT USAGE ON SCHEMA exam TO examiner;
           ALTER TABLE exam.sheet ENABLE ROW LEVEL SECURITY; CREATE POLICY seen ON exam.sheet USING (seen)"""
    )
    conn.execute("SET search_path = exam, public; SET ROLE examiner")
    call = (EVALUATE, "SELECT body, answer FROM sheet", LABELS, "none")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="sheet"):
        rows(conn, *call)
    module_conn.execute("GRANT SELECT ON exam.sheet TO examiner")
    assert rows(conn, *call)[0][2] == 30
    conn.execute("RESET ROLE")
    assert rows(conn, *call)[0][2] == 60
    module_conn.execute("DROP SCHEMA exam CASCADE; DROP OWNED BY examiner; DROP ROLE examiner")


def test_memory_for_what_was_confused_is_asked_for(conn) -> None:
    conn.execute("SET pg_gpt2.max_memory = '12MB'")
    source = "SELECT 'the', repeat(md5(i::text), 2000) FROM generate_series(1, {}) AS i"
    with pytest.raises(psycopg.errors.OutOfMemory, match="pairs of expected and chosen"):
        rows(conn, EVALUATE, source.format(200), '{" low"}', "none")
    assert rows(conn, EVALUATE, source.format(9), '{" low"}', "none") == [(0, 0, 9)]


def test_a_change_of_the_weights_is_seen_at_once(conn) -> None:
    call = (CONFUSION, "SELECT body, answer FROM ask", LABELS, "none")
    before = rows(conn, *call)
    conn.execute("BEGIN")
    conn.execute(
        "UPDATE llm_param SET data = (SELECT data FROM llm_param WHERE model = 'm' AND name = 'h.1.mlp.c_fc.weight')"
        " WHERE model = 'm' AND name = 'h.0.mlp.c_fc.weight'"
    )
    assert rows(conn, *call) != before
    conn.execute("ROLLBACK")
    assert rows(conn, *call) == before
