"""What is distributed: the wheel holds the client, the loaders and their data, and one version stands everywhere."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pg_gpt2
import pytest

import build
import loaders
from loaders.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with the wheel installed in it, without its dependencies."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in ("plpython", "loaders"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--no-build-isolation", "-w", place, source], check=True)
    (wheel,) = place.glob("pg_gpt2-*.whl")
    subprocess.run([*pip, "install", *options, "--target", place / "site", wheel], check=True)
    return place / "site"


def run(installed, *command):
    """What a program prints in that directory, which comes before the environment's modules."""
    done = subprocess.run([sys.executable, "-c", *command], cwd=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_lists_its_programs(installed):
    assert (installed / "bin" / "pg-gpt2").exists()
    told = run(installed, "from loaders.__main__ import main; main()", "--help")
    assert set(COMMANDS) == set(re.findall(r"^  (\S+)", told, re.MULTILINE))
    assert (
        run(installed, "from loaders.__main__ import main; main()", "--version") == f"pg-gpt2 {pg_gpt2.__version__}\n"
    )


def test_every_program_of_the_loaders_is_a_command():
    programs = {
        path for path in Path(loaders.__file__).parent.rglob("*.py") if '__name__ == "__main__"' in path.read_text()
    }
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in programs}
    data = {"loaders.data.make_postgresql_docs", "loaders.data.make_topics"}
    assert names - data - {"loaders.__main__"} == set(COMMANDS.values())


def test_the_wheel_brings_client_and_data(installed):
    for name in ("pg_llm_client/py.typed", "loaders/data/postgresql_docs.txt", "pg_gpt2/fast/attention.py"):
        assert (installed / name).exists()
    for path in (ROOT / "loaders" / "shipped").rglob("*.*"):
        assert (installed / path.relative_to(ROOT)).exists()
    assert run(installed, "import pg_llm_client; print(pg_llm_client.__file__)").startswith(str(installed))


def test_the_version_stands_in_one_place():
    """In the package; build.py carries it to the files that cannot import it, and fails under --check when one differs."""
    metadata = json.loads((ROOT / "META.json").read_text())
    assert metadata["version"].startswith(pg_gpt2.__version__)
    assert metadata["provides"]["pg_gpt2"]["file"] == f"pg_gpt2--{pg_gpt2.__version__}.sql"
    assert f"default_version = '{pg_gpt2.__version__}'" in (ROOT / "pg_gpt2.control").read_text()
    assert (ROOT / f"pg_gpt2--{pg_gpt2.__version__}.sql").exists()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert pg_gpt2.__version__ in (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]


def test_build_products_are_current():
    subprocess.run(["/usr/bin/python3", ROOT / "build.py", "--check"], check=True)


def test_a_file_of_sql_calls_the_module_of_its_name():
    """And of server/api there is no other module; examples and pgTAP's files have the names of sql/ as well."""
    called = {path.stem: set(re.findall(r"@(\w+)\.\w+@", path.read_text())) for path in (ROOT / "sql").glob("*.sql")}
    assert {topic: modules for topic, modules in called.items() if modules - {topic}} == {}
    modules = {path.stem for path in (ROOT / "plpython" / "pg_gpt2" / "server" / "api").glob("*.py")} - {"__init__"}
    assert modules == {topic for topic, modules in called.items() if modules}
    for place in ("docs/examples", "tests/pgtap"):
        assert {path.stem for path in (ROOT / place).glob("*.sql")} <= set(called)


def test_a_release_has_what_pgxn_wants():
    """The fields that its specification requires, and files that exist."""
    metadata = json.loads((ROOT / "META.json").read_text())
    required = ("name", "version", "abstract", "maintainer", "license", "provides", "meta-spec")
    assert all(metadata.get(field) for field in required)
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    for extension in metadata["provides"].values():
        assert (ROOT / extension["file"]).exists()
        assert (ROOT / extension["docfile"]).exists()


def test_the_instructions_name_all_that_is_generated():
    section = (ROOT / "CONTRIBUTING.md").read_text().split("Generated, and committed:")[1].split("\n\n")[0]
    assert [name for name in build.outputs() if f"{Path(name).name}`" not in section] == []
