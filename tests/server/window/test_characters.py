"""Texts whose characters are of several tokens."""

from playwright.sync_api import expect

SMILES = "a" + "\N{GRINNING FACE}" * 30  # 121 tokens of the model, which has a window of 64


def test_a_long_text_that_is_not_ascii_is_cut_behind_a_character(open_page, address):
    page = open_page(f"{address}#inside")
    expect(page.locator("#head svg")).to_be_visible()
    page.locator("#inside-prompt").fill(SMILES)
    page.locator("#look").click()
    expect(page.locator("#inside-status")).to_have_text("The first 61 tokens of 121")
    expect(page.locator("#tokens > span")).to_have_count(61)
    for picture in ("tokens", "next", "lens", "grid", "head"):
        expect(page.locator(f"#{picture}-sql .parameters")).to_contain_text(f"'{SMILES[:16]}'")
    drawn = "e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data].filter((a, i) => i % 4 === 3 && a).length"
    assert page.locator("#grid canvas").first.evaluate(drawn) > 60
