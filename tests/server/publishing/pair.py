"""A publisher and a subscriber of llm_publish.

They are databases of one cluster here, which changes nothing but that the slot is made by hand; the servers of
docs/how-to/many-servers.md are clusters of their own.
"""

import time
from itertools import count

import psycopg
import pytest
from psycopg import conninfo, sql

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


def publish(pair: Pair, models: list[str] | None = None, publication: str = "models") -> None:
    if models is not None and pair.publisher.info.server_version < 150000:
        pytest.skip("models are named in row filters, which PostgreSQL has had since 15")
    pair.publisher.execute("SELECT llm_publish(%s, %s)", [publication, models])


def models_of(conn: psycopg.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT model FROM llm_models WHERE n_params > 0 ORDER BY model")]
