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

from ..charts import DIRECTORY, SCRIPTS, with_license
from .curves import Chart, of_run, reach, smooth
from .data import Checkpoint, Report, Sample
from .markup import Markup, tag, text

HERE = Path(__file__).parent
NONE = "'none'"
PARAMETERS = {"weight_decay": "wd"}  # named otherwise in llm_run.config than in the call
NOT_GIVEN = ("base", "data", "n_steps", "tied")  # what a run found, and what stands first in the call
OPTIONS = {
    "lr_schedule": "cosine",
    "patience": None,
    "min_delta": 0,
    "keep_best": False,
    "shards": 1,
    "sync_every": 1,
    "outer_lr": 0.7,
    "outer_momentum": 0.9,
}  # keys of `options`, and defaults


def render(report: Report) -> str:
    """The HTML document."""
    drawn = list(of_run(report))
    scripts = [*map(with_license, SCRIPTS), (HERE / "page.js").read_text(encoding="utf-8")] if drawn else []
    style = (DIRECTORY / "charts.css").read_text(encoding="utf-8") + (HERE / "page.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {' '.join(map(_digest, scripts)) or NONE}"
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"{report.run.model}: run {report.run.run_id}"),
        tag("style", Markup(style)),
    ]
    body = [
        *_header(report),
        *_curves(drawn),
        *_samples(report),
        *_checkpoints(report.checkpoints, report.run.run_id),
        *_configuration(report),
        tag("footer", f"Written {_moment(report.written_at)} from the tables of pg_gpt2."),
        tag("script", Markup(_json(drawn)), type="application/json", id="charts"),
        *(tag("script", Markup(script)) for script in scripts),
    ]
    main = tag("main", *body)
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), tag('body', main), lang='en')}\n"


def _digest(inside: str) -> str:
    """How the policy names a script or a style sheet by its text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


# --- parts of the page ------------------------------------------------------------------------------------------------


def _header(report: Report) -> Iterator[Markup]:
    run = report.run
    yield tag("h1", run.model, " ", tag("span", run.status, class_=f"status {run.status}"))
    when = f"Run {run.run_id}, started {_moment(run.started_at)}"
    yield tag("p", when + (f", finished {_moment(run.finished_at)}" if run.finished_at else ""), class_="muted")
    losses = [point.loss for point in report.points if point.loss is not None]
    tiles: list[tuple[str, str]] = []
    if losses:
        end = smooth(losses, reach(losses))[-1]
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


def _curves(drawn: Sequence[Chart]) -> Iterator[Markup]:
    yield tag("h2", "Curves")
    if not drawn:
        yield tag("p", "No step is logged.", class_="muted")
        return
    yield tag("noscript", tag("p", "The curves are drawn by the script of this page, which is not allowed to run."))
    figures = [_figure(place, chart["title"]) for place, chart in enumerate(drawn)]
    yield figures[0]
    yield tag("div", *figures[1:], class_="charts")


def _figure(place: int, title: str) -> Markup:
    """Where the script draws a chart."""
    caption = tag("figcaption", tag("b", title))
    return tag("figure", caption, tag("div", class_="host"), id=f"chart-{place}")


def _samples(report: Report) -> Iterator[Markup]:
    yield tag("h2", "Samples")
    sampling, model, run = report.sampling, report.model, report.run
    if report.refused is not None:
        yield tag("p", f"The server drew none: {report.refused}.", class_="muted")
        return
    if not report.samples:
        missing = "vocabulary, so it writes no text" if model.n_params else "weights"
        yield tag("p", f"The model has no {missing}.", class_="muted")
        return
    how = f"Temperature {sampling.temperature:g}, seed {sampling.seed}, up to {sampling.max_tokens} tokens."
    first = 0 if run.status == "manual" else run.first_step  # a manual run logs the model's own steps
    later = (model.step or 0) - first - (run.left_step or 0)
    if later:
        how += f" By the model as it is now, which is not as this run left it ({_steps(abs(later))} "
        how += "later)." if later > 0 else "earlier)."
    yield tag("p", how, class_="muted")
    yield from map(_sample, report.samples)


def _steps(n: int) -> str:
    return "1 step" if n == 1 else f"{n:,} steps"


def _sample(sample: Sample) -> Markup:
    prompt = tag("b", sample.prompt) if sample.prompt else tag("span", "(no prompt) ", class_="muted")
    original = ""
    if sample.original is not None:
        original = tag("p", "The text itself goes on: ", sample.original.lstrip(" "), class_="original", dir="auto")
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
    numbers = ("id", "size")
    head = tag("tr", *(tag("th", name, class_="number" if name in numbers else None) for name in names))
    body = []
    for c in checkpoints:
        run = "this" if c.run_id == run_id else "" if c.run_id is None else str(c.run_id)
        note = c.note + (f" ({c.file_path})" if c.file_path else "")
        values = (str(c.id), f"{c.step:,}", run, _moment(c.created_at), _bytes(c.bytes), note)
        body.append(tag("tr", *(_cell(name, value, numbers) for name, value in zip(names, values))))
    yield tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="table rows")


def _cell(name: str, value: str, numbers: Sequence[str]) -> Markup:
    """A value under a heading, which on a narrow page stands beside it."""
    kind = "number" if name in numbers else None if name == "note" else "whole"
    return tag("td", value, class_=kind, data_name=name)


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
    return tag("div", tag("table", tag("tbody", *rows)), class_="table values")


# --- for the script -----------------------------------------------------------------------------------------------------


def _json(value: object) -> str:
    """JSON in which nothing ends a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


# --- numbers ------------------------------------------------------------------------------------------------------------


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
