"""A recorded tape, back from its rows: differentiate it, run it again and compare, check it by finite differences.

Works on plain records, wherever they come from. It uses the tape and the ops of training: what was recorded op by op gives
the gradients of a training step, bit for bit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import host
from ..core.op import Op, Sink
from ..errors import InvalidParameter, PgGpt2Error, UndefinedObject, WrongState
from ..fast.ops import lookup
from ..fast.tape import Node, Tape, Value

Arrays = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Application:
    """A row of llm_tape: one application of an op to handles."""

    id: int
    name: str
    inputs: tuple[int, ...]
    output: int
    attrs: dict[str, Any]

    @property
    def op(self) -> Op:
        """The op; an unknown name is an error that names the row."""
        try:
            return lookup(self.name)
        except UndefinedObject as error:
            raise self.about(error) from None

    def about(self, error: PgGpt2Error) -> PgGpt2Error:
        """`error`, with this row named in front."""
        message = f"llm_tape row {self.id} ({self.name}): {error.message}"
        return type(error)(message, hint=error.hint, detail=error.detail)

    def run(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The op's result."""
        try:
            return self.op(*arrays, **self.attrs)
        except PgGpt2Error as error:
            raise self.about(error) from None


@dataclass(frozen=True)
class Tensor:
    """A row of llm_tensor_rt, without its bytes."""

    id: int
    shape: tuple[int, ...]
    requires_grad: bool


def ancestors(applications: Sequence[Application], start: int) -> list[Application]:
    """The applications that `start` was computed by, in order."""
    wanted, found = {start}, []
    for application in reversed(applications):
        host.check_interrupts()
        if application.output in wanted:
            found.append(application)
            wanted.update(application.inputs)
    return found[::-1]


def check_complete(applications: Iterable[Application], tensors: Mapping[int, Any]) -> None:
    """22023 or 42704 naming the row when an op has another number of inputs, or a handle no tensor."""
    for application in applications:
        host.check_interrupts()
        try:
            application.op.check_inputs(len(application.inputs))
        except InvalidParameter as error:
            raise application.about(error) from None
        for role, handle in [*(("input", i) for i in application.inputs), ("output", application.output)]:
            if handle not in tensors:
                raise application.about(
                    UndefinedObject(
                        f"{role} handle {handle} does not exist",
                        hint="Its row of llm_tensor_rt was deleted, or lost in a crash: the table is unlogged. Record again.",
                    )
                )


def values_read(applications: Iterable[Application]) -> set[int]:
    """Handles whose data a backward pass looks at; of all others the shape is enough."""
    found: set[int] = set()
    for application in applications:
        host.check_interrupts()
        reads = application.op.reads
        found.update(handle for i, handle in enumerate(application.inputs) if i in reads)
        if "y" in reads:
            found.add(application.output)
    return found


def _handles(application: Application) -> tuple[int, ...]:
    """Inputs and, last, the output; with a look for an interrupt, for passes over a long tape."""
    host.check_interrupts()
    return *application.inputs, application.output


class Graph:
    """A tape of values and nodes made from records. `data` has what will be read; the rest has shapes only."""

    def __init__(self, applications: Sequence[Application], tensors: Mapping[int, Tensor], data: Arrays) -> None:
        check_complete(applications, tensors)
        self.tape = Tape()
        outputs = {application.output for application in applications}
        self.values: dict[int, Value] = {}
        dtype = next((array.dtype for array in data.values()), np.dtype(np.float32))
        for handle in dict.fromkeys(h for a in applications for h in _handles(a)):
            tensor = tensors[handle]
            shown = data[handle] if handle in data else np.broadcast_to(np.zeros((), dtype), tensor.shape)
            # A leaf collects in a sink, as parameters of a training step do: the order of additions is the same.
            sink = Sink(np.empty(tensor.shape, dtype)) if tensor.requires_grad and handle not in outputs else None
            self.values[handle] = Value(shown, tensor.requires_grad, sink=sink)
        for application in applications:
            host.check_interrupts()
            output = self.values[application.output]
            inputs = tuple(self.values[handle] for handle in application.inputs)
            output.node = Node(application.op, inputs, application.attrs, output)
            self.tape.nodes.append(output.node)
        self._rows = dict(zip(self.tape.nodes, applications, strict=True))

    def backward(self, start: int, seed: np.ndarray | float = 1.0) -> None:
        """Gradients of sum(seed * start)."""
        value = self.values.get(start)
        if value is None or value.node is None or not value.requires_grad:
            raise InvalidParameter(
                f"handle {start} was not computed from anything that requires a gradient",
                hint="Make variables with llm_variable(data, shape, requires_grad => true) and start at a result of ops.",
            )
        self._guard(lambda: self.tape.backward(value, seed))

    def backward_one(self, node: Node, dy: np.ndarray) -> None:
        """The gradients that one node gives its inputs."""
        node.output.grad = dy
        nodes, self.tape.nodes = self.tape.nodes, [node]
        self._guard(lambda: self.tape._sweep(0, node.output))
        self.tape.nodes = nodes

    def gradients(self) -> Iterator[tuple[int, np.ndarray]]:
        """(handle, gradient) of everything that has one."""
        for handle, value in self.values.items():
            host.check_interrupts()
            if value.sink is not None and value.sink.filled:
                yield handle, value.sink.array
            elif value.grad is not None:
                yield handle, value.grad

    def close(self) -> None:
        """Values and nodes refer to each other: without this they stay until Python's collector happens to run."""
        for value in self.values.values():
            host.check_interrupts()
            value.node = None

    def _guard(self, work: Any) -> None:
        """Run a sweep; a shape that does not fit any more is reported with the row whose backward pass found it."""
        done: list[Node] = []
        self.tape.audit = lambda _, node: done.append(node)
        try:
            work()
        except (PgGpt2Error, ValueError, IndexError) as error:
            pending = [node for node in self.tape.nodes if node.output.grad is not None and node not in done]
            row = self._rows[(pending or self.tape.nodes)[-1]]
            if isinstance(error, PgGpt2Error):
                raise row.about(error) from None
            misfit = InvalidParameter(f"shapes do not fit: {error}", hint="Values were changed by hand; record again.")
            raise row.about(misfit) from None


@dataclass(frozen=True)
class Difference:
    """What a replay computed otherwise than the record has it."""

    application: Application
    handle: int
    what: str  # value | gradient
    max_difference: float


def compare(
    applications: Sequence[Application], tensors: Mapping[int, Tensor], data: Arrays, grads: Arrays
) -> Iterator[Difference]:
    """Every op again, forward and backward, each from its recorded inputs: so one changed row shows where it stands.

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
    """(first, last) place of each backward pass: it starts where a gradient was not received from anyone."""
    used = {handle for a in applications if a.output in grads for handle in _handles(a)[:-1]}
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


@dataclass(frozen=True)
class Checked:
    """Analytic against numeric gradient of one leaf, in float64."""

    handle: int
    n_checked: int
    max_error: float
    max_gradient: float


def gradcheck(
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


def require_kept(handles: Iterable[int], data: Arrays) -> None:
    """55000 when data that is needed was not kept, as by audit level 'tape'."""
    missing = [handle for handle in handles if handle not in data]
    if missing:
        raise WrongState(
            f"handle {missing[0]} has no data",
            hint="It was recorded by audit level 'tape', which keeps no values; use 'full', or switch recording on.",
        )
