"""out += a @ b in one pass, by the sgemm of the BLAS that NumPy loaded: np.matmul can only overwrite its result.

Where that BLAS has no known symbol, or the arrays are not float32 matrices as it takes them, NumPy does it in two passes.
"""

import ctypes
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .. import threads
from . import buffers

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # as CBLAS counts
_SYMBOLS = (
    ("scipy_cblas_sgemm64_", ctypes.c_int64),
    ("cblas_sgemm64_", ctypes.c_int64),
    ("scipy_cblas_sgemm", ctypes.c_int),
    ("cblas_sgemm", ctypes.c_int),
)
_Layout = tuple[int, int]  # (PLAIN or TRANSPOSED, elements from one row or column to the next)


def add_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:  # [m,k], [k,n], [m,n]
    """out += a @ b; a and b may be transposed views, out has contiguous rows."""
    layouts = _layout(a), _layout(b), _layout(out)
    gemm = _gemm()
    if gemm is None or None in layouts or layouts[2][0] != PLAIN:  # type: ignore[index]
        out += np.matmul(a, b, out=buffers.scratch("product", out.shape, out.dtype))
    else:
        gemm(a, b, out, *layouts)  # type: ignore[arg-type]


def _layout(x: np.ndarray) -> _Layout | None:
    """How CBLAS is to read x; None when it cannot."""
    if x.dtype != np.float32 or not x.dtype.isnative or not x.size:
        return None
    (rows, columns), (down, across) = x.shape, x.strides
    if across == 4 and down % 4 == 0 and down >= 4 * columns:
        return PLAIN, down // 4
    if down == 4 and across % 4 == 0 and across >= 4 * rows:
        return TRANSPOSED, across // 4
    return None


@lru_cache(maxsize=1)
def _gemm() -> Callable[[np.ndarray, np.ndarray, np.ndarray, _Layout, _Layout, _Layout], None] | None:
    """A caller of the first symbol found that multiplies correctly."""
    for library in threads.blas_libraries():
        for symbol, integer in _SYMBOLS:
            function = getattr(ctypes.CDLL(library), symbol, None)
            if function is None:
                continue
            function.restype = None
            function.argtypes = [
                *[ctypes.c_int] * 3,
                *[integer] * 3,
                *[ctypes.c_float, ctypes.c_void_p, integer, ctypes.c_void_p, integer],
                *[ctypes.c_float, ctypes.c_void_p, integer],
            ]

            def gemm(
                a: np.ndarray,
                b: np.ndarray,
                out: np.ndarray,
                a_layout: _Layout,
                b_layout: _Layout,
                out_layout: _Layout,
                function: Callable[..., None] = function,
            ) -> None:
                (m, k), n = a.shape, b.shape[1]
                function(
                    *(ROW_MAJOR, a_layout[0], b_layout[0], m, n, k),
                    *(1.0, _address(a), a_layout[1], _address(b), b_layout[1], 1.0, _address(out), out_layout[1]),
                )

            if _multiplies(gemm):
                return gemm
    return None


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def _multiplies(gemm: Callable[..., None]) -> bool:
    """Whether a product of small whole numbers, one operand transposed, is right."""
    a, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(20, dtype=np.float32).reshape(5, 4).T
    out = np.ones((3, 8), np.float32)[:, :5]
    expected = out + a @ b
    gemm(a, b, out, _layout(a), _layout(b), _layout(out))
    return bool((out == expected).all())
