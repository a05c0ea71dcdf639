"""Import the package from the rows of llm_module: their code, where this Python made it of their source, else the source.

Several versions can live in one session, as during ALTER EXTENSION UPDATE: each gets a name of its own in sys.modules.
This module is executed by itself, before the package exists, and so imports nothing from it.
"""

import gc
import hashlib
import importlib
import importlib.util
import marshal
import sys
import warnings
from contextlib import contextmanager
from importlib.machinery import ModuleSpec

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


@contextmanager
def collecting_nothing():
    """Around the making of thousands of objects that stay: Python does not look for garbage among them, which takes a tenth of
    the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def root_of(key):
    """Name in sys.modules of the package under `key`."""
    return "pg_gpt2_" + hashlib.sha256(key.encode()).hexdigest()[:12]


def this_python():
    """A mark of this Python: one with another mark cannot run the code that it makes."""
    return f"{sys.implementation.cache_tag} {importlib.util.MAGIC_NUMBER.hex()} {sys.flags.optimize}"


def compiled(source, module):
    """The code of a module, whose name tracebacks show."""
    return compile(source, f"<{module}>", "exec", dont_inherit=True)


class RowImporter:
    """Finds and loads modules `root` and below from rows of llm_module, whose names begin with `pg_gpt2`.

    It has no base class of importlib.abc, whose import takes longer than reading all of the package's code.
    """

    def __init__(self, root, rows):
        self._rows = {root + row["name"].removeprefix("pg_gpt2"): row for row in rows}
        self._packages = {name.rpartition(".")[0] for name in self._rows}

    def find_spec(self, fullname, path=None, target=None):
        if fullname in self._rows:
            is_package = fullname in self._packages
            return ModuleSpec(fullname, self, origin=f"<{fullname}>", is_package=is_package)  # type: ignore[arg-type]
        return None

    def create_module(self, spec):
        return None  # an ordinary one

    def exec_module(self, module):
        name, row = module.__name__, self._rows[module.__name__]
        with own_settings():
            code = marshal.loads(row["code"]) if row["code"] else compiled(row["source"], name)
            exec(code, module.__dict__)
        row["code"] = row["source"] = None  # not needed again: a module is imported once


def import_package(key, schema):
    """Import the package under a name made from `key` and return its `api`; `schema` is the extension's, quoted."""
    with own_settings(), collecting_nothing():
        api = _import(key, schema)
        gc.freeze()  # nor later: once a session, so that no garbage piles up there
        return api


def _import(key, schema):
    python = f"{sys.base_prefix}/bin/python3 ({sys.version.split()[0]})"
    if sys.version_info < (3, 10):  # noqa: UP036  (as of Debian 11)
        raise unusable(f"Python 3.10 or later is needed in PL/Python, and this is {python}", OLD_PYTHON)
    root = root_of(key)
    if root not in sys.modules:
        sys.meta_path.append(RowImporter(root, _rows(schema)))
    try:
        importlib.import_module(root + ".fast.blas_library").import_numpy_single_threaded()
    except ImportError as error:
        raise unusable(f"NumPy is needed in the Python of PL/Python, {python}: {error}", HINT) from None
    importlib.import_module(root + ".server.boot").begin(schema, key.split()[1])
    return importlib.import_module(root + ".server.api")


def _rows(schema):
    """Name of every module, and its code; source in the place of code that is of another source, or another Python's."""
    import plpy

    fits = "code IS NOT NULL AND code_of = digest || ' ' || $1"
    found = plpy.prepare(
        f"SELECT name, CASE WHEN {fits} THEN code END AS code, CASE WHEN {fits} THEN NULL ELSE source END AS source"
        f" FROM {schema}.llm_module",
        ["text"],
    )
    return list(plpy.execute(found, [this_python()]))


def compile_package(key, schema):
    """Write the code that this Python makes of every source beside it; how many there are."""
    import plpy

    root, python = root_of(key), this_python()
    rows = plpy.execute(f"SELECT name, source, digest FROM {schema}.llm_module")
    with own_settings():
        codes = [marshal.dumps(compiled(row["source"], root + row["name"].removeprefix("pg_gpt2"))) for row in rows]
    update = plpy.prepare(
        f"UPDATE {schema}.llm_module AS m SET code = new.code, code_of = new.code_of"
        " FROM unnest($1, $2, $3) AS new (name, code, code_of) WHERE m.name = new.name",
        ["text[]", "bytea[]", "text[]"],
    )
    return plpy.execute(
        update, [[row["name"] for row in rows], codes, [f"{row['digest']} {python}" for row in rows]]
    ).nrows()


def unusable(message, hint):
    """The error for a Python that the package cannot run on."""
    import plpy

    # PL/Python puts the name of the class in front of the message
    error = type("pg_gpt2", (plpy.Error,), {"__module__": "builtins"})(message)
    error.sqlstate, error.hint = "55000", hint
    return error
