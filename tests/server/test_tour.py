"""docs/tour.md is a program, as the README is: its blocks, run in order in one session of psql, print what it says.

docker/cluster.sh run .venv/test/bin/python tests/server/test_tour.py --update    writes the outputs anew
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def readme_machinery():  # type: ignore[no-untyped-def]
    """test_readme, told to read the tour instead."""
    spec = importlib.util.spec_from_file_location("tour_machinery", HERE / "test_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.README = HERE.parents[1] / "docs" / "tour.md"
    module.BLOCKS = module.read_blocks()
    return module


tour = readme_machinery()


@pytest.fixture(scope="module")
def outputs(new_database: Callable[..., str]) -> list[str]:
    """What psql prints for each block."""
    return tour.run(new_database("template0"))


@pytest.mark.parametrize("number", range(len(tour.BLOCKS)), ids=[f"line{block.line}" for block in tour.BLOCKS])
def test_block_prints_what_the_tour_says(outputs: list[str], number: int) -> None:
    tour.test_block_prints_what_the_readme_says(outputs, number)


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"] or "PG_GPT2_TEST_DSN" not in os.environ:
        sys.exit(__doc__)
    tour.update(os.environ["PG_GPT2_TEST_DSN"])
