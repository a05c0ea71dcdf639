"""llm_publish: which models a publication has, and whose it is."""

import os
import subprocess
from collections.abc import Callable

import psycopg
import pytest

from tests.server.publishing.pair import COPIED, STATE, TRAIN, Pair, models_of, publish
from tests.server.test_dump import BINDIR


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
