"""What SQL says against transformers, with files of the server as the way in and out.

save_pretrained -> pg_llm_import_safetensors -> logits, losses, text -> pg_llm_export_safetensors -> from_pretrained.
"""

import json
import os
from pathlib import Path

import numpy as np
import psycopg
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

TOLERANCE = 2e-4  # on logits of unit scale: float32, sums in another order
LENGTH = 64  # of greedy continuations

# layers, heads, width, positions, vocabulary, spread of the weights (GPT-2 begins with 0.02)
SHAPES = {
    "one head, one layer": (1, 1, 16, 96, 61, 0.3),
    "odd sizes": (3, 5, 85, 131, 1009, 0.1),
    "wide": (2, 4, 256, 128, 2000, 0.05),
    "deep and narrow": (12, 2, 32, 80, 300, 0.15),
    "gpt2-small": (12, 12, 768, 1024, 50257, 0.02),
}


@pytest.fixture(scope="module")
def sql(dsn):
    """A session of the throw-away cluster of `make test-oracle`; its models are gone afterwards."""
    with psycopg.connect(dsn) as conn:
        yield conn
        conn.rollback()


@pytest.fixture(scope="module")
def files():
    """The directory that tests and the server share."""
    return Path(os.environ["PG_GPT2_TEST_DATA"])


@pytest.fixture(scope="module", params=SHAPES)
def model(request, sql, files):
    """(name of the model in the database, the model of transformers)."""
    n_layer, n_head, width, positions, vocab, spread = SHAPES[request.param]
    torch.manual_seed(len(request.param))
    config = GPT2Config(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=width,
        n_positions=positions,
        vocab_size=vocab,
        initializer_range=spread,
        bos_token_id=vocab - 1,
        eos_token_id=vocab - 1,
    )
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # biases and norms that are not zero and one
        for name, p in theirs.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                p.add_(torch.randn_like(p) * spread)
    directory = files / "oracle"
    theirs.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)
    sql.execute("DELETE FROM llm_model_config WHERE model = %s", [request.param])
    sql.execute(
        "INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES (%s, %s, %s, %s, %s, %s)",
        [request.param, n_layer, n_head, width, positions, vocab],
    )
    sql.execute("SELECT pg_llm_import_safetensors(%s, %s)", [str(directory / "model.safetensors"), request.param])
    (directory / "model.safetensors").unlink()
    yield request.param, theirs
    sql.execute("SELECT llm_drop_model(%s)", [request.param])


def prompt(theirs, length):
    return np.random.default_rng(length).integers(0, theirs.config.vocab_size, length).tolist()


def test_logits_equal_transformers(sql, model):
    name, theirs = model
    for length in (1, 7, theirs.config.n_positions if theirs.config.n_positions < 200 else 200):
        ids = prompt(theirs, length)
        (data,) = sql.execute("SELECT llm_logits(%s::integer[], %s)", [ids, name]).fetchone()
        found = np.frombuffer(data, "<f4").reshape(length, -1)
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0].numpy()
        scale = max(1.0, float(expected.std()))
        assert np.abs(found - expected).max() <= TOLERANCE * scale


def test_greedy_continuations_are_identical(sql, model):
    name, theirs = model
    ids = prompt(theirs, 9)
    (found,) = sql.execute(
        "SELECT llm_generate_tokens(%s::integer[], %s, 0, model_name => %s, eos_token => -1)", [ids, LENGTH, name]
    ).fetchone()
    expected = theirs.generate(
        torch.tensor([ids]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    assert found == expected[len(ids) :]
    assert len(found) == LENGTH


def test_losses_equal_transformers(sql, model):
    name, theirs = model
    ids = prompt(theirs, 33)
    (found,) = sql.execute(
        "SELECT llm_loss(%s, %s::integer[], %s::integer[], training => false)", [name, ids[:-1], ids[1:]]
    ).fetchone()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_exported_opens_in_from_pretrained_with_the_same_bits(sql, files, model):
    name, theirs = model
    directory = files / "exported"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    path = directory / "model.safetensors"
    sql.execute("SELECT pg_llm_export_safetensors(%s, %s)", [str(path), name])
    (directory / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    again, problems = GPT2LMHeadModel.from_pretrained(directory, output_loading_info=True)
    assert not any(problems.values()), problems
    ours, expected = again.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    for tensor, values in expected.items():
        assert torch.equal(ours[tensor], values), tensor
    path.unlink()
