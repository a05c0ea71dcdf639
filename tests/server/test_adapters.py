"""Adapters as models: made, listed, used, copied, shared, dropped; with a base that stays as it is, and that they follow."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.server.adapters import GENERATE, LOGITS, PLACES, STATE, base_and_adapters, make, outside, train  # noqa: F401
from tests.server.test_transactions import until_it_waits

SAME = [
    "SELECT llm_generate('low', 8, model_name => '{m}', seed => 1)",
    "SELECT array_agg(t::text) FROM llm_generate_stream('low', 5, model_name => '{m}', seed => 1) AS t",
    "SELECT array_agg(t::text) FROM llm_generate_batch('{{low,new}}', 5, model_name => '{m}', seed => 1) AS t",
    "SELECT array_agg(t::text) FROM llm_generate_rows($$VALUES (1, 'low'), (2, 'new')$$, 5, model_name => '{m}', seed => 1) AS t",
    "SELECT array_agg(t::text) FROM llm_beam_search('low', 3, 2, model_name => '{m}') AS t",
    "SELECT array_agg(t::text) FROM llm_next_token('low', model_name => '{m}') AS t",
    "SELECT llm_generate_json('low', '{{\"type\": \"boolean\"}}', model_name => '{m}', seed => 1)",
    "SELECT array_agg(t::text) FROM llm_logprobs('low lower', '{m}') AS t",
    "SELECT llm_perplexity('low lower', '{m}')",
    "SELECT llm_text_embedding('low', model_name => '{m}')",
    "SELECT llm_token_embedding(1, '{m}')",
    "SELECT array_agg(t::text) FROM llm_choose('low', '{{er,est}}', model_name => '{m}') AS t",
    "SELECT llm_classify('low', '{{er,est}}', model_name => '{m}')",
    "SELECT array_agg(t::text) FROM llm_choose_rows('SELECT 1, $$low$$', '{{er,est}}', model_name => '{m}') AS t",
    "SELECT llm_logits('{{1,2,3}}', '{m}')",
    "SELECT llm_loss('{m}', '{{1,2}}', '{{2,3}}', training => false)",
    "SELECT llm_evaluate('{m}', 'train')::text",
    "SELECT array_agg(t::text) FROM llm_logit_lens('low', '{m}') AS t",
    "SELECT array_agg(t::text) FROM llm_attention_weights('low', 0, 0, '{m}') AS t",
    "SELECT array_agg(t::text) FROM llm_tokenize('low lower', '{m}') AS t",
    "SELECT llm_encode('low lower', '{m}')",
    "SELECT llm_token_count('low lower', '{m}')",
    "SELECT array_agg(t::text) FROM llm_bpe_trace('low', '{m}') AS t",
]


@pytest.mark.parametrize("statement", SAME)
def test_a_new_adapter_gives_what_its_base_gives_in_every_form(sql, models, statement):
    assert sql(statement.format(m="a")) == sql(statement.format(m="base"))


def test_the_forms_of_a_trained_adapter_agree_with_one_another(sql, models):
    train(sql, "a")
    train(sql, "base")
    text = sql("SELECT llm_generate('low', 8, model_name => 'a', temperature => 0)")
    batch = "SELECT array_agg(text) FROM llm_generate_batch('{low,low}', 8, model_name => 'a', temperature => 0)"
    assert all(text.endswith(one) for one in sql(batch))
    logits = sql("SELECT pg_llm_values(llm_logits(llm_encode('low', 'a'), 'a'))")
    likely = sql("SELECT array_agg(token_id) FROM llm_next_token('low', model_name => 'a', n => 1)")
    assert logits[-262:].index(max(logits[-262:])) == likely[0]
    last = sql("SELECT data FROM llm_trace('low', 'a') WHERE op = 'lm_head' ORDER BY seq DESC LIMIT 1")
    assert last is None or sql("SELECT pg_llm_values(%s)", last)[-262:] == pytest.approx(logits[-262:], abs=1e-5)


def test_it_has_rows_of_its_own_tensors_only(sql, models):
    assert sql("SELECT count(*) FROM llm_param WHERE model = 'a'") == 8
    shared = "SELECT count(*) FROM llm_param_resolved WHERE model = 'a' AND source_model = 'base'"
    assert sql(shared) == sql("SELECT count(*) FROM llm_param WHERE model = 'base'")
    assert sql("SELECT count(*) FROM llm_bpe_vocab WHERE model = 'a'") == 0
    own = sql("SELECT sum(octet_length(data)) FROM llm_param WHERE model = 'a'")
    whole = sql("SELECT n_params FROM llm_models WHERE model = 'base'") + own / 4
    listed = sql("SELECT (base, bytes, n_params = %s, tokenizer_tokens)::text FROM llm_models WHERE model = 'a'", whole)
    assert listed == f"(base,{own},t,262)"


def test_training_changes_its_rows_only(sql, models):
    before = sql(PLACES, "a"), sql(LOGITS, "base"), sql(LOGITS, "b")
    train(sql, "a")
    assert (sql(PLACES, "a"), sql(LOGITS, "base"), sql(LOGITS, "b")) == before
    assert sql(LOGITS, "a") != before[1]
    assert sql("SELECT array_agg(step ORDER BY model) FROM llm_models WHERE NOT preset") == [2, 0, 0]


def test_two_sessions_train_two_adapters_while_a_third_uses_the_base(sql, connect, models):
    """The base is neither locked nor waited for; a run of the base's own is kept out by nobody."""
    first, second = connect(), connect()
    with first.transaction(), second.transaction():
        first.execute("SELECT llm_train_step('a', lr_max => 0.05, warmup => 0)")
        second.execute("SELECT llm_train_step('b', lr_max => 0.05, warmup => 0)")
        sql("SET lock_timeout = '2s'")
        before = sql(LOGITS, "base")
        sql("SELECT llm_train_step('base')")
        assert sql(LOGITS, "base") != before
    assert sql("SELECT array_agg(step ORDER BY model) FROM llm_models WHERE NOT preset") == [1, 1, 1]


