"""What an op is, and the registry in which everybody looks it up: the SQL functions, the tape, the model.

An op is a function of arrays and its gradient. The plain ones are in `ops`. A faster form registers under the same name with
`replace`; `lookup` gives it unless `use_fast(False)`, and nobody who looks an op up has to know which of the two it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import numpy as np

from ..errors import InvalidParameter, UndefinedObject

Grads = tuple[np.ndarray | None, ...]  # one for each input, None where there is none


class Sink:
    """A buffer that gradients of one leaf are collected in: the first is written, the later ones are added."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.filled = False


@dataclass(frozen=True)
class Op:
    """`forward(*arrays, **attrs)` gives y; `backward(dy, y, *arrays, **attrs)` gives the gradients of sum(dy * y) by the inputs.

    `reads` names what backward looks at beyond shapes: places of inputs, and "y". `check(*arrays, **attrs)` raises where the
    arrays or attributes do not fit, whichever form of the op runs. What only faster forms have: forward returns (y, saved) when
    `saves`, and backward then takes `saved`, but can do without; `saving` is a forward pass that saves more than memory may
    allow; with `sinks`, backward takes a Sink or None for each input and may put a gradient there, returning the sink's array;
    with `apart`, what the gradient of each input looks at, backward takes `wanted`, whether each is asked for, and may give None
    for the others; `fused` is forward and backward of a last op in one.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Grads]
    inputs: tuple[str, ...]
    variadic: bool = False
    reads: frozenset[int | str] = frozenset()
    check: Callable[..., None] | None = None
    saves: bool = False
    saving: Callable[..., tuple[np.ndarray, Any]] | None = None
    sinks: bool = False
    apart: tuple[frozenset[int | str], ...] | None = None
    fused: Callable[..., tuple[np.ndarray, Grads]] | None = None

    def __call__(self, *arrays: np.ndarray, **attrs: Any) -> np.ndarray:
        """y alone."""
        return self.run(*arrays, **attrs)[0]

    def run(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, Any]:
        """(y, saved); saved is None when the op saves nothing. Inputs or attributes that do not fit are refused (22023)."""
        self.check_inputs(len(arrays))
        try:
            if self.check is not None:
                self.check(*arrays, **attrs)
            result = self.forward(*arrays, **attrs)
        except TypeError as error:
            if _is_from_inside(error):
                raise
            raise InvalidParameter(
                f"op {self.name} does not accept attributes {sorted(attrs)}: {error}",
                hint="An attribute is missing, or is not one of this op's.",
            ) from error
        return result if self.saves else (result, None)

    def run_saving(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, Any]:
        """As `run`, with all saved that makes the backward pass faster."""
        return self.run(*arrays, **attrs) if self.saving is None else self.saving(*arrays, **attrs)

    def check_inputs(self, count: int) -> None:
        """Refuse (22023) a wrong number of inputs."""
        if count != len(self.inputs) and not (self.variadic and count):
            wanted = "one or more inputs" if self.variadic else f"{len(self.inputs)} inputs ({', '.join(self.inputs)})"
            raise InvalidParameter(
                f"op {self.name} takes {wanted}, not {count}",
                hint="Give one array for each of them, in this order.",
            )

    def reads_for(self, wanted: Sequence[bool]) -> frozenset[int | str]:
        """What backward looks at where these gradients are wanted."""
        if self.apart is None:
            return self.reads if any(wanted) else frozenset()
        return frozenset().union(*(reads for reads, is_wanted in zip(self.apart, wanted, strict=True) if is_wanted))

    def gradients(
        self,
        dy: np.ndarray,
        y: np.ndarray | None,
        *arrays: np.ndarray,
        saved: Any = None,
        sinks: Sequence[Sink | None] | None = None,
        wanted: Sequence[bool] | None = None,
        **attrs: Any,
    ) -> Grads:
        """The backward pass, given of `saved`, `sinks` and `wanted` what this op takes."""
        if self.saves or self.saving is not None:
            attrs["saved"] = saved
        if self.sinks:
            attrs["sinks"] = sinks or [None] * len(arrays)
        if self.apart is not None:
            attrs["wanted"] = wanted or [True] * len(arrays)
        return self.backward(dy, y, *arrays, **attrs)


def _is_from_inside(error: TypeError) -> bool:
    """Whether a TypeError comes from inside an op, and not from calling it with wrong attributes."""
    trace = error.__traceback__
    depth = 0
    while trace is not None:
        depth, trace = depth + 1, trace.tb_next
    return depth > 1


plain: dict[str, Op] = {}  # name -> the op as `ops` writes it
fast: dict[str, Op] = {}  # name -> its faster form, where there is one
registry: dict[str, Op] = {}  # name -> the one to use
_is_fast = True


def register(
    name: str, forward: Callable[..., Any], backward: Callable[..., Grads], inputs: str, **options: Any
) -> None:
    """Enter an op; `inputs` are the names of its arrays, separated by blanks."""
    options["reads"] = frozenset(options.get("reads", ()))
    plain[name] = registry[name] = Op(name, forward, backward, tuple(inputs.split()), **options)


def replace(name: str, forward: Callable[..., Any], backward: Callable[..., Grads], **options: Any) -> None:
    """Enter a faster form of an op; `reads` where its backward pass looks at something else."""
    if "reads" in options:
        options["reads"] = frozenset(options["reads"])
    if "apart" in options:
        options["apart"] = tuple(map(frozenset, options["apart"]))
    fast[name] = registry[name] = changed(plain[name], forward=forward, backward=backward, **options)


def check(name: str, rule: Callable[..., None]) -> None:
    """Give an op, in all its forms, its check of arrays and attributes."""
    for form in (plain, fast, registry):
        if name in form:
            form[name] = changed(form[name], check=rule)


def use_fast(on: bool) -> None:
    """Whether `lookup` gives the faster forms, as it does at first, or the plain ops."""
    global _is_fast
    if on != _is_fast:
        _is_fast = on
        registry.update(fast if on else plain)


def is_fast() -> bool:
    """Whether `lookup` gives faster forms."""
    return _is_fast


def lookup(name: str) -> Op:
    """The op of that name; an unknown one is refused (42704)."""
    try:
        return registry[name]
    except KeyError:
        raise UndefinedObject(f'op "{name}" does not exist', hint=f"Ops: {', '.join(sorted(registry))}.") from None
