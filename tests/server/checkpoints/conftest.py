"""A model to make checkpoints of, and a checkpoint in each of the places that can hold one."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.server.checkpoints.steps import Sql, save, train


@pytest.fixture
def model(conn: psycopg.Connection, sql: Sql) -> Iterator[str]:
    """A small model that has been trained for two steps, in several blocks."""
    sql("SELECT llm_init_model('m', 2, 2, 16, 16, 50, seed => 3)")
    sql("""
        INSERT INTO llm_dataset (model, tokens, target)
        SELECT 'm', ARRAY[n, 1, 2, 3, 4], ARRAY[1, 2, 3, 4, 5] FROM generate_series(6, 20) n
    """)
    sql("""
        INSERT INTO llm_param (model, name, token_id, shape, data)
        SELECT model, name, 20, '{30,16}', substr(data, 20 * 64 + 1) FROM llm_param WHERE model = 'm' AND name = 'wte'
    """)
    sql("""
        UPDATE llm_param SET shape = '{20,16}', data = substr(data, 1, 20 * 64)
        WHERE model = 'm' AND name = 'wte' AND token_id = 0
    """)
    train(sql, 2)
    yield "m"
    sql("SELECT llm_drop_model(model) FROM llm_models WHERE NOT preset")
    assert sql("SELECT count(*) FROM llm_checkpoint_blob") == 0
    assert sql("SELECT count(*) FROM llm_checkpoint_restore") == 0


@pytest.fixture(params=["database", ".safetensors", ".npz"])
def saved(request: pytest.FixtureRequest, sql: Sql, model: str, server_files: Path) -> Iterator[int]:
    """A checkpoint of the model in each of the places that can hold one."""
    path = None if request.param == "database" else server_files / f"checkpoint{request.param}"
    yield save(sql, model, "a note", path and str(path))
    if path is not None:
        path.unlink(missing_ok=True)
