"""Running ops: on a tape, which can be differentiated, or eagerly. The model is written once against `Runner`.

A tape is a list of nodes (op, inputs, output, attributes) in the order of their execution, as in micrograd and HIPS/autograd.
This one keeps every value; the one of `fast` does the same with less memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import ops  # noqa: F401  (enters them)
from .op import Op, lookup

Handle = Any  # a Value of a tape, or the array itself


class Runner(Protocol):
    """What a model needs: apply ops to handles."""

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> Handle:
        """A handle for data."""

    def apply(self, name: str, *inputs: Handle, **attrs: Any) -> Handle:
        """The result of an op."""


class Eager:
    """Runs ops and records nothing: a handle is the array itself."""

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> np.ndarray:
        """The data themselves."""
        return data

    def apply(self, name: str, *inputs: np.ndarray, **attrs: Any) -> np.ndarray:
        """The op's result."""
        before_each_op()
        return lookup(name)(*inputs, **attrs)


class Value:
    """A value on a tape: its data, the node that made it, and, after a backward pass, its gradient."""

    def __init__(self, data: np.ndarray, requires_grad: bool, node: "Node | None" = None) -> None:
        self.data, self.requires_grad, self.node = data, requires_grad, node
        self.grad: np.ndarray | None = None


@dataclass(eq=False)
class Node:
    """One application of an op."""

    op: Op
    inputs: tuple[Value, ...]
    attrs: dict[str, Any]
    output: Value


class Tape:
    """Records ops and differentiates them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> Value:
        """A value from outside: an input, or a parameter."""
        return Value(data, requires_grad)

    def apply(self, name: str, *inputs: Value, **attrs: Any) -> Value:
        """Run an op on values and record it."""
        before_each_op()
        op = lookup(name)
        output = Value(op(*(value.data for value in inputs), **attrs), any(value.requires_grad for value in inputs))
        output.node = Node(op, inputs, attrs, output)
        self.nodes.append(output.node)
        return output

    def backward(self, start: Value, seed: float = 1.0) -> None:
        """Gradients of sum(seed * start) by everything before `start` that requires one."""
        for node in self.nodes:
            node.output.grad = None  # of an earlier pass
        start.grad = np.full_like(start.data, seed)
        for node in reversed(self.nodes):
            before_each_op()
            if node.output.grad is not None:
                arrays = [value.data for value in node.inputs]
                grads = node.op.gradients(node.output.grad, node.output.data, *arrays, **node.attrs)
                _collect(node.inputs, grads)


def _collect(inputs: Sequence[Value], grads: Sequence[np.ndarray | None]) -> None:
    """A value that is used more than once gets the sum of what comes back from each use."""
    for value, grad in zip(inputs, grads, strict=True):
        if grad is not None and value.requires_grad:
            value.grad = grad if value.grad is None else value.grad + grad


def _nothing() -> None:
    """Nobody wants to be asked."""


before_each_op: Callable[[], None] = _nothing  # where a server looks for a cancel
