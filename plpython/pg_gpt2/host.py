"""What the engine asks of its host, with defaults that serve outside a server.

`db` and `resources` replace the hooks when the package is loaded into PostgreSQL. Long loops call
`host.check_interrupts()` at least every 100 ms: Python code that does not enter the server cannot be cancelled.
"""

from collections.abc import Callable


def _nothing() -> None:
    """Outside a server there is nothing to be interrupted by."""


def _print(message: str) -> None:
    print(message)


def _enough(wanted: int, purpose: str) -> None:
    """Outside a server nobody else is killed for it."""


check_interrupts: Callable[[], None] = _nothing
notice: Callable[[str], None] = _print
require_memory: Callable[[int, str], None] = _enough  # (bytes, what for): an error when so much is not there
