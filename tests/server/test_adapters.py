"""Adapters as models: made, listed, used, copied, dropped; with a base that stays as it is, and that they follow."""

from collections.abc import Callable, Iterator

import pytest

Sql = Callable[..., object]
GENERATE = "SELECT llm_generate('low', 8, model_name => %s, seed => 1)"
LOGITS = "SELECT llm_logits(ARRAY[1, 2, 3], %s)"
ROWS = "SELECT count(*) FROM llm_param WHERE model = %s"
BASE_ROWS = (
    "SELECT string_agg(concat_ws(' ', name, token_id, ctid, xmin, cmin), ',' ORDER BY name, token_id) FROM llm_param"
)
OWN = 8  # tensors of an adapter of two layers and two targets


@pytest.fixture
def models(sql: Sql) -> Iterator[None]:
    """`base`, with a vocabulary, and its adapters `a` and `b`, whose B was made something other than zero."""
    sql("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider' $$, 262, 'base')")
    sql("SELECT llm_init_model('base', 2, 2, 16, 16, seed => 1)")
    for name, seed in (("a", 1), ("b", 2)):
        make(sql, name, seed)
    sql(
        "INSERT INTO llm_dataset (tokens, target) SELECT ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 20) n"
    )
    yield
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE base IS NOT NULL")
    sql("DELETE FROM llm_param_share")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
    sql("DELETE FROM llm_dataset")


def make(sql: Sql, name: str, seed: int = 0, base: str = "base") -> None:
    sql("SELECT llm_adapter_create(%s, %s, r => 2, targets => '{attn.c_attn,mlp.c_fc}', seed => %s)", name, base, seed)
    sql(
        "UPDATE llm_param SET data = (SELECT data FROM llm_param WHERE model = %s AND name = 'h.0.attn.c_attn.lora_A')"
        " WHERE false",
        name,
    )


def learned(sql: Sql, name: str) -> None:
    """Something in B, so that the adapter differs from its base."""
    sql("SELECT llm_train(%s, 2, batch_size => 4, lr_max => 0.05, warmup => 0, log_every => 0)", name)


def test_a_new_adapter_computes_the_bits_of_its_base(sql, models):
    assert sql(LOGITS, "a") == sql(LOGITS, "base")
    assert sql(GENERATE, "a") == sql(GENERATE, "base")
    assert sql("SELECT llm_choose('low', '{er,est}', model_name => 'a')") == sql(
        "SELECT llm_choose('low', '{er,est}', model_name => 'base')"
    )


def test_it_has_rows_of_its_own_tensors_only(sql, models):
    assert sql(ROWS, "a") == OWN
    assert sql("SELECT count(*) FROM llm_param_resolved WHERE model = 'a' AND source_model = 'base'") == sql(
        ROWS, "base"
    )
    assert sql("SELECT count(*) FROM llm_bpe_vocab WHERE model = 'a'") == 0
    own = sql("SELECT sum(octet_length(data)) FROM llm_param WHERE model = 'a'")
    assert sql("SELECT bytes FROM llm_models WHERE model = 'a'") == own
    assert (
        sql("SELECT n_params FROM llm_models WHERE model = 'a'")
        == sql("SELECT n_params FROM llm_models WHERE model = 'base'") + own / 4
    )
    assert sql("SELECT base FROM llm_models WHERE model = 'a'") == "base"
    assert sql("SELECT tokenizer_tokens FROM llm_models WHERE model = 'a'") == 262


def test_training_changes_its_rows_only(sql, models):
    before = sql(BASE_ROWS + " WHERE model <> 'a'"), sql(LOGITS, "base"), sql(LOGITS, "b")
    learned(sql, "a")
    assert (sql(BASE_ROWS + " WHERE model <> 'a'"), sql(LOGITS, "base"), sql(LOGITS, "b")) == before
    assert sql(LOGITS, "a") != before[1]
    assert sql("SELECT step FROM llm_models WHERE model = 'a'") == 2
    assert sql("SELECT step FROM llm_models WHERE model = 'base'") == 0
