"""The curves of a report, as the charts of loaders/charts take them: names, colours and points, in JSON."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from .data import Checkpoint, Report, Run

Chart = dict[str, Any]
DASH = "\N{EN DASH}"


def of_run(report: Report) -> Iterator[Chart]:
    """Losses first, then what is small beside them; nothing of a run without steps."""
    points = report.points
    if not points:
        return
    steps = [point.step for point in points]
    last = report.run.n_steps if report.run.status in ("running", "interrupted") else None
    x = [min(steps[0], 0 if steps[0] < len(steps) else steps[0]), max(steps[-1], last or 0)]
    names = {
        point.step: f"{point.first_step:,}{DASH}{point.step:,} (mean)"
        for point in points
        if point.first_step < point.step
    }
    yield {
        "title": "Loss, nats a token",
        "series": _losses(report, steps),
        "bands": [{"colour": "blue", "points": [[p.step, p.low, p.high] for p in points]}] if names else [],
        "marks": [
            [at, f"checkpoint {c.id}"] for c in report.checkpoints if (at := placed(c, report.run, x)) is not None
        ],
        "height": 340,
        "x": x,
        "names": names,
    }
    small = [
        ("Learning rate", [_series("learning rate", "violet", steps, [point.lr for point in points])], ""),
        ("Gradient norm", _noisy("green", steps, [point.grad_norm for point in points]), ""),
        ("Tokens a second", _noisy("orange", steps, [point.speed for point in points]), " tokens/s"),
    ]
    for title, series, unit in small:
        yield {"title": title, "series": series, "unit": unit, "zero": True, "x": x, "names": names}


def placed(checkpoint: Checkpoint, run: Run, x: Sequence[float]) -> int | None:
    """The step of the curve at which a checkpoint of the run was saved. Manual runs log the model's own steps."""
    at = checkpoint.step - (0 if run.status == "manual" else run.first_step)
    return at if checkpoint.run_id == run.run_id and at <= x[1] else None


def _losses(report: Report, steps: Sequence[int]) -> list[Chart]:
    losses = [point.loss for point in report.points]
    series = _noisy("blue", steps, losses, "training")
    if report.validation:
        at, values = zip(*report.validation)
        series.append(_series("validation", "orange", at, values, "dots"))
    return series


def _noisy(colour: str, steps: Sequence[int], values: Sequence[float | None], name: str = "smoothed") -> list[Chart]:
    """A curve, and where it has enough points the smoothed one."""
    if not reach(values):
        return [_series("each step" if name == "smoothed" else name, colour, steps, values)]
    smoothed = smooth(values, reach(values))
    return [_series("each step", colour, steps, values, "faint"), _series(name, colour, steps, smoothed)]


def _series(name: str, colour: str, steps: Sequence[int], values: Sequence[float | None], kind: str = "line") -> Chart:
    return {"name": name, "colour": colour, "kind": kind, "points": [[x, y] for x, y in zip(steps, values)]}


def reach(values: Sequence[object]) -> int:
    """How many neighbours on either side a smoothed value is the mean of, with itself."""
    return len(values) // 40


def smooth(values: Sequence[float | None], reach: int) -> list[float | None]:
    """Each value as the mean of those up to `reach` before and after it; near the beginning, of fewer on both sides."""
    found: list[float | None] = []
    for place in range(len(values)):
        near = min(reach, place)
        known = [value for value in values[place - near : place + near + 1] if value is not None]
        found.append(math.fsum(known) / len(known) if known else None)
    return found
