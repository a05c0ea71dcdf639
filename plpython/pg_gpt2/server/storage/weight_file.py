"""One file a version of a model's weights, which all sessions map read-only: memory and time of loading are paid once.

It lies where PostgreSQL keeps temporary files, under a name that a restart removes and base backups skip. It is written with
write() and renamed when complete, never mapped for writing and never truncated: a full disk is an error here and not a
SIGBUS in somebody else. Whoever has an older version mapped keeps it after the name is gone.

Where a file cannot be made, read or mapped there is none: a session then has its weights in memory of its own.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from ... import host
from ...tensor import FLOAT32
from . import checksum
from .checksum import Checksum

LEAST_BYTES = 8 << 20  # a smaller model loads as fast from its rows
CHECKED_BYTES = 64 << 20  # such a file is verified when it is mapped: below a tenth of the time to a first token
HUGE_PAGE = 2 << 20  # tensors of this size begin at one: 4 kB pages cost a fifth of the bandwidth
WRITE_BYTES = 8 << 20  # file systems give huge pages to what is written in large pieces
READ_BYTES = 1 << 20
PREFIX, UNFINISHED, LOCK = "pgsql_tmp_pg_gpt2", ".new", "pgsql_tmp_pg_gpt2.lock"
POLL = 0.02  # seconds

Params = dict[str, np.ndarray]


def directory() -> str | None:
    """Where the server, whose working directory is its data directory, keeps temporary files; None if this is no server."""
    return os.path.join("base", "pgsql_tmp") if os.path.exists("PG_VERSION") and os.path.isdir("base") else None


def incarnation() -> str | None:
    """What tells this life of the server from others: process, start and shared memory, which is made anew after a crash too.

    Rows alone do not: with synchronous_commit = off a crash can lose a change whose transaction, place and command come again.
    """
    try:
        with open("postmaster.pid", encoding="utf-8") as file:
            lines = file.read().split("\n")
        return " ".join((lines[0], lines[2], lines[6]))  # as miscadmin.h or utils/pidfile.h numbers them
    except (OSError, IndexError, UnicodeDecodeError):
        return None


class WeightFile:
    """The file of one version of a model. `relation`: see `family`."""

    def __init__(
        self, folder: str, relation: str, model: str, version: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._folder = folder
        self._stem = stem(relation, model)
        self._shapes = dict(shapes)
        # Layouts differ in their shapes, while files of several may have the same size.
        self._name = self._stem + hashlib.md5(repr((version, self._shapes)).encode()).hexdigest()
        self._places, self._sums, self._size = _layout(self._shapes)

    @property
    def _path(self) -> str:
        return os.path.join(self._folder, self._name)

    def attach(self) -> Params | None:
        """The mapped weights, or None when there is no such file, or not what was written."""
        try:
            with _opened(self._path, os.O_RDONLY) as file:
                if os.fstat(file).st_size != self._size:
                    return None
                if self._size <= CHECKED_BYTES and self._damaged(file):
                    return None
                mapped = mmap.mmap(file, self._size, prot=mmap.PROT_READ)
        except (OSError, ValueError):  # the latter from mmap, of a file that has become shorter
            return None
        with contextlib.suppress(OSError, AttributeError):  # systems without huge pages for files
            mapped.madvise(mmap.MADV_HUGEPAGE)
        return {
            name: np.frombuffer(mapped, FLOAT32, int(np.prod(shape)), self._places[name]).reshape(shape)
            for name, shape in self._shapes.items()
        }

    def is_there(self) -> bool:
        """Whether a file has its name."""
        return os.path.lexists(self._path)

    def damage(self) -> str | None:
        """What is wrong with the file, if anything."""
        try:
            with _opened(self._path, os.O_RDONLY) as file:
                if os.fstat(file).st_size != self._size:
                    return "its size is not what was written"
                name = self._damaged(file)
        except OSError as error:
            return str(error)
        return name and f'tensor "{name}" is not what was written'

    def _damaged(self, file: int) -> str | None:
        """The first tensor that does not have its checksum. It is read and not mapped: a disk's error is one here, and not a
        SIGBUS."""
        sums = os.pread(file, checksum.SIZE * len(self._shapes), self._sums)
        buffer = memoryview(bytearray(READ_BYTES))
        for index, (name, shape) in enumerate(self._shapes.items()):
            place, end = self._places[name], self._places[name] + 4 * int(np.prod(shape))
            found = Checksum()
            while place < end:
                piece = buffer[: min(READ_BYTES, end - place)]
                if os.preadv(file, [piece], place) < len(piece):
                    return name
                found.update(piece)
                place += len(piece)
                host.check_interrupts()
            if found.digest() != sums[checksum.SIZE * index :][: checksum.SIZE]:
                return name
        return None

    @contextlib.contextmanager
    def lock(self, seconds: float) -> Iterator[bool]:
        """Sessions that need a model's file queue here, so that one writes it. False after `seconds`, or without a lock file.

        Each model has a byte of it. It is a file's lock because any role can take an advisory one.
        """
        with contextlib.ExitStack() as stack:
            try:
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                file = stack.enter_context(_opened(os.path.join(self._folder, LOCK), os.O_RDWR | os.O_CREAT))
                held = _locked(file, int(hashlib.md5(self._stem.encode()).hexdigest()[:15], 16), seconds)
            except OSError:
                held = False
            yield held

    def build(
        self, tensors: Iterable[tuple[str, np.ndarray]], is_right: Callable[[], bool] = lambda: True
    ) -> Params | None:
        """Write the file, remove those of other versions, and attach it; None where there is no room, or where what was written
        then turns out not to be right. One builder at a time. Tensors come in any order and are kept no longer than written."""
        new = f"{self._path}.{os.getpid()}{UNFINISHED}"
        try:
            return self._written(new, tensors, is_right)
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)

    def _written(
        self, new: str, tensors: Iterable[tuple[str, np.ndarray]], is_right: Callable[[], bool]
    ) -> Params | None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        with _opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            sums = {}
            for name, array in tensors:
                os.lseek(file, self._places[name], os.SEEK_SET)
                sums[name] = _write(file, array)
                del array  # before the next is made
            if not is_right():
                return None
            os.pwrite(file, b"".join(sums[name] for name in self._places), self._sums)
            os.pwrite(file, b"\0", self._size - 1)  # the last of the padding
        os.rename(new, self._path)
        remove(self._folder, self._stem, but=self._name)
        return self.attach()


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], int, int]:
    """Where each tensor begins, where their checksums do, and the size of the file."""
    places, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        unit = HUGE_PAGE if size >= HUGE_PAGE else 64
        places[name] = -(-end // unit) * unit
        end = places[name] + size
    size = end + checksum.SIZE * len(places)
    return places, end, (size // HUGE_PAGE + 1) * HUGE_PAGE  # with padding at the end, be it a byte


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
    """A file of the server's user. OSError for anything else, at once: without O_NONBLOCK a FIFO would wait for who writes."""
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


