"""docs/promises.md names tests: they must be there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text()


def test_every_test_that_a_promise_names_is_there():
    named = re.findall(r"`(\w+/\w+\.py)::(\w+)`", PAGE)
    assert len(named) > 80
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []


def test_every_promise_names_a_test():
    rows = [line for line in PAGE.partition("## Long forms")[0].splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "| promise | test |" and "::test_" not in row] == []
