"""The HTML report of a run: its numbers are the tables', whatever is in them is shown as text, and it stands alone."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import conninfo

from loaders.common import Database, LoaderError
from loaders.report import charts
from loaders.report.data import POINTS, Sampling, read
from loaders.report.markup import tag
from loaders.report.page import render

ROOT = Path(__file__).resolve().parents[2]
NAME = """<script>alert("1")</script>'&--><b>"""
FINITE = st.floats(-1e12, 1e12)


class Page(HTMLParser):
    """A document: its elements, its text, and what is in its scripts. Elements must be closed as they were opened."""

    def __init__(self, document):
        super().__init__()
        self.open, self.elements, self.texts, self.scripts = [], [], [], []
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
        (self.scripts if inside == "script" else [] if inside == "style" else self.texts).append(data)

    @property
    def rows(self):
        return json.loads(self.scripts[0])


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
    assert [name for name, _ in page.elements].count("svg") == 4
    policy = next(a["content"] for name, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_an_unknown_run_is_an_error_without_traceback(dsn, tmp_path):
    done = shell(dsn, tmp_path, "--run", "999")
    assert done.returncode == 1
    assert done.stderr.startswith("error: run 999 does not exist")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_those_of_the_log(dsn, run_id, module_conn):
    rows = Page(report(dsn, run_id)).rows
    logged = log(module_conn, run_id, "step, loss, lr, grad_norm, val_loss")
    assert [row["step"] for row in rows] == [row[0] for row in logged] == list(range(1, 31))
    for row, (_, loss, lr, grad_norm, val_loss) in zip(rows, logged, strict=True):
        assert float(row["training_loss"]) == pytest.approx(loss, abs=1e-3)
        assert float(row["learning_rate"]) == pytest.approx(lr, rel=0.05, abs=1e-9)
        assert float(row["gradient_norm"]) == pytest.approx(grad_norm, abs=1e-3)
        assert ("validation_loss" in row) == (val_loss is not None)
        assert val_loss is None or float(row["validation_loss"]) == pytest.approx(val_loss, abs=1e-3)


def test_all_that_the_tables_hold_is_text(dsn, run_id):
    page = Page(report(dsn, run_id, prompts=[NAME, "\x01\x1b<"]))
    assert [name for name, _ in page.elements].count("script") == 2
    assert not [name for name, _ in page.elements if name == "i"]
    assert page.text.count(NAME) >= 4  # title, heading, note, prompt
    assert "␁␛<" in page.text


def test_samples_are_what_the_model_generates(dsn, run_id, sql):
    page = Page(report(dsn, run_id, prompts=["<b>the"], max_tokens=20, temperature=0.5, seed=3))
    assert sql("SELECT llm_generate('<b>the', 20, 0.5, model_name => %s, seed => 3)", NAME) in page.text
    assert "Temperature 0.5, seed 3, up to 20 tokens." in page.text


def test_samples_begin_as_rows_of_the_validation_data(dsn, run_id, module_conn):
    rows = module_conn.execute(
        "SELECT llm_decode(tokens[:12], %s), llm_decode(tokens[13:], %s) FROM llm_dataset WHERE split = 'val'",
        [NAME, NAME],
    ).fetchall()
    with psycopg.connect(dsn) as conn:
        samples = read(Database(conn), run_id, Sampling()).samples
    assert len(samples) == 3
    assert {(sample.prompt, sample.original) for sample in samples} <= set(rows)


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
        conn.execute("SELECT llm_init_model('bare', 1, 1, 4, 8, 20)")
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


def test_a_long_run_is_thinned_out(dsn, made_up):
    document = report(dsn, made_up(10 * POINTS + 1))
    rows = Page(document).rows
    assert len(rows) == POINTS
    assert rows[-1]["steps"] == "5,992\N{EN DASH}6,001 (mean)"
    assert len(document) < 400_000


@pytest.mark.parametrize(
    "loss", ["'NaN'", "CASE mod(step, 3) WHEN 0 THEN 'Infinity' WHEN 1 THEN 1e300 ELSE -1e300 END::float8"]
)
@pytest.mark.parametrize("n", [1, 2, 100])
def test_a_loss_that_is_no_number_leaves_a_gap(dsn, made_up, n, loss):
    page = Page(report(dsn, made_up(n, loss)))
    assert not [a for _, a in page.elements if "nan" in a.get("d", "") or "inf" in a.get("d", "")]
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


# --- charts -----------------------------------------------------------------------------------------------------------


@given(FINITE, FINITE, st.integers(2, 10))
def test_ticks_are_few_in_order_and_enclose_what_they_should(a, b, count):
    low, high = sorted((a, b))
    inside, outside = charts.ticks(low, high, count), charts.ticks(low, high, count, outside=True)
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert outside[0] <= low + slack
    assert outside[-1] >= high - slack
    assert 2 <= len(outside) <= 2 * count + 3
    assert sorted(set(outside)) == outside
    assert len(inside) <= 2 * count + 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.002, ["0.0000", "0.0005", "0.0010", "0.0015", "0.0020"]),
        (3.1, 6.9, ["3", "4", "5", "6", "7"]),
        (0, 9999, ["0", "2,000", "4,000", "6,000", "8,000", "10,000"]),
        (0, 3e-5, ["0", "5e-06", "1e-05", "1.5e-05", "2e-05", "2.5e-05", "3e-05"]),
        (5, 5, ["5.0", "5.1", "5.2", "5.3", "5.4", "5.5"]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.labels(charts.ticks(low, high, 5, outside=True)) == expected


def test_markup_escapes_text_and_attributes():
    assert tag("p", '<&"', tag("b", "'"), class_='"') == '<p class="&quot;">&lt;&amp;&quot;<b>&#x27;</b></p>'
