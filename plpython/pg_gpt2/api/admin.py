"""llm_doctor, llm_cache_status, llm_cache_clear, llm_grant_usage."""

import os
import platform
import sys
import time
from collections.abc import Iterator

import numpy as np

from .. import __version__, db, resources, store, threads, vocabularies, weight_file, weights
from ..db import entry
from ..errors import InvalidParameter, UndefinedObject, require

Finding = tuple[str, str, str, str | None]  # item, value, ok | warn | error, hint
SLOW_GFLOPS = 10  # per core; the reference BLAS does 1 to 3, OpenBLAS on a ten-year-old core 30


@entry
def doctor() -> list[Finding]:
    """Rows (item, value, status, hint)."""
    resources.apply_threads()
    return [*_software(), *_hardware(), *_database()]


def _software() -> Iterator[Finding]:
    yield "pg_gpt2", f"{__version__} ({db.sources_digest})", "ok", None
    yield "PostgreSQL", (db.row("SELECT current_setting('server_version') AS v") or {})["v"], "ok", None
    yield "Python", f"{platform.python_version()} in {sys.base_prefix}", "ok", None
    old = tuple(map(int, np.__version__.split(".")[:2])) < (1, 24)
    yield "NumPy", np.__version__, *(("warn", "Upgrade to NumPy 2.") if old else ("ok", None))
    name = threads.blas_name()
    if threads.set_blas_threads(1):
        yield "BLAS", name, "ok", None
    else:
        yield "BLAS", name, "warn", "Its threads cannot be set. Install OpenBLAS: libopenblas0, or NumPy from PyPI."
    if core := os.environ.get("OPENBLAS_CORETYPE"):
        yield (
            "OPENBLAS_CORETYPE",
            core,
            "warn",
            "Unset it for the server, unless this processor needs it: it may cost half the speed.",
        )


def _hardware() -> Iterator[Finding]:
    rate = _gflops()
    slow = (
        ("warn", "Install OpenBLAS (apt-get install libopenblas0), or NumPy from PyPI, which brings it.")
        if rate < SLOW_GFLOPS
        else ("ok", None)
    )
    yield "matrix product", f"{rate:.0f} GFLOP/s on one core", *slow
    yield "threads", f"{threads.threads()} of {resources.cores()} cores", "ok", None
    limit = resources.memory_limit()
    available = resources.available_memory()
    yield "max_memory", resources.megabytes(limit), "ok", None
    if available is not None:
        yield "memory available", resources.megabytes(available), "ok", None
    yield "cached weights", resources.megabytes(weights.cache.bytes()), "ok", None


def _gflops(n: int = 512) -> float:
    a = np.ones((n, n), np.float32)
    a @ a
    began = time.perf_counter()
    for _ in range(4):
        a @ a
    return 8e-9 * n**3 / (time.perf_counter() - began)


def _database() -> Iterator[Finding]:
    encoding = (db.row("SELECT current_setting('server_encoding') AS v") or {})["v"]
    good = encoding == "UTF8"
    yield (
        "encoding",
        encoding,
        *(("ok", None) if good else ("error", "Text functions need a database with ENCODING 'UTF8'.")),
    )
    models = db.query(
        "SELECT model, n_params, tokenizer_tokens FROM {schema}.llm_models WHERE n_params > 0 ORDER BY model"
    )
    if not models:
        yield (
            "models",
            "none",
            "warn",
            "llm_init_model, the import functions and python -m loaders.load_model make one.",
        )
    for row in models:
        has_vocabulary = row["tokenizer_tokens"] > 0
        value = f"{row['n_params']:,} weights, {row['tokenizer_tokens']:,} tokens"
        hint = None if has_vocabulary else "It has no vocabulary: only functions on token ids work."
        yield f"model {row['model']}", value, "ok" if has_vocabulary else "warn", hint
    default = store.model_name(None)
    known = any(row["model"] == default for row in models)
    hint = None if known else "SET pg_gpt2.model, or ALTER DATABASE ... SET it, to one of the models."
    yield "pg_gpt2.model", default, "ok" if known else "warn", hint


