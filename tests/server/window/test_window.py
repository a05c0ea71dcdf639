"""The page in a browser: what one sees is what the database says, by mouse and by keyboard, wide and narrow."""

import contextlib
import json
import re
import threading
import time

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from .conftest import MODEL, PROMPT, settled

VIEWS = ("write", "inside", "runs", "models")
READY = {"write": "#go", "inside": "#head svg", "runs": "#loss svg", "models": "#memory td"}
AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def written(page, n=12, seed=5):
    """The tokens of a text that the page wrote."""
    page.locator("#prompt").fill(PROMPT)
    page.locator("#max_tokens").fill(str(n))
    page.locator("#seed").fill(str(seed))
    page.locator("#go").click()
    expect(page.locator("#write-status")).to_contain_text(re.compile(r"^\d+ token"))
    return page.locator("#text .token")


def shares(locator, selector=""):
    """The --p of elements, their probability as the style sheet gets it."""
    return locator.evaluate_all(
        f"all => all.map(e => +({f'e.querySelector({json.dumps(selector)})' if selector else 'e'}).style.getPropertyValue('--p'))"
    )


def set_range(page, selector, value):
    page.locator(selector).evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def test_typing_streams_tokens_shaded_by_their_probability(open_page, address, conn):
    page = open_page(address)
    tokens = written(page)
    rows = conn.execute(
        "SELECT text, logprob FROM llm_generate_stream(%s, 12, 0.8, seed => 5, model_name => %s, echo => false)",
        [PROMPT, MODEL],
    ).fetchall()
    assert re.sub("[⏎∎]", "", "".join(tokens.all_text_contents())) == rows[-1][0]
    assert shares(tokens) == pytest.approx([2.718281828459045 ** row[1] for row in rows], rel=1e-5)
    assert page.locator("#text .given").text_content() == PROMPT
    assert MODEL.replace("'", "''") in page.locator("#write-sql pre").text_content()


def test_a_stopped_text_stops_in_the_database(open_page, address, conn):
    never = "SELECT token_id FROM llm_bpe_vocab WHERE model = 'endless' AND bytes = '\\xff'"
    conn.execute("SELECT llm_train_bpe('SELECT body FROM t', 300, 'endless')")
    conn.execute("SELECT llm_init_model('endless', 12, 8, 512, 64, seed => 1)")  # which takes its time
    conn.execute(f"UPDATE llm_model_config SET eos_token_id = ({never}) WHERE model = 'endless'")
    page = open_page(address)
    page.locator("#model").select_option("endless")
    page.locator("#max_tokens").fill("1024")
    page.locator("#go").click()
    expect(page.locator("#text .token").nth(3)).to_be_visible()
    page.locator("#stop-writing").click()
    expect(page.locator("#write-status")).to_contain_text("stopped after")
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ '(FETCH|llm_generate_stream)'"
        " AND application_name = 'pg_gpt2 serve'"
    )
    deadline = time.monotonic() + 10  # a second, on a machine that is not busy
    while conn.execute(busy).fetchone() != (0,):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_token_shows_its_alternatives_and_the_text_goes_on_from_one(open_page, address, conn):
    page = open_page(address)
    tokens = written(page)
    texts = tokens.all_text_contents()
    tokens.nth(4).click()
    expect(page.locator("#alternatives")).to_be_visible()
    before = PROMPT + "".join(texts[:4]).replace("⏎", "")
    likely = conn.execute("SELECT token, probability FROM llm_next_token(%s, 12, 0.8, %s)", [before, MODEL]).fetchall()
    offered = page.locator("#alternatives-list button")
    assert shares(offered, ".fill") == pytest.approx([p for _, p in likely], rel=1e-4)
    rank = next(i for i, (token, _) in enumerate(likely) if token != texts[4] and token.strip())
    offered.nth(rank).click()
    expect(page.locator("#alternatives")).to_be_hidden()
    expect(page.locator("#write-status")).to_contain_text(re.compile(r"^\d+ token"))
    now = tokens.all_text_contents()
    assert now[:5] == [*texts[:4], likely[rank][0]]
    assert len(now) > 5


def test_alternatives_that_the_knobs_cut_are_pale(open_page, address):
    page = open_page(address)
    written(page).nth(2).click()
    expect(page.locator("#alternatives-list button")).to_have_count(12)
    page.locator("#topk").fill("3")
    expect(page.locator("#alternatives-list button.cut")).to_have_count(9)
    page.locator("#topk").fill("0")
    page.locator("#topp").fill("0")
    expect(page.locator("#alternatives-list button.cut")).to_have_count(11)


def look(page, text=PROMPT):
    page.goto(page.url.split("#")[0] + "#inside")
    expect(page.locator("#head svg")).to_be_visible()
    page.locator("#inside-prompt").fill(text)
    page.locator("#look").click()
    expect(page.locator("#inside-status")).to_contain_text("token")
    expect(page.locator("#head-sql pre")).to_contain_text(text)


