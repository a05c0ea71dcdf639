"""The benchmark's own logic: ratios, limits, tables and files. What it measures is not tested, but that it runs is (server)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    yield
    for name in ("report", "page", "shapes", "targets", "texts"):
        sys.modules.pop(name, None)


def rows():
    """A rate with a bound and a rival, a time with a limit of its own, and a row that nobody measured beside us."""
    from report import US, Limit, Row

    limits = (Limit("bound", ">=", 0.8), Limit("rival", ">=", 2.0))
    rate = Row("rate", "decode", "tokens/s", 100, rate=True, bound="bound", limits=limits)
    for ours, theirs, bound in ((2.0, 5.0, 1.8), (4.0, 8.0, 3.6), (2.0, 3.0, 1.8)):
        rate.add(US, ours)
        rate.add("rival", theirs)
        rate.add("bound", bound)
    time = Row("time", "step", "s", limits=(Limit(None, "<=", 1.5),))
    time.add(US, 2.0)
    return [rate, time, Row("never", "skipped", "s", limits=(Limit("rival", "<=", 1.0),))]


def test_bounds_are_the_machines_whatever_the_shell_says_of_blas():
    """The server is started without what its caller's shell has OpenBLAS forgo; a bound that is measured with it is too low."""
    forgoing = {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_L2_SIZE": "512"}
    code = "import bounds, os; print([os.environ.get(name) for name in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE')])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCH, env=os.environ | forgoing, check=True, capture_output=True, text=True
    )
    assert found.stdout == "[None, None]\n"


def test_ratios_are_of_a_round_and_in_the_rows_unit():
    rate, time, never = rows()
    assert rate.value() == 50.0
    assert rate.ratio("rival") == 2.0  # of 2.5, 2 and 1.5; that of the medians would be 2.5
    assert rate.ratio("bound") == pytest.approx(0.9)
    assert rate.others == ["bound", "rival"]
    time.add("rival", 4.0)
    assert time.ratio("rival") == 0.5
    assert (never.value(), never.ratio("rival"), list(never.findings())) == (None, None, [])


def test_limits_are_held_against_what_was_measured():
    rate, time, _ = rows()
    assert [(str(f.limit), f.met) for f in rate.findings()] == [(">= 0.8", True), (">= 2", True)]
    assert [(str(f.limit), f.value, f.met) for f in time.findings()] == [("<= 1.5", 2.0, False)]


def test_the_table_has_a_line_for_each_other_party():
    import report

    lines = report.lines(rows())
    assert lines[0] == ("decode", "tokens/s", "50", "55.6", "bound", "0.9", ">= 0.8", "met")
    assert lines[1] == ("", "", "", "20", "rival", "2", ">= 2", "met")
    assert lines[2] == ("step", "s", "2", "", "", "", "<= 1.5 s", "MISSED")
    assert lines[3][:3] == ("skipped", "s", "")
    assert len(report.table(rows()).splitlines()) == 2 + len(lines)


SERVER = {"postgresql": "15", "numpy": "2", "blas": "openblas", "environment": {}}
MACHINE = {"commit": "abc", "at": "now", "processor": "CPU", "threads": 2, "cores": 2, "avx512": True, "server": SERVER}
RUN = {"kind": "bench", "command": "make bench", "versions": {}, "vocabulary": "GPT-2's", "notes": {}}
FACTS = MACHINE | RUN | {"checks": {"same ids": [True, False]}, "disturbed": [True, False]}


def test_a_result_survives_its_file(tmp_path):
    import report

    result = report.as_json(rows(), FACTS, {"memory read": [25e9, 30e9], "sgemm": []})
    report.write(tmp_path / "bench.json", result)
    read = report.read(tmp_path / "bench.json")
    assert report.rows_of(read) == rows()
    assert read["rows"][0]["ratios"] == {"bound": pytest.approx(0.9), "rival": 2.0}
    assert read["rows"][0]["findings"][1] == {
        "limit": {"other": "rival", "sign": ">=", "number": 2.0},
        "value": 2.0,
        "met": True,
    }
    text = report.summary(read)
    for expected in ("commit abc", "28 GB/s", "same ids: 1 of 2", "targets met: 2 of 3", "busy before 1 of 2"):
        assert expected in text
    (tmp_path / "old.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(SystemExit, match="format"):
        report.read(tmp_path / "old.json")


def test_since_says_how_much_better_each_row_became():
    import report

    before = report.as_json(rows(), FACTS, {})
    later = rows()
    later[0].costs[report.US] = [1.0]
    later[1].costs[report.US] = [4.0]
    changes = report.since(report.as_json(later, FACTS, {}), before).splitlines()
    assert [line.split()[0] for line in changes] == ["2.00x", "0.50x"]


def test_the_page_takes_the_table_between_its_marks():
    import page
    import report

    result = report.as_json(rows(), FACTS, {"memory read": [25e9], "sgemm": []})
    before = "head\n<!-- measured: bench -->\nold | table\n<!-- end -->\ntail\n"
    after = page.fill(before, result)
    assert after.startswith("head\n<!-- measured: bench -->\n")
    assert after.endswith("<!-- end -->\ntail\n")
    assert "| decode | tokens/s | 50 | 55.6 | bound | 0.9 | >= 0.8 | met |" in after
    assert "old" not in after
    assert page.fill(after, result) == after
    with pytest.raises(ValueError, match="no place for bench"):
        page.fill("nothing here", result)


def test_every_target_names_a_sign_and_the_page_has_places():
    import page
    from targets import TARGETS

    text = page.PAGE.read_text(encoding="utf-8")
    assert "<!-- measured: bench -->" in text
    assert "<!-- measured: scaling -->" in text
    assert all(limit.sign in (">=", "<=") for limits in TARGETS.values() for limit in limits)


def test_work_of_the_shapes_is_that_of_gpt2():
    from shapes import XL, Shape

    small = Shape()
    assert small.n_params == 124_439_808
    assert XL.n_params == 1_557_611_200
    assert small.decode_bytes() == pytest.approx(4 * small.n_params, rel=0.01)
    assert small.step_flops(1024) == pytest.approx(6 * small.n_params * 1024, rel=0.01)


def test_texts_have_the_size_and_scripts_they_say():
    import texts

    prose, distinct = texts.english(300_000)
    assert len(prose) == 300_000
    assert prose.isascii()
    assert 200_000 < distinct <= 300_000
    mixed = texts.mixed(20_000)
    assert mixed == texts.mixed(20_000)
    assert 20_000 <= len(mixed.encode()) < 21_000
    assert all(any(low <= c <= high for c in mixed) for low, high in ("az", "αω", "аё", "一龥", "가힣", "😀🙏"))
