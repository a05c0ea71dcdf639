"""Which model is meant where none is named: a setting's, gpt2-small, or the only one that has weights."""

import psycopg
import pytest

WITHOUT_A_NAME = [
    "llm_generate('low', 3, 0)",
    "(SELECT max(text) FROM llm_generate_stream('low', 3, 0))",
    "llm_generate_tokens('{1}', 3, 0)",
    "(SELECT text FROM llm_generate_batch('{low}', 3, 0))",
    "(SELECT text FROM llm_beam_search('low', 2, 3) LIMIT 1)",
    "(SELECT token_id FROM llm_next_token('low', 1))",
    "md5(llm_logits('{1}'))",
    "(SELECT sum(logprob) FROM llm_logprobs('low low'))",
    "llm_perplexity('low low')",
    "llm_text_embedding('low')",
    "llm_encode('low')",
    "llm_decode('{1}')",
    "llm_token_count('low')",
    "(SELECT count(*) FROM llm_tokenize('low'))",
    "(SELECT count(*) FROM llm_trace('low'))",
    "(SELECT count(*) FROM llm_attention_weights('low', 0, 0))",
    "(SELECT count(*) FROM llm_logit_lens('low'))",
    "llm_token_embedding(1)",
]
LOADED = "SELECT llm_train_bpe($$VALUES ('low lower')$$, 262, {0}), llm_init_model({0}, 1, 1, 8, 16)"


@pytest.fixture
def conn(connect):
    """A session that sees one model, 'only', until its transaction ends."""
    session = connect()
    session.execute("BEGIN")
    session.execute(LOADED.format("'only'"))
    yield session
    session.execute("ROLLBACK")


@pytest.fixture
def notices(conn):
    found: list[str] = []
    conn.add_notice_handler(lambda diagnostic: found.append(diagnostic.message_primary))
    return found


@pytest.mark.parametrize("call", WITHOUT_A_NAME)
def test_the_only_model_that_has_weights_is_meant_and_the_session_is_told_once(conn, notices, call):
    found = [conn.execute(f"SELECT {call}").fetchone() for _ in range(2)]
    assert [notice for notice in notices if "is meant" in notice] == [
        'no model is named: "only" is meant, the only one that has weights (see pg_gpt2.model)'
    ]
    conn.execute("SET LOCAL pg_gpt2.model = 'only'")
    assert found == [conn.execute(f"SELECT {call}").fetchone()] * 2


@pytest.mark.parametrize("call", ["llm_generate('low')", "llm_generate('low', model_name => 'gpt2-small')"])
def test_where_several_have_weights_the_hint_names_them_and_the_setting(conn, call):
    conn.execute(LOADED.format("'another'"))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match='"gpt2-small" has no weights') as caught:
        conn.execute(f"SELECT {call}")
    assert 'Those that have some: "another", "only". SET pg_gpt2.model' in caught.value.diag.message_hint


def test_a_name_is_never_replaced(conn, notices):
    for setting in ("'gpt2-small'", "'nobody'"):
        with pytest.raises(psycopg.Error), conn.transaction():
            conn.execute(f"SET LOCAL pg_gpt2.model = {setting}; SELECT llm_generate('low')")
    with pytest.raises(psycopg.Error), conn.transaction():
        conn.execute("SELECT llm_generate('low', model_name => 'gpt2-small')")
    assert notices == []


def test_a_vocabulary_of_gpt2_small_means_gpt2_small(conn):
    """Else llm_encode and llm_generate would mean two models."""
    conn.execute("SELECT llm_train_bpe($$VALUES ('low lower')$$, 300, 'gpt2-small')")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), conn.transaction():
        conn.execute("SELECT llm_generate('low')")
    assert conn.execute("SELECT llm_token_count('low') = llm_token_count('low', 'gpt2-small')").fetchone() == (True,)


def test_only_models_that_the_caller_sees_count(conn):
    conn.execute(LOADED.format("'hidden'"))
    conn.execute("CREATE ROLE tenant_of_one; SELECT llm_grant_usage('tenant_of_one')")
    conn.execute("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY")
    conn.execute("CREATE POLICY one ON llm_param TO tenant_of_one USING (model = 'only')")
    conn.execute("SET LOCAL ROLE tenant_of_one")
    assert conn.execute(
        "SELECT llm_generate('low', 3, 0) = llm_generate('low', 3, 0, model_name => 'only')"
    ).fetchone()[0]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        conn.execute("SELECT llm_generate('low', model_name => 'gpt2-medium')")
    assert "hidden" not in caught.value.diag.message_hint
