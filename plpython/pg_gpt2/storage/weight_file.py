"""One file a version of a model's weights, which all sessions map read-only: memory and time of loading are paid once.

It lies where PostgreSQL keeps temporary files, under a name that a restart removes and base backups skip. It is written with
write() and renamed when complete, never mapped for writing and never truncated: a full disk is an error here and not a
SIGBUS in somebody else. Whoever has an older version mapped keeps it after the name is gone.
"""

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterable, Mapping

import numpy as np

from .. import host
from ..tensor import FLOAT32

LEAST_BYTES = 8 << 20  # a smaller model loads as fast from its rows
HUGE_PAGE = 2 << 20  # tensors of this size begin at one: 4 kB pages cost a fifth of the bandwidth
WRITE_BYTES = 8 << 20  # file systems give huge pages to what is written in large pieces
PREFIX, UNFINISHED = "pgsql_tmp_pg_gpt2", ".new"

Params = dict[str, np.ndarray]


def directory() -> str | None:
    """Where the server, whose working directory is its data directory, keeps temporary files; None if this is no server."""
    return os.path.join("base", "pgsql_tmp") if os.path.exists("PG_VERSION") and os.path.isdir("base") else None


class WeightFile:
    """The file of one version of a model in a database."""

    def __init__(
        self, folder: str, database: int, model: str, version: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._folder = folder
        self._stem = stem(database, model)
        self._shapes = dict(shapes)
        # Layouts differ in their shapes, while files of several may have the same size.
        self._name = f"{self._stem}{version}_{hashlib.md5(repr(self._shapes).encode()).hexdigest()[:8]}"
        self._places, self._size = _layout(self._shapes)

    def attach(self) -> Params | None:
        """The mapped weights, or None when there is no such file."""
        try:
            file = os.open(os.path.join(self._folder, self._name), os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.fstat(file).st_size != self._size:
                return None
            mapped = mmap.mmap(file, self._size, prot=mmap.PROT_READ)
        finally:
            os.close(file)
        with contextlib.suppress(OSError, AttributeError):  # systems without huge pages for files
            mapped.madvise(mmap.MADV_HUGEPAGE)
        return {
            name: np.frombuffer(mapped, FLOAT32, int(np.prod(shape)), self._places[name]).reshape(shape)
            for name, shape in self._shapes.items()
        }

    def build(self, params: Mapping[str, np.ndarray]) -> Params | None:
        """Write the file, remove those of other versions, and attach it; None where there is no room. One builder at a time."""
        new = os.path.join(self._folder, f"{self._name}.{os.getpid()}{UNFINISHED}")
        try:
            return self._written(new, params)
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)

    def _written(self, new: str, params: Mapping[str, np.ndarray]) -> Params | None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
            for name, place in self._places.items():
                file.seek(place)
                _write(file.fileno(), params[name])
            os.pwrite(file.fileno(), b"\0", self._size - 1)  # the last of the padding
        os.rename(new, os.path.join(self._folder, self._name))
        remove(self._folder, self._stem, but=self._name)
        return self.attach()


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], int]:
    """Where each tensor begins, and the size of the file."""
    places, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        unit = HUGE_PAGE if size >= HUGE_PAGE else 64
        places[name] = -(-end // unit) * unit
        end = places[name] + size
    return places, (end // HUGE_PAGE + 1) * HUGE_PAGE  # with padding at the end, be it a byte


def _write(file: int, array: np.ndarray) -> None:
    data = np.ascontiguousarray(array).data.cast("B")
    while data:
        data = data[os.write(file, data[:WRITE_BYTES]) :]
        host.check_interrupts()


def stem(database: int, model: str) -> str:
    """What the names of a model's files begin with."""
    return f"{PREFIX}_{database}_{hashlib.md5(model.encode()).hexdigest()[:16]}_"


def remove_others(folder: str, database: int, models: Iterable[str]) -> None:
    """Unlink the files of models that are not there any more; not those that are being written."""
    kept = tuple(stem(database, model) for model in models)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if name.startswith(f"{PREFIX}_{database}_") and not name.startswith(kept) and not name.endswith(UNFINISHED):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name))


def remove(folder: str, beginning: str, but: str = "") -> int:
    """Unlink the files whose names begin with `beginning`, but not `but`; how many there were."""
    count = 0
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if name.startswith(beginning) and name != but:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name))
                    count += 1
    return count
