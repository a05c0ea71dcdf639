"""What all tests share: BLAS at one thread, as in the server; which files are first; and --no-skips: a skipped test fails."""

from collections.abc import Generator

import pytest
from pg_gpt2.fast import blas_library

blas_library.import_numpy_single_threaded()  # before any test module imports NumPy
# What tests share asserts, too, and says what differs.
pytest.register_assert_rewrite(*(f"tests.{topic}" for topic in ("bench", "engine", "fuzz", "oracle", "server")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails (but for the published weights)")


# Most seconds first. What comes last is short, so that no worker is at a long file when the others have ended.
LONGEST_FIRST = [
    "test_interrupts.py",
    "test_docs_how_to.py",
    "test_soak.py",
    "test_docs.py",
    "test_weight_file.py",
    "test_rows.py",
    "test_faults.py",
    "test_live_writers.py",
    "test_small_group.py",
    "test_window.py",
    "test_serve_streams.py",
    "test_bench.py",
    "test_tokenizer_oracle.py",
    "test_choosing_oracle.py",
    "test_twin.py",
    "test_server_oracle.py",
    "test_added_tokens_oracle.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order; pytest-xdist has another, by the number of tests, without --no-loadscope-reorder."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped under --no-skips: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--no-skips") and item.get_closest_marker("published_weights") is None:
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("--no-skips"):
        _fail_if_skipped(report)
    return report