def test_one_adapter_is_trained_by_one_session_at_a_time(sql, connect, models):
    holder = connect()
    with holder.transaction():
        holder.execute("SELECT llm_train_step('a')")
        with pytest.raises(psycopg.errors.LockNotAvailable, match='"a" is being trained'):
            sql("CALL llm_train_run('a', 1)")


def test_it_follows_its_base(sql, models):
    """Whatever changes the base, in this session or another."""
    for change in ("SELECT llm_train_step('base', lr_max => 0.05)", None):
        before = sql(LOGITS, "a")
        sql(change) if change else outside(sql, "base")
        assert sql(LOGITS, "a") == sql(LOGITS, "base") != before
    sql("BEGIN")
    outside(sql, "base")
    sql("UPDATE llm_param SET data = pg_llm_zeros_like(data) WHERE model = 'base' AND name = 'wpe'")
    assert sql(LOGITS, "a") == sql(LOGITS, "base")
    sql("ROLLBACK")
    assert sql(LOGITS, "a") == sql(LOGITS, "base")


def test_it_follows_the_blocks_of_its_base(sql, models):
    """Import, checkpoints and sharing of the base may lay its tensors out in other blocks, or in other models' rows."""
    saved = sql("SELECT llm_checkpoint_save('base')")
    sql("CREATE TEMPORARY TABLE file AS SELECT string_agg(c, '') AS data FROM llm_export_safetensors('base') AS c")
    sql("SELECT llm_init_model('other', 2, 2, 16, 16, 262, seed => 9)")
    sql(
        "INSERT INTO llm_param (model, name, token_id, shape, data)"
        " SELECT model, name, 100, '{162,16}', substr(data, 100 * 64 + 1) FROM llm_param WHERE model = 'other' AND name = 'wte'"
    )
    sql(
        "UPDATE llm_param SET shape = '{100,16}', data = substr(data, 1, 6400)"
        " WHERE (model, name, token_id) = ('other', 'wte', 0)"
    )
    blocks = (
        "SELECT array_agg(target_token_id ORDER BY target_token_id) FROM llm_param_share"
        " WHERE target_model = 'a' AND target_name = 'wte'"
    )
    original = sql(LOGITS, "a")
    with pytest.raises(psycopg.Error, match='"a"') as caught:
        sql("SELECT llm_share_param('other', 'wte', NULL, 'base')")
    assert caught.value.sqlstate == "2BP01"
    sql("SELECT llm_drop_model('a'), llm_drop_model('b')")
    sql("SELECT llm_share_param('other', 'wte', NULL, 'base')")
    make(sql, "a", 1)
    assert sql(blocks) == [0, 100]
    assert sql(LOGITS, "a") == sql(LOGITS, "base") != original
    sql("SELECT llm_unshare_param('base', 'wte', NULL)")
    assert sql("SELECT count(*) FROM llm_param_share WHERE source_model = 'other'") == 0
    outside(sql, "base")
    assert sql(LOGITS, "a") == sql(LOGITS, "base")
    sql("SELECT llm_checkpoint_load('base', %s)", saved)
    assert sql(blocks) == [0]
    assert sql(LOGITS, "a") == sql(LOGITS, "base") == original
    outside(sql, "base")
    sql("SELECT llm_import_safetensors(data, 'base', replace => true) FROM file")
    assert sql(LOGITS, "a") == sql(LOGITS, "base") == original


