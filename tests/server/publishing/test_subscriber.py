"""A subscriber of llm_publish has the publisher's models, sees what becomes of them, and has its own beside."""

import psycopg
import pytest

from tests.server.publishing.pair import STATE, TRAIN, WRITES, Pair, models_of, publish


def test_a_subscriber_writes_what_the_publisher_writes(pair: Pair) -> None:
    """All of them: the presets are on both sides; an adapter; shared tensors. The moments are the same, too."""
    publish(pair)
    pair.subscribe("models")
    pair.assert_same("m", "copy", "sharing", "style")
    assert pair.subscriber.execute(STATE).fetchall() == pair.publisher.execute(STATE).fetchall()
    presets = "SELECT * FROM llm_model_config WHERE preset ORDER BY model"
    assert len(pair.subscriber.execute(presets).fetchall()) == 4


def test_a_warm_session_of_a_subscriber_sees_new_weights_and_vocabularies(pair: Pair) -> None:
    """Without llm_cache_clear; each in a transaction of its own, some with a savepoint that takes changes back."""
    publish(pair)
    pair.subscribe("models")
    pair.assert_same("m", "style")
    before = pair.subscriber.execute(WRITES, ["m"] * 3).fetchone()
    for change in (
        TRAIN % "'m'",
        TRAIN % "'style'",
        "DELETE FROM llm_bpe_merges WHERE model = 'm' AND rank > 8",
        "UPDATE llm_bpe_vocab SET added = true WHERE model = 'm' AND token = 'su'",
        "BEGIN; SAVEPOINT s; DELETE FROM llm_bpe_merges WHERE model = 'm' AND rank = 8; ROLLBACK TO s;"
        " DELETE FROM llm_bpe_merges WHERE model = 'm' AND rank > 5; COMMIT",
        "UPDATE llm_model_config SET eos_token_id = 7 WHERE model = 'm'",
        TRAIN % "'m'",
    ):
        pair.publisher.execute(change)
        pair.catch_up()
        pair.assert_same("m", "style")
    assert pair.subscriber.execute(WRITES, ["m"] * 3).fetchone() != before
    versions = pair.subscriber.execute("SELECT count(*) FROM llm_bpe_version").fetchone()
    assert versions == (1,)


def test_a_subscriber_trains_its_own_models_beside(pair: Pair) -> None:
    """With ids of its own for runs, data, checkpoints and tape, an adapter of a published model among them; and what the
    publisher empties, or drops, takes nothing from it. A model that they use is kept until they do not."""
    publish(pair, ["m"])
    pair.subscribe("models")
    own = pair.subscriber
    own.execute("SET client_min_messages = warning")
    own.execute(
        "SELECT llm_copy_model('m', 'mine'), llm_adapter_create('my style', 'm'), llm_copy_model('m', 'with wpe')"
    )
    own.execute(
        "SELECT llm_train_bpe($$SELECT 'low lower lowest'$$, 270, 'other'), llm_init_model('other', 1, 2, 16, 32)"
    )
    for model in ("mine", "my style", "other"):
        own.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 60)$$, %s, 16)", [model])
        own.execute(TRAIN, [model])
        own.execute("SELECT llm_checkpoint_save(%s)", [model])
    pair.publisher.execute(TRAIN, ["m"])
    pair.catch_up()
    pair.assert_same("m")
    own.execute("SELECT llm_share_param('m', 'wpe', NULL, 'with wpe')")
    assert models_of(own) == ["m", "mine", "my style", "other", "with wpe"]
    kept = "SELECT model, md5(string_agg(md5(data), '' ORDER BY name, token_id)) FROM llm_param WHERE model <> 'm' GROUP BY model"
    before = own.execute(kept).fetchall()
    pair.publisher.execute("SELECT llm_drop_model(model) FROM unnest('{style,sharing,m,copy}'::text[]) AS model")
    pair.publisher.execute("TRUNCATE llm_param, llm_bpe_vocab")
    states = own.execute(STATE).fetchall()
    refused = "SELECT apply_error_count > %s FROM pg_stat_subscription_stats"
    pair.wait(own, refused, [0])
    assert own.execute(STATE).fetchall() == states, "all of the transaction is undone"
    own.execute("SELECT llm_adapter_merge('my style', 'whole'), llm_drop_model('my style')")
    (errors,) = own.execute("SELECT apply_error_count FROM pg_stat_subscription_stats").fetchone() or (0,)
    pair.wait(own, refused, [errors + 1])  # one may have begun before
    assert "m" in models_of(own), "tensors are shared with it"
    before = own.execute(kept).fetchall()
    own.execute("SELECT llm_unshare_param('with wpe', 'wpe', NULL)")
    pair.catch_up()
    assert models_of(own) == ["mine", "other", "whole", "with wpe"]
    assert set(before) - set(own.execute(kept).fetchall()) == {row for row in before if row[0] == "with wpe"}
    assert own.execute("SELECT llm_generate('low', 3, model_name => 'whole') <> ''").fetchone() == (True,)
    assert own.execute("SELECT llm_generate('low', 3, model_name => 'mine') <> ''").fetchone() == (True,)


def test_a_model_of_its_own_is_not_replaced_by_one_that_is_added(pair: Pair) -> None:
    """A name that both have stops the subscription, as it does where a table is copied, until the subscriber drops its model."""
    publish(pair, ["m"])
    pair.subscribe("models")
    own = pair.subscriber
    own.execute("SELECT llm_copy_model('m', 'copy')")
    weights = "SELECT md5(string_agg(md5(data), '' ORDER BY name, token_id)) FROM llm_param WHERE model = 'copy'"
    before = own.execute(weights).fetchone()
    pair.publisher.execute(TRAIN, ["copy"])
    assert pair.publisher.execute(weights).fetchone() != before
    publish(pair, ["copy", "m"])
    pair.wait(own, "SELECT bool_or(apply_error_count > 0) FROM pg_stat_subscription_stats", [])
    assert own.execute(weights).fetchone() == before
    own.execute("SELECT llm_drop_model('copy')")
    pair.catch_up()
    pair.assert_same("m", "copy")
    pair.publisher.execute("SELECT llm_drop_model('copy')")  # what is deleted later is sent again
    pair.catch_up()
    assert models_of(own) == ["m"]


def test_a_dropped_model_disappears_from_the_subscriber(pair: Pair) -> None:
    publish(pair)
    pair.subscribe("models")
    assert models_of(pair.subscriber) == ["copy", "m", "sharing", "style"]
    pair.publisher.execute("SELECT llm_drop_model('style'), llm_drop_model('copy')")
    pair.publisher.execute("SELECT llm_copy_model('m', 'later'), llm_init_model('gpt2-small', 1, 2, 8, 16, 50)")
    pair.catch_up()
    pair.assert_same("m", "later")
    assert models_of(pair.subscriber) == ["gpt2-small", "later", "m", "sharing"]
    with pytest.raises(psycopg.errors.UndefinedObject, match="copy"):
        pair.subscriber.execute("SELECT llm_generate('a', 3, model_name => 'copy')")
    pair.publisher.execute("SELECT llm_drop_model('gpt2-small')")  # whose preset comes back
    pair.catch_up()
    shape = "SELECT n_layer, preset FROM llm_model_config WHERE model = 'gpt2-small'"
    assert pair.subscriber.execute(shape).fetchall() == [(12, True)]
