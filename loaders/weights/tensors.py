"""A tensor of a file, read in rows when they are asked for, and what a file says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loaders.vocabulary import Vocabulary

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Tensor(Protocol):
    """Some rows of numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    @property
    def dtype(self) -> str:
        """F32 and so on, as in safetensors: one of DTYPES, or the file cannot be read."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop as little-endian float32."""


@dataclass
class Weights:
    """What a file says: its tensors by its names, what would stand in a config.json (None: not in this file), its vocabulary; and
    what is beside it, in its generation_config.json."""

    tensors: list[tuple[str, Tensor]]
    fields: dict[str, Any] | None = None
    described: str = "config.json"
    """What says so, for errors."""
    assumed: set[str] = field(default_factory=set)
    """Fields that the file does not say, but whoever writes such files computes."""
    vocabulary: Callable[[], Vocabulary] | None = None
    generation: dict[str, Any] | None = None


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a file, `offset` bytes from its beginning."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read through a memory map."""
        stored = np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)[start:stop]
        if self.dtype == "BF16":  # a bfloat16 is the upper half of a float32
            return (stored.astype("<u4") << np.uint32(16)).view("<f4")
        return np.ascontiguousarray(stored, "<f4")


@dataclass(frozen=True)
class Zeros:
    """What stands for a bias that a model does not have."""

    shape: tuple[int, ...]
    dtype: str = "F32"

    def rows(self, start: int, stop: int) -> np.ndarray:
        """They are not stored anywhere."""
        return np.zeros((stop - start, *self.shape[1:]), "<f4")


class Transposed:
    """A matrix with rows and columns exchanged. It is whole in memory from the first rows that are asked for to the last."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._whole: np.ndarray | None = None
        self.shape = tensor.shape[::-1]
        self.dtype = tensor.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Columns of the other."""
        if self._whole is None:
            self._whole = np.ascontiguousarray(self._tensor.rows(0, self._tensor.shape[0]).T)
        found = self._whole[start:stop]
        if stop == self.shape[0]:
            self._whole = None
        return found
