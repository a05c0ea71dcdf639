"""A base with a vocabulary and data, and two adapters of it: for the tests of adapters."""

from collections.abc import Callable, Iterator

import pytest

Sql = Callable[..., object]
GENERATE = "SELECT llm_generate('low', 8, model_name => %s, seed => 1)"
LOGITS = "SELECT llm_logits(ARRAY[1, 2, 3], %s)"
PLACES = """
    SELECT string_agg(concat_ws(' ', model, name, token_id, ctid, xmin, cmin), ',' ORDER BY model, name, token_id)
    FROM llm_param WHERE model <> %s
"""  # rows of all other models, as they lie
STATE = """
    SELECT md5(string_agg(concat_ws(' ', name, step, md5(data), md5(m), md5(v)), ',' ORDER BY name, token_id))
    FROM llm_param WHERE model = %s
"""


@pytest.fixture(name="models")
def base_and_adapters(sql: Sql) -> Iterator[None]:
    """`base`, its adapters `a` and `b`, and rows to learn from."""
    sql("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider' $$, 262, 'base')")
    sql("SELECT llm_init_model('base', 2, 2, 16, 16, seed => 1)")
    make(sql, "a", 1)
    make(sql, "b", 2)
    sql("""
        INSERT INTO llm_dataset (tokens, target)
        SELECT ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 20) n
    """)
    yield
    sql("ROLLBACK")
    sql("RESET ROLE")
    sql("DELETE FROM llm_param_share")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE base IS NOT NULL")
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
    sql("DELETE FROM llm_dataset")


def make(sql: Sql, name: str, seed: int = 0, base: str = "base") -> None:
    """An adapter of eight tensors."""
    sql("SELECT llm_adapter_create(%s, %s, r => 2, targets => '{attn.c_attn,mlp.c_fc}', seed => %s)", name, base, seed)


def train(sql: Sql, model: str, steps: int = 2, **options: object) -> int:
    """A run, so that B is not zero any more; its number."""
    given = {"batch_size": 4, "lr_max": 0.05, "warmup": 0, "log_every": 0, "grad_clip": 1, **options}
    named = ", ".join(f"{name} => {value}" for name, value in given.items())
    return sql(f"SELECT llm_train('{model}', {steps}, {named})")  # type: ignore[return-value]


def outside(sql: Sql, model: str) -> None:
    """Change a weight of `model` by hand."""
    sql(
        "UPDATE llm_param SET data = overlay(data PLACING '\\x0000003f'::bytea FROM 1 FOR 4)"
        " WHERE model = %s AND name = 'ln_f.bias'",
        model,
    )
