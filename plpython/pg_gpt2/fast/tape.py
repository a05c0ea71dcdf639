"""A tape with the economy of a training step: values are freed, or recomputed, as soon as they allow; gradients go into sinks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import host
from ..core.op import Op, Sink
from ..errors import InvalidParameter
from . import activations
from .elementwise import accumulate
from .ops import lookup

Audit = Callable[[str, "Node"], None]  # ("forward" | "backward", node)
# A model uses the results of these ops once, and they are computed again in less time than memory is read from afar.
CHEAP = frozenset(("layernorm", "embedding", "dropout", *activations.INTO))
# Nor has a model another use of these results, used so.
PASSED_ON = {
    "linear": ("add", "dropout", "addmm"),
    "addmm": ("add", "dropout"),
    "add": ("dropout",),
    "causal_attention": ("linear",),
}
FIRST = ("matmul", "dropout")  # what an adapter does with what goes to a linear layer, before that has it


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

    @property
    def wanted(self) -> list[bool]:
        """Of which inputs there is to be a gradient."""
        return [value.requires_grad for value in self.inputs]

    @property
    def reads(self) -> frozenset[int | str]:
        """What its backward pass looks at."""
        return self.op.reads_for(self.wanted)


class Tape:
    """Records ops and differentiates them.

    With keep, all values and gradients stay for inspection. Without, a value dies once nothing needs it: when a model has no
    further use of it, or when the backward pass has gone by; with `recompute`, a cheap one dies early though the backward pass
    will need it. Either way gives the same bits. `audit` is called after each node.
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
        output = self._record(op, inputs, attrs, y, saved)
        if not self.keep:
            for value in inputs:
                if self._is_spent(value, name):
                    _forget(value)
        return output

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
        if op.check is not None:
            op.check(*arrays, **attrs)
        wanted = {} if op.apart is None else {"wanted": [value.requires_grad for value in inputs]}
        y, grads = op.fused(np.asarray(seed, arrays[0].dtype), *arrays, sinks=_sinks(inputs), **wanted, **attrs)
        loss = self._record(op, inputs, attrs, y, None)
        loss.grad = np.asarray(seed, loss.dtype)  # for the audit
        self._collect(self.nodes[-1], grads)
        self._sweep(len(self.nodes) - 2, loss)
        return loss

    def _is_spent(self, value: Value, op: str) -> bool:
        """Whether nobody needs a value's data now that an op of that name has used it, or the data will be computed again."""
        maker = value.node and value.node.name
        if maker in CHEAP:
            return (self.recompute or not value.is_read) and (maker == "dropout" or op not in FIRST)
        return not value.is_read and op in PASSED_ON.get(maker or "", ())

    def _record(self, op: Op, inputs: Sequence[Value], attrs: dict[str, Any], y: np.ndarray, saved: Any) -> Value:
        output = Value(y, any(value.requires_grad for value in inputs))
        node = Node(op, tuple(inputs), attrs, output, saved if output.requires_grad else None)
        output.node, reads = node, node.reads
        output.is_read = "y" in reads
        for i, value in enumerate(inputs):
            value.is_read |= i in reads
        self.nodes.append(node)
        if self.audit is not None:
            self.audit("forward", node)
        return output

    def _sweep(self, last: int, start: Value) -> None:
        """Backward from node `last` to the first; the data of `start` stays."""
        for node in reversed(self.nodes[: last + 1]):
            host.check_interrupts()
            if node.output.grad is not None:
                reads = node.reads
                y = _data(node.output) if "y" in reads else None
                arrays = [_operand(value, i in reads) for i, value in enumerate(node.inputs)]
                given = {"saved": node.saved, "sinks": _sinks(node.inputs), "wanted": node.wanted}
                self._collect(node, node.op.gradients(node.output.grad, y, *arrays, **given, **node.attrs))
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


def _forget(value: Value) -> None:
    """Free the data; where they will be computed again, what they are computed from stays."""
    value.data = None
    if value.is_read and value.node is not None:
        for source in value.node.inputs:
            source.is_read = True


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
