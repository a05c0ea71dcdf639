"""A recorded tape run again and compared with its record, value by value and gradient by gradient."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import host
from .graph import Graph
from .records import Application, Arrays, Tensor, check_complete, handles_of


@dataclass(frozen=True)
class Difference:
    """A value or gradient that a replay computed differently from the record."""

    application: Application
    handle: int
    what: str  # value | gradient
    max_difference: float


def compare(
    applications: Sequence[Application], tensors: Mapping[int, Tensor], data: Arrays, grads: Arrays
) -> Iterator[Difference]:
    """Compute every op again, forward and backward, from its recorded inputs, so that a changed row is reported where it is.

    A value is compared with the op that gave it; where an input was changed, with the ops that took it. A gradient is
    compared with the sum over the ops that took its value; those of leaves as well.
    """
    check_complete(applications, tensors)
    for application in applications:
        host.check_interrupts()
        if application.output in data and all(handle in data for handle in application.inputs):
            again = application.run([data[handle] for handle in application.inputs])
            yield from _difference(application, application.output, "value", again, data[application.output])
    yield from _compare_gradients(applications, tensors, data, grads)


def _compare_gradients(
    applications: Sequence[Application], tensors: Mapping[int, Tensor], data: Arrays, grads: Arrays
) -> Iterator[Difference]:
    """The backward sweeps again; each node takes the recorded gradient of its output."""
    producer = {application.output: application for application in applications}
    users: dict[int, Application] = {}
    for application in reversed(applications):
        host.check_interrupts()
        if application.output in grads:
            for handle in application.inputs:
                users[handle] = application  # the first to use it, hence the last to contribute
    graph = Graph(applications, tensors, data)
    for first, last in _sweeps(applications, grads):
        for place in range(last, first - 1, -1):
            host.check_interrupts()
            application, node = applications[place], graph.tape.nodes[place]
            if application.output not in grads:
                continue
            if application.output in users and node.output.grad is not None:
                recorded = grads[application.output]
                yield from _difference(
                    users[application.output], application.output, "gradient", node.output.grad, recorded
                )
            graph.backward_one(node, grads[application.output])
    for handle, value in graph.values.items():
        if handle not in producer and value.sink is not None and value.sink.filled and handle in grads:
            yield from _difference(users[handle], handle, "gradient", value.sink.array, grads[handle])
    graph.close()


def _sweeps(applications: Sequence[Application], grads: Arrays) -> Iterator[tuple[int, int]]:
    """(first, last) place of each backward pass, which starts at a gradient that came from no other op."""
    used = {handle for a in applications if a.output in grads for handle in handles_of(a)[:-1]}
    first = 0
    for place, application in enumerate(applications):
        host.check_interrupts()
        if application.output in grads and application.output not in used:
            yield first, place
            first = place + 1


def _difference(
    application: Application, handle: int, what: str, again: np.ndarray, recorded: np.ndarray
) -> Iterator[Difference]:
    if again.shape != recorded.shape:
        yield Difference(application, handle, what, float("inf"))
    elif not np.array_equal(again, recorded, equal_nan=True):
        with np.errstate(invalid="ignore"):
            worst = np.abs(again.astype(np.float64) - recorded).max()
        yield Difference(application, handle, what, float(worst))
