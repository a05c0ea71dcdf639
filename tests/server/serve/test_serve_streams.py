"""Nobody computes for a client that is gone, and nobody waits for ever: sessions and queue are bounded."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from tests.server.client.models import MODEL, PROMPT
from tests.server.serve.conftest import SLOW
from tests.server.serve.serving import serving

LONG = {"model": SLOW, "prompt": "low", "max_tokens": 100000, "eos_token": -1, "seed": 1}
SHORT = {"model": MODEL, "prompt": PROMPT, "max_tokens": 3}
OURS = "FROM pg_stat_activity WHERE application_name = 'pg_gpt2 serve' AND datname = current_database()"
RUNNING = f"SELECT count(*) {OURS} AND state <> 'idle'"
TERMINATE = f"SELECT pg_terminate_backend(pid, 5000) {OURS}"
SOON = 1.5  # seconds from a closed connection to an idle session: one, and the rest is for a busy machine


def running(conn: psycopg.Connection) -> int:
    row = conn.execute(RUNNING).fetchone()
    assert row is not None
    return row[0]


def wait_for(count: int, conn: psycopg.Connection, seconds: float = 20) -> float:
    """Seconds until so many sessions of the server are at work."""
    began = time.monotonic()
    while running(conn) != count:
        assert time.monotonic() - began < seconds, f"{running(conn)} sessions are at work, not {count}"
        time.sleep(0.01)
    return time.monotonic() - began


@contextmanager
def streaming(http: httpx.Client, **more: object) -> Iterator[Iterator[str]]:
    """Lines of a stream that goes on and on; the connection is closed at the end."""
    asked = LONG | {"stream": True} | more
    with (
        httpx.Client(base_url=http.base_url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=asked) as response,
    ):
        assert response.status_code == 200, response.read()
        lines = response.iter_lines()
        next(lines)
        yield lines


@pytest.fixture
def few(dsn: str, model: str) -> Iterator[httpx.Client]:
    """A server of two sessions, and a queue of one."""
    with serving(dsn, "--pool-size", "2", "--queue-size", "1") as client:
        yield client


def test_tokens_arrive_as_they_are_computed(http, conn):
    with streaming(http, max_tokens=60) as lines:
        came = [time.monotonic() for line in lines if line]
    assert sum(b - a > 0.002 for a, b in pairwise(came)) > len(came) / 2, "they came together"


def test_a_stream_that_is_left_stops_computing(http, conn):
    with streaming(http):
        assert running(conn) == 1
    assert wait_for(0, conn) < SOON


@pytest.mark.parametrize(
    "body",
    [LONG, LONG | {"n": 3, "temperature": 0}, LONG | {"stream": True, "prompt": "low " * 300}],
    ids=["completion", "several texts", "long prompt"],
)
def test_a_request_that_is_left_before_it_is_answered_stops_computing(http, conn, body):
    address = urlsplit(str(http.base_url))
    with socket.create_connection((address.hostname, address.port)) as connection:
        content = httpx.Request("POST", "http://x", json=body).read()
        lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        head = "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""])
        connection.sendall(head.encode() + content)
        wait_for(1, conn)
    assert wait_for(0, conn) < SOON


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/api/pictures/runs"])
def test_who_leaves_while_sending_a_body_is_no_error(dsn, model, path, capfd):
    with serving(dsn) as http:
        address = urlsplit(str(http.base_url))
        with socket.create_connection((address.hostname, address.port)) as connection:
            lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 99"]
            connection.sendall("\r\n".join([*lines, "", '{"model":']).encode())
            time.sleep(0.2)  # until it reads the body
        assert http.get("/v1/models").status_code == 200
    assert capfd.readouterr().err == ""


def test_a_session_is_as_new_after_a_stream_that_was_left(http, conn):
    expected = http.post("/v1/completions", json=SHORT | {"seed": 3}).json()["choices"]
    for _ in range(10):
        with streaming(http):
            pass
        assert http.post("/v1/completions", json=SHORT | {"seed": 3}).json()["choices"] == expected
    assert wait_for(0, conn) < SOON


def test_one_more_than_the_queue_holds_is_told_to_come_back(few, conn):
    with ThreadPoolExecutor() as threads:
        with streaming(few), streaming(few):
            asked = [threads.submit(few.post, "/v1/completions", json=SHORT) for _ in range(3)]
            ended = as_completed(asked, timeout=10)
            answered = [next(ended).result(), next(ended).result()]
            (waiting,) = (each for each in asked if not each.done())
            for answer in answered:
                assert answer.status_code == 429
                assert answer.json()["error"]["type"] == "rate_limit_error"
                assert int(answer.headers["retry-after"]) >= 1
            assert few.post("/v1/embeddings", json={"model": MODEL, "input": "a"}).status_code == 429
            assert few.get("/v1/models").status_code == 200, "a look takes no turn of a generation's"
            assert not waiting.done()
        assert waiting.result(10).status_code == 200


def test_who_leaves_the_queue_makes_room(few, conn):
    with streaming(few), streaming(few):
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                few.post("/v1/completions", json=SHORT, timeout=0.5)
            time.sleep(0.3)
    assert few.post("/v1/completions", json=SHORT).status_code == 200


def test_many_streams_at_once_are_all_served(dsn, model, conn):
    """More than there are sessions; each says what it would say alone."""
    with serving(dsn, "--pool-size", "3") as client, ThreadPoolExecutor(8) as threads:
        asked = SHORT | {"max_tokens": 30, "temperature": 0}
        alone = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]

        def text(_: int) -> str:
            return client.post("/v1/completions", json=asked).json()["choices"][0]["text"]

        assert set(threads.map(text, range(16))) == {alone}


def test_a_server_that_is_stopped_leaves_nothing_running(dsn, model, conn):
    """A stream has five seconds to come to its end."""
    with ExitStack() as stack:
        with serving(dsn) as client:
            stack.enter_context(streaming(client))
            assert running(conn) == 1
        assert wait_for(0, conn) < SOON


def test_many_viewers_and_streams_are_answered(http, conn):
    """8 streams that go on and on, and 50 viewers beside them: 5 s are for a machine that does other things, too."""
    with ExitStack() as stack, ThreadPoolExecutor(50) as threads:
        for _ in range(8):
            stack.enter_context(streaming(http))
        wait_for(8, conn)

        def look(number: int) -> float:
            began = time.monotonic()
            assert http.get("/" if number % 2 else "/v1/models").status_code == 200
            return time.monotonic() - began

        assert sorted(threads.map(look, range(100)))[95] < 5
    assert wait_for(0, conn) < SOON


def test_a_database_that_was_restarted_is_found_again(http, conn):
    """The sessions that it had are gone; the requests that come next do not notice."""
    for _ in range(3):
        conn.execute(TERMINATE)
        assert http.post("/v1/completions", json=SHORT).status_code == 200
        assert http.get("/v1/models").status_code == 200


def test_a_statement_that_the_database_ends_is_told_in_the_stream(http, conn):
    with streaming(http) as lines:
        conn.execute(TERMINATE)
        rest = [line for line in lines if line]
    assert '"code":"database_unavailable"' in rest[-1]
    assert "[DONE]" not in rest[-1]
