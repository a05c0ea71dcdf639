"""docs/limits.md lists the limits that are in force, and each is met where it is said to be."""

import re
from pathlib import Path

from pg_gpt2 import limits

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()


def test_the_page_lists_every_limit_with_its_value():
    said = {
        name: int(value.replace(",", ""))
        for name, value in re.findall(r"^\| ([A-Z_]+) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    }
    assert said == {name: value for name, value in vars(limits).items() if name.isupper()}


def test_every_limit_is_used():
    package = Path(limits.__file__).parent
    sources = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "limits.py")
    assert [name for name in vars(limits) if name.isupper() and name not in sources] == []
