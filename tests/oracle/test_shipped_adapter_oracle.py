"""The adapter that ships, opened by PEFT on the base of transformers: its logits and its choices are those of the server."""

import numpy as np
import psycopg
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loaders.common import Database
from loaders.load_adapter import load_adapter
from loaders.load_model import load_model
from tests.oracle.peft_twin import ADAPTER, BASE, WORDING, chosen, passages

TOLERANCE = 2e-4  # float32, sums in another order; logits reach 20
CLOSE = 1  # choices of fifty that may differ, since two topics are equally probable to float32


@pytest.fixture(scope="module")
def conn(dsn):
    """The throw-away cluster of `make test-oracle`, with base and adapter in a transaction that is rolled back."""
    with psycopg.connect(dsn) as conn:
        load_model(Database(conn), BASE, "base")
        load_adapter(Database(conn), ADAPTER, "base", "topics")
        yield conn
        conn.rollback()


@pytest.fixture(scope="module")
def model():
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ADAPTER).eval()


def test_logits_are_the_server_s(conn, model):
    body = passages()[0][2]
    (ids,) = conn.execute("SELECT llm_encode(%s, 'topics')", [body + WORDING]).fetchone()
    (data,) = conn.execute("SELECT llm_logits(%s::int[], 'topics')", [ids]).fetchone()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
        with model.disable_adapter():
            base = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(expected - base).max() > 1
    np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(expected.shape), expected, atol=TOLERANCE, rtol=0)


def test_choices_are_the_server_s(conn, model):
    rows = passages()
    topics = sorted({topic for _, topic, _ in rows})
    bodies = [body for _, _, body in rows][::11][:50]
    conn.execute("CREATE TEMPORARY TABLE passage (id integer, body text)")
    with conn.cursor().copy("COPY passage FROM STDIN") as copy:
        for row in enumerate(bodies):
            copy.write_row(row)
    ours = conn.execute(
        "SELECT choice FROM llm_choose_rows('SELECT id, body || E''\nThe problem is with the '' FROM passage ORDER BY id',"
        " %s::text[], model_name => 'topics')",
        [topics],
    ).fetchall()
    expected = chosen(model, bodies, topics)
    assert sum(a != b for (a,), b in zip(ours, expected, strict=True)) <= CLOSE
