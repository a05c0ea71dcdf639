"""Words without a blank, in prompts, notes and names, do not make the page wider than the window."""

import pytest
from playwright.sync_api import Page, expect

from .conftest import settled

LONG = "long" * 30
NOTES = ("https://example.com/" + "checkpoints/" * 12, "n" * 200)
WIDTHS = (380, 800, 1280, 1600)


@pytest.fixture(scope="module")
def long_named(module_conn, model) -> str:
    """A model with a long name and a run, without checkpoints; MODEL gets checkpoints with long notes."""
    module_conn.execute("SELECT llm_copy_model(%s, %s)", [model, LONG])
    module_conn.execute("SELECT llm_dataset_load('SELECT body FROM t', %s, 32)", [LONG])
    module_conn.execute("SELECT llm_train(%s, 2)", [LONG])
    for note in NOTES:
        module_conn.execute("SELECT llm_checkpoint_save(%s, %s)", [model, note])
    return LONG


def fits(page: Page) -> None:
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert settled(lambda: page.evaluate("document.documentElement.scrollWidth"), width) == width


def lines(page: Page, selector: str) -> int:
    """How many lines the text of an element has."""
    return page.locator(selector).first.evaluate(
        "e => { const all = document.createRange(); all.selectNodeContents(e.firstChild); return all.getClientRects().length; }"
    )


def test_a_long_prompt_fits(open_page, address):
    page = open_page(address)
    page.locator("#prompt").fill("W" * 60)
    page.locator("#max_tokens").fill("3")
    page.locator("#go").click()
    expect(page.locator("#write-status")).to_contain_text("token")
    page.locator("#text .token").first.click()
    expect(page.locator("#alternatives-told")).to_contain_text("W" * 60)
    fits(page)


def test_long_notes_of_checkpoints_fit(open_page, address, long_named):
    page = open_page(f"{address}#runs")
    page.locator("#run").select_option("1")
    expect(page.locator("#one option", has_text=NOTES[1])).to_be_attached()
    for one, other in (("3", ""), ("4", "3"), ("4", "")):
        page.locator("#one").select_option(one)
        page.locator("#other").select_option(other)
        expect(page.locator("#both thead th")).to_have_text(
            [f"checkpoint {one}", f"checkpoint {other}" if other else "the model"]
        )
        fits(page)


def test_a_long_name_fits(open_page, address, long_named):
    page = open_page(f"{address}#runs")
    page.locator("#run").select_option("2")
    expect(page.locator("#no-checkpoints")).to_contain_text(long_named)
    page.get_by_role("button", name="Sample now").click()
    expect(page.locator("#samples li").first).to_contain_text(long_named)
    fits(page)
    page.set_viewport_size({"width": 380, "height": 900})
    assert lines(page, ".run") == 1, "beside a long name stand whole words"
    for view, ready in (("inside", "#head svg"), ("models", "#memory td"), ("write", "#go")):
        page.goto(f"{address}#{view}")
        page.locator("#model").select_option(long_named)
        expect(page.locator(ready).first).to_be_visible()
        fits(page)
        if view == "models":
            expect(page.locator("#memory td").filter(has_text=long_named).first).to_be_visible()
            assert settled(lambda: lines(page, "#memory th:nth-child(5)"), 1) == 1
