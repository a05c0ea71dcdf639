"""The page: what `data` read, as one HTML document with its style sheet, script and pictures inside."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from .charts import Band, Chart, Curve, draw, smooth
from .data import Checkpoint, Point, Report, Sample
from .markup import Markup, tag, text

HERE = Path(__file__).parent
PARAMETERS = {"weight_decay": "wd"}  # named otherwise in llm_run.config than in the call
NOT_GIVEN = ("base", "data", "n_steps", "tied")  # what a run found, and what stands first in the call
OPTIONS = {
    "lr_schedule": "cosine",
    "patience": None,
    "min_delta": 0,
    "keep_best": False,
}  # keys of `options`, and defaults


def render(report: Report) -> str:
    """The HTML document."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = f"{report.run.model}: run {report.run.run_id}"
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Markup((HERE / "page.css").read_text(encoding="utf-8"))),
    ]
    body = [
        *_header(report),
        *_curves(report),
        *_samples(report),
        *_checkpoints(report.checkpoints, report.run.run_id),
        *_configuration(report),
        tag("footer", f"Written {_moment(report.written_at)} from the tables of pg_gpt2."),
        tag("div", id="tip", hidden="hidden", role="status"),
        tag("script", Markup(_json(_rows(report))), type="application/json", id="rows"),
        tag("script", Markup(script)) if report.points else "",
    ]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


# --- parts of the page ------------------------------------------------------------------------------------------------


def _header(report: Report) -> Iterator[Markup]:
    run = report.run
    yield tag("h1", run.model, " ", tag("span", run.status, class_=f"status {run.status}"))
    when = f"Run {run.run_id}, started {_moment(run.started_at)}"
    yield tag("p", when + (f", finished {_moment(run.finished_at)}" if run.finished_at else ""), class_="muted")
    losses = [point.loss for point in report.points if point.loss is not None]
    tiles: list[tuple[str, str]] = []
    if losses:
        end = smooth(losses, _reach(losses))[-1]
        tiles += [(_number(end), "training loss at the end"), (_number(losses[0]), "at the beginning")]
    if report.validation:
        step, best = min(report.validation, key=lambda at: at[1])
        tiles.append((_number(best), f"best validation loss, at step {step:,}"))
        tiles.append((f"{math.exp(min(best, 700)):,.1f}", "perplexity there"))
    steps = f"{run.steps:,}" + (f" of {run.n_steps:,}" if run.n_steps not in (None, run.steps) else "")
    tiles += [(steps, "steps"), (_short(run.tokens), "tokens"), (_duration(report.duration), "time of the steps")]
    if run.seconds:
        tiles.append((_short(run.tokens / run.seconds), "tokens a second"))
    yield tag("div", *(tag("div", tag("b", n), tag("span", what), class_="tile") for n, what in tiles), class_="tiles")


def _curves(report: Report) -> Iterator[Markup]:
    yield tag("h2", "Curves")
    points = report.points
    if not points:
        yield tag("p", "No step is logged.", class_="muted")
        return
    xs = [point.step for point in points]
    last = report.run.n_steps if report.run.status in ("running", "interrupted") else None
    x_range = (min(xs[0], 0 if xs[0] < len(xs) else xs[0]), max(xs[-1], last or 0))
    yield tag("div", draw(_losses(report, xs, x_range)), class_="wide")
    small = [
        ("Learning rate", "learning_rate", [Curve("learning rate", "violet", xs, [point.lr for point in points])]),
        ("Gradient norm", "gradient_norm", _noisy("green", xs, [point.grad_norm for point in points])),
        ("Tokens a second", "speed", _noisy("orange", xs, [point.speed for point in points])),
    ]
    charts = [Chart(title, lines, (key,), x_range, from_zero=True) for title, key, lines in small]
    yield tag("div", *map(draw, charts), class_="charts")


