"""Many windows on a run that learns, beside streams: all keep up, and none keeps the others waiting.

`PG_GPT2_WINDOWS=50 PG_GPT2_WINDOW_STREAMS=8` is the long form; with `-s` it prints what it measured (docs/window.md).
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise

import httpx
import psycopg
import pytest
from playwright.sync_api import Page, expect

WINDOWS = int(os.environ.get("PG_GPT2_WINDOWS", "6"))
STREAMS = int(os.environ.get("PG_GPT2_WINDOW_STREAMS", "2"))
SECONDS = 3.0  # that they are watched
# Seconds that a page may be behind, and that a first token may take, on a machine that does other things, too.
LATE = 20.0
OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_gpt2 serve' AND datname = current_database()"
MOST_SESSIONS = 8 + 4  # of the two pools


@pytest.fixture
def learner(connect, conn, model) -> Iterator[None]:
    """A run that goes on and on."""
    conn.execute("SELECT llm_copy_model(%s, 'learner')", [model])
    conn.execute("SELECT llm_dataset_load('SELECT body FROM t', 'learner', 32)")
    session = connect(options="-c client_min_messages=warning")

    def learn() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            session.execute(
                "CALL llm_train_run('learner', 100000, commit_every => 4, flush_seconds => 0, batch_size => 2)"
            )

    thread = threading.Thread(target=learn)
    thread.start()
    yield
    conn.execute("SELECT pg_cancel_backend(%s)", [session.info.backend_pid])
    thread.join(60)


class Streams:
    """Streams that go on until they are stopped, and lists of models beside them."""

    def __init__(self, address: str, model: str) -> None:
        self._address, self._model = address, model
        self._over = threading.Event()
        self.first_tokens: list[float] = []
        self.lists: list[float] = []

    def write(self, number: int) -> None:
        asked = {"model": self._model, "prompt": f"the cat {number}", "max_tokens": 60, "stream": True, "eos_token": -1}
        with httpx.Client(base_url=self._address, timeout=120) as client:
            while not self._over.is_set():
                began = time.monotonic()
                with client.stream("POST", "/v1/completions", json=asked) as response:
                    for place, _ in enumerate(response.iter_lines()):
                        if not place:
                            self.first_tokens.append(time.monotonic() - began)

    def look(self) -> None:
        with httpx.Client(base_url=self._address, timeout=120) as client:
            while not self._over.wait(0.2):
                began = time.monotonic()
                assert client.get("/v1/models").status_code == 200
                self.lists.append(time.monotonic() - began)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(STREAMS + 1) as threads:
            work = [threads.submit(self.write, number) for number in range(STREAMS)] + [threads.submit(self.look)]
            try:
                yield
            finally:
                self._over.set()
        for each in work:
            each.result()


def shown(page: Page) -> int:
    """The step of the run that a page shows, 0 for none."""
    found = re.search(r"running, step ([\d,]+)", page.locator("#run-status").text_content() or "")
    return int(found[1].replace(",", "")) if found else 0


def test_many_windows_keep_up_with_a_run_beside_streams(open_page, serve, model, conn, learner):
    address = serve()  # which stands until all pages are closed: one that asks a server that is gone has an error
    steps, sessions = [], 0
    first = open_page(f"{address}#runs")
    pages = [first]
    for _ in range(WINDOWS - 1):
        pages.append(first.context.new_page())
        pages[-1].goto(first.url, wait_until="commit")
    for page in pages:
        expect(page.locator("#run-status")).to_contain_text("running, step")
    streams = Streams(address, model)
    with streams.running():
        began = time.monotonic()
        seen: list[list[tuple[float, int]]] = [[] for _ in pages]
        while time.monotonic() - began < SECONDS or any(len({step for _, step in each}) < 2 for each in seen):
            assert time.monotonic() - began < SECONDS + LATE, "a page does not keep up"
            (step,) = conn.execute(
                "SELECT max(step) FROM llm_train_log AS l JOIN llm_run AS r USING (run_id) WHERE r.model = 'learner'"
            ).fetchone()
            steps.append((time.monotonic(), step))
            for page, own in zip(pages, seen):
                own.append((time.monotonic(), shown(page)))
            sessions = max(sessions, conn.execute(OURS).fetchone()[0])
    behind = sorted(late for own in seen for late in lateness(own, steps))
    told = {"behind": behind, "first token": sorted(streams.first_tokens), "models": sorted(streams.lists)}
    for what, seconds in told.items():
        print(f"{what}: {len(seconds)}, median {seconds[len(seconds) // 2]:.2f} s, most {seconds[-1]:.2f} s")
    print(f"sessions: {sessions}")
    assert all(step <= later for own in seen for (_, step), (_, later) in pairwise(own)), "a page went back"
    assert max(behind[-1], told["first token"][-1]) < LATE
    assert told["models"][len(streams.lists) * 9 // 10] < LATE / 4
    assert sessions <= MOST_SESSIONS


def lateness(own: list[tuple[float, int]], steps: list[tuple[float, int]]) -> Iterator[float]:
    """For how long what a page showed had not been the newest, each time that it was looked at."""
    for at, step in own:
        newer = [when for when, newest in steps if newest > step and when <= at]
        yield at - newer[0] if newer else 0.0
