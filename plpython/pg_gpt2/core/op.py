"""The registry of ops: each defined once, forward and backward together, as stateless functions of arrays.

The SQL kernels, the tape and the training step all look an op up here. `saved` only accelerates a backward pass:
every backward recomputes what it is not given, so that an op can be differentiated from its recorded inputs alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import limits
from ..errors import InvalidParameter, UndefinedObject

Shape = tuple[int, ...]


class Sink:
    """A buffer that gradients of one leaf are collected in: the first is written, the later ones are added."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.filled = False


@dataclass(frozen=True)
class Op:
    """An op: `forward(*arrays, **attrs)` and `backward(dy, y, *arrays, saved, sinks, **attrs)`.

    forward returns y, or (y, saved) when `saves`. backward returns one gradient an input, None where there is none; it
    may put a gradient straight into the sink of that input (and then returns the sink's array). `reads` names the
    arrays backward looks at beyond their shape: input positions, and "y"; the tape frees the rest early. `saving` is a
    forward pass with the same y that also returns something large to save, for who has the memory.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Sequence[np.ndarray | None]]
    inputs: tuple[str, ...]
    variadic: bool = False
    saves: bool = False
    reads: frozenset[int | str] = frozenset()
    fused: Callable[..., tuple[np.ndarray, Sequence[np.ndarray | None]]] | None = None
    saving: Callable[..., tuple[np.ndarray, Any]] | None = None

    def __call__(self, *arrays: np.ndarray, **attrs: Any) -> np.ndarray:
        """y alone."""
        return self.run(*arrays, **attrs)[0]

    def run(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, Any]:
        """(y, saved); saved is None when the op saves nothing. 22023 when the number of inputs is wrong."""
        self.check_inputs(len(arrays))
        try:
            result = self.forward(*arrays, **attrs)
        except TypeError as error:
            raise self._bad_attributes(attrs, error) from error
        return result if self.saves else (result, None)

    def run_saving(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, Any]:
        """As `run`, with all saved that makes the backward pass faster."""
        return self.run(*arrays, **attrs) if self.saving is None else self.saving(*arrays, **attrs)

    def check_inputs(self, count: int) -> None:
        """22023 when the number of inputs is wrong."""
        if count != len(self.inputs) and not (self.variadic and count):
            raise InvalidParameter(
                f"op {self.name} takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), not {count}",
                hint="Give one array for each of them, in this order.",
            )

    def grads(self, dy: np.ndarray, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray | None, ...]:
        """Gradients of sum(dy * y) by the inputs, from the inputs alone."""
        y, saved = self.run(*arrays, **attrs)
        if dy.shape != y.shape:
            raise misfit(self.name, "the gradient has the shape of the result", dy=dy.shape, y=y.shape)
        return tuple(self.backward(dy, y, *arrays, saved=saved, **attrs))

    def _bad_attributes(self, attrs: dict[str, Any], error: TypeError) -> Exception:
        """A user's wrong attribute becomes 22023; a TypeError from inside the op stays what it is."""
        trace = error.__traceback__
        depth = 0
        while trace is not None:
            depth, trace = depth + 1, trace.tb_next
        if depth > 1:
            return error
        return InvalidParameter(
            f"op {self.name} does not accept attributes {sorted(attrs)}: {error}",
            hint="An attribute is missing, or is not one of this op's.",
        )


registry: dict[str, Op] = {}


def register(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Sequence[np.ndarray | None]],
    inputs: str,
    **options: Any,
) -> Op:
    """Enter an op; `inputs` are the names of its arrays, separated by blanks."""
    options["reads"] = frozenset(options.get("reads", ()))
    registry[name] = Op(name, forward, backward, tuple(inputs.split()), **options)
    return registry[name]


def lookup(name: str) -> Op:
    """The op of that name; 42704 when there is none."""
    try:
        return registry[name]
    except KeyError:
        raise UndefinedObject(f'op "{name}" does not exist', hint=f"Ops: {', '.join(sorted(registry))}.") from None


def misfit(op: str, rule: str, **shapes: Shape) -> InvalidParameter:
    """The error for shapes that do not fit: names the op, the shapes, and the rule as hint."""
    described = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return InvalidParameter(f"{op}: shapes do not fit: {described}", hint=f"Rule: {rule}.")


def check_row(op: str, n: int) -> None:
    """22023 when rows of n values are longer than an op takes that works on whole rows."""
    if n > limits.MOST_ROW:
        raise InvalidParameter(
            f"{op}: a row of {n} values; the most is {limits.MOST_ROW}",
            hint="Give the length of a row, or shorter rows.",
        )


def normal_axis(op: str, axis: int, ndim: int) -> int:
    """`axis` counted from the front; 22023 when there is no such axis."""
    if not -ndim <= axis < ndim:
        raise InvalidParameter(
            f"{op}: axis {axis} does not exist in a tensor of {ndim} dimensions",
            hint="Axes count from 0; negative ones from the end.",
        )
    return axis % ndim
