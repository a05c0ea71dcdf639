"""Gradients of a recorded tape, by the tape and the ops of training.

So what was recorded op by op has the gradients of a training step, bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import host
from ..core.op import Sink
from ..errors import InvalidParameter, PgGpt2Error
from ..fast.tape import Node, Tape, Value
from .records import Application, Arrays, Tensor, check_complete, handles_of


class Graph:
    """A tape of values and nodes made from records. `data` has what will be read; the rest has shapes only."""

    def __init__(self, applications: Sequence[Application], tensors: Mapping[int, Tensor], data: Arrays) -> None:
        check_complete(applications, tensors)
        self.tape = Tape()
        outputs = {application.output for application in applications}
        self.values: dict[int, Value] = {}
        dtype = next((array.dtype for array in data.values()), np.dtype(np.float32))
        for handle in dict.fromkeys(h for a in applications for h in handles_of(a)):
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
