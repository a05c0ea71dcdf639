"""A server of the page, a browser, and a model whose name is markup and quotes; nothing may leave this machine."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.server.serve.serving import serving

MODEL = """<i>tiny</i> "50%" o'model"""
PROMPT = "the <b>cat</b>"

PATIENCE = 60_000  # milliseconds, on a machine that is busy with other things

expect.set_options(timeout=PATIENCE)
Serve = Callable[..., str]


@pytest.fixture(scope="module")
def model(module_conn: psycopg.Connection) -> str:
    """A small model that has learned a little, with a run, two checkpoints and an adapter."""
    text = "'the <b>cat</b> sat on the mat; the dog & the cat slept on the log. ' || x || ' '"
    module_conn.execute(f"CREATE TABLE t AS SELECT {text} AS body FROM generate_series(1, 60) AS x")
    module_conn.execute("SET client_min_messages = warning")
    module_conn.execute("SELECT llm_train_bpe('SELECT body FROM t', 300, %s)", [MODEL])
    module_conn.execute("SELECT llm_init_model(%s, 2, 2, 32, 64, seed => 3)", [MODEL])
    module_conn.execute("SELECT llm_dataset_load('SELECT body FROM t', %s, 32, val_fraction => 0.2)", [MODEL])
    module_conn.execute("SELECT llm_checkpoint_save(%s, 'before <b>')", [MODEL])
    module_conn.execute("SELECT llm_train(%s, 30, lr_max => 0.01, eval_every => 10)", [MODEL])
    module_conn.execute("SELECT llm_checkpoint_save(%s, 'after')", [MODEL])
    module_conn.execute("SELECT llm_adapter_create('small adapter', %s, r => 2)", [MODEL])
    return MODEL


@pytest.fixture(scope="module")
def serve(dsn: str, model: str) -> Iterator[Serve]:
    """`serve(*options)`: the address of a `pg-gpt2 serve` of this module's database."""
    with ExitStack() as running:
        yield lambda *options: str(running.enter_context(serving(dsn, *options)).base_url)


@pytest.fixture(scope="module")
def address(serve: Serve) -> str:
    """Of a server that lets requests write."""
    return serve("--allow-training")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium, which finds no host but this one."""
    program = shutil.which("chromium")
    assert program, "there is no chromium: docker/provision.sh test installs it, or says how"
    flags = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking"]
    flags.append("--renderer-process-limit=8")  # for many pages
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=flags + (["--no-sandbox"] if os.geteuid() == 0 else [])
        )
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(url, width=1280, scheme="light")`: no page may ask elsewhere, break its policy, or have an error."""
    opened, wrong = [], []

    def open_it(url: str, *, width: int = 1280, scheme: str = "light", allowed: str = "") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE)
        context.on("request", lambda r: None if r.url.startswith(url.split("#")[0]) else wrong.append(r.url))
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda m: wrong.append(m.text) if m.type == "error" and not (allowed and allowed in m.text) else None,
        )
        page.goto(url)
        opened.append(context)
        return page

    yield open_it
    for context in opened:
        context.close()
    assert wrong == []


def settled(measure: Callable[[], int], wanted: int) -> int:
    """What `measure` gives as soon as that is `wanted`, else after ten seconds: charts are drawn again after the layout."""
    deadline = time.monotonic() + 10
    while (found := measure()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
