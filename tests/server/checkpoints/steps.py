"""What tests of checkpoints do again and again."""

from collections.abc import Callable

import psycopg
import pytest

STATE = """
    SELECT md5(string_agg(row, ',' ORDER BY name, token_id)) FROM (
        SELECT name, token_id, concat_ws(' ', name, token_id, shape, step, md5(data), md5(m), md5(v), md5(grad)) AS row
        FROM llm_param WHERE model = %s) AS rows
"""
Sql = Callable[..., object]


def train(sql: Sql, steps: int, model: str = "m") -> object:
    return sql("SELECT llm_train(%s, %s, batch_size => 2, lr_max => 0.01, log_every => 0)", model, steps)


def save(sql: Sql, *arguments: object) -> int:
    return sql(f"SELECT llm_checkpoint_save({', '.join(['%s'] * len(arguments))})", *arguments)  # type: ignore[return-value]


def sqlstate(conn: psycopg.Connection, statement: str, *parameters: object) -> tuple[str | None, str]:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(statement, parameters)
    return caught.value.sqlstate, str(caught.value)


def blobs(sql: Sql) -> object:
    return sql("SELECT count(*) FROM llm_checkpoint_blob")
