"""Import the package from a dict of sources, which `llm_boot` reads from the table llm_module.

Several versions can live in one session, as during ALTER EXTENSION UPDATE: each gets a name of its own in sys.modules.
This module is executed by itself, before the package exists, and so imports nothing from it.
"""

import hashlib
import importlib
import importlib.abc
import importlib.util
import linecache
import sys
import warnings
from contextlib import contextmanager

HINT = (
    "Install it for that interpreter: apt-get install python3-numpy, or pip install numpy into an environment on the"
    " PYTHONPATH of the server."
)
OLD_PYTHON = "PL/Python has the Python that it was built with: take a newer release of the system, such as Debian 12."


RECURSION = 1000  # frames that our code may need: what Python itself starts with


def is_set_oddly():
    """Whether another PL/Python function has changed a setting of the session's one interpreter that would make our code fail."""
    return sys.getrecursionlimit() < RECURSION or "error" in [found[0] for found in warnings.filters]


@contextmanager
def own_settings():
    """Give our code the usual settings, and restore the odd ones afterwards. Costs 8 us, so it is used only where needed."""
    limit = sys.getrecursionlimit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.setrecursionlimit(max(limit, RECURSION))
        try:
            yield
        finally:
            sys.setrecursionlimit(limit)


class SourceImporter(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads modules `root` and below from `sources`, whose keys begin with `pg_gpt2`."""

    def __init__(self, root, sources):
        self.root = root
        self.sources = {root + name.removeprefix("pg_gpt2"): source for name, source in sources.items()}

    def find_spec(self, fullname, path=None, target=None):
        if fullname in self.sources:
            return importlib.util.spec_from_loader(fullname, self, origin=f"<{fullname}>")
        return None

    def is_package(self, fullname):
        return any(name.startswith(fullname + ".") for name in self.sources)

    def get_source(self, fullname):
        return self.sources[fullname]

    def exec_module(self, module):
        source, origin = self.sources[module.__name__], module.__spec__.origin
        linecache.cache[origin] = (len(source), None, source.splitlines(True), origin)
        with own_settings():
            exec(compile(source, origin, "exec"), module.__dict__)


def import_package(sources, key, schema):
    """Import the package under a name made from `key` and return its `api`; `schema` is the extension's, quoted."""
    with own_settings():
        return _import(sources, key, schema)


def _import(sources, key, schema):
    python = f"{sys.base_prefix}/bin/python3 ({sys.version.split()[0]})"
    if sys.version_info < (3, 10):  # noqa: UP036  (as of Debian 11)
        raise unusable(f"Python 3.10 or later is needed in PL/Python, and this is {python}", OLD_PYTHON)
    root = "pg_gpt2_" + hashlib.sha256(key.encode()).hexdigest()[:12]
    if root not in sys.modules:
        sys.meta_path.append(SourceImporter(root, sources))
    try:
        importlib.import_module(root + ".fast.blas_library").import_numpy_single_threaded()
    except ImportError as error:
        raise unusable(f"NumPy is needed in the Python of PL/Python, {python}: {error}", HINT) from None
    importlib.import_module(root + ".server.boot").begin(schema, key.split()[1])
    return importlib.import_module(root + ".server.api")


def unusable(message, hint):
    """The error for a Python that the package cannot run on."""
    import plpy

    # PL/Python puts the name of the class in front of the message
    error = type("pg_gpt2", (plpy.Error,), {"__module__": "builtins"})(message)
    error.sqlstate, error.hint = "55000", hint
    return error
