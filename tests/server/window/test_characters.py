"""Texts whose characters are of several tokens."""

import re

import pytest
from playwright.sync_api import expect

from .conftest import MODEL

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


@pytest.fixture(scope="module")
def smiling(module_conn, model) -> str:
    """A model that writes smiles, each of several tokens."""
    module_conn.execute(
        "CREATE TABLE smiles AS SELECT string_agg(chr(128512 + (x * x + y) % 5), '') AS body"
        " FROM generate_series(1, 40) AS x, generate_series(1, 60) AS y GROUP BY x"
    )
    module_conn.execute("SELECT llm_train_bpe('SELECT body FROM smiles', 258, 'smiling')")
    module_conn.execute("SELECT llm_init_model('smiling', 1, 2, 32, 64, seed => 3)")
    module_conn.execute("SELECT llm_dataset_load('SELECT body FROM smiles', 'smiling', 32)")
    module_conn.execute("SELECT llm_train('smiling', 150, lr_max => 0.02)")
    return "smiling"


def wrote(page, prompt, n, temperature=1):
    """The tokens of a text that the page wrote, at 1 drawn from the plain distribution."""
    given = {"prompt": prompt, "max_tokens": n, "seed": 5, "temperature": temperature, "topk": 0, "topp": 1}
    for name, value in given.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("#go").click()
    expect(page.locator("#write-status")).to_have_text(re.compile(rf"^{n} tokens, "))
    return page.locator("#text .token")


def test_alternatives_are_of_the_context_in_which_a_token_was_written(open_page, address, conn, smiling):
    page = open_page(address)
    page.locator("#model").select_option(smiling)
    tokens = wrote(page, "\N{GRINNING FACE}", 16)
    rows = conn.execute(
        "SELECT llm_decode_bytes(ARRAY[token_id], 'smiling') FROM"
        " llm_generate_stream(%s, 16, 1, 0, 1, 'smiling', seed => 5, echo => false)",
        ["\N{GRINNING FACE}"],
    ).fetchall()
    written, texts = b"", 0
    for i, (piece,) in enumerate(rows):
        tokens.nth(i).click()
        expect(tokens.nth(i)).to_have_attribute("aria-pressed", "true")
        before = "\N{GRINNING FACE}" + written.decode(errors="replace")
        if "\N{REPLACEMENT CHARACTER}" in before:
            expect(page.locator("#alternatives-told")).to_contain_text("no whole character")
            expect(page.locator("#alternatives-list li, #alternatives-sql pre")).to_have_count(0)
        else:
            texts += 1
            expect(page.locator("#alternatives-told")).to_contain_text(f"After “{before}”")
            share = page.locator("#alternatives-list .chosen .fill").evaluate("e => +e.style.getPropertyValue('--p')")
            assert share == pytest.approx(tokens.nth(i).evaluate("e => +e.style.getPropertyValue('--p')"), rel=1e-4)
        written += piece
    assert 1 < texts < 16


def test_the_token_that_was_written_is_found_among_those_of_its_vocabulary(open_page, address, conn, smiling):
    """An id is another token in another model, unless that is an adapter."""
    page = open_page(address)
    page.locator("#model").select_option(MODEL)
    wrote(page, "the", 2)
    query = "SELECT token_id FROM llm_generate_stream('the', 1, 1, 0, 1, %s, seed => 5, echo => false)"
    ((first,),) = conn.execute(query, [MODEL])
    found = {"tokens": ["one", "two"], "ids": [first, first + 1], "logits": [1, 0], "n_tokens": 1, "special": []}
    page.route("**/api/pictures/next", lambda route: route.fulfill(json={"sql": "", "parameters": [], "rows": [found]}))
    for model, chosen in ((MODEL, 1), (smiling, 0), ("small adapter", 1)):
        page.locator("#model").select_option(model)
        with page.expect_response("**/api/pictures/next"):
            page.locator("#text .token").first.click()
        expect(page.locator("#alternatives-list li")).to_have_count(2)
        expect(page.locator("#alternatives-list li.chosen")).to_have_count(chosen)


def test_a_part_of_a_character_is_not_offered(open_page, address, smiling):
    page = open_page(address)
    page.locator("#model").select_option(smiling)
    wrote(page, "\N{GRINNING FACE}", 4).first.click()
    offered = page.locator("#alternatives-list button")
    expect(offered).to_have_count(12)
    part = offered.filter(has_text="\N{REPLACEMENT CHARACTER}")
    assert part.count() > 0
    assert page.locator("#alternatives-list button:disabled[title='a part of a character']").count() == part.count()


def test_a_special_token_is_not_offered(open_page, address, conn):
    """As a text, the name of the end of a text would be read as its letters."""
    page = open_page(address)
    page.locator("#model").select_option(MODEL)
    ((end,),) = conn.execute("SELECT token_id FROM llm_bpe_vocab WHERE model = %s AND token = '<|endoftext|>'", [MODEL])

    def likely(route):
        answer = route.fetch().json()
        rank = answer["rows"][0]["ids"].index(end) if end in answer["rows"][0]["ids"] else 59
        for values, value in ((answer["rows"][0]["ids"], end), (answer["rows"][0]["tokens"], "<|endoftext|>")):
            values[rank], values[3] = values[3], value
        route.fulfill(json=answer)

    for model in (MODEL, "small adapter"):
        page.locator("#model").select_option(model)
        wrote(page, "the", 2)
        page.route("**/api/pictures/next", likely)
        with page.expect_response("**/api/pictures/next"):
            page.locator("#text .token").first.click()
        expect(page.locator("#alternatives")).to_be_visible()
        offered = page.locator("#alternatives-list li").nth(3).locator("button")
        expect(offered).to_have_text(re.compile("endoftext"))
        expect(offered).to_be_disabled()
        expect(offered).to_have_attribute("title", "a special token")


def test_a_text_that_has_outgrown_the_window_says_what_its_alternatives_follow(open_page, address):
    page = open_page(address)
    page.locator("#model").select_option(MODEL)
    tokens = wrote(page, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 30, 8, temperature=0)  # after 60 tokens
    told = page.locator("#alternatives-told")
    tokens.nth(6).click()
    expect(told).to_contain_text("the last 64 tokens, the model's window. The text has outgrown it")
    tokens.nth(2).click()
    expect(told).not_to_contain_text("window")


def test_what_was_written_is_told_without_half_a_character(open_page, address):
    page = open_page(address)
    wrote(page, "\N{GRINNING FACE}" * 61, 2).first.click()
    expect(page.locator("#alternatives-told")).to_contain_text("After “" + "\N{GRINNING FACE}" * 60 + "”")
