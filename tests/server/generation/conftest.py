"""Two models that generate."""

import pytest

CORPUS = "low lower lowest newer wider naïve 日本語 🙂🙃 "


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    """`tiny`, with a window of 32 tokens, and `slow`."""
    module_conn.execute("SELECT llm_train_bpe(%s, 280, 'tiny')", [f"VALUES ('{CORPUS}')"])
    module_conn.execute("SELECT llm_init_model('tiny', 2, 2, 16, 32, seed => 1)")
    # Slow enough that a hundred tokens can be told from one; byte tokens only.
    module_conn.execute(
        "INSERT INTO llm_bpe_vocab SELECT 'slow', token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'tiny'"
    )
    module_conn.execute("SELECT llm_init_model('slow', 4, 4, 256, 1024, 280, seed => 1)")
