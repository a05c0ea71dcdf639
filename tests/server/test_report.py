"""The HTML report of a run: its numbers are the tables', whatever is in them is shown as text, and it stands alone."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from loaders import charts
from loaders.common import Database, LoaderError
from loaders.report.__main__ import last_run
from loaders.report.data import POINTS, Sampling, divided, read
from loaders.report.markup import tag
from loaders.report.page import render

ROOT = Path(__file__).resolve().parents[2]
NAME = """<script>alert("1")</script>'&--><b>"""


class Page(HTMLParser):
    """A document: its elements, its text, and what is in its scripts. Elements must be closed as they were opened."""

    def __init__(self, document):
        super().__init__()
        self.open, self.elements, self.texts, self.scripts, self.style = [], [], [], [], ""
        self.feed(document)
        self.close()
        assert self.open == []
        self.text = "".join(self.texts)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ("meta",):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside == "style":
            self.style += data
        elif inside == "script":
            self.scripts.append(data)
        else:
            self.texts.append(data)

    @property
    def charts(self):
        return json.loads(self.scripts[0]) if self.scripts else []

    def points(self, chart, name):
        """Of the curve `name` of the chart with that title."""
        (found,) = (c for c in self.charts if c["title"].startswith(chart))
        return next((s["points"] for s in found["series"] if s["name"] == name), [])


@pytest.fixture(scope="module")
def run_id(module_conn):
    """A run of a model whose name, vocabulary and checkpoint's note are markup."""
    text = "'<i>low</i> & lower; <b>the cat</b> sat on the mat. '"
    module_conn.execute(f"CREATE TABLE t AS SELECT repeat({text}, 20) AS x")
    module_conn.execute("SELECT llm_train_bpe('SELECT x FROM t', 270, %s)", [NAME])
    module_conn.execute("SELECT llm_init_model(%s, 1, 2, 16, 32)", [NAME])
    module_conn.execute("SELECT llm_dataset_load('SELECT x FROM t', %s, 16, val_fraction => 0.2)", [NAME])
    module_conn.execute("SET client_min_messages = warning")
    module_conn.execute("SELECT llm_checkpoint_save(%s, 'before')", [NAME])
    row = module_conn.execute("SELECT llm_train(%s, 30, lr_max => 0.01, eval_every => 10)", [NAME]).fetchone()
    module_conn.execute("SELECT llm_checkpoint_save(%s, %s)", [NAME, NAME])
    return row[0]


def report(dsn, run_id, **sampling):
    with psycopg.connect(dsn) as conn:
        return render(read(Database(conn), run_id, Sampling(**sampling)))


def shell(dsn, directory, *options):
    """The program, which is to write r.html in `directory`."""
    command = [sys.executable, "-m", "loaders.report", "--dsn", dsn, "--output", directory / "r.html", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})


def log(conn, run_id, columns):
    return conn.execute(f"SELECT {columns} FROM llm_train_log WHERE run_id = %s ORDER BY step", [run_id]).fetchall()


def test_the_command_writes_a_file_that_stands_alone(dsn, run_id, tmp_path):
    done = shell(dsn, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"wrote run {run_id}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not [
        (name, a) for name, a in page.elements if {"src", "href", "style"} & a.keys() or name in ("link", "img")
    ]
    assert [a["id"] for name, a in page.elements if name == "figure"] == [f"chart-{place}" for place in range(4)]
    policy = next(a["content"] for name, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    scripts = " ".join(map(digest, page.scripts[1:]))
    assert policy == f"default-src 'none'; style-src {digest(page.style)}; script-src {scripts}"
    assert len(page.scripts) == 5


def digest(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_charts_are_drawn_by_the_libraries_as_published_under_their_licences(dsn, run_id):
    told = (charts.DIRECTORY / "README.md").read_text(encoding="utf-8")
    document = report(dsn, run_id)
    for name in ("d3.min.js", "plot.umd.min.js"):
        assert f"`{hashlib.sha256((charts.DIRECTORY / name).read_bytes()).hexdigest()}`" in told
        assert charts.text(charts.LICENSES[name]).strip() in document


def test_an_unknown_run_is_an_error_without_traceback(dsn, tmp_path):
    done = shell(dsn, tmp_path, "--run", "999")
    assert done.returncode == 1
    assert done.stderr.startswith("error: run 999 does not exist")
    assert "FROM llm_run lists the runs" in done.stderr, "manual ones included"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "kind"), [(("--seed", "9" * 20), "bigint"), (("--max-tokens", "9" * 11), "integer")], ids=str
)
def test_a_number_that_is_too_large_is_said_to_be(dsn, run_id, tmp_path, option, kind):
    done = shell(dsn, tmp_path, *option)
    assert (done.returncode, done.stderr) == (1, f"error: {kind} out of range\n")