def _losses(report: Report, xs: Sequence[int], x_range: tuple[int, int]) -> Chart:
    """Training and validation loss, and the checkpoints of the run."""
    points, run = report.points, report.run
    losses = [point.loss for point in points]
    reach = _reach(losses)
    curves = [Curve("each step", "blue", xs, losses, "faint"), Curve("training", "blue", xs, smooth(losses, reach))]
    if reach == 0:
        curves = [Curve("training", "blue", xs, losses)]
    if report.validation:
        steps, values = zip(*report.validation)
        curves.append(Curve("validation", "orange", steps, values, "dots"))
    is_thinned = any(point.first_step < point.step for point in points)
    band = Band("blue", xs, [point.low for point in points], [point.high for point in points])
    marks = [
        (checkpoint.step - run.first_step, f"checkpoint {checkpoint.id}")
        for checkpoint in report.checkpoints
        if checkpoint.run_id == run.run_id and checkpoint.step - run.first_step <= x_range[1]
    ]
    return Chart(
        "Loss, nats a token",
        curves,
        ("training_loss", "validation_loss", "perplexity"),
        x_range,
        width=920,
        height=360,
        bands=[band] if is_thinned else [],
        marks=marks,
        x_ticks=9,
        legend=True,
    )


def _noisy(colour: str, xs: Sequence[float], ys: Sequence[float | None]) -> list[Curve]:
    """A curve, and where it has enough points the smoothed one."""
    reach = _reach(ys)
    if not reach:
        return [Curve("each step", colour, xs, ys)]
    return [Curve("each step", colour, xs, ys, "faint"), Curve("smoothed", colour, xs, smooth(ys, reach))]


def _samples(report: Report) -> Iterator[Markup]:
    yield tag("h2", "Samples")
    sampling, model, run = report.sampling, report.model, report.run
    if not report.samples:
        missing = "vocabulary, so it writes no text" if model.n_params else "weights"
        yield tag("p", f"The model has no {missing}.", class_="muted")
        return
    how = f"Temperature {sampling.temperature:g}, seed {sampling.seed}, up to {sampling.max_tokens} tokens."
    later = (model.step or 0) - run.first_step - (run.left_step or 0)
    if run.status != "manual" and later:
        how += f" By the model as it is now, which is not as this run left it ({abs(later):,} steps "
        how += "later)." if later > 0 else "earlier)."
    yield tag("p", how, class_="muted")
    yield from map(_sample, report.samples)


def _sample(sample: Sample) -> Markup:
    prompt = tag("b", sample.prompt) if sample.prompt else tag("span", "(no prompt) ", class_="muted")
    original = ""
    if sample.original is not None:
        original = tag("p", "The text itself goes on: ", sample.original, class_="original", dir="auto")
    return tag("div", tag("p", prompt, *_lines(sample.continuation), dir="auto"), original, class_="sample")


def _lines(written: str) -> Iterator[Markup]:
    """Text in which three line ends or more are shown as one line, with a sign for each."""
    for part in re.split(r"(\n{3,})", written):
        yield tag("span", f"\n{'⏎' * len(part)}\n", class_="muted") if part.startswith("\n\n\n") else text(part)


def _checkpoints(checkpoints: Sequence[Checkpoint], run_id: int) -> Iterator[Markup]:
    if not checkpoints:
        return
    yield tag("h2", "Checkpoints of the model")
    names = ("id", "step of the model", "run", "saved", "size", "note")
    head = tag("tr", *(tag("th", name, class_="number" if name in ("id", "size") else None) for name in names))
    rows = [
        tag(
            "tr",
            tag("td", c.id, class_="number"),
            tag("td", f"{c.step:,}"),
            tag("td", "this" if c.run_id == run_id else "" if c.run_id is None else c.run_id),
            tag("td", _moment(c.created_at)),
            tag("td", _bytes(c.bytes), class_="number"),
            tag("td", c.note, f" ({c.file_path})" if c.file_path else ""),
        )
        for c in checkpoints
    ]
    yield tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="table")


