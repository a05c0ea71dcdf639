#!/usr/bin/env python3
"""Put measured tables into docs/performance.md: page.py RESULT.json..., files that bench.py --json wrote.

A result replaces what stands between the two comments that name its kind. The standard library suffices.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import report
from report import Row, number
from shapes import MEDIUM_NAME, SCALING_LENGTH, XL
from targets import READ, SGEMM

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def fill(page: str, result: Mapping[str, Any]) -> str:
    """`page` with the result's table in its place; ValueError when it has none."""
    kind = result["machine"]["kind"]
    pattern = re.compile(rf"(<!-- measured: {kind} -->\n).*?(<!-- end -->\n)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no place for {kind}: <!-- measured: {kind} --> ... <!-- end -->")
    return pattern.sub(lambda found: f"{found[1]}\n{content(result)}\n\n{found[2]}", page, count=1)


def content(result: Mapping[str, Any]) -> str:
    """Command, machine, table and remarks."""
    rows = report.rows_of(result)
    facts = result["machine"]
    parts = [f"`{facts['command']}`: {report.machine_line(facts)}.", report.markdown(rows)]
    if facts["kind"] == "scaling":
        parts.append(calculated(rows, result["bounds"]))
    parts.append("\n".join(f"- {remark}" for remark in report.remarks(result)))
    return "\n\n".join(parts)


def calculated(rows: Sequence[Row], bounds: Mapping[str, list[float]]) -> str:
    """A table of what gpt2-xl would take, from the bounds and what part of them gpt2-medium reaches."""
    read, sgemm = median(bounds[READ]), median(bounds[SGEMM])
    reached = {row.key: row.ratio(row.bound) or 1.0 for row in rows}
    found: list[tuple[str, Any, str]] = [
        ("decode", XL.decode_bytes() / read * reached[f"decode {MEDIUM_NAME}"], "s a token"),
        (
            f"prefill of {SCALING_LENGTH}",
            XL.prefill_flops(SCALING_LENGTH) / sgemm * reached[f"prefill {MEDIUM_NAME}"],
            "s",
        ),
        (
            f"training step, B=1 T={SCALING_LENGTH}",
            XL.step_flops(SCALING_LENGTH) / sgemm * reached[f"step {MEDIUM_NAME}"],
            "s",
        ),
        ("weights, shared by all sessions", 4 * XL.n_params / 1e9, "GB"),
        ("keys and values of a full window", 8 * XL.n_layer * XL.d_model * XL.n_positions / 1e9, "GB"),
        ("weights, gradients and moments in training", XL.state_bytes() / 1e9, "GB"),
        ("tables after a step", 12 * XL.n_params / 1e9, "GB"),
    ]
    lines = ["| gpt2-xl, calculated | | |", "|---|---:|---|"]
    return "\n".join([*lines, *(f"| {what} | {number(value)} | {unit} |" for what, value, unit in found)])


def main(files: Sequence[str]) -> None:
    """Read the results and write the page."""
    page = PAGE.read_text(encoding="utf-8")
    for file in files:
        page = fill(page, report.read(Path(file)))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
