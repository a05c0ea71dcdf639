"""A tape as a picture: DOT text for Graphviz. Ops are boxes, values from outside are ellipses, parameters by name."""

import json
from collections.abc import Iterator, Mapping, Sequence

from .. import host
from .records import Application, Tensor

STYLE = [
    "  rankdir=TB; nodesep=0.25; ranksep=0.3;",
    '  node [fontname="Helvetica", fontsize=10, color="#9aa1ab"]; edge [arrowsize=0.6, color="#5f6670"];',
]
SHOWN = 24  # characters of an attribute


def dot(
    tape_id: int, applications: Sequence[Application], tensors: Mapping[int, Tensor], names: Mapping[int, str]
) -> str:
    """The picture of these applications; `names` gives the names of parameters by handle."""
    lines = [f'digraph "tape {tape_id}" {{', *STYLE, *_nodes(applications, tensors, names), *_edges(applications), "}"]
    return "\n".join(lines) + "\n"


def _nodes(
    applications: Sequence[Application], tensors: Mapping[int, Tensor], names: Mapping[int, str]
) -> Iterator[str]:
    produced = {application.output for application in applications}
    outside = sorted({handle for application in applications for handle in application.inputs} - produced)
    for handle in outside:
        fill = "#dbe9f6" if handle in tensors and tensors[handle].requires_grad else "#eeeeee"
        label = _label(names.get(handle, f"variable {handle}"), _shape(tensors, handle))
        yield f'  t{handle} [shape=ellipse, style=filled, fillcolor="{fill}", label={label}];'
    for application in applications:
        host.check_interrupts()
        attrs = [f"{name}={_short(value)}" for name, value in application.attrs.items()]
        label = _label(application.name, *attrs, _shape(tensors, application.output))
        yield f'  t{application.output} [shape=box, style="rounded,filled", fillcolor="#fdf3dc", label={label}];'


def _edges(applications: Sequence[Application]) -> Iterator[str]:
    """Edges. Those between ops weigh more, which keeps them short and straight: the path of the computation stands out."""
    produced = {application.output for application in applications}
    for application in applications:
        host.check_interrupts()
        for handle in application.inputs:
            yield f"  t{handle} -> t{application.output}{' [weight=8]' if handle in produced else ''};"


def _label(*lines: str) -> str:
    """A quoted DOT string of several lines."""
    return json.dumps("\n".join(lines), ensure_ascii=False)


def _shape(tensors: Mapping[int, Tensor], handle: int) -> str:
    return " \u00d7 ".join(map(str, tensors[handle].shape)) or "scalar" if handle in tensors else "missing"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "\u2026"
