"""llm_publish: a subscriber has the publisher's models, sees what becomes of them, and has its own beside.

Publisher and subscriber are databases of one cluster here, which changes nothing but that the slot is made by hand; the servers
of docs/how-to/many-servers.md are clusters of their own.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.server.test_dump import BINDIR

TEXT = "Rows are appended, pages are written, the subscriber has what the publisher has. "
STATE = (
    "SELECT model, md5(string_agg(concat_ws(' ', name, token_id, md5(data), md5(m), md5(v), step), ',' ORDER BY name, token_id))"
    " FROM llm_param_resolved GROUP BY model ORDER BY model"
)
WRITES = (
    "SELECT llm_generate('The subscriber', 24, seed => 3, model_name => %s), llm_encode('The subscriber', %s)::text,"
    " (SELECT c::text FROM llm_model_config AS c WHERE model = %s)"
)
COPIED = "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel"
numbers = count(1)


class Pair:
    """A publisher with the models m, copy, sharing (which has the wte of m), and style, an adapter of m; and a subscriber."""

    def __init__(self, publisher: psycopg.Connection, subscriber: psycopg.Connection) -> None:
        self.publisher, self.subscriber = publisher, subscriber
        self.name = f"subscription_{next(numbers)}"

    def subscribe(self, *publications: str) -> None:
        """Subscribe to publications, and wait until what is there is copied."""
        self.begin(*publications)
        self.wait(self.subscriber, COPIED, [])

    def begin(self, *publications: str, user: str | None = None) -> None:
        """Subscribe to publications, as `user` of the publisher."""
        self.publisher.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.name])
        info = self.publisher.info
        where = conninfo.make_conninfo(host=info.host, port=info.port, user=user or info.user, dbname=info.dbname)
        self.subscriber.execute(
            sql.SQL(
                "CREATE SUBSCRIPTION {0} CONNECTION {1} PUBLICATION {2}"
                " WITH (create_slot = false, slot_name = {0}, synchronous_commit = on)"
            ).format(sql.Identifier(self.name), where, sql.SQL(", ").join(map(sql.Identifier, publications)))
        )

    def catch_up(self) -> None:
        """Wait until the subscriber has what the publisher wrote."""
        (end,) = self.publisher.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
        received = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
        self.wait(self.publisher, received, [end, self.name])

    def wait(self, conn: psycopg.Connection, condition: str, parameters: list[str]) -> None:
        """Until `condition`, a query, gives true."""
        until = time.monotonic() + 120  # seconds, on a machine that does much else
        while conn.execute(condition, parameters).fetchone() != (True,):
            workers = self.subscriber.execute("SELECT * FROM pg_stat_subscription").fetchall()
            assert time.monotonic() < until, f"{condition} {parameters}: {workers}"
            time.sleep(0.02)

    def unsubscribe(self) -> None:
        self.subscriber.execute(f"ALTER SUBSCRIPTION {self.name} DISABLE")
        self.subscriber.execute(f"ALTER SUBSCRIPTION {self.name} SET (slot_name = NONE)")
        self.subscriber.execute(f"DROP SUBSCRIPTION {self.name}")
        slots = "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = %s AND active"
        self.wait(self.publisher, slots, [self.name])
        self.publisher.execute("SELECT pg_drop_replication_slot(%s)", [self.name])

    def assert_same(self, *models: str) -> None:
        """The models have the same text, tokens and configuration on both sides, each in a session that has used them before."""
        for model in models:
            found = self.subscriber.execute(WRITES, [model] * 3).fetchone()
            assert found == self.publisher.execute(WRITES, [model] * 3).fetchone()


PREPARE = """
    SET synchronous_commit = on; -- else what is committed need not be in the log when catch_up looks
    SET client_min_messages = warning;
    SELECT llm_train_bpe($$SELECT '{text}'$$, 290, 'm');
    SELECT llm_init_model('m', 2, 2, 32, 48, 290, 5);
    SELECT llm_dataset_load($$SELECT repeat('{text}', 10)$$, 'm', 32);
    SELECT llm_train('m', 3, dropout_p => 0, lr_max => 1e-2, log_every => 0);
    SELECT llm_copy_model('m', 'copy'), llm_copy_model('m', 'sharing'), llm_share_param('m', 'wte', NULL, 'sharing');
    SELECT llm_adapter_create('style', 'm'), llm_dataset_load($$SELECT repeat('{text}', 10)$$, 'style', 32);
    SELECT llm_dataset_load($$SELECT repeat('{text}', 10)$$, 'copy', 32);
    SELECT llm_train('style', 2, lr_max => 1e-2, log_every => 0);
