"""Files of the server's file system: only for members of pg_read_server_files and pg_write_server_files, as COPY has it.

Membership is asked with USAGE, so that a NOINHERIT member has to SET ROLE first. Writing goes to a temporary file beside the
target, which is renamed when it is complete: a failure leaves what was there.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

from ...errors import (
    DuplicateObject,
    FileAccessError,
    InsufficientPrivilege,
    InvalidParameter,
    MalformedData,
    NullNotAllowed,
    of_system,
)
from ...fast import threads
from ...formats.source import ServerFile
from ...limits import MOST_PATH
from .. import db

SYNC_BYTES = 16 << 20
TEMPORARY = ".pg_gpt2-"  # begins the names of files being written, followed by whose they are: server, and process


def open_to_read(path: str | None) -> BinaryIO:
    """An open regular file; 42501, 58P01 or 58030 when that may not or cannot be."""
    real = to_read(path)
    try:
        # Opening a named pipe would wait for its writer.
        handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise FileAccessError(f'"{path}" is not a regular file', hint="Give the path of a file on the server.")
        return io.BufferedReader(ServerFile(handle, path or ""))
    except OSError as error:
        raise of_system(error, f'"{_culprit(real, error)}"') from None


def read(path: str | None, limit: int) -> bytes:
    """All bytes of a file of at most `limit` bytes."""
    with open_to_read(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise MalformedData(f'"{path}" has more than {limit} bytes', hint="Is this the right file?")
    return data


def write(path: str | None, fill: Callable[[BinaryIO], object], is_new: bool = False) -> int:
    """Let `fill` write the file `path`, which appears when it is complete, and outlasts a loss of power; its size. With `is_new`
    one that is there already is refused (42710), and else replaced."""
    real = to_write(path)
    if is_new and os.path.lexists(real):
        raise _already_there(real)
    temporary = None
    folder = os.path.dirname(real)
    try:
        handle, temporary = _new_file(folder)
        with io.BufferedWriter(_Synced(handle, "wb")) as file:
            fill(file)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            size = file.tell()
        if is_new:
            _reserve(real)
        _freeing_later(real, partial(os.replace, temporary, real))
        temporary = None
        _sync_folder(folder)
        return size
    except OSError as error:
        raise of_system(error, f'"{_culprit(real, error)}"') from None
    finally:
        if temporary is not None:
            _freeing_later(temporary, partial(os.unlink, temporary))


def _reserve(real: str) -> None:
    """Make an empty file, to be replaced at once: of all who want the name one gets it. os.link would give the name to what is
    complete; but not every file system has it, and what a crash leaves here is in the way there too."""
    try:
        os.close(os.open(real, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        raise _already_there(real) from None


def _already_there(real: str) -> DuplicateObject:
    return DuplicateObject(
        f'file "{real}" already exists',
        hint="Choose another path, or remove the file; llm_checkpoint_attach makes its checkpoint known to this database.",
    )


def _sync_folder(folder: str) -> None:
    """Let the disk have a new name, too. Some file systems cannot, as PostgreSQL allows for."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL):
            raise
    finally:
        os.close(handle)


def _freeing_later(path: str, remove: Callable[[], object]) -> None:
    """Remove the file `path`, or put another in its place, without waiting until the kernel has freed its blocks: seconds for
    gigabytes. It does that when the last handle is closed, which a thread does."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # none is there, or another's
        remove()
        return
    try:
        remove()
    finally:
        close = partial(os.close, handle)
        try:
            threads.start(close, "pg_gpt2-close")
        except RuntimeError:  # the system allows no more threads
            close()


class _Synced(io.FileIO):
    """Reaches the disk as it is written: one fsync of all of it, at the end, could not be cancelled for seconds."""

    _waiting = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._waiting += count
        if self._waiting >= SYNC_BYTES:
            self._waiting = 0
            os.fdatasync(self.fileno())
        return count


def _prefix() -> str:
    """What the names of this server's temporary files begin with, also after a restart. One in another container or on another
    machine, which has another host name, may write to the same folder: the numbers of its processes say nothing here."""
    with open("global/pg_control", "rb") as file:  # of the data directory, where a server runs
        cluster = file.read(8)  # its identifier, which copies of it share
    said = f"{cluster.hex()} {os.stat('.').st_ino} {socket.gethostname()}"
    return f"{TEMPORARY}{hashlib.sha256(said.encode()).hexdigest()[:16]}-"


def _remove_left_over(folder: str, prefix: str) -> None:
    """Remove temporary files that processes of this server left here when they were killed."""
    for name in os.listdir(folder):
        if found := re.fullmatch(re.escape(prefix) + r"(\d{1,9})-\w+", name):
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
            except OSError:  # a process of somebody else
                pass


def to_read(path: str | None) -> str:
    """Where `path` leads, links resolved. A caller who may not read files of the server is refused (42501) before anything is
    looked up."""
    return _allowed(path, "pg_read_server_files", "read")


def to_write(path: str | None) -> str:
    """As `to_read`, for a file to be written."""
    return _allowed(path, "pg_write_server_files", "write")


def _allowed(path: str | None, role: str, verb: str) -> str:
    row = db.row("SELECT pg_has_role(current_user, $1, 'USAGE') AS allowed", ["text"], role)
    if not (row or {})["allowed"]:
        raise InsufficientPrivilege(
            f"permission denied to {verb} files on the server",
            hint=f"Only members of {role} may; the programs in loaders/ do the same as a client.",
        )
    if path is None:
        raise NullNotAllowed("path must not be null", hint="Give an absolute path on the server.")
    if (length := len(os.fsencode(path))) >= MOST_PATH:
        raise InvalidParameter(
            f"a path of {length} bytes is longer than {MOST_PATH - 1}", hint="Give the path of a file on the server."
        )
    if not os.path.isabs(path):
        raise InvalidParameter(
            f'path "{path}" is not absolute', hint="The server's working directory is its data directory."
        )
    return os.path.realpath(path)


def _new_file(folder: str) -> tuple[int, str]:
    """Handle and path of a temporary file in `folder`, which an error names: the file is not there yet in any case."""
    prefix = _prefix()
    try:
        _remove_left_over(folder, prefix)
        return tempfile.mkstemp(prefix=f"{prefix}{os.getpid()}-", dir=folder)
    except OSError as error:
        raise of_system(error, f'"{_culprit(folder, error)}"') from None


def _culprit(path: str, error: OSError) -> str:
    """The path that `error` is about: where `path` does not exist, the first part of it that is missing or no directory."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        while not os.path.isdir(folder := os.path.dirname(path)):
            path = folder
    return path
