"""A tiny model in the server against what torch and transformers computed (tests/golden/gpt2_tiny.npz; its script is beside it).

tests/engine holds the engine to the same numbers; here they go in and out through SQL.
"""

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2_tiny.npz"
TOLERANCE = 2e-4  # on logits of unit scale; these are larger
ADAMW = "dropout_p => 0, lr_max => 3e-3, wd => 0.1, grad_clip => 1.0"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def sql(module_conn, golden):
    """A session in whose database the model is, with its batches as rows of llm_dataset."""
    module_conn.execute("INSERT INTO llm_model_config VALUES ('tiny', 2, 2, 16, 16, 61, 0)")
    for name, array in golden.items():
        if name.startswith("param."):
            module_conn.execute(
                "INSERT INTO llm_param (model, name, shape, data) VALUES ('tiny', %s, %s, %s)",
                [name.removeprefix("param."), list(array.shape), array.astype("<f4").tobytes()],
            )
    for number, row in enumerate(golden["tokens"].reshape(-1, golden["tokens"].shape[-1]).tolist(), 1):
        module_conn.execute(
            "INSERT INTO llm_dataset (id, model, tokens, target) VALUES (%s, 'tiny', %s, %s)",
            [number, row[:-1], row[1:]],
        )
    return module_conn


def logits(conn, ids):
    (data,) = conn.execute("SELECT llm_logits(%s::integer[], 'tiny')", [ids]).fetchone()
    return np.frombuffer(data, "<f4").reshape(len(ids), -1)


def test_logits_equal_torch(sql, golden):
    for row, expected in zip(golden["tokens"][0, :, :-1].tolist(), golden["logits"]):
        assert np.abs(logits(sql, row) - expected).max() <= TOLERANCE


def test_a_prefix_has_the_logits_of_the_whole(sql, golden):
    row = golden["tokens"][0, 0, :-1].tolist()
    np.testing.assert_allclose(logits(sql, row[:5]), logits(sql, row)[:5], atol=1e-5)


def test_greedy_continues_with_the_largest_logit(sql, golden):
    """Each cached step against a full pass over everything so far."""
    ids = golden["tokens"][0, 0, :4].tolist()
    (new,) = sql.execute(
        "SELECT llm_generate_tokens(%s::integer[], 12, 0, model_name => 'tiny', eos_token => -1)", [ids]
    ).fetchone()
    for place, token in enumerate(new):
        assert logits(sql, ids + new[:place])[-1].argmax() == token


def test_loss_equals_torch(sql, golden):
    call = "SELECT avg(llm_loss('tiny', tokens, target, training => false)) FROM llm_dataset WHERE id IN (1, 2)"
    (loss,) = sql.execute(call).fetchone()
    assert loss == pytest.approx(golden["losses"][0], rel=1e-5)
    (mean, perplexity, tokens) = sql.execute("SELECT * FROM llm_evaluate('tiny', 'train', max_rows => 2)").fetchone()
    assert mean == pytest.approx(golden["losses"][0], rel=1e-5)
    assert perplexity == pytest.approx(np.exp(mean), rel=1e-9)
    assert tokens == 32


def test_fifty_steps_of_adamw_follow_torch(sql, golden):
    batches, size = golden["tokens"].shape[:2]
    with sql.transaction(force_rollback=True):
        for step, expected in enumerate(golden["losses"]):
            first = step % batches * size + 1
            (loss,) = sql.execute(
                f"SELECT llm_train_step('tiny', batch => %s::integer[], {ADAMW})", [list(range(first, first + size))]
            ).fetchone()
            assert loss == pytest.approx(expected, rel=1e-4), f"step {step + 1}"
        norms = [n for (n,) in sql.execute("SELECT grad_norm FROM llm_train_log WHERE model = 'tiny' ORDER BY step")]
    # Rounding grows from step to step; the loss feels less of it.
    np.testing.assert_allclose(norms, golden["norms"], rtol=1e-2)


def test_a_step_moves_every_weight_as_torch_moves_it(sql, golden):
    """The first moment after one step is (1 - beta1) times the clipped gradient."""
    clip = min(1.0, 1.0 / golden["norms"][0])
    with sql.transaction(force_rollback=True):
        sql.execute(f"SELECT llm_train_step('tiny', batch => '{{1,2}}', {ADAMW})")
        for name, m in sql.execute("SELECT name, m FROM llm_param WHERE model = 'tiny'").fetchall():
            expected = golden[f"grad.{name}"].ravel() * clip * 0.1
            difference = np.frombuffer(m, "<f4") - expected
            assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(expected) + 1e-9, name
