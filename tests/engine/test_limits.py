"""docs/limits.md lists the limits that are in force, and each is met where it is said to be."""

import re
from pathlib import Path

from pg_gpt2 import limits

from docs.make_errors import entries

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()


def test_the_page_lists_every_limit_with_its_value():
    said = {
        name: int(value.replace(",", ""))
        for name, value in re.findall(r"^\| ([A-Z_]+) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    }
    assert said == {name: value for name, value in vars(limits).items() if name.isupper()}


def test_the_page_names_those_with_another_sqlstate():
    (said,) = re.findall(r"The SQLSTATE is 22023, or for ([^.]*) 54000\.", PAGE)
    raised: dict[str, set[str]] = {}
    for error in entries(Path(limits.__file__).parent):
        for name in re.findall(r"<(MOST_\w+)>", error.message):
            raised.setdefault(name, set()).add(error.sqlstate)
    others = {name for name in raised if name in vars(limits) and raised[name] != {"22023"}}
    assert set(re.findall(r"MOST_\w+", said)) == others
    assert all(raised[name] == {"54000"} for name in others)


def test_every_limit_is_used():
    package = Path(limits.__file__).parent
    sources = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "limits.py")
    assert [name for name in vars(limits) if name.isupper() and name not in sources] == []
