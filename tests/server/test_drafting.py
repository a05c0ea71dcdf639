"""draft_model: a smaller model's guesses change no token, and may come from no model that the caller does not see."""

import json

import psycopg
import pytest

CORPUS = "low lower lowest newer wider naïve "


@pytest.fixture(autouse=True, scope="module")
def models(module_conn: psycopg.Connection) -> None:
    """`big`, a smaller one with the same vocabulary, one with ids only, an adapter of each, and two that do not fit."""
    module_conn.execute("SELECT llm_train_bpe(%s, 280, 'big')", [f"VALUES ('{CORPUS}')"])
    module_conn.execute("SELECT llm_init_model('big', 3, 2, 64, 64, 280, seed => 1)")
    for model in ("small", "other"):
        module_conn.execute(
            "INSERT INTO llm_bpe_vocab SELECT %s, token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'big'",
            [model],
        )
    module_conn.execute("UPDATE llm_bpe_vocab SET bytes = 'zz' WHERE model = 'other' AND token_id = 270")
    module_conn.execute("SELECT llm_init_model('small', 1, 2, 32, 48, 280, seed => 2)")
    module_conn.execute("SELECT llm_init_model('other', 1, 2, 32, 48, 280, seed => 2)")
    module_conn.execute("SELECT llm_init_model('ids', 1, 2, 32, 16, 280, seed => 3)")
    module_conn.execute("SELECT llm_init_model('few', 1, 2, 32, 16, 270, seed => 3)")
    for base in ("big", "small"):
        module_conn.execute("SELECT llm_adapter_create(%s || '-adapter', %s, seed => 5)", [base, base])
        module_conn.execute(
            "SELECT llm_dataset_load(%s, %s || '-adapter', 8)", [f"VALUES (repeat('{CORPUS}', 9))", base]
        )
        module_conn.execute("SELECT llm_train(%s || '-adapter', 3, batch_size => 2, lr_max => 0.1)", [base])


DRAFTS = ["big", "small", "ids", "big-adapter", "small-adapter"]
CALLS = [
    "SELECT llm_generate('low', 120, options => {options}, model_name => '{model}', eos_token => -1)",
    "SELECT llm_generate('low', 120, temperature => 0, options => {options}, model_name => '{model}', eos_token => -1)",
    "SELECT llm_generate('low', 90, stop => '{{we,q}}', options => {options}, model_name => '{model}')",
    "SELECT * FROM llm_generate_stream('low', 90, topk => 0, options => {options}, model_name => '{model}')",
    "SELECT llm_generate_tokens('{{1,2,3,4,1,2}}', 90, options => {options}, model_name => '{model}')",
    """SELECT llm_generate_json('low', '{{"enum": ["low", "lower", "wider"]}}', options => {options}, model_name => '{model}')""",
    """SELECT llm_generate('low', 40, options => {options} || '{{"regex": "[a-z ]{{20,30}}"}}', model_name => '{model}')""",
    """SELECT llm_generate('low', 60, options => {options} || '{{"no_repeat_ngram_size": 3, "presence_penalty": 1.5}}',
        model_name => '{model}')""",
]


def results(conn: psycopg.Connection, model: str, draft: str | None) -> list:
    options = f"'{json.dumps({'draft_model': draft, 'seed': 4})}'::jsonb"
    return [conn.execute(call.format(options=options, model=model)).fetchall() for call in CALLS]


@pytest.mark.parametrize("model", ["big", "big-adapter"])
def test_a_draft_model_changes_no_result(conn: psycopg.Connection, model: str) -> None:
    """Sampled and greedy, with stop strings, streamed, by ids, as JSON, within a pattern, with processors; past the windows."""
    expected = results(conn, model, None)
    for draft in DRAFTS:
        assert results(conn, model, draft) == expected, draft
    conn.execute("SET pg_gpt2.prompt_lookup = off; SET pg_gpt2.prefix_cache = 0")
    assert results(conn, model, "small") == expected


def refused(conn: psycopg.Connection, statement: str) -> tuple[str | None, str, str | None]:
    with pytest.raises(psycopg.Error) as error:
        conn.execute(statement)
    diagnostic = error.value.diag
    return diagnostic.sqlstate, (diagnostic.message_primary or "").removeprefix("pg_gpt2: "), diagnostic.message_hint