def test_numbers_are_those_of_the_log(dsn, run_id, module_conn):
    page = Page(report(dsn, run_id))
    logged = log(module_conn, run_id, "step, loss, lr, grad_norm, val_loss")
    assert [row[0] for row in logged] == list(range(1, 31))
    assert page.points("Loss", "training") == [[step, loss] for step, loss, *_ in logged]
    assert page.points("Loss", "validation") == [[step, loss] for step, *_, loss in logged if loss is not None]
    assert page.points("Learning", "learning rate") == [[step, lr] for step, _, lr, *_ in logged]
    assert page.points("Gradient", "each step") == [[step, norm] for step, _, _, norm, _ in logged]


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres"])
def test_what_a_role_has_set_changes_no_report(dsn, run_id, style):
    options = f"-c extra_float_digits=-15 -c DateStyle={style.replace(' ', '')}"
    with psycopg.connect(dsn) as usual, psycopg.connect(dsn, options=options) as other:
        expected, found = (read(Database(conn), run_id, Sampling()) for conn in (usual, other))
    assert replace(found, written_at=expected.written_at) == expected


def test_all_that_the_tables_hold_is_text(dsn, run_id):
    page = Page(report(dsn, run_id, prompts=[NAME, "\x01\x1b<"]))
    assert [name for name, _ in page.elements].count("script") == 5
    assert not [name for name, _ in page.elements if name == "i"]
    assert page.text.count(NAME) >= 4  # title, heading, note, prompt
    assert "␁␛<" in page.text


def test_samples_are_what_the_model_generates(dsn, run_id, sql):
    page = Page(report(dsn, run_id, prompts=["<b>the"], max_tokens=20, temperature=0.5, seed=3))
    assert sql("SELECT llm_generate('<b>the', 20, 0.5, model_name => %s, seed => 3)", NAME) in page.text
    assert "Temperature 0.5, seed 3, up to 20 tokens." in page.text


def test_a_model_that_writes_no_more_has_a_report_that_says_so(dsn, run_id, module_conn):
    """Of a run that went wrong one wants the curves. What was asked for wrongly is an error, all the same."""
    saved = module_conn.execute("SELECT llm_checkpoint_save(%s)", [NAME]).fetchone()[0]
    module_conn.execute(
        "UPDATE llm_param SET data = pg_llm_tensor(array_fill('NaN'::float8, ARRAY[octet_length(data) / 4]))"
        " WHERE model = %s AND name = 'ln_f.bias'",
        [NAME],
    )
    try:
        page = Page(report(dsn, run_id))
        assert "The server drew none: pg_gpt2: the model's logits are not finite." in page.text
        assert page.points("Loss", "training")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="temperature"):
            report(dsn, run_id, temperature=-1)
    finally:
        module_conn.execute("SELECT llm_checkpoint_load(%s, %s)", [NAME, saved])
        module_conn.execute("SELECT llm_checkpoint_drop(%s)", [saved])


def test_samples_begin_with_a_word_or_a_text_of_the_validation_data_and_stop_at_its_end(dsn, run_id, module_conn):
    rows = module_conn.execute("SELECT llm_decode(tokens, %s) FROM llm_dataset WHERE split = 'val'", [NAME]).fetchall()
    with psycopg.connect(dsn) as conn:
        samples = read(Database(conn), run_id, Sampling()).samples
    assert len(samples) == 3
    for sample in samples:
        assert any(f" {sample.prompt}{sample.original or ''}" in row for (row,) in rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ng of a text. " + "A word " * 20, "of a"),  # begins in a word
        ("ends here|Another text" + " goes on" * 20, "Another text"),  # begins with a text
        ("A text" + " goes on" * 20 + "|and one that is cut", "A text"),  # and does not go over its end
        ("short", "short"),
    ],
)
def test_a_prompt_begins_with_a_word_or_a_text(text, expected):
    pieces = re.findall(r"\||[^\w|]?\w+|[^\w]", f" {text}" if text[0] == "A" else text)
    first, last = divided(pieces, [piece == "|" for piece in pieces])
    assert "".join(pieces[first:last]).lstrip().startswith(expected)
    assert "|" not in pieces[first:last]


