"""Gradients of a recorded tape checked by finite differences, in float64."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import host
from .graph import Graph
from .records import Application, Arrays, Tensor


@dataclass(frozen=True)
class Checked:
    """Analytic against numeric gradient of one leaf, in float64."""

    handle: int
    n_checked: int
    max_error: float
    max_gradient: float


def check_gradients(
    applications: Sequence[Application],
    tensors: Mapping[int, Tensor],
    data: Arrays,
    start: int,
    *,
    epsilon: float,
    most: int,
) -> Iterator[Checked]:
    """Central differences of sum(start) by at most `most` elements of each leaf, evenly spread."""
    wide = {handle: np.array(array, np.float64) for handle, array in data.items()}
    for application in applications:
        wide[application.output] = application.run([wide[handle] for handle in application.inputs])
    graph = Graph(applications, tensors, wide)
    graph.backward(start)
    analytic = dict(graph.gradients())
    graph.close()
    produced = {application.output for application in applications}

    def total() -> float:
        for application in applications:
            wide[application.output] = application.run([wide[handle] for handle in application.inputs])
        host.check_interrupts()
        return float(wide[start].sum())

    for handle in sorted(graph.values):
        if handle in produced or not tensors[handle].requires_grad:
            continue
        flat = wide[handle].reshape(-1)
        expected = np.zeros(flat.size) if handle not in analytic else analytic[handle].reshape(-1)
        places = np.unique(np.linspace(0, flat.size - 1, min(most, flat.size)).astype(np.int64))
        worst = 0.0
        for place in places:
            was = flat[place]
            flat[place] = was + epsilon
            above = total()
            flat[place] = was - epsilon
            worst = max(worst, abs(float((above - total()) / (2 * epsilon) - expected[place])))
            flat[place] = was
        yield Checked(handle, len(places), worst, float(np.abs(expected[places]).max()))
