"""Line charts as SVG: axes with round numbers, a thin grid, and classes that get their colours from the style sheet.

A chart is drawn in the units of its viewBox; the script of the page finds its scale in data attributes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .markup import Markup, join, tag

LEFT, RIGHT, TOP, BOTTOM = 50, 16, 12, 40  # around the plot, for labels


@dataclass(frozen=True)
class Curve:
    """A line through (x, y), interrupted where y is None. `kind`: line, faint or dots (a line with dots)."""

    name: str
    colour: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    kind: str = "line"


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    colour: str
    xs: Sequence[float]
    lows: Sequence[float | None]
    highs: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """Curves over steps. `marks` are vertical lines with a label; `keys` name the values shown under the pointer."""

    title: str
    curves: Sequence[Curve]
    keys: Sequence[str]
    x_range: tuple[float, float]
    width: int = 300
    height: int = 190
    bands: Sequence[Band] = ()
    marks: Sequence[tuple[float, str]] = ()
    from_zero: bool = False
    x_ticks: int = 4
    legend: bool = False


def draw(chart: Chart) -> Markup:
    """The chart as a figure; without a finite value, a remark that there is none."""
    values = [y for curve in chart.curves for y in curve.ys if y is not None]
    values += [y for band in chart.bands for y in (*band.lows, *band.highs) if y is not None]
    caption = tag("figcaption", tag("b", chart.title), legend(chart.curves) if chart.legend else "")
    if not values:
        return tag("figure", caption, tag("p", "no finite value", class_="muted"))
    y_ticks = ticks(min(0.0, *values) if chart.from_zero else min(values), max(values), 5, outside=True)
    plot = _Plot(chart, (y_ticks[0], y_ticks[-1]))
    svg = tag(
        "svg",
        join(*plot.axes(y_ticks)),
        join(*map(plot.band, chart.bands)),
        join(*map(plot.curve, chart.curves)),
        join(*plot.marks()),
        tag("line", class_="pointer", y1=TOP, y2=chart.height - BOTTOM, visibility="hidden"),
        viewBox=f"0 0 {chart.width} {chart.height}",
        role="img",
        aria_label=f"{chart.title}: {', '.join(curve.name for curve in chart.curves)} by step",
        data_left=LEFT,
        data_right=chart.width - RIGHT,
        data_from=chart.x_range[0],
        data_to=chart.x_range[1],
        data_keys=" ".join(chart.keys),
    )
    return tag("figure", caption, svg, class_="chart")


def legend(curves: Sequence[Curve]) -> Markup:
    """The names of the curves, each with its colour."""
    return tag("span", *(tag("span", c.name, class_=f"key {c.colour} {c.kind}") for c in curves), class_="legend")


class _Plot:
    """The elements of a chart, placed in its coordinates."""

    def __init__(self, chart: Chart, y_range: tuple[float, float]) -> None:
        self.chart = chart
        self.bottom = chart.height - BOTTOM
        self.right = chart.width - RIGHT
        self.x_from, self.x_span = chart.x_range[0], (chart.x_range[1] - chart.x_range[0]) or 1.0
        self.y_from, self.y_span = y_range[0], (y_range[1] - y_range[0]) or 1.0

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x_from) / self.x_span * (self.right - LEFT), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (value - self.y_from) / self.y_span * (self.bottom - TOP), 1)

    def axes(self, y_ticks: Sequence[float]) -> Iterator[Markup]:
        for value, label in zip(y_ticks, labels(y_ticks)):
            y = self.y(value)
            yield tag("line", class_="grid", x1=LEFT, x2=self.right, y1=y, y2=y)
            yield tag("text", label, x=LEFT - 8, y=y + 4, text_anchor="end")
        x_ticks = [x for x in ticks(*self.chart.x_range, self.chart.x_ticks) if x >= self.x_from]
        for value, label in zip(x_ticks, labels(x_ticks)):
            x = self.x(value)
            yield tag("line", class_="axis", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4)
            yield tag("text", label, x=x, y=self.bottom + 17, text_anchor="middle")
        yield tag("line", class_="axis", x1=LEFT, x2=self.right, y1=self.bottom, y2=self.bottom)
        yield tag("text", "step", class_="name", x=(LEFT + self.right) / 2, y=self.bottom + 34, text_anchor="middle")

    def curve(self, curve: Curve) -> Markup:
        parts = [[(self.x(x), self.y(y)) for x, y in part] for part in runs(curve.xs, curve.ys)]
        # a part of one point would be invisible as a line
        dots = [point for part in parts if curve.kind == "dots" or len(part) == 1 for point in part]
        path = "".join("M" + "L".join(f"{x:g},{y:g}" for x, y in part) for part in parts if len(part) > 1)
        return join(
            tag("path", class_=f"curve {curve.colour} {curve.kind}", d=path) if path else "",
            *(tag("circle", class_=f"dot {curve.colour}", cx=x, cy=y, r=2.5) for x, y in dots),
        )

    def band(self, band: Band) -> Markup:
        inside = [low if high is not None else None for low, high in zip(band.lows, band.highs)]
        paths, start = [], 0
        for part in runs(band.xs, inside):
            start = band.xs.index(part[0][0], start)
            upper = [(x, high) for x, high in zip(band.xs[start:], band.highs[start : start + len(part)])]
            outline = [*part, *reversed(upper)]
            paths.append("M" + "L".join(f"{self.x(x):g},{self.y(y):g}" for x, y in outline if y is not None) + "Z")
        return tag("path", class_=f"band {band.colour}", d="".join(paths))

    def marks(self) -> Iterator[Markup]:
        """Of marks that are too close together, the first is labelled."""
        free = -math.inf
        for value, label in sorted(self.chart.marks):
            x = self.x(value)
            yield tag("line", tag("title", label), class_="mark", x1=x, x2=x, y1=TOP, y2=self.bottom)
            width = 6.5 * len(label)
            if x >= free:
                at_end = x + width > self.right
                yield tag(
                    "text",
                    label,
                    class_="marked",
                    x=x - 5 if at_end else x + 5,
                    y=TOP + 10,
                    text_anchor="end" if at_end else "start",
                )
                free = x + width


def runs(xs: Sequence[float], ys: Sequence[float | None]) -> Iterator[list[tuple[float, float]]]:
    """The points that have a y, in parts between those that have none."""
    part: list[tuple[float, float]] = []
    for x, y in zip(xs, ys):
        if y is not None:
            part.append((x, y))
        elif part:
            yield part
            part = []
    if part:
        yield part


def ticks(low: float, high: float, count: int, *, outside: bool = False) -> list[float]:
    """About `count` round numbers from low to high; with `outside`, the first and the last enclose them."""
    if not high > low:
        high = low + (abs(low) * 0.1 or 1.0)
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = min((size * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first, last = low / step, high / step
    places = (math.floor(first + 1e-9), math.ceil(last - 1e-9)) if outside else (math.ceil(first), math.floor(last))
    return [place * step for place in range(places[0], places[1] + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """The numbers, with just enough digits to tell them apart."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    if max(map(abs, values), default=0) < 1e-3 or step < 1e-4:
        return [f"{value:.3g}" for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{digits}f}" for value in values]


def smooth(values: Sequence[float | None], reach: int) -> list[float | None]:
    """Each value as the mean of those up to `reach` before and after it; near the beginning, of fewer on both sides."""
    found: list[float | None] = []
    for place in range(len(values)):
        near = min(reach, place)
        known = [value for value in values[place - near : place + near + 1] if value is not None]
        found.append(math.fsum(known) / len(known) if known else None)
    return found
