"""A file of arrays that all sessions map read-only: memory and time of making them are paid once. It says itself what it holds.

It is written with write() and renamed when complete, never mapped for writing and never truncated: a full disk is an error here
and not a SIGBUS in somebody else. Whoever has an older version mapped keeps it after the name is gone.

Where a file cannot be made, read or mapped there is none: a session then has its arrays in memory of its own.
"""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import NamedTuple

import numpy as np

from ... import host
from . import checksum, shared_folder
from .checksum import Checksum

CHECKED_BYTES = 64 << 20  # such a file is verified when it is mapped: below a tenth of the time to a first token
HUGE_PAGE = 2 << 20  # arrays of this size begin at one: 4 kB pages cost a fifth of the bandwidth
WRITE_BYTES = 8 << 20  # file systems give huge pages to what is written in large pieces
READ_BYTES = 1 << 20
POLL = 0.02  # seconds
NUMBER = 8  # bytes: a file ends with the place and the size of its description, and the checksum of that

Arrays = dict[str, np.ndarray]


class Kind(NamedTuple):
    """What an array is: its type, as NumPy writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of such an array."""
        return np.dtype(self.dtype).itemsize * prod(self.shape)


class _Place(NamedTuple):
    kind: Kind
    start: int
    checksum: str


class SharedFile:
    """The file of one version of something. Its name is `stem`, which those of other versions have too, a digest of the version,
    and `part`."""

    def __init__(self, folder: str, stem: str, version: str, part: str = "") -> None:
        self._folder, self._stem = folder, stem
        self._version = stem + hashlib.md5(version.encode()).hexdigest()
        self._path = os.path.join(folder, self._version + part)

    def attach(self) -> Arrays | None:
        """The mapped arrays, or None when there is no such file, or not what was written."""
        try:
            with _opened(self._path, os.O_RDONLY) as file:
                size, places = os.fstat(file).st_size, _description(file)
                if places is None or (size <= CHECKED_BYTES and _damaged(file, places)):
                    return None
                mapped = mmap.mmap(file, size, prot=mmap.PROT_READ)
        except (OSError, ValueError):  # the latter from mmap, of a file that has become shorter
            return None
        with contextlib.suppress(OSError, AttributeError):  # systems without huge pages for files
            mapped.madvise(mmap.MADV_HUGEPAGE)
        return {
            name: np.frombuffer(mapped, kind.dtype, prod(kind.shape), start).reshape(kind.shape)
            for name, (kind, start, _) in places.items()
        }

    def is_there(self) -> bool:
        """Whether a file has its name."""
        return os.path.lexists(self._path)

    def damage(self) -> str | None:
        """What is wrong with the file, if anything."""
        try:
            with _opened(self._path, os.O_RDONLY) as file:
                places = _description(file)
                if places is None:
                    return "its end is not what was written"
                name = _damaged(file, places)
        except OSError as error:
            return str(error)
        return name and f'tensor "{name}" is not what was written'

    @contextlib.contextmanager
    def lock(self, seconds: float) -> Iterator[bool]:
        """Sessions that need such a file queue here, so that one writes it. False after `seconds`, or without a lock file.

        Each stem has a byte of it. It is a file's lock because any role can take an advisory one.
        """
        with contextlib.ExitStack() as stack:
            try:
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                file = stack.enter_context(
                    _opened(os.path.join(self._folder, shared_folder.LOCK), os.O_RDWR | os.O_CREAT)
                )
                held = _locked(file, int(hashlib.md5(self._stem.encode()).hexdigest()[:15], 16), seconds)
            except OSError:
                held = False
            yield held

    def build(
        self,
        kinds: Mapping[str, Kind],
        arrays: Iterable[tuple[str, np.ndarray]],
        is_right: Callable[[], bool] = lambda: True,
    ) -> Arrays | None:
        """Write the file, remove those of other versions, and attach it; None where there is no room, or where what was written
        then turns out not to be right. One builder at a time. Arrays come in any order and are kept no longer than written."""
        new = f"{self._path}.{os.getpid()}{shared_folder.UNFINISHED}"
        try:
            return self._written(new, kinds, arrays, is_right)
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)

    def _written(
        self,
        new: str,
        kinds: Mapping[str, Kind],
        arrays: Iterable[tuple[str, np.ndarray]],
        is_right: Callable[[], bool],
    ) -> Arrays | None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        starts, end = _layout(kinds)
        with _opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            sums = {}
            for name, array in arrays:
                os.lseek(file, starts[name], os.SEEK_SET)
                sums[name] = _write(file, array)
                del array  # before the next is made
            if not is_right():
                return None
            described = {name: _Place(kind, starts[name], sums[name].hex()) for name, kind in kinds.items()}
            text = json.dumps(described).encode()
            trailer = _number(end) + _number(len(text)) + _sum(text)
            size = (end + len(text) + len(trailer)) // HUGE_PAGE * HUGE_PAGE + HUGE_PAGE
            os.pwrite(file, text, end)
            os.pwrite(file, trailer, size - len(trailer))
        os.rename(new, self._path)
        shared_folder.remove(self._folder, self._stem, but=self._version)
        return self.attach()


