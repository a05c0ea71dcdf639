"""Rows about `pg-gpt2 serve`: what HTTP adds to a token that SQL gives, and several streams at once."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import httpx
from decoding import english_of
from harness import Bench, us
from ours import MODEL, timed
from shapes import ROOT

PROMPT, NEW = 16, 64  # tokens
TRIES = 5  # of each party, in turns; the best counts
STREAMS = 8
FEW = 2  # sessions, for which the others wait
ONE = "one by one"
QUERY = """
    SELECT (llm_generate_stream(%s, %s, 0, 0, 1, %s, eos_token => -1, echo => false)).*
"""


@contextmanager
def server(bench: Bench, *arguments: str) -> Iterator[httpx.Client]:
    """A client of a server on the database of the benchmark."""
    command = [sys.executable, "-m", "loaders", "serve", "--dsn", bench.server.dsn, "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            with httpx.Client(base_url=process.stdout.readline().strip(), timeout=600) as client:
                yield client
        finally:
            process.terminate()


def over_http(client: httpx.Client, prompt: str) -> int:
    """A stream, read to its end; how many tokens came."""
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": NEW, "temperature": 0, "eos_token": -1, "stream": True}
    with client.stream("POST", "/v1/completions", json=asked | {"stream_options": {"include_usage": True}}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    assert f'"completion_tokens":{NEW},' in lines[-2], lines[-2]
    return len(lines)


def serve(bench: Bench) -> None:
    """A token through the endpoint beside one through a cursor; then streams at once, with sessions for all and for few."""
    prompts = [english_of(bench, PROMPT) for _ in range(STREAMS)]
    row = bench.row("serve token", f"what HTTP adds to a token, one stream, {NEW} new", "ms", NEW * 1e-3)
    with bench.server.session(prefix_cache="64MB") as session, server(bench) as client:

        def in_sql() -> None:
            with session.conn.transaction(), session.conn.cursor("stream") as cursor:
                cursor.execute(QUERY, (prompts[0], NEW, MODEL))
                while cursor.fetchmany(1):
                    pass

        def over() -> int:
            return over_http(client, prompts[0])

        in_sql()  # both have the weights then, and have read the prompt
        over()
        bench.wait()
        both = [(timed(over)[0], timed(in_sql)[0]) for _ in range(TRIES)]
        http, sql = map(min, zip(*both))
        row.add("pg_gpt2", max(http - sql, 1e-9))
        row.add("in SQL", sql)
        together(bench, client, prompts)


def together(bench: Bench, client: httpx.Client, prompts: list[str]) -> None:
    """All prompts at once with a session each, with few sessions, and one by one."""
    row = bench.row("serve streams", f"{STREAMS} streams at once, {NEW} new each", "tok/s", STREAMS * NEW, rate=True)

    def at_once(client: httpx.Client) -> None:
        with ThreadPoolExecutor(STREAMS) as threads:
            list(threads.map(partial(over_http, client), prompts))

    with server(bench, "--pool-size", str(FEW)) as few:
        for each in (client, few):
            at_once(each)
        bench.compare(
            row,
            0,
            [
                us(partial(at_once, client)),
                (f"with {FEW} sessions", partial(at_once, few)),
                (ONE, lambda: [over_http(client, prompt) for prompt in prompts]),
            ],
        )
