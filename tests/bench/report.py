"""Rows of the benchmark, the table on the terminal, and the JSON to compare over time.

A row has seconds for each round and party. Ratios are taken within a round and then their median: what else the machine
does slows the parties of a round alike.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

US, BOUND = "pg_gpt2", "bound"


@dataclass
class Row:
    """One thing that is measured. A run is `amount` units of work; without `rate` a unit's seconds are shown."""

    key: str
    what: str
    unit: str
    amount: float = 1.0
    rate: bool = False
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, party: str, seconds: float) -> None:
        """Take the time of a run."""
        self.seconds.setdefault(party, []).append(seconds)

    def value(self, party: str) -> float | None:
        """Median of a party in the row's unit."""
        if party not in self.seconds:
            return None
        seconds = median(self.seconds[party])
        return self.amount / seconds if self.rate else seconds / self.amount

    def faster(self, party: str) -> float | None:
        """How many times as fast as `party` we are."""
        if party not in self.seconds or US not in self.seconds:
            return None
        return median(theirs / ours for ours, theirs in zip(self.seconds[US], self.seconds[party], strict=False))

    @property
    def rivals(self) -> list[str]:
        """Who else has run."""
        return [party for party in self.seconds if party not in (US, BOUND)]


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal: a line each, and one more for a further rival."""
    lines = [["", "", US, "rival", "", "times as fast", "bound", "of the bound"]]
    for row in rows:
        reached = row.faster(BOUND)
        ours = [_number(row.value(US)), *_rival(row, row.rivals[:1])]
        lines.append([row.what, row.unit, *ours, _number(row.value(BOUND)), _percent(reached)])
        lines += [["", "", "", *_rival(row, [party]), "", ""] for party in row.rivals[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if i in (0, 1, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * max(map(len, aligned)), *aligned[1:]])


def _rival(row: Row, parties: Sequence[str]) -> list[str]:
    if not parties:
        return ["", "", ""]
    faster = row.faster(parties[0])
    return [_number(row.value(parties[0])), parties[0], "" if faster is None else f"{faster:.2f}x"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * ratio:.0f} %"


def write_json(file: Path, rows: Sequence[Row], machine: dict[str, Any], bounds: dict[str, list[float]]) -> None:
    """All seconds with their medians and ratios, the bounds' rates, and the facts of the machine."""
    found = []
    for row in rows:
        parties = list(row.seconds)
        medians = {party: row.value(party) for party in parties}
        faster = {party: row.faster(party) for party in parties if party != US}
        found.append(asdict(row) | {"median": medians, "times_as_fast": faster})
    file.write_text(json.dumps({"machine": machine, "bounds": bounds, "rows": found}, indent=1) + "\n")
