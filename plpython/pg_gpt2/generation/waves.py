"""Passes of one stream at the same time, each by a core: at each layer a pass waits until the one before has kept its keys there.

Cores that share the ops of one pass wait for each other at every op. These wait for each other once a layer, and seldom then.
"""

from collections.abc import Callable, Sequence
from functools import partial
from threading import Event
from typing import TypeVar

from ..fast import threads

T = TypeVar("T")


class Gate:
    """Where a pass follows the one before it, if any."""

    def __init__(self, layers: int, before: "Gate | None") -> None:
        self._before = before
        self._left = [Event() for _ in range(layers)]
        self._error: BaseException | None = None

    def enter(self, layer: int) -> None:
        """Return when the pass before has left the layer; raise what ended that."""
        if self._before is not None:
            self._before.wait(layer)

    def leave(self, layer: int) -> None:
        """Let the next pass follow."""
        self._left[layer].set()

    def wait(self, layer: int) -> None:
        """Return when the pass has left the layer."""
        while not self._left[layer].wait(threads.LOOK_EVERY):
            threads.look()
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """End the passes that follow, too."""
        self._error = error
        for left in self._left:
            left.set()


def run(layers: int, passes: Sequence[Callable[[Gate], T]]) -> list[T]:
    """What each of the passes gives, which enters and leaves every layer of its gate in order."""
    found: dict[int, T] = {}
    gates: list[Gate] = []
    for _ in passes:
        gates.append(Gate(layers, gates[-1] if gates else None))

    def work(number: int) -> None:
        try:
            found[number] = passes[number](gates[number])
        except BaseException as error:
            gates[number].fail(error)
            raise

    threads.run([partial(work, number) for number in range(len(passes))])
    return [found[number] for number in range(len(passes))]
