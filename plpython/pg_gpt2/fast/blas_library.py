"""The BLAS that NumPy loads: which one it is, and that it has one thread, since our own threads share out the work."""

import ctypes
import os
import signal

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)

_DESCRIPTIONS = (
    "scipy_openblas_get_config64_",
    "scipy_openblas_get_config",
    "openblas_get_config64_",
    "openblas_get_config",
)


def import_numpy_single_threaded() -> None:
    """Import NumPy with BLAS at one thread and every signal blocked in the threads that it may start."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    before = {name: os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")}
    try:
        os.environ.update(dict.fromkeys(before, "1"))
        import numpy  # noqa: F401  (imported for its effect: BLAS reads the environment once)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    set_blas_threads(1)


def set_blas_threads(count: int) -> bool:
    """Cap the BLAS that NumPy loaded at `count` threads; False when no known BLAS was found."""
    for path in blas_libraries():
        library = ctypes.CDLL(path)
        for name in _SETTERS:
            setter = getattr(library, name, None)
            if setter is not None:
                setter(ctypes.c_int(count))
                return True
    return False


def blas_name() -> str:
    """What the BLAS that NumPy loaded says of itself, else the name of its library."""
    paths = blas_libraries()
    for path in paths:
        for name in _DESCRIPTIONS:
            describe = getattr(ctypes.CDLL(path), name, None)
            if describe is not None:
                describe.restype = ctypes.c_char_p
                return describe().decode()
    return ", ".join(map(os.path.basename, paths)) or "unknown"


def blas_libraries() -> list[str]:
    """Paths of mapped shared objects whose name says BLAS or MKL."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/") and ".so" in line}
    except OSError:
        return []
    names = ("blas", "mkl_rt")
    return sorted(path for path in paths if any(name in os.path.basename(path).lower() for name in names))
