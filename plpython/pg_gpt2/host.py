"""What the engine asks of its host, with defaults that serve outside a server.

`server.boot` replaces the hooks when the package is loaded into PostgreSQL. Long loops call
`host.check_interrupts()` at least every 100 ms: Python code that does not enter the server cannot be cancelled.
"""

import time
from collections.abc import Callable

TELL_EVERY = 5.0  # seconds between two notices of a long call's progress, and before the first


def _nothing() -> None:
    """Outside a server nothing interrupts."""


def _print(message: str) -> None:
    print(message)


def _enough(wanted: int, purpose: str) -> None:
    """Outside a server memory is not asked for: only this process would be killed for taking too much."""


def _none() -> int:
    """Outside a server nothing is kept for later calls."""
    return 0


check_interrupts: Callable[[], None] = _nothing
notice: Callable[[str], None] = _print
require_memory: Callable[[int, str], None] = _enough  # (bytes, what for): an error when so much is not there
prefix_room: Callable[[], int] = _none  # bytes of keys and values that may be kept for later calls

ASKED = 12 << 20  # bytes: for fewer nobody is asked, which would take a good part of the time of the work


def require_room(wanted: int, purpose: str) -> None:
    """`require_memory` for arguments, results and what is between, unless it is little."""
    if wanted >= ASKED:
        require_memory(wanted, purpose)


class Progress:
    """Sends a notice every few seconds about how far a long call has come; a short call sends none."""

    def __init__(self, what: str, unit: str, total: int | None = None) -> None:
        self.what, self.unit, self.total = what, unit, total
        self._told = time.monotonic()

    def at(self, done: int) -> None:
        """Say that so much is done; cheap enough for inner loops."""
        now = time.monotonic()
        if now - self._told >= TELL_EVERY:
            self._told = now
            of = "" if self.total is None else f" of {self.total:,}"
            notice(f"{self.what}: {done:,}{of} {self.unit} done")
