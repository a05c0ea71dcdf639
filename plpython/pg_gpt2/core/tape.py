"""Running ops: on a tape that can be differentiated, or eagerly. Model code is written once against `Runner`.

A tape is a list of nodes (name, inputs, output, attributes) in the order of their execution. It follows micrograd and
HIPS/autograd; what it adds is the economy of a training step: values are freed, or recomputed, as soon as they allow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import host
from ..errors import InvalidParameter
from ..fast.elementwise import accumulate
from .op import Op, Sink, lookup

Handle = Any  # a Value of a tape, or the array itself
Audit = Callable[[str, "Node"], None]  # ("forward" | "backward", node)


class Runner(Protocol):
    """What a model needs: apply ops to handles, and say when a value has no further use."""

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> Handle:
        """A handle for data."""

    def apply(self, name: str, *inputs: Handle, **attrs: Any) -> Handle:
        """The result of an op."""

    def forget(self, handle: Handle) -> None:
        """The caller makes no further use of this value; a backward pass may recompute it."""


class Eager:
    """Runs ops and records nothing: a handle is the array itself."""

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> np.ndarray:
        """data."""
        return data

    def apply(self, name: str, *inputs: np.ndarray, **attrs: Any) -> np.ndarray:
        """The op's result."""
        host.check_interrupts()
        return lookup(name)(*inputs, **attrs)

    def forget(self, handle: np.ndarray) -> None:
        """Nothing to do: the array goes with its last reference."""


class Value:
    """A value on a tape. `sink` is where a parameter's gradient is collected; others have it in `grad`.

    `is_read` says that the backward pass of an op so far looks at the data.
    """

    __slots__ = ("data", "dtype", "grad", "is_read", "node", "requires_grad", "shape", "sink")

    def __init__(self, data: np.ndarray, requires_grad: bool, node: "Node | None" = None, sink: Sink | None = None):
        self.data: np.ndarray | None = data
        self.shape, self.dtype = data.shape, data.dtype
        self.requires_grad = requires_grad
        self.node, self.sink = node, sink
        self.grad: np.ndarray | None = None
        self.is_read = False


@dataclass(eq=False)
class Node:
    """One application of an op: what becomes a row of `llm_tape`."""

    op: Op
    inputs: tuple[Value, ...]
    attrs: dict[str, Any]
    output: Value
    saved: Any = None

    @property
    def name(self) -> str:
        """Name of the op."""
        return self.op.name


