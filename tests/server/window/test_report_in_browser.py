"""The file of `pg-gpt2 report` in a browser: it is drawn, fits a narrow window, and asks for nothing."""

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from loaders.common import Database
from loaders.report.data import Sampling, read
from loaders.report.page import render


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1200, "light")])
def test_a_report_is_drawn_to_the_last_step_and_fits_the_window(open_page, dsn, model, tmp_path, width, scheme):
    with psycopg.connect(dsn) as conn:
        (tmp_path / "report.html").write_text(render(read(Database(conn), 1, Sampling())), encoding="utf-8")
    page = open_page((tmp_path / "report.html").as_uri(), width=width, scheme=scheme)
    expect(page.locator("figure svg")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    label = "[aria-label='x-axis tick label'] text"
    assert page.locator("#chart-0").locator(label).all_text_contents()[-1] == "30"
    for figure in page.locator("figure").all():
        box, svg = figure.bounding_box(), figure.locator("svg").bounding_box()
        assert box["x"] <= svg["x"]
        assert svg["x"] + svg["width"] <= box["x"] + box["width"]
    page.locator("#chart-0 svg").hover()
    expect(page.locator("#chart-0 [aria-label=tip]")).to_contain_text("training")
    assert [fault["id"] for fault in Axe().run(page).response["violations"] if fault["impact"] != "minor"] == []
