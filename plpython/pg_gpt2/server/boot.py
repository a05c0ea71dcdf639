"""What a session does once, after the package is imported. The one place where the engine learns about its host."""

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
