"""A recorded tape as it comes back from its rows: applications of ops to handles, and what may be asked of them.

Plain records, wherever they come from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import host
from ..core.op import Op
from ..errors import InvalidParameter, PgGpt2Error, UndefinedObject, WrongState
from ..fast.ops import lookup

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
    """Refuse a row whose op takes another number of inputs (22023), or whose handle has no tensor (42704); the error names it."""
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
    """Handles whose data a backward pass reads; of all others it needs the shape only."""
    found: set[int] = set()
    for application in applications:
        host.check_interrupts()
        reads = application.op.reads
        found.update(handle for i, handle in enumerate(application.inputs) if i in reads)
        if "y" in reads:
            found.add(application.output)
    return found


def require_kept(handles: Iterable[int], data: Arrays) -> None:
    """Refuse (55000) to go on where data that is needed was not kept, as happens at audit level 'tape'."""
    missing = [handle for handle in handles if handle not in data]
    if missing:
        raise WrongState(
            f"handle {missing[0]} has no data",
            hint="It was recorded by audit level 'tape', which keeps no values; use 'full', or switch recording on.",
        )


def handles_of(application: Application) -> tuple[int, ...]:
    """Inputs, then the output. Looks for an interrupt, because it is called for every row of a long tape."""
    host.check_interrupts()
    return *application.inputs, application.output
