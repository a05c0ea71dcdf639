"""Tensors as SQL passes them: contiguous little-endian row-major float32 bytes, shape beside them."""

import io
import math
from collections.abc import Sequence

import numpy as np

from . import host
from .errors import InvalidParameter, shown
from .fast import slices
from .limits import MOST_DIMENSIONS

FLOAT32 = np.dtype("<f4")
PART = 1 << 22  # values that are copied at a time


def from_bytes(data: bytes, shape: Sequence[int] | None = None, *, name: str = "tensor") -> np.ndarray:
    """Read-only float32 view of `data`; without `shape` a vector. 22023 when the length does not fit."""
    if len(data) % 4:
        raise InvalidParameter(
            f"{name} has {len(data)} bytes, which is not a multiple of 4",
            hint="A tensor is little-endian float32; make one with pg_llm_tensor(double precision[]).",
        )
    values = np.frombuffer(data, FLOAT32)
    if shape is None:
        return values
    check_shape(shape, name=name)
    if values.size != math.prod(shape):
        raise InvalidParameter(
            f"{name} has {values.size} values, but shape {list(shape)} needs {math.prod(shape)}",
            hint="The length in bytes must be 4 times the product of the dimensions.",
        )
    return values.reshape(tuple(shape))


def to_bytes(values: np.ndarray) -> bytes:
    """Bytes of `values` as contiguous little-endian float32."""
    if values.size <= PART:
        return np.ascontiguousarray(values, FLOAT32).tobytes()
    file = io.BytesIO()  # gives its bytes away without a copy
    for part in slices.parts(values.shape, PART):
        host.check_interrupts()
        file.write(np.ascontiguousarray(values[part], FLOAT32).data)
    return file.getvalue()


def check_shape(shape: Sequence[int], *, name: str = "tensor") -> None:
    """Refuse (22023) a dimension that is not a positive integer, and more than MOST_DIMENSIONS: their product may take long."""
    if len(shape) > MOST_DIMENSIONS:
        raise InvalidParameter(
            f"{name} has {len(shape)} dimensions; the most is {MOST_DIMENSIONS}",
            hint="Put dimensions together: [2, 3, 4] are as many values as [6, 4].",
        )
    if any(type(dim) is not int or dim <= 0 for dim in shape):
        raise InvalidParameter(
            f"{name} has shape {shown(shape)}; every dimension must be positive",
            hint="Example: ARRAY[2, 3] for two rows of three.",
        )
