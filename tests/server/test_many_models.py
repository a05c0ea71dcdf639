"""What a call reads does not grow with the models beside its own: in pages of the shared buffers, which no load changes.

EXPLAIN counts those of the queries inside a function, too. A statement is run often enough for the server to settle on a generic
plan, with tables that were never analysed and with fresh statistics.
"""

import psycopg
import pytest

MODELS = 50
VOCABULARIES, TOKENS = 10, 5000  # the more rows a model has, the sooner the planner hopes to meet one of them in a scan
RUNS = 8  # the sixth may be the first with a generic plan
GROWTH = 20  # pages: indexes are a level higher, and m has rows that were deleted; a scan is hundreds

CALLS = {
    "encode": "SELECT llm_encode('low lower', 'm')",
    "decode": "SELECT llm_decode('{1,2}', 'm')",
    "tokens": "SELECT count(*) FROM llm_tokenize('low', 'm')",
    "generate": "SELECT llm_generate('low', 2, model_name => 'm', seed => 1)",
    "a batch": "SELECT count(*) FROM llm_generate_batch('{low,new}', 2, model_name => 'm', seed => 1)",
    "beams": "SELECT count(*) FROM llm_beam_search('low', 2, 2, model_name => 'm')",
    "next token": "SELECT count(*) FROM llm_next_token('low', 1, 1, 'm')",
    "logits": "SELECT llm_logits('{1,2}', 'm')",
    "perplexity": "SELECT llm_perplexity('low lower', 'm')",
    "embedding": "SELECT llm_text_embedding('low lower', model_name => 'm')",
    "token embedding": "SELECT llm_token_embedding(3, 'm')",
    "loss": "SELECT llm_loss('m', '{1,2}', '{2,3}')",
    "an embedding on the tape": "SELECT llm_embed('{1,2}', 'm')",
    "evaluation": "SELECT loss FROM llm_evaluate('m', 'train', batch_size => 2, max_rows => 2)",
}


@pytest.fixture(scope="module")
def database(dsn: str) -> str:
    """A model m, whose rows are the last ones."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET client_min_messages = warning")
        for table in ("llm_param", "llm_bpe_vocab", "llm_bpe_merges", "llm_dataset"):
            conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        make(conn, "m")
    return dsn


def make(conn: psycopg.Connection, name: str) -> None:
    conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, %s)", [name])
    conn.execute("SELECT llm_init_model(%s, 2, 2, 16, 32)", [name])
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 50)$$, %s, 16)", [name])
    fill(conn, "(SELECT %s::text) AS o (model)", name)


def fill(conn: psycopg.Connection, models: str, value: object) -> None:
    """Tokens and merges that nobody uses."""
    conn.execute(
        "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) SELECT o.model, n, 't' || n, convert_to('t' || n, 'UTF8')"
        f" FROM {models}, generate_series(1000, %s) AS n",
        [value, 1000 + TOKENS],
    )
    conn.execute(
        "INSERT INTO llm_bpe_merges (model, rank, \"left\", \"right\") SELECT o.model, n, 't' || n, 't'"
        f" FROM {models}, generate_series(1000, %s) AS n",
        [value, 1000 + TOKENS],
    )


def surround(conn: psycopg.Connection) -> None:
    """Many models, made from m, with vocabularies and data that are larger."""
    others = "(SELECT 'other ' || i FROM generate_series(1, %s) AS i) AS o (model)"
    conn.execute(f"INSERT INTO llm_model_config SELECT o.model, 2, 2, 16, 32, 265 FROM {others}", [MODELS])
    conn.execute(
        "INSERT INTO llm_param (model, name, token_id, shape, data) SELECT o.model, name, token_id, shape, data"
        f" FROM llm_param, {others} WHERE llm_param.model = 'm'",
        [MODELS],
    )
    fill(conn, others, VOCABULARIES)
    conn.execute(
        "INSERT INTO llm_dataset (model, tokens, target) SELECT o.model, tokens, target"
        f" FROM llm_dataset AS d, {others}, generate_series(1, 10) WHERE d.model = 'm'",
        [MODELS],
    )
    # and m once more, behind them
    for table in ("llm_bpe_vocab", "llm_bpe_merges", "llm_param"):
        conn.execute(
            f"WITH r AS (DELETE FROM {table} WHERE model = 'm' RETURNING *) INSERT INTO {table} SELECT * FROM r"
        )


def pages(dsn: str) -> dict[str, int]:
    """Pages that each call reads when it is warm, the most of its runs."""
    found = {}
    with psycopg.connect(dsn, autocommit=True, options="-c client_min_messages=warning") as conn:
        for name, statement in CALLS.items():
            conn.execute(statement)
            counts = []
            for _ in range(RUNS):
                (plan,) = conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}").fetchone()
                counts.append(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])
            found[name] = max(counts)
    return found


def test_a_call_reads_no_more_pages_beside_fifty_models(database):
    alone = pages(database)
    with psycopg.connect(database, autocommit=True) as conn:
        surround(conn)
    for state in ("never analysed", "analysed"):
        if state == "analysed":
            with psycopg.connect(database, autocommit=True) as conn:
                conn.execute("VACUUM ANALYZE")
        grown = {name: (alone[name], count) for name, count in pages(database).items() if count > alone[name] + GROWTH}
        assert grown == {}, state
