"""Training on pairs beside torch and transformers: the losses of 50 steps, and the masks of TRL's completion_only_loss.

TRL itself is not installed, because of all that it asks for: `trl_row` is the arithmetic of its SFTTrainer, version 1.16, for a
(prompt, completion) that is no conversation (`add_eos`, `common_prefix_length`, `completion_mask`), and of its collator
(labels are -100 where the mask is 0); the model of transformers then shifts the labels by one.
"""

import random
from collections.abc import Iterator

import psycopg
import pytest
from transformers import GPT2Tokenizer

from tests.oracle.twin import Run, Twin

WORDS = ["the", "a", "database", "writes", "rows", "of", "text", "and", "reads", "what", "before", "morning,", "slowly"]
N_STEPS = 50


@pytest.fixture(scope="module")
def conn(dsn) -> Iterator[psycopg.Connection]:
    """A session of the throw-away cluster of `make test-oracle`, with a model."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE said (n integer, prompt text, completion text, weight double precision)")
        draw = random.Random(5)
        for n in range(60):
            prompt, completion = (" ".join(draw.choices(WORDS, k=draw.randint(1, most))) for most in (20, 8))
            space = "" if n % 7 == 0 else " "  # some tokens join what should stay apart
            weight = draw.choice([0.5, 1, 3])
            conn.execute("INSERT INTO said VALUES (%s, %s, %s, %s)", [n, prompt, space + completion, weight])
        conn.execute("SELECT llm_train_bpe('SELECT prompt || completion FROM said ORDER BY n', 320, 'pairs')")
        conn.execute("SELECT llm_init_model('pairs', 2, 2, 32, 24, seed => 3)")
        yield conn
        conn.execute("SELECT llm_drop_model('pairs'); DROP TABLE said")


def trl_row(tokenizer: GPT2Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """(ids but for the last, labels but for the first)."""
    completion += tokenizer.eos_token
    before, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"]
    length = 0
    for one, other in zip(before, ids, strict=False):
        if one != other:
            break
        length += 1
    mask = [0] * length + [1] * (len(ids) - length)
    labels = [id_ if counts else -100 for id_, counts in zip(ids, mask, strict=True)]
    return ids[:-1], labels[1:]


def test_masks_are_those_of_trl(conn: psycopg.Connection) -> None:
    vocab = dict(conn.execute("SELECT token, token_id FROM llm_bpe_vocab WHERE model = 'pairs'").fetchall())
    merges = conn.execute(
        'SELECT "left", "right" FROM llm_bpe_merges WHERE model = %s ORDER BY rank', ["pairs"]
    ).fetchall()
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges)
    said = conn.execute("SELECT prompt, completion FROM said ORDER BY n").fetchall()
    conn.execute(
        "SELECT llm_dataset_load_pairs('SELECT prompt, completion FROM said ORDER BY n', 'pairs', replace => true)"
    )
    ours = conn.execute("SELECT tokens, target FROM llm_dataset WHERE model = 'pairs' ORDER BY id").fetchall()
    theirs = [trl_row(tokenizer, *pair) for pair in said]
    whole = [row for row in theirs if len(row[0]) <= 24]
    assert len(theirs) > len(whole) > 20
    for tokens, targets in whole:
        assert (tokens, targets) in ours
    for tokens, targets in theirs:  # of what is cut, the beginning of the prompt is missing and nothing else
        assert (tokens[-24:], targets[-24:]) in ours
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("columns", ["prompt, completion", "prompt, completion, weight"])
@pytest.mark.parametrize(("batch_size", "grad_accum"), [(4, 1), (3, 2)])
def test_fifty_steps_on_pairs_of_random_lengths_follow_torch(
    conn: psycopg.Connection, columns: str, batch_size: int, grad_accum: int
) -> None:
    conn.execute("SELECT llm_copy_model('pairs', 'learner')")
    conn.execute(f"SELECT llm_dataset_load_pairs('SELECT {columns} FROM said ORDER BY n', 'learner', 20)")
    (run_id,) = conn.execute(
        "SELECT llm_train('learner', %s, batch_size => %s, grad_accum => %s, dropout_p => 0, lr_max => 3e-3, warmup => 5,"
        " wd => 0.1, grad_clip => 1, log_every => 0)",
        [N_STEPS, batch_size, grad_accum],
    ).fetchone()  # type: ignore[misc]
    run = Run(conn, run_id)
    twin, rows = Twin(run, 3), run.rows("train")
    assert len({len(tokens) for tokens, _, _ in rows.values()}) > 8
    ours = conn.execute(
        "SELECT batch, lr, loss, grad_norm, tokens FROM llm_train_log WHERE run_id = %s ORDER BY step", [run_id]
    ).fetchall()
    assert len(ours) == N_STEPS
    for batch, lr, loss, norm, tokens in ours:
        their_loss, their_norm = twin.step([rows[id_] for id_ in batch], lr)
        assert loss == pytest.approx(their_loss, rel=1e-4)  # float32, whose rounding 50 steps have spread
        assert norm == pytest.approx(their_norm, rel=5e-3)
        assert tokens == sum(target != -100 for id_ in batch for target in rows[id_][1])
    assert ours[-1][2] < 0.7 * ours[0][2]
    conn.execute("SELECT llm_drop_model('learner')")
