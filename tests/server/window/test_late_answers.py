"""Answers that come later than what was asked after them: the page shows what is chosen, and says of what it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Route, expect

from .conftest import MODEL


@contextmanager
def held(page: Page, picture: str, **asked: object) -> Iterator[list[Route]]:
    """Requests of a picture with these parameters wait until the block ends, and then the page has time to draw."""
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        if all(body.get(name) == value for name, value in asked.items()):
            waiting.append(route)
        else:
            route.continue_()

    page.route(f"**/api/pictures/{picture}", hold)
    yield waiting
    for route in waiting:
        route.continue_()
    page.unroute(f"**/api/pictures/{picture}")
    page.wait_for_timeout(1000)


@pytest.fixture(scope="module")
def other_run(module_conn, model) -> int:
    """A run of another model, later than MODEL's."""
    module_conn.execute("SELECT llm_copy_model(%s, 'second')", [model])
    module_conn.execute("SELECT llm_dataset_load('SELECT body FROM t', 'second', 32)")
    module_conn.execute("SELECT llm_train('second', 4)")
    (run,) = module_conn.execute("SELECT max(run_id) FROM llm_run").fetchone()
    return run


def runs(page: Page, address: str, run: int) -> None:
    page.goto(f"{address}#runs")
    expect(page.locator(f"#run option[value='{run}']")).to_be_attached()
    page.locator("#run").select_option(str(run))
    expect(page.locator("#loss-sql .parameters")).to_contain_text(f"$1 = {run}")


def waits(page: Page, waiting: list[Route]) -> None:
    """Until a request is held."""
    for _ in range(600):
        if waiting:
            return
        page.wait_for_timeout(50)
    raise AssertionError("nothing was asked")


def test_the_pair_of_checkpoints_that_is_chosen_is_shown(open_page, address):
    page = open_page(address)
    runs(page, address, 1)
    expect(page.locator("#both thead th")).to_have_text(["checkpoint 1", "the model"])
    with held(page, "diff", a=2, b=None) as waiting:
        page.locator("#one").select_option("2")
        waits(page, waiting)
        page.locator("#other").select_option("1")
        expect(page.locator("#both thead th")).to_have_text(["checkpoint 2", "checkpoint 1"])
    expect(page.locator("#both thead th")).to_have_text(["checkpoint 2", "checkpoint 1"])
    expect(page.locator("#diff-sql .parameters")).to_contain_text("$2 = 1")


def test_the_run_that_is_chosen_is_shown(open_page, address, other_run):
    page = open_page(address)
    runs(page, address, 1)
    with held(page, "curve", run_id=other_run) as waiting, held(page, "checkpoints", model="second"):
        page.locator("#run").select_option(str(other_run))
        waits(page, waiting)
        page.locator("#run").select_option("1")
        expect(page.locator("#run-status")).to_contain_text("step 30")
        page.evaluate("""window.drawn = [];
            new MutationObserver(() => drawn.push(document.querySelector("#loss-sql .parameters").textContent))
                .observe(document.querySelector("#loss-sql"), { childList: true, subtree: true });""")
    assert not [told for told in page.evaluate("drawn") if f"$1 = {other_run}" in told]


def test_a_sample_is_labelled_with_its_model_and_its_prompt(open_page, address, other_run):
    page = open_page(address)
    runs(page, address, other_run)
    page.locator("#sample-prompt").fill("the dog")
    with held(page, "sample") as waiting:
        page.get_by_role("button", name="Sample now").click()
        waits(page, waiting)
        page.locator("#run").select_option("1")
        expect(page.locator("#run-status")).to_contain_text("step 30")
        page.locator("#sample-prompt").fill("the mat")
    sample = page.locator("#samples li").first
    expect(sample.locator("small")).to_have_text("second, step 34")
    expect(sample.locator("b")).to_have_text("the dog")
    expect(page.locator("#sample-sql .parameters")).to_contain_text("$2 = 'second'")


def test_a_late_sample_does_not_count_for_the_run_that_is_shown_then(open_page, address):
    """One is drawn after a validation of the first run, and none of the other, which validates no more."""
    validated, sampled, learns = {1: 1, 2: 500}, [], []
    run = {
        "model": MODEL,
        "status": "running",
        "step": 9,
        "n_steps": 99,
        "loss": 1,
        "tokens_per_second": 1,
        "seconds_left": 9,
    }

    def answer(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        rows = [{"run_id": number, **run} for number in validated]
        if "run_id" in body:
            validated[1] += len(learns)  # one more at each look
            rows = [{"step": n, "lr": 1, "loss": 1, "val_loss": 1} for n in range(1, validated[body["run_id"]] + 1)]
        route.fulfill(json={"sql": "SELECT", "parameters": [*body.values()], "rows": rows})

    page = open_page(address)
    page.on("request", lambda request: sampled.append(request) if request.url.endswith("/sample") else None)
    for picture in ("runs", "curve"):
        page.route(f"**/api/pictures/{picture}", answer)
    runs(page, address, 1)
    with held(page, "sample") as waiting:
        learns.append(1)
        waits(page, waiting)
        page.locator("#run").select_option("2")
        expect(page.locator("#loss-sql .parameters")).to_contain_text("$1 = 2")
    expect(page.locator("#samples li")).to_have_count(1)
    with page.expect_response("**/api/pictures/curve"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it looks again, at once
    page.wait_for_timeout(1000)
    assert len(sampled) == 1


def test_the_alternatives_are_of_the_text_that_is_shown(open_page, address):
    page = open_page(address)
    page.locator("#max_tokens").fill("4")
    page.locator("#seed").fill("5")  # with others, a text may end before
    token = page.locator("#text .token")
    told = page.locator("#alternatives-told")
    page.locator("#prompt").fill("the cat")
    page.locator("#go").click()
    expect(token).to_have_count(4)
    with held(page, "next", prompt="the cat") as waiting:
        token.first.click()
        waits(page, waiting)
        page.locator("#prompt").fill("the dog")
        page.locator("#go").click()
        expect(token).to_have_count(4)
        token.first.click()
        expect(told).to_contain_text("After “the dog”")
    expect(told).to_contain_text("After “the dog”")


def test_going_back_to_a_model_shows_its_inside(open_page, address, other_run):
    page = open_page(f"{address}#inside")
    page.locator("#model").select_option(MODEL)
    expect(page.locator("#inside-status")).to_contain_text("token")
    with held(page, "lens", model="second") as waiting:
        page.locator("#model").select_option("second")
        waits(page, waiting)
        page.locator("#model").select_option(MODEL)
        page.wait_for_timeout(200)
    expect(page.locator("#inside-status")).to_contain_text("token")
    for picture in ("tokens", "next", "lens", "grid", "head"):
        expect(page.locator(f"#{picture}-sql .parameters")).not_to_contain_text("second")