def test_moved_rows_are_the_same_adapter(sql, models):
    train(sql, "a")
    before = sql(LOGITS, "a")
    sql("VACUUM FULL llm_param")
    assert sql(LOGITS, "a") == before


def test_a_change_of_the_vocabulary_is_the_adapters_too(sql, models):
    assert sql("SELECT llm_encode('low', 'a')") == sql("SELECT llm_encode('low', 'base')")
    sql("DELETE FROM llm_bpe_merges WHERE model = 'base'")
    assert sql("SELECT llm_encode('low', 'a')") == sql("SELECT llm_encode('low', 'base')")
    assert sql("SELECT array_agg(model) FROM llm_cache_status() WHERE kind = 'tokenizer'") == ["base"]
    with pytest.raises(psycopg.Error, match="uses the vocabulary of its base"):
        sql("SELECT llm_train_bpe($$SELECT 'low'$$, 260, 'a')")


def test_a_copy_is_an_adapter_of_the_same_base(sql, models):
    train(sql, "a")
    saved = sql("SELECT llm_checkpoint_save('a')")
    before = sql(LOGITS, "a"), sql(STATE, "a")
    train(sql, "a")
    sql("SELECT llm_copy_model('a', 'twin')")
    sql("SELECT llm_copy_model('a', 'earlier', %s)", saved)
    assert (sql(LOGITS, "twin"), sql(STATE, "twin")) == (sql(LOGITS, "a"), sql(STATE, "a")) != before
    assert (sql(LOGITS, "earlier"), sql(STATE, "earlier")) == before
    same = "SELECT count(DISTINCT (base, r, alpha, targets)) FROM llm_adapter WHERE model IN ('a', 'twin', 'earlier')"
    assert sql(same) == 1
    train(sql, "twin")
    assert sql(LOGITS, "twin") != sql(LOGITS, "a")


