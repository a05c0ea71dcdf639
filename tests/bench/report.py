"""Rows of the benchmark with the limits they are held to, the table on the terminal, and the JSON to compare over time.

A row has the cost of each round and party: seconds, or bytes. Ratios are taken within a round and then their median, for
what else the machine does slows the parties of a round alike. A ratio is ours / theirs in the row's unit: above 1 is good
for a rate, and below 1 for a time.
"""

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

US = "pg_gpt2"
FORMAT = 2  # of the JSON
_COMPARE = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Limit:
    """What is wanted of a row: a ratio to `other`, or without one our own value."""

    other: str | None
    sign: str  # >= or <=
    number: float

    def holds(self, value: float) -> bool:
        """Whether `value` is within it."""
        return _COMPARE[self.sign](value, self.number)

    def __str__(self) -> str:
        return f"{self.sign} {self.number:g}"


@dataclass
class Row:
    """One thing that is measured. A run is `amount` units of work; without `rate` a unit's cost is shown.

    `bound` names the party that is no party but what the machine could do: memory read, sgemm, ... Empty where nothing
    so simple bounds it.
    """

    key: str
    what: str
    unit: str
    amount: float = 1.0
    rate: bool = False
    bound: str = ""
    limits: tuple[Limit, ...] = ()
    costs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, party: str, cost: float) -> None:
        """Take the cost of a run."""
        self.costs.setdefault(party, []).append(cost)

    def _in_unit(self, cost: float) -> float:
        return self.amount / cost if self.rate else cost / self.amount

    def value(self, party: str = US) -> float | None:
        """Median of a party in the row's unit."""
        return self._in_unit(median(self.costs[party])) if party in self.costs else None

    def ratio(self, party: str) -> float | None:
        """Our value divided by that of `party`: the median of the rounds that have both."""
        pairs = list(zip(self.costs.get(US, ()), self.costs.get(party, ()), strict=False))
        return median(self._in_unit(ours) / self._in_unit(theirs) for ours, theirs in pairs) if pairs else None

    @property
    def others(self) -> list[str]:
        """The bound first, then who else has run."""
        rivals = [party for party in self.costs if party not in (US, self.bound)]
        return [self.bound, *rivals] if self.bound in self.costs else rivals

    def findings(self) -> Iterator["Finding"]:
        """One a limit that could be checked."""
        for limit in self.limits:
            value = self.value() if limit.other is None else self.ratio(limit.other)
            if value is not None:
                yield Finding(limit, value, limit.holds(value))


@dataclass(frozen=True)
class Finding:
    """What a limit was held against."""

    limit: Limit
    value: float
    met: bool


HEAD = ("", "", US, "beside", "", "ratio", "target", "")


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells of the table: a line for each other party, or one for a row that stands alone."""
    found = []
    for row in rows:
        findings = {finding.limit.other: finding for finding in row.findings()}
        name = (row.what, row.unit, number(row.value()))
        for other in row.others or [""]:
            beside = ("", "", "") if not other else (number(row.value(other)), other, number(row.ratio(other)))
            finding = findings.get(other or None)
            if finding is None and other == (row.others or [""])[0]:
                finding = findings.get(None)  # a limit to our own value stands in the row's first line
            verdict = ("", "") if finding is None else (_target(finding, row), "met" if finding.met else "MISSED")
            found.append((*name, *beside, *verdict))
            name = ("", "", "")
    return found


def _target(finding: Finding, row: Row) -> str:
    return str(finding.limit) if finding.limit.other else f"{finding.limit} {row.unit}"


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    cells = [HEAD, *lines(rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if i in (0, 1, 4, 6, 7) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([aligned[0], "-" * max(map(len, aligned)), *aligned[1:]])


def markdown(rows: Sequence[Row]) -> str:
    """The rows for a page."""
    head = ("what", "unit", US, "beside", "", "ratio", "target", "")
    marks = ("---", "---", "---:", "---:", "---", "---:", "---", "---")
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, marks, *lines(rows)))


def number(value: float | None) -> str:
    """Three digits for the reader."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def as_json(rows: Sequence[Row], machine: Mapping[str, Any], bounds: Mapping[str, list[float]]) -> dict[str, Any]:
    """All costs with their medians, ratios and limits, the bounds' rates, and the facts of the machine."""
    found = []
    for row in rows:
        values = {party: row.value(party) for party in row.costs}
        ratios = {party: row.ratio(party) for party in row.others}
        met = [asdict(finding) for finding in row.findings()]
        found.append(asdict(row) | {"values": values, "ratios": ratios, "findings": met})
    return {"format": FORMAT, "machine": machine, "bounds": bounds, "rows": found}


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a result that was read."""
    names = Row.__dataclass_fields__
    found = []
    for entry in result["rows"]:
        known = {name: value for name, value in entry.items() if name in names}
        found.append(Row(**known | {"limits": tuple(Limit(**limit) for limit in entry["limits"])}))
    return found


def write(file: Path, result: Mapping[str, Any]) -> None:
    """A result as a file."""
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """A result from a file."""
    result = json.loads(file.read_text(encoding="utf-8"))
    if result.get("format") != FORMAT:
        raise SystemExit(f"{file} was not written by this version of the benchmark (format {FORMAT})")
    return result


def since(result: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """How our values changed: a line for each row that both have. Above 1 is a faster or smaller one now."""
    old = {row.key: row.value() for row in rows_of(before)}
    found = []
    for row in rows_of(result):
        was, now = old.get(row.key), row.value()
        if was and now:
            better = now / was if row.rate else was / now
            found.append(f"{better:6.2f}x  {row.what}: {number(was)} -> {number(now)} {row.unit}")
    return "\n".join(found)


def summary(result: Mapping[str, Any]) -> str:
    """The table between what it was measured on and what a reader must know about it."""
    return "\n\n".join((machine_line(result["machine"]), table(rows_of(result)), "\n".join(remarks(result))))


def machine_line(facts: Mapping[str, Any]) -> str:
    """Processor, threads, commit and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    server = facts["server"]
    return (
        f"commit {facts['commit'] or 'unknown'}, {facts['at']}, {facts['processor']}, {facts['threads']} of"
        f" {facts['cores']} cores, AVX-512 {'yes' if facts['avx512'] else 'no'}; PostgreSQL {server['postgresql']},"
        f" NumPy {server['numpy']}, {server['blas']}; {versions or 'no rivals: only pg_gpt2 and the bounds'}"
    )


def remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """Bounds, checks, limits that were missed, and what may have disturbed."""
    facts = result["machine"]
    for name, rates in result["bounds"].items():
        if rates:
            unit = "GB/s" if "read" in name else "GFLOP/s"
            low, middle, high = (f(rates) / 1e9 for f in (min, median, max))
            yield f"bound: {name} {middle:.0f} {unit} on {facts['threads']} threads ({low:.0f} to {high:.0f} over rounds)"
    for check, found in facts["checks"].items():
        yield f"check: {check}: {sum(found)} of {len(found)}"
    findings = [finding for row in rows_of(result) for finding in row.findings()]
    if findings:
        yield f"targets met: {sum(finding.met for finding in findings)} of {len(findings)}"
    yield from (
        f"{name}: {note}" for name, note in [("vocabulary", facts["vocabulary"]), *facts["notes"].items()] if note
    )
    if facts["server"]["environment"]:
        settings = ", ".join(f"{name}={value}" for name, value in facts["server"]["environment"].items())
        yield f"note: the server has {settings}: NumPy may be slowed"
    if any(facts["disturbed"]):
        yield f"note: the machine was busy before {sum(facts['disturbed'])} of {len(facts['disturbed'])} measurements"