def family(relation: str) -> str:
    """What the names of an installation's files begin with: the path of a file that the server has as long as that is there."""
    return f"{PREFIX}_{relation.replace('/', '-')}."


def stem(relation: str, model: str) -> str:
    """What the names of a model's files begin with."""
    return f"{family(relation)}{hashlib.md5(model.encode()).hexdigest()[:16]}."


def remove_others(folder: str, relation: str, models: Iterable[str]) -> None:
    """Unlink the files of models that are not there any more; not those that are being written."""
    kept = tuple(stem(relation, model) for model in models)
    for name in _names(folder, family(relation)):
        if not name.startswith(kept) and not name.endswith(UNFINISHED):
            _unlink(folder, name)


def remove_abandoned(folder: str) -> None:
    """Unlink the files of databases and installations that were dropped, whichever database this is."""
    for name in _names(folder, f"{PREFIX}_"):
        relation = name.removeprefix(f"{PREFIX}_").partition(".")[0].replace("-", "/")
        try:
            is_gone = os.stat(relation).st_size == 0  # the server cuts it at once, and removes it at a checkpoint
        except (FileNotFoundError, NotADirectoryError):
            is_gone = True
        except OSError:
            is_gone = False
        if is_gone:
            _unlink(folder, name)


def remove(folder: str, beginning: str, but: str = "") -> int:
    """Unlink the files whose names begin with `beginning`, but not `but`; how many there were."""
    return sum(_unlink(folder, name) for name in _names(folder, beginning) if name != but)


def _names(folder: str, beginning: str) -> list[str]:
    """Names in the folder; none where it cannot be read."""
    try:
        return [name for name in os.listdir(folder) if name.startswith(beginning)]
    except OSError:
        return []


def _unlink(folder: str, name: str) -> bool:
    try:
        os.unlink(os.path.join(folder, name))
    except OSError:
        return False
    return True
