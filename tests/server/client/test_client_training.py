"""Training by the client: every option arrives, a bar shows the way, and the transaction is the caller's."""

import psycopg
import pytest
from pg_llm_client.training_options import TRAINING_KEYS, TrainingOptions

from tests.server.client.models import TEXT, make_model


def test_train_follows_the_notices_and_returns_the_run(connect, model, client_of, capsys):
    conn = connect()
    client = client_of(conn)
    source = f"SELECT '{TEXT * 20}'"
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM llm_dataset")
        run = client.train(4, source=source, block_size=16, lr_max=1e-3, batch_size=2, log_every=1, progress=True)
        losses = conn.execute("SELECT loss FROM llm_train_log WHERE run_id = %s ORDER BY step", [run]).fetchall()
        assert len(losses) == 4
        assert conn.execute("SELECT DISTINCT cardinality(tokens) FROM llm_dataset").fetchall() == [(16,)]
        shown = capsys.readouterr().err
        assert "training tiny" in shown
        assert "4/4" in shown
        assert f"loss {losses[-1][0]:.3f}" in shown
        client.train(1, progress=False)
    assert conn.execute("SELECT count(*) FROM llm_run WHERE run_id = %s", [run]).fetchone() == (0,)
    assert capsys.readouterr().err == ""


def test_train_takes_every_option_of_llm_train(conn, client):
    (names,) = conn.execute("SELECT proargnames FROM pg_proc WHERE proname = 'llm_train'").fetchone()
    others = {"model", "n_steps", "n_layer", "n_head", "d", "vocab", "options"}
    assert set(names) - others == set(TrainingOptions.__annotations__) - set(TRAINING_KEYS)
    options = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-7, "wd": 0.1, "lr_max": 1e-5, "warmup": 1, "grad_clip": 1.0}
    options |= {"dropout_p": 0.0, "min_lr": 1e-6, "seed": 2**40}
    others = {"batch_size": 2, "grad_accum": 2, "eval_every": 0, "log_every": 1, "grad_workers": 1, "prune_workers": 1}
    with conn.transaction(force_rollback=True):
        run = client.train(2, audit="none", progress=False, **options, **others)
        (config,) = conn.execute("SELECT config FROM llm_run WHERE run_id = %s", [run]).fetchone()
    options["weight_decay"] = options.pop("wd")
    assert {name: config[name] for name in options} == options
    assert (config["batch_size"], config["grad_accum"], config["n_steps"]) == (2, 2, 2)


def test_train_takes_the_keys_of_options_as_keywords(new_database, connect, client_of):
    conn = connect(new_database())
    make_model(conn)
    conn.execute("UPDATE llm_dataset SET split = 'val' WHERE id % 2 = 0")
    client = client_of(conn)
    keys = {"lr_schedule": "linear", "patience": 1, "min_delta": 100.0, "keep_best": True, "shards": 2}
    keys |= {"sync_every": 2, "outer_lr": 0.5, "outer_momentum": 0.5}
    assert {*keys, "workers", "worker_timeout", "allow_other_bits"} == set(TRAINING_KEYS)  # three are no part of a run
    for commits in ({}, {"commit_every": 1}):
        run = client.train(9, batch_size=2, eval_every=1, audit="none", progress=False, **keys, **commits)
        config, status = conn.execute("SELECT config, status FROM llm_run WHERE run_id = %s", [run]).fetchone()
        assert status == "early"
        assert {name: config[name] for name in keys} == keys


def test_train_that_commits_as_it_goes(new_database, connect, client_of):
    conn = connect(new_database())
    make_model(conn)
    client = client_of(conn)
    run = client.train(3, commit_every=1, batch_size=2, progress=False)
    assert conn.execute("SELECT count(*) FROM llm_train_log WHERE run_id = %s", [run]).fetchone() == (3,)
    with conn.transaction(), pytest.raises(psycopg.Error, match="autocommit") as error:
        client.train(3, commit_every=1, progress=False)
    assert error.value.sqlstate == "2D000"


def test_without_autocommit_training_is_the_callers_to_commit(connect, model, client_of):
    conn = connect()
    conn.autocommit = False
    client = client_of(conn)
    before = client.perplexity(TEXT)
    conn.rollback()
    client.train(1, lr_max=1e-2, progress=False)
    assert client.perplexity(TEXT) != before
    conn.rollback()
    assert client.perplexity(TEXT) == before


def test_pairs_are_loaded_and_learned(connect, model, client_of):
    conn = connect()
    client = client_of(conn)
    with conn.transaction(force_rollback=True):
        source = "VALUES ('the', ' row', 1), ('a', ' text', 2.5), ('what', NULL, 1)"
        assert client.load_pairs(source, max_length=8, val_fraction=0.5, replace=True) == 2
        found = conn.execute("SELECT split, weight FROM llm_dataset WHERE model = %s ORDER BY id", [model]).fetchall()
        assert found == [("train", 1), ("val", 2.5)]
        client.train(2, batch_size=2, progress=False)


def test_an_adapter_is_made_trained_and_merged(conn, model, client_of):
    client = client_of(conn)
    before = client.perplexity(TEXT)
    with conn.transaction(force_rollback=True):
        conn.execute("UPDATE llm_dataset SET model = NULL")
        options = {"r": 2, "alpha": 8.0, "targets": ["attn.c_attn", "mlp.c_fc"], "dropout_p": 0.0, "seed": 2**40}
        client.create_adapter("fit", **options)
        found = conn.execute("SELECT base, r, alpha, targets, dropout_p, seed FROM llm_adapter").fetchall()
        assert found == [(model, *options.values())]
        assert client.perplexity(TEXT, model="fit") == before
        client.train(2, model="fit", lr_max=0.01, progress=False)
        assert client.perplexity(TEXT, model="fit") != before == client.perplexity(TEXT)
        client.merge_adapter("fit", "merged")
        assert client.perplexity(TEXT, model="merged") == pytest.approx(client.perplexity(TEXT, model="fit"), rel=1e-5)
