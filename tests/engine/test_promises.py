"""docs/promises.md names tests, and how much they do: they must be there, and do that."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text()


def test_every_test_that_a_promise_names_is_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 80
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []


def test_every_promise_names_a_test():
    rows = [line for line in PAGE.partition("## Long forms")[0].splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "| promise | test |" and "::test_" not in row] == []


def test_tests_do_as_much_as_the_page_says():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    done = re.findall(r'environ\.get\("(PG_GPT2_\w+)", "(\d+)"\)', sources)
    rows = re.findall(r"\| (\d[^|]*) \| (`PG_GPT2_[^|]*) \|$", PAGE, re.MULTILINE)
    said = [
        pair for numbers, names in rows for pair in zip(re.findall(r"\d+", numbers), re.findall(r"PG_GPT2_\w+", names))
    ]
    assert len(said) == 10
    assert sorted(said) == sorted((number, name) for name, number in done)
