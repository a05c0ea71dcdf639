"""A database with a model, a table of documents, and a warm session."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 265, 'tiny')")
    module_conn.execute("SELECT llm_init_model('tiny', 1, 2, 16, 32, seed => 1)")
    module_conn.execute("CREATE TABLE documents AS SELECT repeat('low lower ', 30) AS body")


@pytest.fixture
def warm(module_conn):
    """A session that has the model and its tokenizer in memory."""
    module_conn.execute("SELECT llm_generate('low', 3, model_name => 'tiny', seed => 1)")
    return module_conn