def _configuration(report: Report) -> Iterator[Markup]:
    run, model = report.run, report.model
    settings = {key: value for key, value in run.config.items() if key != "data"}
    data = run.config.get("data")
    if isinstance(data, dict):
        settings |= {f"data: {key}": value for key, value in data.items()}
    shape = {
        "layers": model.n_layer,
        "heads": model.n_head,
        "width": model.d_model,
        "positions": model.n_positions,
        "vocabulary": model.vocab,
        "parameters": model.n_params,
    }
    digests = {"weights before": run.weights_digest or "", "weights after": run.last_digest or ""}
    left = [tag("h2", "Model"), _table(shape), tag("h2", "Environment"), _table(run.environment)]
    right = [
        tag("h2", "Configuration"),
        _table({"seed": run.seed, **settings, **{k: v for k, v in digests.items() if v}}),
    ]
    yield tag("div", tag("div", *left), tag("div", *right), class_="pair")
    if run.status != "manual" and run.n_steps:
        yield tag("h2", "Once more")
        yield tag("p", "The same run, from the same weights and data, gives the same bits in the same environment:")
        yield tag("pre", tag("code", _call(run.model, run.n_steps, run.config)))
        yield tag("p", "Done beside the original, and compared with its log:")
        yield tag("pre", tag("code", f"SELECT * FROM llm_replay({run.run_id});"))


def _call(model: str, n_steps: int, config: Mapping[str, Any]) -> str:
    """The call of llm_train that makes such a run."""
    given = {key: value for key, value in config.items() if value is not None and key not in NOT_GIVEN}
    told = {key: given.pop(key) for key in OPTIONS if key in given}
    options = {key: value for key, value in told.items() if value != OPTIONS[key]}
    arguments = [f"{PARAMETERS.get(key, key)} => {json.dumps(value)}" for key, value in given.items()]
    if options:
        arguments.append(f"options => '{json.dumps(options)}'")
    lines = [", ".join(arguments[place : place + 4]) for place in range(0, len(arguments), 4)]
    name = "'" + model.replace("'", "''") + "'"
    return "SELECT llm_train(" + ",\n                 ".join([f"{name}, {n_steps}", *lines]) + ");"


def _table(values: Mapping[str, Any]) -> Markup:
    """A table of names and values."""
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", _plain(value))) for name, value in values.items()]
    return tag("div", tag("table", tag("tbody", *rows)), class_="table")


# --- for the script -----------------------------------------------------------------------------------------------------


def _rows(report: Report) -> list[dict[str, Any]]:
    """What the script shows at each point."""
    validation = dict(report.validation)
    return [
        _row(point, [value for step, value in validation.items() if point.first_step <= step <= point.step])
        for point in report.points
    ]


def _row(point: Point, validation: Sequence[float]) -> dict[str, Any]:
    one = point.first_step == point.step
    values = {
        "training_loss": point.loss,
        "validation_loss": validation[-1] if validation else None,
        "perplexity": math.exp(min(point.loss, 700)) if point.loss is not None else None,
        "learning_rate": point.lr,
        "gradient_norm": point.grad_norm,
    }
    told = {key: _number(value) for key, value in values.items() if value is not None}
    if point.speed is not None:
        told["speed"] = f"{point.speed:,.0f} tokens/s"
    return {
        "step": point.step,
        "steps": f"{point.step:,}" if one else f"{point.first_step:,}\N{EN DASH}{point.step:,} (mean)",
        **told,
    }


def _json(value: object) -> str:
    """JSON in which nothing ends a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


# --- numbers ------------------------------------------------------------------------------------------------------------


def _reach(values: Sequence[object]) -> int:
    """How many neighbours on either side a smoothed value is the mean of, with itself."""
    return len(values) // 40


def _number(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return (
        f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) >= 0.01 or not value else f"{value:.2e}"
    )


def _short(value: float) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def _bytes(value: int) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"


def _duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S %Z}".rstrip()


def _plain(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