class Tape:
    """Records ops and differentiates them.

    With keep, all values and gradients stay for inspection. Without, a value dies once nothing needs it: at `forget`,
    or when the backward pass has gone by; with `recompute` at `forget` though it will be needed. Either way gives the
    same bits. `audit` is called after each node.
    """

    def __init__(self, *, keep: bool = True, recompute: bool = True, audit: Audit | None = None) -> None:
        self.nodes: list[Node] = []
        self.keep = keep
        self.recompute = recompute and not keep
        self.audit = audit

    def leaf(self, data: np.ndarray, requires_grad: bool = False, sink: Sink | None = None) -> Value:
        """A value from outside: an input, or a parameter."""
        return Value(data, requires_grad, sink=sink)

    def apply(self, name: str, *inputs: Value, **attrs: Any) -> Value:
        """Run an op on values and record it."""
        host.check_interrupts()
        op = lookup(name)
        run = op.run if self.recompute or self.keep else op.run_saving
        y, saved = run(*(_data(value) for value in inputs), **attrs)
        return self._record(op, inputs, attrs, y, saved)

    def forget(self, value: Value) -> None:
        """Drop the data of an intermediate value that no backward pass reads, or that one can recompute."""
        if value.node is not None and (self.recompute or not (self.keep or value.is_read)):
            value.data = None

    def backward(self, start: Value, seed: np.ndarray | float = 1.0) -> None:
        """Gradients of sum(seed * start) for everything before `start` that requires one."""
        if start.node is None or not start.requires_grad:
            raise InvalidParameter(
                "the value to start from was not computed from anything that requires a gradient",
                hint="Start from a value that depends on a variable with requires_grad.",
            )
        start.grad = np.array(np.broadcast_to(np.asarray(seed, start.dtype), start.shape), order="C")
        self._sweep(self.nodes.index(start.node), start)

    def finish(self, name: str, *inputs: Value, seed: float = 1.0, **attrs: Any) -> Value:
        """Apply a last op and run backward from it, in one pass where the op can do that. The same bits as the two."""
        op = lookup(name)
        if op.fused is None or self.keep or not any(value.requires_grad for value in inputs):
            loss = self.apply(name, *inputs, **attrs)
            self.backward(loss, seed)
            return loss
        host.check_interrupts()
        arrays = [_data(value) for value in inputs]
        y, grads = op.fused(np.asarray(seed, arrays[0].dtype), *arrays, sinks=_sinks(inputs), **attrs)
        loss = self._record(op, inputs, attrs, y, None)
        loss.grad = np.asarray(seed, loss.dtype)  # for the audit
        self._collect(self.nodes[-1], grads)
        self._sweep(len(self.nodes) - 2, loss)
        return loss

    def _record(self, op: Op, inputs: Sequence[Value], attrs: dict[str, Any], y: np.ndarray, saved: Any) -> Value:
        output = Value(y, any(value.requires_grad for value in inputs))
        node = Node(op, tuple(inputs), attrs, output, saved if output.requires_grad else None)
        output.node = node
        output.is_read = "y" in op.reads
        for i, value in enumerate(inputs):
            value.is_read |= i in op.reads
        self.nodes.append(node)
        if self.audit is not None:
            self.audit("forward", node)
        return output

    def _sweep(self, last: int, start: Value) -> None:
        """Backward from node `last` to the first; the data of `start` stays."""
        for node in reversed(self.nodes[: last + 1]):
            host.check_interrupts()
            if node.output.grad is not None:
                y = _data(node.output) if "y" in node.op.reads else None
                arrays = [_operand(value, i in node.op.reads) for i, value in enumerate(node.inputs)]
                sinks = _sinks(node.inputs)
                grads = node.op.backward(node.output.grad, y, *arrays, saved=node.saved, sinks=sinks, **node.attrs)
                self._collect(node, grads)
            if not self.keep:
                node.output.grad = node.saved = None
                node.output.data = start.data if node.output is start else None
        if not self.keep:
            for node in self.nodes:
                node.output.node = None  # a cycle would hold the parameters until Python's collector happens to run
            self.nodes.clear()

    def _collect(self, node: Node, grads: Sequence[np.ndarray | None]) -> None:
        """Add the gradients of a node's inputs to what they have."""
        for value, grad in zip(node.inputs, grads, strict=True):
            if grad is not None and value.requires_grad:
                _add_gradient(value, grad, node.output.grad)
        if self.audit is not None:
            self.audit("backward", node)


def _data(value: Value) -> np.ndarray:
    """The value's data, recomputed when it was forgotten."""
    if value.data is None:
        node = value.node
        if node is None:
            raise InvalidParameter(
                "a value of this tape is gone: a tape that does not keep runs backward once",
                hint="Run the forward pass again.",
            )
        value.data = node.op(*(_data(inner) for inner in node.inputs), **node.attrs)
    return value.data


def _operand(value: Value, is_read: bool) -> np.ndarray:
    """What a backward pass is given: the data, or for what it does not read an array of that shape without memory."""
    if is_read or value.data is not None:
        return _data(value)
    return np.broadcast_to(np.zeros((), value.dtype), value.shape)


def _sinks(inputs: Sequence[Value]) -> list[Sink | None]:
    return [value.sink if value.requires_grad else None for value in inputs]


def _add_gradient(value: Value, grad: np.ndarray, dy: np.ndarray | None) -> None:
    """Collect `grad` in the value's sink, or in its own gradient."""
    sink = value.sink
    if sink is not None:
        if np.may_share_memory(grad, sink.array):
            return  # the op put it there
        if sink.filled:
            accumulate(sink.array, grad)
        else:
            sink.array[...], sink.filled = grad, True
        return
    if value.grad is None:
        value.grad = grad
    elif grad.flags.c_contiguous and dy is not None and not np.may_share_memory(grad, dy):
        accumulate(grad, value.grad)
        value.grad = grad
    else:
        value.grad = value.grad + grad  # an op may pass on a view of dy, which is not ours to change