def test_a_base_is_not_dropped_under_its_adapters(sql, models):
    with pytest.raises(psycopg.Error, match='"base" is the base of "a", "b"') as caught:
        sql("SELECT llm_drop_model('base')")
    assert caught.value.sqlstate == "2BP01"
    before = sql(PLACES, "a")
    sql("SELECT llm_drop_model('a')")
    assert sql(PLACES, "a") == before
    assert sql("SELECT count(*) FROM llm_param_share") == sql("SELECT count(*) FROM llm_param WHERE model = 'base'")
    with pytest.raises(psycopg.errors.UndefinedObject):
        sql(LOGITS, "a")
    sql("SELECT llm_drop_model('b')")
    sql("SELECT llm_drop_model('base')")


def test_a_merged_adapter_is_an_ordinary_model(sql, models):
    train(sql, "a")
    sql("SELECT llm_adapter_merge('a', 'merged')")
    values = "SELECT pg_llm_values(llm_logits(ARRAY[1, 2, 3], %s))"
    # The tolerance is the rounding of one product in place of three.
    assert sql(values, "merged") == pytest.approx(sql(values, "a"), abs=1e-5)
    assert sql(values, "merged") != pytest.approx(sql(values, "base"), abs=1e-3)
    assert sql("SELECT (base, tokenizer_tokens)::text FROM llm_models WHERE model = 'merged'") == "(,262)"
    assert sql("SELECT count(*) FROM llm_param_share WHERE target_model = 'merged'") == 0
    assert sql(GENERATE, "merged") == sql(GENERATE, "a")
    sql("SELECT llm_drop_model('a'), llm_drop_model('b')")
    sql("SELECT llm_drop_model('base')")
    assert sql(GENERATE, "merged")


def test_what_makes_no_sense_for_an_adapter_is_refused(sql, models):
    sql("SELECT llm_init_model('other', 2, 2, 16, 16, 262)")
    for statement in (
        "SELECT llm_share_param('other', 'wte', NULL, 'a')",
        "SELECT llm_unshare_param('a', 'wte', NULL)",
        "SELECT llm_unshare_param('a', 'ln_f.bias')",
    ):
        with pytest.raises(psycopg.Error, match='"a" is an adapter of "base"') as caught:
            sql(statement)
        assert caught.value.sqlstate == "55000"
    for statement in (
        "SELECT llm_init_model('a', 2, 2, 16, 16, 262)",
        "SELECT llm_import_safetensors(string_agg(c, ''), 'a') FROM llm_export_safetensors('other') AS c",
    ):
        with pytest.raises(psycopg.errors.DuplicateObject):
            sql(statement)
    with pytest.raises(psycopg.Error, match="lora_A is missing"):
        sql("SELECT llm_import_safetensors(string_agg(c, ''), 'a', true) FROM llm_export_safetensors('other') AS c")


def test_adapters_may_share_what_is_their_own(sql, models):
    """One A for two: training either trains both, as with any shared tensor, and the base is still nobody's to lock."""
    sql("SELECT llm_share_param('a', 'h.0.attn.c_attn.lora_A', NULL, 'b')")
    before = sql(PLACES, "x"), sql(STATE, "a")
    train(sql, "b")
    assert sql(STATE, "a") != before[1]
    assert sql("SELECT max(step) FROM llm_param WHERE model = 'base'") == 0
    with pytest.raises(psycopg.Error, match='shares tensors with "b"'):
        sql("SELECT llm_drop_model('a')")
    sql("SELECT llm_unshare_param('b', 'h.0.attn.c_attn.lora_A')")
    sql("SELECT llm_drop_model('a')")


def test_its_own_tensors_go_to_a_file_and_back(sql, models, target):
    train(sql, "a")
    before = sql(LOGITS, "a")
    sql("CREATE TEMPORARY TABLE bytes AS SELECT string_agg(c, '') AS data FROM llm_export_safetensors('a') AS c")
    path = str(target.with_suffix(".npz"))
    try:
        sql("SELECT pg_llm_export_npz(%s, 'a')", path)
        for put_back in (
            "SELECT llm_import_safetensors(data, 'a', replace => true) FROM bytes",
            f"SELECT pg_llm_import_npz('{path}', 'a', replace => true)",
        ):
            sql("UPDATE llm_param SET data = pg_llm_zeros_like(data) WHERE model = 'a'")
            assert sql(LOGITS, "a") != before
            assert sql(put_back) == 8
            assert sql(LOGITS, "a") == before
    finally:
        target.with_suffix(".npz").unlink(missing_ok=True)


