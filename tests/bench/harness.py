"""What topics measure with: the parties, the rows as they fill, and rounds between two measurements of a bound."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
from bounds import Bounds
from clusters import Clusters
from ours import Server, timed
from report import US, Limit, Row
from shapes import NANOGPT_STEPS, Shape
from targets import READ, SGEMM, TARGETS

SEED = 1
Work = Callable[[], Any]


@dataclass(frozen=True)
class Length:
    """How much is done in a run; the smallest only shows that everything works."""

    name: str
    batch_tokens: int  # of each prompt of a batch
    session_tokens: int
    text_bytes: int
    recipe_steps: int
    prefix_rows: int = 16
    rows: int = 64
    most_sessions: int = 8
    new_sessions: int = 64
    choose_rows: int = 56
    adapters: int = 50
    adapter_sessions: int = 10
    draft_texts: int = 512  # from which a draft learns
    draft_steps: int = 600
    scored_bytes: int = 100_000  # of a long text
    embedded_bytes: int = 1_000_000


SMOKE = Length(
    *("smoke", 4, 4, 50_000, 6),
    prefix_rows=2,
    rows=4,
    most_sessions=2,
    new_sessions=2,
    choose_rows=4,
    adapters=4,
    adapter_sessions=2,
    draft_texts=2,
    draft_steps=2,
    scored_bytes=3_000,
    embedded_bytes=3_000,
)
QUICK = Length("quick", 32, 24, 2_000_000, 150, prefix_rows=8, rows=32, draft_texts=128, draft_steps=200)
FULL = Length("full", 64, 48, 2_000_000, NANOGPT_STEPS)


@dataclass
class Bench:
    """The parties; `rivals` are those that decode, torch's model first where it is there."""

    shape: Shape
    server: Server
    bounds: Bounds
    scratch: Path
    length: Length
    limits: Mapping[str, tuple[Limit, ...]] = field(default_factory=lambda: TARGETS)
    torch: Any = None
    peft: Any = None
    rivals: list[Any] = field(default_factory=list)
    tokenizers: list[Any] = field(default_factory=list)
    patience: float = 0.0
    clusters: Clusters = field(default_factory=Clusters)
    rows: dict[str, Row] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=lambda: {READ: [], SGEMM: []})
    checks: dict[str, list[bool]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    disturbed: list[bool] = field(default_factory=list)

    def ids(self, count: int) -> list[int]:
        """Random ids, other ones at each call, so that nothing can be reused."""
        return [self.rng.randrange(self.shape.vocab - 1) for _ in range(count)]

    def row(self, key: str, what: str, unit: str, amount: float = 1.0, *, rate: bool = False, bound: str = "") -> Row:
        """The row `key`, made at its first use."""
        if key not in self.rows:
            self.rows[key] = Row(key, what, unit, amount, rate, bound, self.limits.get(key, ()))
        return self.rows[key]

    def check(self, what: str, holds: bool) -> None:
        """Count how often something that should be so is so."""
        self.checks.setdefault(what, []).append(bool(holds))

    def rate(self, kind: str) -> float:
        """Measure a bound now: bytes or operations a second."""
        self.rates[kind].append(self.bounds.read() if kind == READ else self.bounds.sgemm())
        return self.rates[kind][-1]

    def timed(self, work: Work) -> tuple[float, Any]:
        """Seconds and result of `work`, once the machine is idle."""
        self.wait()
        return timed(work)

    def wait(self) -> None:
        """Wait until the machine is idle, as long as patience lasts; then warm its cores up, whoever's turn comes.

        Not in the smallest run, whose times nobody looks at.
        """
        if self.length is SMOKE:
            return
        self.disturbed.append(not machine.wait_until_idle(self.patience))
        self.bounds.warm_up()

    def between(self, row: Row, demand: float, work: Work) -> Any:
        """Do `work` between two measurements of the row's bound, which is `demand` at the better of the two rates."""
        before = self.rate(row.bound)
        result = work()
        row.add(row.bound, demand / max(before, self.rate(row.bound)))
        return result

    def compare(self, row: Row, demand: float, parties: Sequence[tuple[str, Work]]) -> list[Any]:
        """One round: every party after the other; what each returned. Without a bound nothing is measured around them."""

        def run() -> list[Any]:
            results = []
            for party, work in parties:
                seconds, result = self.timed(work)
                row.add(party, seconds)
                results.append(result)
            return results

        return self.between(row, demand, run) if row.bound else run()


def us(work: Work) -> tuple[str, Work]:
    """Our side of a comparison."""
    return US, work
