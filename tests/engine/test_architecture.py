"""The rules of imports that docs/architecture.md states, read from the sources.

A part is a folder of plpython/pg_gpt2 or a module beside them. `MAY_IMPORT` says which other parts it may import, wherever in
a file the import stands; nothing but the standard library and NumPy comes from outside, and plpy in `server` only.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "plpython" / "pg_gpt2"
EVERYTHING = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}

MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "limits": set(),
    "host": set(),
    "core": {"errors", "limits"},
    "op_checks": {"errors", "limits", "core"},
    "fast": {"errors", "limits", "host", "core", "op_checks", "tensor"},
    "options": {"errors", "limits"},
    "tensor": {"errors", "limits", "host", "fast"},
    "sparkline": {"host", "fast"},
    "tokenizer": {"errors", "limits", "host", "fast"},
    "formats": {"errors", "limits", "host", "core", "tensor"},
    "generation": {"errors", "limits", "host", "core", "fast", "options", "tensor", "tokenizer"},
    "training": {"errors", "limits", "host", "core", "fast", "op_checks", "options", "tensor"},
    "autograd": {"errors", "limits", "host", "core", "fast", "tensor"},
    "bytea_ops": {"errors", "limits", "host", "core", "fast", "op_checks", "tensor", "generation", "training"},
    "server": EVERYTHING,
}

# Module -> parts that it imports against its rule. One that no longer does has to leave this list.
EXCEPTIONS: dict[str, set[str]] = {}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, those of the package absolute: `from ..core import rng` is pg_gpt2.core.rng."""
    package = ("pg_gpt2", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join(filter(None, (*above, node.module, alias.name))) for alias in node.names)


def module_name(path: Path) -> str:
    """`core.gpt2` of core/gpt2.py, `core` of core/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): list(imports(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    return module.split(".")[0]


def parts_that(module: str) -> set[str]:
    """The other parts of the package that a module imports."""
    names = {name.split(".")[1] for name in MODULES[module] if name.startswith("pg_gpt2.")}
    return (names & EVERYTHING) - {part_of(module)}


def outside(module: str) -> set[str]:
    """What a module imports from outside of the package and of the standard library."""
    return {name.split(".")[0] for name in MODULES[module]} - {"pg_gpt2"} - sys.stdlib_module_names


def test_every_part_has_a_rule():
    assert set(MAY_IMPORT) == EVERYTHING


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_part_may(module):
    against = parts_that(module) - MAY_IMPORT[part_of(module)]
    assert against == EXCEPTIONS.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_nothing_but_numpy_comes_from_outside(module):
    may = {"numpy", "plpy"} if part_of(module) == "server" else {"numpy"}
    assert outside(module) <= may


def test_nothing_reaches_the_server_but_the_server():
    assert [part for part, may in MAY_IMPORT.items() if "server" in may and part != "server"] == []


def test_modules_do_not_import_in_circles():
    graph = {
        module: {
            other
            for name in names
            if name.startswith("pg_gpt2.")
            for other in (name.removeprefix("pg_gpt2."), name.removeprefix("pg_gpt2.").rpartition(".")[0])
            if other in MODULES and other != module
        }
        for module, names in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' <- '.join(error.args[1])}") from None


def test_the_page_has_all_modules_of_a_folder_or_none_and_nothing_that_is_not_there():
    """docs/architecture.md draws the package as a tree, two blanks a level."""
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn: list[Path] = []
    for line in page.split("```text\npg_gpt2/\n")[1].split("```")[0].splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        drawn.append(Path(*(drawn[-1].parts[: level - 1] if drawn else ()), line.split()[0]))
    assert [str(path) for path in drawn if not (PACKAGE / path).exists()] == []
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("__init__.py")} - {Path()}
    assert folders - set(drawn) == set()
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    with_modules = {path.parent for path in drawn if path.suffix}
    assert sorted(str(path) for path in modules - set(drawn) if path.parent in with_modules) == []
