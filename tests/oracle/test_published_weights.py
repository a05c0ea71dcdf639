"""Numbers that others published for the original GPT-2 124M weights, read off SQL functions.

Opt-in, for people who have the weights: a directory as the Hugging Face hub has it, with model.safetensors, config.json,
vocab.json and merges.txt.

    PG_GPT2_PUBLISHED_WEIGHTS=/path/to/gpt2 make test-oracle PYTEST_ARGS='-m published_weights'

Published numbers are rounded: to three decimals in the walk-through, hence the tolerance.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

from loaders import load_model
from loaders.common import Database

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden" / "gpt2_small_published.json").read_text())
WALK = PUBLISHED["blog_gpt_in_500_lines_of_sql"]
WEIGHTS = os.environ.get("PG_GPT2_PUBLISHED_WEIGHTS")
ROUNDED = 1.01e-3  # three decimals, of float32 sums in another order

pytestmark = [
    pytest.mark.published_weights,
    pytest.mark.skipif(WEIGHTS is None, reason="PG_GPT2_PUBLISHED_WEIGHTS names no directory with GPT-2's weights"),
]


@pytest.fixture(scope="module")
def conn() -> Iterator[psycopg.Connection]:
    """A session in whose database the weights are loaded as model "published"."""
    with psycopg.connect(os.environ["PG_GPT2_TEST_DSN"]) as conn:
        load_model.load_model(Database(conn), Path(str(WEIGHTS)), "published")
        conn.execute("SET pg_gpt2.model = 'published'")
        yield conn
        conn.rollback()


@pytest.fixture(scope="module")
def steps(conn: psycopg.Connection) -> dict[str, np.ndarray]:
    """The walk-through's forward pass."""
    rows = conn.execute("SELECT name, shape, data FROM llm_trace(%s::text)", (WALK["prompt"],)).fetchall()
    return {name: np.frombuffer(data, "<f4").reshape(shape) for name, shape, data in rows}


def value(conn: psycopg.Connection, query: str, *args: object) -> object:
    """The one value of a query."""
    row = conn.execute(query, args).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def test_ids_of_the_prompts(conn: psycopg.Connection) -> None:
    for name in ("blog_gpt_in_500_lines_of_sql", "blog_next_token_full_softmax", "blog_greedy"):
        assert value(conn, "SELECT llm_encode(%s)", PUBLISHED[name]["prompt"]) == PUBLISHED[name]["ids"]


def test_embeddings(steps: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(steps["embeddings"][:, :5], WALK["wte_plus_wpe_first5"], atol=1e-6)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_queries_keys_and_values_of_the_first_head(steps: dict[str, np.ndarray], part: str) -> None:
    np.testing.assert_allclose(
        steps[f"h.0.attn.{part}"][0, :, :3], WALK["block0_head0"][f"{part}_first3"], atol=ROUNDED
    )


def test_attention_of_the_first_head(conn: psycopg.Connection, steps: dict[str, np.ndarray]) -> None:
    rows = conn.execute(
        "SELECT query_position, weight FROM llm_attention_weights(%s, 0, 0)", (WALK["prompt"],)
    ).fetchall()
    for query, expected in enumerate(WALK["block0_head0"]["attention"]):
        np.testing.assert_allclose([weight for q, weight in rows if q == query], expected, atol=1.01e-2)  # two decimals
    np.testing.assert_allclose(steps["h.0.attn.heads"][:, :3], WALK["block0_head0"]["output_first3"], atol=ROUNDED)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("h.0.attn.c_proj", "block0_attn_c_proj_first10"),
        ("h.0.output", "block0_output_first10"),
        ("ln_f", "ln_f_first10"),
    ],
)
def test_outputs_of_the_first_block_and_the_final_norm(steps: dict[str, np.ndarray], name: str, published: str) -> None:
    np.testing.assert_allclose(steps[name][:, :10], WALK[published], atol=ROUNDED)


def test_logits_and_probabilities_at_several_temperatures(conn: psycopg.Connection) -> None:
    """The walk-through's probabilities are a softmax over the five best alone, to two decimals."""
    for name, temperature in (("p_T0.5", 0.5), ("p_T1", 1), ("p_T2", 2)):
        rows = conn.execute(
            "SELECT token_id, logit, probability / sum(probability) OVER () FROM llm_next_token(%s, 5, %s) ORDER BY rank",
            (WALK["prompt"], temperature),
        ).fetchall()
        assert [row[0] for row in rows] == [token["id"] for token in WALK["next_token_top5"]]
        logits = [token["logit"] for token in WALK["next_token_top5"]]
        np.testing.assert_allclose([row[1] for row in rows], logits, atol=5e-3)
        expected = [token[name] for token in WALK["next_token_top5"]]
        np.testing.assert_allclose([row[2] for row in rows], expected, atol=1.01e-2)


def test_probabilities_of_the_next_token(conn: psycopg.Connection) -> None:
    published = PUBLISHED["blog_next_token_full_softmax"]
    rows = conn.execute(
        "SELECT token, probability FROM llm_next_token(%s, 5) ORDER BY rank", (published["prompt"],)
    ).fetchall()
    assert [row[0] for row in rows] == [token for token, _ in published["top"]]
    np.testing.assert_allclose([row[1] for row in rows], [p for _, p in published["top"]], rtol=2e-3)


def test_greedy_continuations(conn: psycopg.Connection) -> None:
    greedy = "SELECT llm_generate_tokens(%s::int[], %s, temperature => 0)"
    published = PUBLISHED["blog_greedy"]
    start = published["continuation_ids_start"]
    assert value(conn, greedy, published["ids"], len(start)) == start
    published = PUBLISHED["huggingface_greedy"]
    new = value(conn, greedy, published["ids"], published["max_length"] - len(published["ids"]))
    assert published["ids"] + new == published["expected_ids"]  # type: ignore[operator]
    for prompt, text in PUBLISHED["huggingface_greedy_texts"]:
        assert str(value(conn, "SELECT llm_generate(%s, 20, temperature => 0)", prompt)).startswith(text)


def test_merges_of_a_word(conn: psycopg.Connection) -> None:
    published = PUBLISHED["bpe_trace"]
    rows = conn.execute(
        "SELECT token_id, merged, pieces FROM llm_bpe_trace(%s) ORDER BY step", (published["word"],)
    ).fetchall()
    assert [[token, merged] for token, merged, _ in rows] == published["merges"]
    assert rows[-1][2] == published["pieces"]
    assert value(conn, "SELECT llm_encode(%s)", published["word"]) == published["ids"]