def kinds_of(arrays: Arrays) -> dict[str, Kind]:
    """What each array is."""
    return {name: Kind(array.dtype.str, array.shape) for name, array in arrays.items()}


def _layout(kinds: Mapping[str, Kind]) -> tuple[dict[str, int], int]:
    """Where each array begins, and where the last ends."""
    starts, end = {}, 0
    for name, kind in kinds.items():
        unit = HUGE_PAGE if kind.nbytes >= HUGE_PAGE else 64
        starts[name] = -(-end // unit) * unit
        end = starts[name] + kind.nbytes
    return starts, end


def _description(file: int) -> dict[str, _Place] | None:
    """What the file says that it holds, or None where it does not say so any more."""
    trailer = os.pread(file, 2 * NUMBER + checksum.SIZE, max(0, os.fstat(file).st_size - 2 * NUMBER - checksum.SIZE))
    start, size = (int.from_bytes(trailer[at : at + NUMBER], "little") for at in (0, NUMBER))
    if start + size > os.fstat(file).st_size:
        return None
    text = os.pread(file, size, start)
    if not text or _sum(text) != trailer[2 * NUMBER :]:
        return None
    return {
        name: _Place(Kind(dtype, tuple(shape)), start, found)
        for name, ((dtype, shape), start, found) in json.loads(text).items()
    }


def _damaged(file: int, places: Mapping[str, _Place]) -> str | None:
    """The first array that does not have its checksum. It is read and not mapped: a disk's error is one here, and not a
    SIGBUS."""
    buffer = memoryview(bytearray(READ_BYTES))
    for name, (kind, start, wanted) in places.items():
        place, end = start, start + kind.nbytes
        found = Checksum()
        while place < end:
            piece = buffer[: min(READ_BYTES, end - place)]
            if os.preadv(file, [piece], place) < len(piece):
                return name
            found.update(piece)
            place += len(piece)
            host.check_interrupts()
        if found.digest().hex() != wanted:
            return name
    return None


def _number(value: int) -> bytes:
    return value.to_bytes(NUMBER, "little")


def _sum(data: bytes) -> bytes:
    found = Checksum()
    found.update(data)
    return found.digest()


def _write(file: int, array: np.ndarray) -> bytes:
    """Write an array; its checksum."""
    data = np.ascontiguousarray(array).data.cast("B")
    found = Checksum()
    for start in range(0, len(data), WRITE_BYTES):
        piece = data[start : start + WRITE_BYTES]
        found.update(piece)
        while piece:
            piece = piece[os.write(file, piece) :]
        host.check_interrupts()
    return found.digest()


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """A file of the server's user. OSError for anything else. O_NONBLOCK: opening a FIFO would block until somebody writes."""
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{path} is no file of the server's user")
        yield file
    finally:
        os.close(file)


def _locked(file: int, place: int, seconds: float) -> bool:
    """Take the lock of a byte, within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            return True
        except (BlockingIOError, PermissionError):  # systems differ in what they say of a lock that is taken
            if time.monotonic() > end:
                return False
        time.sleep(POLL)
        host.check_interrupts()
