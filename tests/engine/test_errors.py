"""Errors: each has a SQLSTATE of its own kind, and says what to do."""

import ast
from pathlib import Path

import pytest
from pg_gpt2 import errors

PACKAGE = Path(errors.__file__).parent
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PgGpt2Error)]


def raised() -> list[tuple[str, ast.Call]]:
    """Every place in the package that makes an error for users."""
    names = {kind.__name__ for kind in KINDS}
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]


def test_every_error_has_a_hint():
    found = raised()
    assert found
    assert [place for place, call in found if "hint" not in {keyword.arg for keyword in call.keywords}] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_sqlstate(kind):
    assert len(kind.sqlstate) == 5
    assert kind is errors.PgGpt2Error or kind.sqlstate != "XX000"
