"""What a session does once, after the package is imported. The one place where the engine learns about its host."""

import ctypes
from contextlib import suppress

from .. import host
from ..core import tape
from ..fast import threads
from . import db, resources
from .storage import weights


def begin(schema: str, digest: str) -> None:
    """Connect the engine to its host. `schema` is the extension's, quoted, and `digest` that of the sources."""
    db.connect(schema, digest)
    host.check_interrupts = db.check_interrupts
    host.notice = db.notice
    host.require_memory = resources.require_memory
    host.prefix_room = weights.prefix_room
    resources.keep_freed_memory(resources.KEPT_FREE)
    tape.before_each_op = threads.look  # an op may run on a helper, which must not call the server
    _end_without_destructors()


def _end_without_destructors() -> None:
    """Let this process end at once where the server calls exit(), when it has done all that it does at the end of a session.

    Else libraries would take their memory away meanwhile: OpenBLAS what a helper's product works in, where a session is
    terminated in the middle of it. A helper that crashes there makes the server end all sessions.
    """
    c = ctypes.CDLL(None)
    with suppress(AttributeError):  # musl has no on_exit
        c.on_exit(ctypes.cast(c._exit, ctypes.c_void_p), None)
