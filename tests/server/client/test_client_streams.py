"""Streams of the client: they say what llm_generate says, arrive as they are computed, and end the work when they are closed."""

import asyncio
import random
from contextlib import closing
from itertools import pairwise

import psycopg
import pytest
from pg_llm_client import AsyncPGLLMClient, PGLLMClient, StreamEvent
from psycopg.pq import TransactionStatus

from tests.server.client.models import MODEL, PROMPT, first_value

OPEN_CURSORS = "SELECT count(*) FROM pg_cursors WHERE name LIKE 'pg_llm_client%'"


def open_cursors(conn):
    return conn.execute(OPEN_CURSORS).fetchone()[0]


def test_stream_is_generate_in_steps(client):
    events = list(client.stream(PROMPT, max_tokens=12, seed=5))
    assert isinstance(events[0], StreamEvent)
    assert [event.step for event in events] == list(range(1, len(events) + 1))
    assert [event.is_complete for event in events] == [False] * (len(events) - 1) + [True]
    assert [event.finish_reason for event in events][:-1] == [None] * (len(events) - 1)
    assert events[-1].finish_reason in ("stop", "length")
    assert events[-1].text == client.generate(PROMPT, max_tokens=12, seed=5)
    assert all(event.logprob < 0 and 0 <= event.token_id < 300 for event in events)
    assert list(client.stream(PROMPT, max_tokens=0)) == []


def test_a_stream_takes_ids_in_the_place_of_a_text(conn, client):
    ids = first_value(conn, "llm_encode(%(p)s, %(m)s)", p=PROMPT, m=MODEL)
    for options in ({"seed": 5, "top_k": 9}, {"temperature": 0, "echo": False}):
        assert list(client.stream(prompt_ids=ids, **options)) == list(client.stream(PROMPT, **options))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="either prompt or prompt_ids"):
        list(client.stream(PROMPT, prompt_ids=ids))


def test_characters_of_several_tokens_arrive_whole(client):
    """At this temperature any byte may follow any other: some make characters, some do not."""
    texts = [
        event.text
        for event in client.stream(PROMPT, max_tokens=600, temperature=100, topk=0, topp=1, seed=1, eos_token=-1)
    ]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert any(after == before for before, after in pairwise(texts)), "no bytes were held back"
    assert texts[-1] == client.generate(PROMPT, max_tokens=600, temperature=100, topk=0, topp=1, seed=1, eos_token=-1)


def test_a_last_event_has_an_end_that_begins_a_stop_string(conn, client):
    """The smallest case: a model that says HHH."""
    options = {"max_tokens": 3, "temperature": 0, "echo": False, "stop": "Hzz", "model": "ab"}
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT llm_train_bpe($$VALUES ('ab')$$, 257, 'ab'), llm_init_model('ab', 1, 1, 8, 16)")
        assert client.generate("a", **options) == "HHH"
        assert [event.text for event in client.stream("a", **options)] == ["", "H", "HHH"]


@pytest.mark.parametrize("seed", range(4))
def test_every_path_gives_the_same_text_whatever_the_stop_strings(conn, client, seed):
    """llm_generate, and the client's generate, stream and batch: also where a text ends in the beginning of a stop string, or
    in bytes of an unfinished character, which at this temperature are most of what is generated."""
    rng, ended = random.Random(seed), set()
    for _ in range(8):
        options = {"max_tokens": rng.randint(1, 40), "temperature": rng.choice([0, 1, 100]), "seed": rng.randrange(99)}
        options |= {"topk": 0, "topp": 1, "echo": rng.random() < 0.5, "eos_token": rng.choice([-1, None])}
        text = client.generate(PROMPT, **options)[len(PROMPT) if options["echo"] else 0 :]
        places = [rng.randrange(len(text) + 1) for _ in range(2)]
        stops = [text[place : place + rng.randint(1, 4)] + rng.choice(["", "zz", "zz"]) for place in places]
        options["stop"] = [stop for stop in [*stops, text[-2:] + "z"] if stop]
        named = ", ".join(f"{name} => %({name})s" for name in options)
        expected = first_value(conn, f"llm_generate('{PROMPT}', model_name => '{MODEL}', {named})", **options)
        events = list(client.stream(PROMPT, **options))
        assert all(after.text.startswith(before.text) for before, after in pairwise(events))
        assert events[-1].text == expected
        assert client.generate(PROMPT, **options) == expected
        assert client.generate_batch([PROMPT, "memory"], **options)[0] == expected
        ended |= {events[-1].finish_reason}
    assert ended == {"stop", "length"}


