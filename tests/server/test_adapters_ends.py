"""Adapters of a base with added tokens, and its own tokens that end generation: theirs, until they are given others."""

import json

import numpy as np
import pytest

from tests.server.adapters import STATE, base_and_adapters, make, train  # noqa: F401

ENDS = "SELECT ARRAY[eos_token_id] || stop_token_ids FROM llm_model_config WHERE model = %s"
ROWS = """
    SELECT array_agg(concat_ws(' ', token_id, token, added, special, lstrip, normalized, roles) ORDER BY token_id)
    FROM llm_bpe_vocab WHERE model = %s
"""
STOPPED = """
    SELECT llm_generate_tokens(ARRAY[5], max_tokens => 3, options => %s::jsonb, model_name => %s)
"""


@pytest.fixture(name="ends")
def base_with_ends(sql, models):
    """The base's last token is added and special, and ends generation; so does another. Its adapter `c` is made after that."""
    sql("UPDATE llm_bpe_vocab SET token = '<|bot|>', bytes = '<|bot|>', added = true, special = true, roles = '{eos,pad}'"
        " WHERE model = 'base' AND token_id = 261")  # fmt: skip
    sql("UPDATE llm_model_config SET eos_token_id = 261, stop_token_ids = '{261,7}' WHERE model = 'base'")
    make(sql, "c", 3)


def stops_at(sql, model, token):
    return sql(STOPPED, json.dumps({"logit_bias": {str(token): 100}}), model) == [token]


def test_an_adapter_has_its_bases_tokens_and_ends(sql, ends):
    assert sql(ENDS, "c") == sql(ENDS, "base") == [261, 261, 7]
    (*low,) = sql("SELECT llm_encode('low', 'base')")
    assert sql("SELECT llm_encode('low<|bot|>', 'c', special => true)") == [*low, 261]
    assert stops_at(sql, "c", 7)
    assert stops_at(sql, "c", 261)
    assert not stops_at(sql, "c", 8)
    sql("SELECT llm_copy_model('c', 'd'), llm_adapter_merge('c', 'whole')")
    assert sql(ENDS, "d") == sql(ENDS, "whole") == [261, 261, 7]
    assert sql(ROWS, "d") is None
    assert sql(ROWS, "whole") == sql(ROWS, "base")
    assert stops_at(sql, "d", 7)
    assert stops_at(sql, "whole", 7)


def test_other_ends_are_no_other_model(sql, ends):
    """Weights in memory, checkpoints and replays are of sizes, whatever ends a text, of the base and of the adapter."""
    before = sql("SELECT llm_logits(ARRAY[1, 2, 3], 'c')")
    saved = sql("SELECT llm_checkpoint_save('c')")
    run = train(sql, "c")
    after = sql(STATE, "c")
    for model, stops in (("base", None), ("c", [9]), ("base", [3])):
        sql("UPDATE llm_model_config SET stop_token_ids = %s::int[] WHERE model = %s", stops, model)
        assert sql("SELECT llm_checkpoint_load('c', %s)", saved) is not None
        np.testing.assert_array_equal(sql("SELECT llm_logits(ARRAY[1, 2, 3], 'c')"), before)
    assert stops_at(sql, "c", 9)
    sql("SELECT llm_copy_model('c', 'e')")
    assert sql("SELECT (llm_replay(%s)).what", run) is None
    assert sql(STATE, "c") != after


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("stops", [None, [], [7, 261]])
@pytest.mark.parametrize("model", ["base", "c"])
def test_checkpoints_in_files_say_the_ends(sql, ends, server_files, suffix, stops, model):
    path = server_files / f"ends{suffix}"
    sql("UPDATE llm_model_config SET stop_token_ids = %s::int[] WHERE model = %s", stops, model)
    try:
        saved = sql("SELECT llm_checkpoint_save(%s, '', %s)", model, str(path))
        assert sql("SELECT llm_checkpoint_load(%s, %s)", model, saved) is not None
        sql("DELETE FROM llm_checkpoint WHERE id = %s", saved)
        found = sql("SELECT llm_checkpoint_attach(%s, %s)", str(path), model)
        assert sql("SELECT config -> 'stop_token_ids' FROM llm_checkpoint WHERE id = %s", found) == stops
        assert sql("SELECT llm_checkpoint_load(%s, %s)", model, found) is not None
        sql("SELECT llm_copy_model(%s, 'twin', %s)", model, found)
        assert sql("SELECT stop_token_ids FROM llm_model_config WHERE model = 'twin'") == stops
    finally:
        path.unlink(missing_ok=True)
