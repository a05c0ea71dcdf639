"""Two operations that BLAS does in one pass and NumPy in several: out += a @ b by sgemm, y = a x + b y by saxpby.

Where the BLAS that NumPy loaded has no known symbol, or the arrays are not float32 as it takes them, NumPy does it.
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np

from . import blas_library, buffers

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # as CBLAS counts
_NAMES = (
    ("scipy_cblas_{}64_", ctypes.c_int64),
    ("cblas_{}64_", ctypes.c_int64),
    ("scipy_cblas_{}", ctypes.c_int),
    ("cblas_{}", ctypes.c_int),
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


def add_scaled(alpha: float, x: np.ndarray, beta: float, y: np.ndarray) -> None:  # [n], [n]
    """y = alpha x + beta y."""
    axpby = _axpby()
    if axpby is None or not (x.dtype == y.dtype == np.float32 and x.flags.c_contiguous and y.flags.c_contiguous):
        y *= y.dtype.type(beta)
        y += np.multiply(x, x.dtype.type(alpha), out=buffers.scratch("scaled", x.shape, x.dtype))
    else:
        axpby(alpha, x, beta, y)


def _functions(name: str) -> Iterator[tuple[Callable[..., None], type]]:
    """Functions of that name in the libraries found, and their type of integers."""
    for library in blas_library.blas_libraries():
        for form, integer in _NAMES:
            function = getattr(ctypes.CDLL(library), form.format(name), None)
            if function is not None:
                function.restype = None
                yield function, integer


@lru_cache(maxsize=1)
def _gemm() -> Callable[[np.ndarray, np.ndarray, np.ndarray, _Layout, _Layout, _Layout], None] | None:
    """A caller of the first sgemm found that multiplies correctly."""
    for function, integer in _functions("sgemm"):
        function.argtypes = [  # type: ignore[attr-defined]
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


@lru_cache(maxsize=1)
def _axpby() -> Callable[[float, np.ndarray, float, np.ndarray], None] | None:
    """A caller of the first saxpby found that is right, and treats each element as it would alone."""
    for function, integer in _functions("saxpby"):
        vector = (ctypes.c_void_p, integer)
        function.argtypes = [integer, ctypes.c_float, *vector, ctypes.c_float, *vector]  # type: ignore[attr-defined]

        def axpby(
            alpha: float, x: np.ndarray, beta: float, y: np.ndarray, function: Callable[..., None] = function
        ) -> None:
            function(x.size, alpha, _address(x), 1, beta, _address(y), 1)

        if _scales_and_adds(axpby):
            return axpby
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


def _scales_and_adds(axpby: Callable[..., None]) -> bool:
    """Whether sums are right, and have the same bits in pieces of any size: where work is cut must not matter."""
    bounds = np.cumsum(np.arange(46)).tolist()  # pieces of 1, 2, 3 .. 45 elements
    x, y = np.linspace(-1, 1, bounds[-1], dtype=np.float32), np.linspace(2, 3, bounds[-1], dtype=np.float32)
    whole, cut = y.copy(), y.copy()
    axpby(0.1, x, 0.9, whole)
    for start, stop in pairwise(bounds):
        axpby(0.1, x[start:stop], 0.9, cut[start:stop])
    return np.allclose(whole, 0.1 * x + 0.9 * y, rtol=1e-6) and np.array_equal(whole, cut)