@pytest.mark.parametrize("autocommit", [True, False])
def test_events_come_as_they_are_computed_and_closing_ends_the_work(connect, model, client_of, autocommit):
    conn = connect(options="-c statement_timeout=5s")  # of each FETCH: far from enough for a million tokens
    conn.autocommit = autocommit
    client = client_of(conn)
    seen = []
    with closing(client.stream(PROMPT, max_tokens=1_000_000, eos_token=-1)) as events:
        for event in events:
            seen.append(event)
            if len(seen) == 5:
                break
        assert open_cursors(conn) == 1
    assert [event.step for event in seen] == [1, 2, 3, 4, 5]
    assert open_cursors(conn) == 0
    assert conn.info.transaction_status == (TransactionStatus.IDLE if autocommit else TransactionStatus.INTRANS)


def test_a_bare_break_ends_the_work_too(dsn, model):
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in PGLLMClient(conn, model=MODEL).stream(PROMPT, eos_token=-1):
            break
        assert open_cursors(conn) == 0
        assert conn.info.transaction_status == TransactionStatus.IDLE


def test_a_bare_break_ends_asynchronous_work_when_the_loop_collects_it(dsn, model):
    async def stream_and_break():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            async for _ in AsyncPGLLMClient(conn, model=MODEL).stream(PROMPT, eos_token=-1):
                break
            while conn.info.transaction_status != TransactionStatus.IDLE:
                await asyncio.sleep(0.01)
            cursor = await conn.execute(OPEN_CURSORS)
            assert await cursor.fetchone() == (0,)

    asyncio.run(asyncio.wait_for(stream_and_break(), 10))


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_stream_undoes_and_commits_nothing_of_the_callers(connect, model, client_of, autocommit):
    conn = connect()
    conn.execute("CREATE TEMP TABLE heard (step int)")
    conn.autocommit = autocommit
    client = client_of(conn)
    with conn.transaction(force_rollback=True):
        conn.execute("INSERT INTO heard VALUES (0)")
        for event in client.stream(PROMPT, eos_token=-1):
            conn.execute("INSERT INTO heard VALUES (%s)", [event.step])
            if event.step == 3:
                break
        assert conn.execute("SELECT count(*) FROM heard").fetchone() == (4,)
    assert conn.execute("SELECT count(*) FROM heard").fetchone() == (0,)


def test_inserts_during_a_stream_in_autocommit_are_kept(connect, conn, client):
    conn.execute("DROP TABLE IF EXISTS heard; CREATE TABLE heard (step int)")
    with closing(client.stream(PROMPT, eos_token=-1)) as events:
        for event in events:
            conn.execute("INSERT INTO heard VALUES (%s)", [event.step])
            if event.step == 3:
                break
    assert connect().execute("SELECT count(*) FROM heard").fetchone() == (3,)


def test_streams_of_one_connection_interleave(conn, client):
    alone = [list(client.stream(PROMPT, max_tokens=n, seed=n, eos_token=-1)) for n in (4, 9)]
    streams = [client.stream(PROMPT, max_tokens=n, seed=n, eos_token=-1) for n in (4, 9)]
    pairs = [(next(streams[0], None), next(streams[1], None)) for _ in range(12)]
    assert [[event for event in events if event] for events in zip(*pairs, strict=True)] == alone
    assert conn.info.transaction_status == TransactionStatus.IDLE


def test_an_error_in_a_stream_leaves_a_usable_connection(conn, client):
    with pytest.raises(psycopg.errors.UndefinedObject):
        list(client.stream(PROMPT, model="nobody"))
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert len(list(client.stream(PROMPT, max_tokens=2, eos_token=-1))) == 2


def test_a_closed_connection_does_not_trouble_an_open_stream(connect, model, client_of):
    conn = connect()
    events = client_of(conn).stream(PROMPT, eos_token=-1)
    next(events)
    conn.close()
    events.close()