def test_the_default_is_the_last_run_with_a_curve(conn, made_up):
    long, _, manual = made_up(3), made_up(1), made_up(4, status="manual")
    database = Database(conn)
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM llm_run WHERE run_id < %s", [long])
        assert last_run(database) == long
        conn.execute("DELETE FROM llm_run WHERE run_id <> %s", [manual])
        assert last_run(database) == manual
        conn.execute("DELETE FROM llm_run")
        with pytest.raises(LoaderError, match="no training run yet"):
            last_run(database)


def test_steps_since_a_manual_run_are_counted_in_the_model_s_own_steps(dsn, run_id, module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("SELECT llm_train_step(%s), llm_train_step(%s)", [NAME, NAME])
        manual = "SELECT run_id FROM llm_run WHERE status = 'manual'"
        (last,) = module_conn.execute(manual).fetchone()
        texts = [render(read(Database(module_conn), run, Sampling())) for run in (run_id, last)]
        assert "not as this run left it (2 steps later)" in texts[0]
        assert "not as this run left it" not in texts[1]
        module_conn.execute("DELETE FROM llm_train_log WHERE step = 32 AND run_id = %s", [last])
        assert "(1 step later)" in render(read(Database(module_conn), last, Sampling()))


def test_the_statement_does_the_run_again(dsn, run_id, module_conn):
    statement = next(part for part in Page(report(dsn, run_id)).texts if part.startswith("SELECT llm_train("))
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("SELECT llm_checkpoint_load(%s, 1)", [NAME])
        (again,) = module_conn.execute(statement).fetchone()
        assert log(module_conn, again, "step, loss") == log(module_conn, run_id, "step, loss")


def test_the_statement_of_a_run_of_an_adapter_does_it_again(dsn, run_id, module_conn):
    with module_conn.transaction(force_rollback=True):
        for name in ("first", "again"):
            module_conn.execute("SELECT llm_adapter_create(%s, %s, seed => 1)", [name, NAME])
            module_conn.execute(
                "INSERT INTO llm_dataset (model, tokens, target) SELECT %s, tokens, target FROM llm_dataset WHERE model = %s",
                [name, NAME],
            )
        (first,) = module_conn.execute("SELECT llm_train('first', 3, dropout_p => 0)").fetchone()
        page = Page(render(read(Database(module_conn), first, Sampling())))
        statement = next(part for part in page.texts if part.startswith("SELECT llm_train("))
        (again,) = module_conn.execute(statement.replace("'first'", "'again'")).fetchone()
        assert log(module_conn, again, "step, loss") == log(module_conn, first, "step, loss")


def test_the_statement_of_a_run_that_ended_early_does_it_again_and_its_samples_are_of_the_best(
    dsn, run_id, module_conn
):
    options = '{"keep_best": true, "patience": 1, "min_delta": 1000, "lr_schedule": "linear"}'
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("SELECT llm_checkpoint_load(%s, 1)", [NAME])
        call = "SELECT llm_train(%s, 30, lr_max => 0.01, eval_every => 10, options => %s)"
        (early,) = module_conn.execute(call, [NAME, options]).fetchone()
        page = Page(render(read(Database(module_conn), early, Sampling())))
        assert "early" in page.text
        assert "not as this run left it" not in page.text
        statement = next(part for part in page.texts if part.startswith("SELECT llm_train("))
        module_conn.execute("SELECT llm_checkpoint_load(%s, 1)", [NAME])
        (again,) = module_conn.execute(statement).fetchone()
        assert log(module_conn, again, "step, loss") == log(module_conn, early, "step, loss")
        state = "SELECT status, config FROM llm_run WHERE run_id = %s"
        assert module_conn.execute(state, [again]).fetchone() == module_conn.execute(state, [early]).fetchone()
    assert "options =>" not in Page(report(dsn, run_id)).text


@pytest.fixture
def made_up(conn):
    """Makes a run of a model without vocabulary, of n steps with the given loss and status."""

    def make(n, loss="1.0 / step", status="finished"):
        made = "SELECT FROM llm_model_config WHERE model = 'bare'"
        conn.execute(f"SELECT llm_init_model('bare', 1, 1, 4, 8, 20) WHERE NOT EXISTS ({made})")
        (run_id,) = conn.execute(
            "INSERT INTO llm_run (model, config, seed, status, first_step, environment)"
            " VALUES ('bare', '{}', 0, %s, 0, '{}') RETURNING run_id",
            [status],
        ).fetchone()
        conn.execute(
            "INSERT INTO llm_train_log (run_id, step, model, lr, loss, grad_norm, tokens, seconds, batch)"
            f" SELECT %s, step, 'bare', 0, {loss}, 'NaN', 1, 0, '{{}}' FROM generate_series(1, %s) AS step",
            [run_id, n],
        )
        return run_id

    yield make
    conn.execute("SELECT llm_drop_model('bare')")


def test_a_run_whose_model_is_not_there_is_an_error_that_says_so(dsn, conn, made_up):
    """Deleted by hand, or hidden by a policy."""
    run_id = made_up(3)
    conn.execute("DELETE FROM llm_param WHERE model = 'bare'")
    conn.execute("DELETE FROM llm_model_config WHERE model = 'bare'")
    with pytest.raises(LoaderError, match=f'run {run_id} is of model "bare", which llm_models does not have'):
        report(dsn, run_id)


def test_a_long_run_is_thinned_out(dsn, made_up):
    page = Page(report(dsn, made_up(10 * POINTS + 1)))
    (losses, *_) = page.charts
    assert len(page.points("Loss", "each step")) == POINTS
    assert losses["names"]["6001"] == "5,992\N{EN DASH}6,001 (mean)"
    assert len(page.scripts[0]) < 400_000


@pytest.mark.parametrize(
    "loss", ["'NaN'", "CASE mod(step, 3) WHEN 0 THEN 'Infinity' WHEN 1 THEN 1e300 ELSE -1e300 END::float8"]
)
@pytest.mark.parametrize("n", [1, 2, 100])
def test_a_loss_that_is_no_number_leaves_a_gap(dsn, made_up, n, loss):
    page = Page(report(dsn, made_up(n, loss)))
    assert [y for _, y in page.points("Loss", "each step" if n == 100 else "training")] == [
        None if "NaN" in loss or step % 3 == 0 else 1e300 if step % 3 == 1 else -1e300 for step in range(1, n + 1)
    ]
    assert "The model has no vocabulary" in page.text


@pytest.mark.parametrize("status", ["manual", "running", "stopped", "abandoned", "early"])
@pytest.mark.parametrize("n", [0, 3])
def test_any_status_and_no_step(dsn, made_up, status, n):
    page = Page(report(dsn, made_up(n, status=status)))
    assert ("No step is logged." in page.text) == (n == 0)
    assert ("interrupted" if status == "running" else status) in page.text


def test_it_reads_only_and_wherever_the_extension_is(new_database):
    dsn = new_database("template0")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "l%%l m"; CREATE EXTENSION pg_gpt2 SCHEMA "l%%l m" CASCADE'.replace("%%", "%"))
        conn.execute('SET search_path = "l%l m"; SET client_min_messages = warning')
        conn.execute("SELECT llm_train_bpe('SELECT ''low lower lowest '' ', 258, 'm'), llm_init_model('m', 1, 1, 8, 8)")
        conn.execute("SELECT llm_dataset_load('SELECT repeat(''low lower '', 50)', 'm', 8), llm_train('m', 2)")
    with psycopg.connect(conninfo.make_conninfo(dsn, options="-c default_transaction_read_only=on")) as conn:
        assert len(read(Database(conn), 1, Sampling()).points) == 2
        with pytest.raises(LoaderError, match="run 2 does not exist"):
            read(Database(conn), 2, Sampling())


# --- markup -------------------------------------------------------------------------------------------------------------


def test_markup_escapes_text_and_attributes():
    assert tag("p", '<&"', tag("b", "'"), class_='"') == '<p class="&quot;">&lt;&amp;&quot;<b>&#x27;</b></p>'