def test_a_draft_must_have_the_vocabulary(conn: psycopg.Connection) -> None:
    call = """SELECT llm_generate('low', 3, options => '{{"draft_model": "{draft}"}}', model_name => 'big')"""
    state, message, hint = refused(conn, call.format(draft="few"))
    assert (state, message) == ("22023", 'draft_model "few" has 270 token ids, and "big" has 280')
    assert hint
    assert "same tokens" in hint
    state, message, _ = refused(conn, call.format(draft="other"))
    assert (state, message) == ("22023", 'draft_model "other" has another vocabulary than "big": token 270 differs')
    assert refused(conn, call.format(draft="none"))[:2] == ("42704", 'model "none" does not exist')
    conn.execute("BEGIN; DELETE FROM llm_param WHERE model = 'small'")
    assert refused(conn, call.format(draft="small"))[0] == "55000"
    conn.execute("ROLLBACK")


@pytest.mark.parametrize(
    "call",
    [
        "SELECT * FROM llm_generate_batch('{low}', 3, options => '{\"draft_model\": \"small\"}', model_name => 'big')",
        "SELECT * FROM llm_generate_rows('SELECT 1, $$low$$', 3, options => '{\"draft_model\": \"small\"}', model_name => 'big')",
        "SELECT * FROM llm_beam_search('low', 3, options => '{\"draft_model\": \"small\"}', model_name => 'big')",
    ],
)
def test_several_texts_at_once_refuse_it_by_name(conn: psycopg.Connection, call: str) -> None:
    state, message, hint = refused(conn, call)
    assert (state, message.split()[0]) == ("22023", "draft_model")
    assert hint
    assert "llm_generate_stream" in hint


def test_both_models_must_fit_into_memory(conn: psycopg.Connection) -> None:
    """Those below 8 MB, which each session has for itself; larger ones are in files that all map."""
    conn.execute("SELECT llm_init_model('wide', 2, 4, 256, 64, 280), llm_init_model('wider', 2, 4, 256, 64, 280)")
    conn.execute("SET pg_gpt2.max_memory = '24MB'")
    call = """SELECT llm_generate_tokens('{1}', 3, options => '{"draft_model": "wider"}', model_name => 'wide')"""
    conn.execute(call.replace('"wider"', "null"))
    state, message, _ = refused(conn, call)
    assert (state, message[:31]) == ("53200", "pg_gpt2.max_memory does not all")
    conn.execute("RESET pg_gpt2.max_memory; SELECT llm_drop_model('wide'), llm_drop_model('wider')")


def test_a_draft_is_used_where_company_changes_no_bit(conn: psycopg.Connection) -> None:
    """The model's own drafts come true, so that it makes fewer passes; without AVX-512 none are made."""
    conn.execute("SELECT llm_generate_tokens('{1}', 1, model_name => 'big')")  # brings the package
    conn.execute("""
        CREATE FUNCTION pg_temp.watch() RETURNS bool LANGUAGE plpython3u AS $$
import importlib, sys
package = next(name for name in sys.modules if name.startswith('pg_gpt2_') and '.' not in name)
speaker = importlib.import_module(package + '.generation.drafting').Speaker
propose = speaker.propose
GD['drafted'] = 0
def watched(speaker, history, most):
    found = propose(speaker, history, most)
    GD['drafted'] += len(found)
    return found
speaker.propose = watched
model = importlib.import_module(package + '.server.storage.weights').load('big')
return model.decoder_weights.exact
        $$;
        CREATE FUNCTION pg_temp.drafted() RETURNS int LANGUAGE plpython3u AS $$ return GD['drafted'] $$""")
    (exact,) = conn.execute("SELECT pg_temp.watch()").fetchone() or (None,)
    conn.execute(
        "SELECT llm_generate('low', 50, model_name => 'big', options => '{\"draft_model\": \"small\"}', seed => 3)"
    )
    (drafted,) = conn.execute("SELECT pg_temp.drafted()").fetchone() or (None,)
    assert (drafted > 0) == exact