def test_beside_its_base_an_adapter_is_not_the_only_model(sql, connect, models):
    assert connect().execute("SELECT llm_generate('low', 8, seed => 1)").fetchone()[0] == sql(GENERATE, "base")


def test_the_doctor_knows_adapters(sql, models):
    found = "SELECT value || ' ' || status FROM llm_doctor() WHERE item = 'model a'"
    assert sql(found).endswith("262 tokens, adapter of base ok")


def test_many_adapters_are_made_at_once(sql, connect, models):
    """Creating, training and dropping adapters of one base in several sessions ends, and leaves what it should."""

    def life(number: int) -> None:
        conn = connect()
        for _ in range(3):
            conn.execute("SELECT llm_adapter_create(%s, 'base', r => 1)", [f"x{number}"])
            conn.execute("SELECT llm_train_step(%s)", [f"x{number}"])
            conn.execute("SELECT llm_drop_model(%s)", [f"x{number}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(life, range(4)))
    assert sql("SELECT count(*) FROM llm_param_share WHERE target_model LIKE 'x_'") == 0
    assert sql("SELECT count(*) FROM llm_models WHERE model LIKE 'x_'") == 0


def test_an_alpha_that_makes_infinity_is_refused(sql, models):
    """Infinity times a B of zeros is NaN, and a new adapter would not be its base any more."""
    for alpha in ("1e38", "-1e300", "infinity", "NaN"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="alpha must be within"):
            sql("SELECT llm_adapter_create('c', 'base', alpha => %s)", alpha)
        with pytest.raises(psycopg.errors.CheckViolation):
            sql("UPDATE llm_adapter SET alpha = %s WHERE model = 'a'", alpha)
    sql("SELECT llm_adapter_create('c', 'base', r => 1, alpha => 1e30)")
    assert sql(LOGITS, "c") == sql(LOGITS, "base")


def test_the_hint_about_a_missing_vocabulary_names_the_base(sql, models):
    sql("DELETE FROM llm_bpe_vocab WHERE model = 'base'")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match='"base" has no vocabulary') as caught:
        sql(GENERATE, "a")
    assert "--model base" in caught.value.diag.message_hint


@pytest.mark.parametrize("function", ["llm_copy_model", "llm_adapter_merge"])
def test_an_adapter_that_is_made_anew_while_a_lock_is_waited_for_is_taken_as_it_is_then(
    sql, conn, connect, models, function
):
    """Its weights, its base, and the vocabulary of that."""
    sql("SELECT llm_train_bpe($$SELECT 'aaa bbb ab ba bab' $$, 260, 'other')")
    sql("SELECT llm_init_model('other', 2, 2, 16, 16, 262, seed => 2)")
    worker, holder = connect(), connect()
    worker.execute(LOGITS, ["a"])
    holder.execute("BEGIN")
    holder.execute("SELECT llm_init_model('m', 2, 2, 16, 16, 262)")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(worker.execute, f"SELECT {function}('a', 'm')")
        until_it_waits(conn, worker.info.backend_pid)
        sql("BEGIN")
        sql("SELECT llm_drop_model('a')")
        make(sql, "a", 1, "other")
        sql("COMMIT")
        holder.execute("ROLLBACK")
        waiting.result()
    assert sql(LOGITS, "m") == sql(LOGITS, "a") == sql(LOGITS, "other")
    assert sql("SELECT llm_encode('low bab', 'm')") == sql("SELECT llm_encode('low bab', 'other')")
    assert sql("SELECT llm_encode('low bab', 'm')") != sql("SELECT llm_encode('low bab', 'base')")