def test_next_tokens_follow_the_temperature_without_a_request(open_page, address, conn):
    page = open_page(address)
    look(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for temperature in (0.3, 1.5):
        set_range(page, "#inside-temperature", temperature)
        label = page.locator("#next-bars svg").get_attribute("aria-description")
        rows = conn.execute(
            "SELECT token, probability FROM llm_next_token(%s, 3, %s, %s)", [PROMPT, temperature, MODEL]
        )
        for token, p in rows.fetchall():
            told = f"{100 * p:.0f}%" if p >= 0.1 else f"{100 * p:#.2g}%"
            assert f"{token.strip()} {told}" in label
    assert asked == []
    assert page.locator("#temperature").input_value() == "1.5"  # one knob in two views


def test_heads_are_looked_into(open_page, address, conn):
    page = open_page(address)
    look(page)
    page.get_by_role("button", name="Layer 1, head 0").click()
    expect(page.locator("#h-head")).to_have_text("Layer 1, head 0")
    weights = conn.execute("SELECT weight FROM llm_attention_weights(%s, 1, 0, %s)", [PROMPT, MODEL]).fetchall()
    expect(page.locator("#head-sql .parameters")).to_contain_text("$2 = 1")
    drawn = page.locator("#head svg rect[fill-opacity]").evaluate_all(
        "all => all.map(e => +e.getAttribute('fill-opacity'))"
    )
    assert sorted(drawn) == pytest.approx(sorted(w for (w,) in weights), abs=1e-4)
    pixels = (
        page.get_by_role("button", name="Layer 1, head 0")
        .locator("canvas")
        .evaluate(
            "e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data].filter((_, i) => i % 4 === 3)"
        )
    )
    n = round(len(pixels) ** 0.5)
    lower = [pixels[row * n + column] / 255 for row in range(n) for column in range(row + 1)]
    assert lower == pytest.approx([w for (w,) in weights], abs=0.003)


def test_layers_say_what_the_lens_says(open_page, address, conn):
    page = open_page(address)
    look(page)
    rows = conn.execute("SELECT token FROM llm_logit_lens(%s, %s, 5) ORDER BY layer DESC, rank", [PROMPT, MODEL])
    assert page.locator("#lens td div").evaluate_all("all => all.map(e => e.title)") == [t for (t,) in rows.fetchall()]


def test_a_long_text_is_looked_at_from_its_beginning(open_page, address):
    page = open_page(address)
    page.goto(f"{address}#inside")
    expect(page.locator("#head svg")).to_be_visible()
    page.locator("#inside-prompt").fill("the cat sat on the mat; " * 40)
    page.locator("#look").click()
    expect(page.locator("#inside-status")).to_contain_text("The first 64 tokens of ")  # the model's window
    expect(page.locator("#tokens > span")).to_have_count(64)


def test_a_run_is_watched_as_it_learns_and_stopped(open_page, address, connect, conn):
    conn.execute("SELECT llm_copy_model(%s, 'learner')", [MODEL])
    conn.execute("SELECT llm_dataset_load('SELECT body FROM t', 'learner', 32, val_fraction => 0.2)")
    session = connect(options="-c client_min_messages=warning")
    call = "CALL llm_train_run('learner', 100000, commit_every => 4, flush_seconds => 0, eval_every => 20, batch_size => 2)"

    def learn():
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            session.execute(call)

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        page = open_page(f"{address}#runs")
        expect(page.locator("#run-status")).to_contain_text(re.compile("running, step [1-9]"))
        steps = []
        for _ in range(2):
            told = page.locator("#run-status").text_content()
            steps.append(int(re.search(r"step ([\d,]+)", told)[1].replace(",", "")))
            expect(page.locator("#run-status")).not_to_have_text(told)
        assert steps == sorted(set(steps))
        expect(page.locator("#loss svg")).to_have_attribute(
            "aria-description", re.compile("training from .*validation")
        )
        expect(page.locator("#samples li").first).to_contain_text("learner, step")  # one after a validation
        expect(page.locator("#no-checkpoints")).to_contain_text("llm_checkpoint_save('learner')")
        page.locator("#stop-run").click()
        thread.join(60)
        assert not thread.is_alive()
        expect(page.locator("#run-status")).to_contain_text("stopped, step")
        expect(page.locator("#stop-run")).to_be_hidden()
    finally:
        with psycopg.connect(conn.info.dsn, autocommit=True) as other:
            other.execute("SELECT pg_cancel_backend(%s)", [session.info.backend_pid])
        thread.join(60)
    assert conn.execute("SELECT status FROM llm_run WHERE model = 'learner'").fetchone() == ("stopped",)


def test_checkpoints_stand_side_by_side(open_page, address, conn):
    page = open_page(f"{address}#runs")
    run = conn.execute("SELECT min(run_id) FROM llm_run").fetchone()[0]
    expect(page.locator(f"#run option[value='{run}']")).to_be_attached()
    page.locator("#run").select_option(str(run))
    expect(page.locator("#both")).to_contain_text("before <b>")
    page.locator("#other").select_option("2")
    expect(page.locator("#both th").nth(1)).to_have_text("checkpoint 2")
    (name, relative) = conn.execute(
        "SELECT name, relative FROM llm_checkpoint_diff(1, 2) ORDER BY relative DESC NULLS LAST, name LIMIT 1"
    ).fetchone()
    expect(page.locator("#diff svg")).to_have_attribute("aria-description", re.compile(f"^{name} {relative:.3f}"))


def test_models_are_told_with_their_sizes_and_users(open_page, address, conn):
    written(open_page(address))
    page = open_page(f"{address}#models")
    card = page.locator("article", has=page.get_by_role("heading", name=MODEL))
    expect(card).to_contain_text("adapters on itsmall adapter")
    params, step = conn.execute("SELECT n_params, step FROM llm_models WHERE model = %s", [MODEL]).fetchone()
    expect(card).to_contain_text(f"parameters{params:,}")
    expect(card).to_contain_text(f"versionstep {step}")
    expect(page.locator("article", has_text="small adapter").last).to_contain_text(f"adapter of{MODEL}")
    expect(page.locator("#memory")).to_contain_text("weights")


def test_the_statement_is_copied_so_that_it_runs_anywhere(open_page, address, conn):
    page = open_page(address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    written(page)
    page.locator("#write-sql button").click()
    expect(page.locator("#write-sql button")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    prepare, execute, _ = copied.split(";\n", 2)
    conn.execute(prepare)
    tokens = page.locator("#text .token").all_text_contents()
    assert conn.execute(execute).fetchall()[-1][3] == re.sub("[⏎∎]", "", "".join(tokens))


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")


def tab_to(page, wanted):
    """Press Tab until `wanted` has the focus, and see that it shows."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused(page) == wanted:
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none"
            return
    raise AssertionError(f"Tab does not reach {wanted}")


def test_everything_goes_by_keyboard_alone(open_page, address):
    page = open_page(address)
    expect(page.locator("#model option").first).to_be_attached()
    tab_to(page, "prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("the cat")
    tab_to(page, "temperature")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#temperature-now")).to_have_text("0.85")
    tab_to(page, "go")
    page.keyboard.press("Enter")
    expect(page.locator("#write-status")).to_contain_text(re.compile(r"^\d+ token"))
    page.keyboard.press("Tab")  # the text is one stop
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#text .token").nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#alternatives")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#alternatives")).to_be_hidden()
    page.keyboard.press("Home")
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if focused(page) == "Look inside":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#head svg")).to_be_visible()
    tab_to(page, "look")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Layer 0, head 0":
            break
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#h-head")).to_have_text("Layer 1, head 1")


@pytest.mark.parametrize(("width", "scheme"), [(380, "light"), (1600, "dark")])
def test_no_view_has_a_serious_fault_or_is_wider_than_the_window(open_page, address, width, scheme):
    page = open_page(address, width=width, scheme=scheme)
    for view in VIEWS:
        page.goto(f"{address}#{view}")
        expect(page.locator(READY[view]).first).to_be_visible()
        if view == "write":
            written(page).nth(2).click()
            expect(page.locator("#alternatives-list button").first).to_be_visible()
        found = Axe().run(page, options=AXE).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
        for other in (380, 800, 1600):
            page.set_viewport_size({"width": other, "height": 900})
            assert settled(lambda: page.evaluate("document.documentElement.scrollWidth"), other) == other
        page.set_viewport_size({"width": width, "height": 900})


def test_an_error_of_the_database_is_told_and_goes_away(open_page, address):
    page = open_page(address, allowed="400")
    expect(page.locator("#model option").first).to_be_attached()
    page.locator("#model").evaluate("e => { e.options[0].value = 'none such'; e.selectedIndex = 0; }")
    page.locator("#go").click()
    expect(page.locator("#problem")).to_contain_text("none such")
    page.locator("#model").evaluate("(e, name) => { e.options[0].value = name; }", MODEL)
    written(page)
    expect(page.locator("#problem")).to_be_hidden()


def test_a_server_with_a_key_asks_for_it(open_page, serve):
    page = open_page(serve("--api-key", "open sesame"), allowed="401")
    page.locator("#key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#ask-key")).to_be_visible()
    page.locator("#key").fill("open sesame")
    page.keyboard.press("Enter")
    written(page)


def test_without_leave_to_train_there_is_no_button_that_stops(open_page, serve):
    page = open_page(f"{serve()}#runs")
    expect(page.locator("#loss svg")).to_be_visible()
    expect(page.locator("#stop-run")).to_be_hidden()