"""
TRAIN = "SELECT llm_train(%s, 2, dropout_p => 0, lr_max => 1e-2, log_every => 0)"


@pytest.fixture(scope="module")
def template(new_database: Callable[..., str]) -> str:
    """Name of a database with the models."""
    made = new_database()
    with psycopg.connect(made, autocommit=True) as conn:
        conn.execute(PREPARE.format(text=TEXT))
    return str(conninfo.conninfo_to_dict(made)["dbname"])


@pytest.fixture
def pair(new_database: Callable[..., str], template: str) -> Iterator[Pair]:
    with (
        psycopg.connect(new_database(template), autocommit=True) as publisher,
        psycopg.connect(new_database(), autocommit=True) as subscriber,
    ):
        publisher.execute("SET synchronous_commit = on")
        made = Pair(publisher, subscriber)
        yield made
        if subscriber.execute("SELECT 1 FROM pg_subscription WHERE subname = %s", [made.name]).fetchone():
            made.unsubscribe()


def publish(pair: Pair, models: list[str] | None = None, publication: str = "models") -> None:
    if models is not None and pair.publisher.info.server_version < 150000:
        pytest.skip("models are named in row filters, which PostgreSQL has had since 15")
    pair.publisher.execute("SELECT llm_publish(%s, %s)", [publication, models])


def models_of(conn: psycopg.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT model FROM llm_models WHERE n_params > 0 ORDER BY model")]


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


def test_named_models_are_published_and_no_others(pair: Pair) -> None:
    publish(pair, ["style", "m", "sharing"])
    pair.subscribe("models")
    pair.assert_same("m", "style", "sharing")
    pair.publisher.execute("SELECT llm_copy_model('m', 'later')")
    pair.publisher.execute(TRAIN, ["copy"])
    pair.catch_up()
    assert models_of(pair.subscriber) == ["m", "sharing", "style"]


def test_calling_it_again_changes_the_models(pair: Pair) -> None:
    """A model that is added comes with its rows; one that is left out stays as it is, and can be dropped; it may come back."""
    publish(pair, ["m"])
    pair.subscribe("models")
    pair.assert_same("m")
    publish(pair, ["m", "style", "copy"])
    pair.catch_up()
    pair.assert_same("m", "style", "copy")
    publish(pair, ["m", "style"])
    pair.publisher.execute(TRAIN, ["copy"])
    pair.publisher.execute(TRAIN, ["m"])
    pair.catch_up()
    pair.assert_same("m", "style")
    pair.subscriber.execute("SELECT llm_generate('a', 3, model_name => 'copy')")
    pair.subscriber.execute("SELECT llm_drop_model('copy')")
    publish(pair)
    pair.catch_up()
    pair.assert_same("m", "style", "copy", "sharing")
    pair.publisher.execute(TRAIN, ["m"])
    pair.catch_up()
    pair.assert_same("m", "style", "copy", "sharing")
    assert pair.subscriber.execute(STATE).fetchall() == pair.publisher.execute(STATE).fetchall()


def test_calling_it_again_writes_only_what_is_added(pair: Pair) -> None:
    """And an open transaction that changes such a model is waited for."""
    publish(pair, ["m"])
    versions = "SELECT name, token_id, ctid, xmin FROM llm_param WHERE model = %s ORDER BY name, token_id"
    before = {model: pair.publisher.execute(versions, [model]).fetchall() for model in ("m", "copy")}
    publish(pair, ["m"])
    publish(pair, ["copy", "m"])
    after = {model: pair.publisher.execute(versions, [model]).fetchall() for model in ("m", "copy")}
    assert after["m"] == before["m"]
    assert after["copy"] != before["copy"]
    with psycopg.connect(pair.publisher.info.dsn, dbname=pair.publisher.info.dbname) as other:
        other.execute("SELECT llm_copy_model('m', 'later')")
        other.commit()
        other.execute("SELECT llm_train_step('later', batch => '{1}')")
        pair.publisher.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            publish(pair, ["copy", "later", "m"])
        publish(pair, ["m"])


@pytest.mark.parametrize("name", ['Models; of "ours"', "{schema}", "%s", "x" * 80, "'"])
def test_any_name_is_one_of_a_publication_or_of_a_model(pair: Pair, name: str) -> None:
    pair.publisher.execute("SELECT llm_copy_model('m', %s)", [name])
    for models in (["m"], [name, "m"], None, [name]):
        publish(pair, models, name)
    found = pair.publisher.execute("SELECT DISTINCT pubname FROM pg_publication_tables").fetchall()
    assert found == [(name[:63],)]


def test_a_publication_of_something_else_is_left_alone(pair: Pair) -> None:
    pair.publisher.execute(
        "CREATE TABLE notes (a integer PRIMARY KEY); CREATE PUBLICATION theirs FOR TABLE notes, llm_param"
    )
    before = pair.publisher.execute("SELECT * FROM pg_publication_tables").fetchall()
    with pytest.raises(psycopg.errors.DuplicateObject, match=r"public\.notes"):
        publish(pair, None, "theirs")
    assert pair.publisher.execute("SELECT * FROM pg_publication_tables").fetchall() == before
    pair.publisher.execute("CREATE PUBLICATION empty")
    publish(pair, ["m"], "empty")


def test_a_publication_of_a_schema_is_left_alone(pair: Pair) -> None:
    """Also while the schema has no tables."""
    if pair.publisher.info.server_version < 150000:
        pytest.skip("PostgreSQL 14 has none")
    pair.publisher.execute("CREATE SCHEMA mine; CREATE PUBLICATION theirs FOR TABLES IN SCHEMA mine")
    for models in (["m"], None):
        with pytest.raises(psycopg.errors.DuplicateObject, match="all of schema mine"):
            publish(pair, models, "theirs")
    assert pair.publisher.execute("SELECT pnnspid::regnamespace::text FROM pg_publication_namespace").fetchall() == [
        ("mine",)
    ]


def test_what_policies_hide_from_the_replicator_is_not_left_out_in_silence(pair: Pair) -> None:
    """With row_security off the copy is refused, until the role may pass the policies by: docs/how-to/many-servers.md."""
    publish(pair, ["m"])
    own = pair.publisher
    own.execute("CREATE ROLE replicator LOGIN REPLICATION; ALTER ROLE replicator SET row_security = off")
    try:
        own.execute("SELECT llm_grant_usage('replicator', 'read')")
        own.execute("ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY")
        pair.begin("models", user="replicator")
        pair.wait(pair.subscriber, "SELECT bool_or(sync_error_count > 0) FROM pg_stat_subscription_stats", [])
        assert pair.subscriber.execute(COPIED).fetchone() == (False,)
        own.execute("ALTER ROLE replicator BYPASSRLS")
        pair.wait(pair.subscriber, COPIED, [])
        pair.assert_same("m")
        pair.unsubscribe()
    finally:
        own.execute("DROP OWNED BY replicator; DROP ROLE replicator")


def test_the_base_of_an_adapter_must_be_published_with_it(pair: Pair) -> None:
    for models in (["style"], ["sharing", "copy"]):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match='uses tensors of "m"') as raised:
            publish(pair, models)
        assert "Publish" in (raised.value.diag.message_hint or "")


def test_a_published_model_does_not_come_to_use_one_that_is_not(pair: Pair) -> None:
    """By sharing, or as an adapter in the place of a model of its name: its subscribers could not compute it."""
    publish(pair, ["copy"], "other")
    publish(pair, ["copy", "m"])
    share, own = "SELECT llm_share_param('m', 'wpe', NULL, 'copy')", pair.publisher
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match='in publication "other", and "m" is not'):
        own.execute(share)
    own.execute("DROP PUBLICATION other")
    own.execute(share)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match='"sharing" is not') as raised:
        own.execute("SELECT llm_drop_model('copy'), llm_adapter_create('copy', 'sharing')")
    assert "llm_publish" in (raised.value.diag.message_hint or "")
    own.execute("SELECT llm_share_param('copy', 'wpe', NULL, 'sharing')")
    own.execute("SELECT llm_drop_model('sharing'), llm_drop_model('copy'), llm_adapter_create('copy', 'm')")


def test_a_restored_publication_is_whole_when_it_is_made_again(pair: Pair, new_database: Callable[..., str]) -> None:
    """pg_dump leaves out that tables of an extension are in a publication; that of PostgreSQL 18 does not."""
    publish(pair, ["m"])
    target = new_database("template0")
    dump = subprocess.run(
        [f"{BINDIR}/pg_dump", pair.publisher.info.dbname], stdout=subprocess.PIPE, env=where(pair), check=True
    )
    restore = [f"{BINDIR}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, "-d", target]
    subprocess.run(restore, input=dump.stdout, check=True)
    tables = "SELECT tablename::text, rowfilter FROM pg_publication_tables ORDER BY 1"
    with psycopg.connect(target, autocommit=True) as conn:
        assert conn.execute("SELECT pubname::text FROM pg_publication").fetchall() == [("models",)]
        published = pair.publisher.execute(tables).fetchall()
        assert conn.execute(tables).fetchall() in ([], published)
        conn.execute("SELECT llm_publish('models', '{m}')")
        assert conn.execute(tables).fetchall() == published


def where(pair: Pair) -> dict[str, str]:
    """Where the server is, for its programs."""
    info = pair.publisher.info
    return os.environ | {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user}


def test_who_may_publish_is_who_may_create_a_publication_of_the_tables(pair: Pair) -> None:
    """The owner of the tables, who may CREATE in the database: the server's own rules, since nothing runs with other rights."""
    conn = pair.publisher
    conn.execute("CREATE ROLE publisher")
    try:
        conn.execute("SELECT llm_grant_usage('publisher', 'admin'); SET ROLE publisher")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="llm_publish"):
            publish(pair, ["m"])
        conn.execute("RESET ROLE; GRANT EXECUTE ON FUNCTION llm_publish TO publisher; SET ROLE publisher")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="for database"):
            publish(pair, ["m"])
        conn.execute(f"RESET ROLE; GRANT CREATE ON DATABASE {conn.info.dbname} TO publisher; SET ROLE publisher")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner of table"):
            publish(pair, ["m"])
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY publisher; DROP ROLE publisher")


def test_a_copied_vocabulary_counts_once(pair: Pair) -> None:
    """Triggers fire for each row that a subscription receives; a transaction writes one version for all of them."""
    publish(pair, ["m"])
    pair.subscribe("models")
    (before,) = pair.subscriber.execute("SELECT last_value FROM llm_bpe_version_id_seq").fetchone() or (0,)
    pair.publisher.execute("UPDATE llm_bpe_vocab SET score = 1 WHERE model = 'm'")
    pair.catch_up()
    assert pair.subscriber.execute("SELECT last_value FROM llm_bpe_version_id_seq").fetchone() == (before + 1,)
