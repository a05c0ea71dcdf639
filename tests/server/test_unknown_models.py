"""A model that is not there: the error names one that the caller may have meant, of those that it sees."""

import psycopg
import pytest

CALL = "SELECT llm_logits('{1}', %s)"
LISTS = "SELECT * FROM llm_models lists the models; llm_init_model and the import functions make one."


@pytest.fixture(scope="module")
def models(module_conn: psycopg.Connection) -> None:
    for name in ("proverbs", "proverbs-2", "tiny"):
        module_conn.execute("SELECT llm_init_model(%s, 1, 1, 8, 8, 16)", [name])


def hint(conn: psycopg.Connection, model: str) -> str | None:
    with pytest.raises(psycopg.errors.UndefinedObject, match="does not exist") as raised:
        conn.execute(CALL, [model])
    return raised.value.diag.message_hint


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("tiyn", "tiny"),
        ("proverb", "proverbs"),
        ("Proverbs-2", "proverbs-2"),
        ("typo", None),
        ("", None),
        ("gpt2-smal", None),  # a preset has no weights to be meant
        ("proverbs" * 1000, None),
    ],
    ids=lambda name: name and name[:12],
)
def test_a_misspelt_name_is_told_the_one_most_like_it(conn, models, asked, meant):
    expected = f'Perhaps you meant "{meant}". SELECT * FROM llm_models lists the models.' if meant else LISTS
    assert hint(conn, asked) == expected


@pytest.mark.parametrize("call", ["SELECT llm_accumulate_grads(%s)", "SELECT * FROM llm_checkpoint_list(%s)"])
def test_a_misspelt_name_is_not_one_that_has_nothing(conn, models, call):
    """Where a model may well have none of what is asked for."""
    assert conn.execute(call, ["tiny"]).fetchone() in (None, (0,))
    with pytest.raises(psycopg.errors.UndefinedObject):
        conn.execute(call, ["tiyn"])


def test_gradients_by_a_misspelt_name_are_not_by_a_model_that_had_no_part(conn, models):
    recorded = "WITH y AS (SELECT llm_op('gelu', ARRAY[llm_variable('\\x0000803f', '{1}', true)]) AS id)"
    call = f"{recorded} SELECT llm_backprop(id, %s) FROM y"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="does not depend"):
        conn.execute(call, ["tiny"])
    for statement in (call, "SELECT llm_backprop(NULL, %s)"):
        with pytest.raises(psycopg.errors.UndefinedObject) as raised:
            conn.execute(statement, ["tiyn"])
        assert (raised.value.diag.message_hint or "").startswith('Perhaps you meant "tiny".')


def test_a_model_that_a_policy_hides_is_not_meant(connect, models):
    """Only the names that the caller sees are compared."""
    conn = connect()
    with conn.transaction(force_rollback=True):
        conn.execute("CREATE ROLE reader; SELECT llm_grant_usage('reader')")
        conn.execute("ALTER TABLE llm_model_config ENABLE ROW LEVEL SECURITY")
        conn.execute("CREATE POLICY own ON llm_model_config USING (model <> 'tiny')")
        conn.execute("SET LOCAL ROLE reader")
        for asked, expected in (("tiyn", LISTS), ("proverb", 'Perhaps you meant "proverbs". ')):
            with conn.transaction(force_rollback=True):
                assert (hint(conn, asked) or "").startswith(expected)


def test_what_compares_names_is_loaded_by_a_mistake_only(connect, models):
    conn = connect()
    loaded = "DO LANGUAGE plpython3u $$ import sys; plpy.notice('difflib' in sys.modules) $$"
    told: list[str | None] = []
    conn.add_notice_handler(lambda notice: told.append(notice.message_primary))
    conn.execute(CALL, ["tiny"])
    conn.execute(loaded)
    hint(conn, "tiyn")
    conn.execute(loaded)
    assert told == ["False", "True"]