@entry
def cache_status() -> list[tuple[str, str, str, int | None, bool]]:
    """Rows (kind, model, version, bytes, shared)."""
    models = [("weights", m.name, m.version, weights.size(m), m.shared) for m in weights.cache.models.values()]
    if state := weights.cache.state:
        models.append(("training", state.model, state.version, state.nbytes, False))
    return models + [("tokenizer", name, version, None, False) for name, version in vocabularies.cached()]


@entry
def cache_clear() -> int:
    """Bytes of this session's memory given up; for the extension's owner also the files that sessions share."""
    freed = weights.cache.bytes()
    weights.cache.clear()
    vocabularies.forget()
    resources.release_memory()
    row = db.row(
        "SELECT d.oid::bigint AS database FROM pg_database d, pg_extension e"
        " WHERE d.datname = current_database() AND e.extname = 'pg_gpt2' AND pg_has_role(current_user, e.extowner, 'USAGE')"
    )
    if row and (folder := weight_file.directory()):
        weight_file.remove(folder, f"{weight_file.PREFIX}_{row['database']}_")
    return freed


CHANGED_BY_TRAINING = {
    "llm_param": "UPDATE",
    "llm_dataset": "INSERT, UPDATE, DELETE",
    "llm_run": "INSERT, UPDATE",
    "llm_train_log": "INSERT",
    "llm_tape": "INSERT, DELETE",
    "llm_tensor_rt": "INSERT, UPDATE, DELETE",
    "llm_tensor_map": "INSERT, UPDATE, DELETE",
    "llm_bpe_vocab": "INSERT",
    "llm_bpe_merges": "INSERT",
}
# The owner's alone: the code, the caps, the numbers of vocabularies, and granting itself. PUBLIC may SELECT from the tables.
OWNERS = ("llm_module", "llm_limit", "llm_bpe_version", "llm_bpe_version_id_seq", "llm_bpe_changed", "llm_grant_usage")
TRAINING = "^llm_(train|dataset|accumulate)"  # names of functions that train or load data


@entry
def grant_usage(role: str, level: str) -> None:
    """GRANT what `level` needs; each level includes those before it."""
    require(role=role, level=level)
    if level not in ("read", "train", "admin"):
        raise InvalidParameter(
            f"level must be 'read', 'train' or 'admin', not '{level}'", hint="Each level includes those before it."
        )
    if role != "public" and not db.row("SELECT 1 FROM pg_roles WHERE rolname = $1", ["text"], role):
        raise UndefinedObject(f'role "{role}" does not exist', hint=f'CREATE ROLE "{role}" first.')
    grantee = "PUBLIC" if role == "public" else db.quote_identifier(role)
    db.command(f"GRANT USAGE ON SCHEMA {{schema}} TO {grantee}")
    for name, plain, kind in _members():
        if plain in OWNERS:
            continue
        if kind == "sequence":
            if level != "read":
                db.command(f"GRANT USAGE ON SEQUENCE {name} TO {grantee}")
        elif kind == "table":
            more = {
                "read": "",
                "train": CHANGED_BY_TRAINING.get(plain, ""),
                "admin": "INSERT, UPDATE, DELETE, TRUNCATE",
            }[level]
            db.command(f"GRANT SELECT{', ' if more else ''}{more} ON {name} TO {grantee}")
        elif level == "admin" or (level == "train" and kind == "training"):
            db.command(f"GRANT EXECUTE ON ROUTINE {name} TO {grantee}")


def _members() -> list[tuple[str, str, str]]:
    """(qualified name, plain name, kind) of the extension's relations and routines; kinds are table, sequence, routine and
    training."""
    rows = db.query(
        "SELECT d.objid::regclass::text AS name, c.relname AS plain,"
        " CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind"
        " FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass"
        " JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass"
        " WHERE e.extname = 'pg_gpt2' AND d.deptype = 'e' AND c.relkind IN ('r', 'v', 'S')"
        " UNION ALL SELECT d.objid::regprocedure::text, p.proname, CASE WHEN p.proname ~ $1 THEN 'training' ELSE 'routine' END"
        " FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass"
        " JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass"
        " WHERE e.extname = 'pg_gpt2' AND d.deptype = 'e'",
        ["text"],
        TRAINING,
    )
    return [(row["name"], row["plain"], row["kind"]) for row in rows]
