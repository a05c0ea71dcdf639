"""The model that ships, opened by transformers: its tokens and logits are those of the server."""

from pathlib import Path

import numpy as np
import psycopg
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loaders.common import Database
from loaders.load_model import SHIPPED, load_model

MODEL = SHIPPED / "postgresql-docs"
TEXTS = ["If two transactions update the same row,", "SELECT count(*)\n  FROM naïve; -- 日本", " x" * 200]
TOLERANCE = 2e-4  # float32, sums in another order; logits reach 20


@pytest.fixture(scope="module")
def conn(dsn):
    """The throw-away cluster of `make test-oracle`, with the model in a transaction that is rolled back."""
    with psycopg.connect(dsn) as conn:
        load_model(Database(conn), MODEL, "shipped")
        yield conn
        conn.rollback()


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


def test_transformers_opens_it_whole(model):
    _, report = AutoModelForCausalLM.from_pretrained(MODEL, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    assert Path(MODEL / "README.md").read_text().startswith("---\nlicense: ")


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_logits_are_the_server_s(conn, model, text):
    ids = AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"]
    assert conn.execute("SELECT llm_encode(%s, 'shipped')", [text]).fetchone() == (ids,)
    (data,) = conn.execute("SELECT llm_logits(%s::int[], 'shipped')", [ids]).fetchone()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(expected.shape), expected, atol=TOLERANCE, rtol=0)


def test_greedy_text_is_the_server_s(conn, model):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    given = tokenizer(TEXTS[0], return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=40, do_sample=False, pad_token_id=4095)
    (ours,) = conn.execute(
        "SELECT llm_generate(%s, 40, temperature => 0, model_name => 'shipped')", [TEXTS[0]]
    ).fetchone()
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == ours
