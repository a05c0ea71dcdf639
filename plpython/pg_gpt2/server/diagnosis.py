"""What llm_doctor finds: software, hardware, settings and models, each ok, or warn or error with a hint.

It looks for what has cost people time: a slow BLAS, a different Python from the one they meant, a setting that is not valid, a
disk or a shared memory that is nearly full, a vocabulary that does not fit its model. It changes nothing and raises no error.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np

from .. import __version__
from ..errors import InsufficientPrivilege, InvalidParameter, PgGpt2Error
from ..fast import blas_library, threads
from . import db, importer, resources
from .storage import reading, shared_folder, store, weights
from .tape import recording, tape_rows
from .training import audit

ENABLED = {  # the mode of each trigger of a table that is in a dump, as in pg_trigger.tgenabled
    "llm_model_config": {"replaces_preset": "A", "keeps_name": "O", "keeps_used": "R"},
    "llm_bpe_vocab": {"changed": "A", "replicated": "R"},
    "llm_bpe_merges": {"changed": "A", "replicated": "R"},
}
MODES = {"A": "ENABLE ALWAYS", "R": "ENABLE REPLICA", "O": "ENABLE"}
Finding = tuple[str, str, str, str | None]  # item, value, ok | warn | error, hint
SLOW_GFLOPS = 10  # per core; the reference BLAS does 1 to 3, OpenBLAS on a ten-year-old core 30
SMALL_SHM = 128 << 20  # Docker gives 64 MB, in which PostgreSQL's parallel queries fail
LITTLE_MEMORY = 64 << 20  # that a session may use; the weights of GPT-2 small are 500 MB
LITTLE_ROOM = 2 << 30  # on the disk of the data directory
MUCH_ROOM = 64 << 20  # of llm_param beside what its rows hold, below which nothing is said
LEAN = 10  # times what the rows hold; with autovacuum every 5 seconds many short runs keep it at 3 to 8
BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # which make OpenBLAS forgo what the processor has
LISTING = (
    "llm_models",
    "llm_param_resolved",
    "llm_model_config",
    "llm_param",
    "llm_param_share",
    "llm_adapter",
    "llm_bpe_vocab",
)
SETTINGS: dict[str, Callable[[], object]] = {
    "threads": resources.wanted_threads,
    "fast": resources.wants_fast,
    "attention_chunk": resources.attention_chunk,
    "max_memory": resources.memory_limit,
    "autograd": recording.enabled,
    "tape": tape_rows.tape_owner,
    "prompt_lookup": resources.prompt_lookup,
    "prefix_cache": resources.prefix_cache,
    "audit_keep": audit.steps_kept,
}


def findings() -> Iterator[Finding]:
    """All rows of llm_doctor."""
    yield from _software()
    yield from _settings()
    yield from _hardware()
    yield from _database()


def _check(item: str, value: str, good: bool, hint: str, status: str = "warn") -> Finding:
    return (item, value, "ok", None) if good else (item, value, status, hint)


def _software() -> Iterator[Finding]:
    yield "pg_gpt2", f"{__version__} ({db.sources_digest})", "ok", None
    yield "PostgreSQL", (db.row("SELECT current_setting('server_version') AS v") or {})["v"], "ok", None
    yield "Python", f"{platform.python_version()} in {sys.base_prefix}", "ok", None
    yield _compiled()
    place = os.path.dirname(os.path.dirname(np.__file__))
    old = tuple(map(int, np.__version__.split(".")[:2])) < (1, 24)
    yield _check("NumPy", f"{np.__version__} in {place}", not old, "Upgrade to NumPy 2.")
    yield _check(
        "BLAS",
        blas_library.blas_name(),
        blas_library.set_blas_threads(1),
        "Its threads cannot be set. Install OpenBLAS: libopenblas0, or NumPy from PyPI.",
    )
    for variable in BLAS_VARIABLES:
        if value := os.environ.get(variable):
            hint = "Unset it for the server, unless this processor needs it: it may cost half the speed."
            yield variable, value, "warn", hint
    yield _vanished_clients()


def _compiled() -> Finding:
    """Whether the package is there as this Python's code; after an upgrade of the system it may be that of another."""
    row = db.row(
        "SELECT count(*) FILTER (WHERE code IS NOT NULL AND code_of = digest || ' ' || $1) AS fit, count(*) AS n"
        " FROM {schema}.llm_module",
        ["text"],
        importer.this_python(),
    )
    fit, n = (row or {}).values()
    hint = "Each session compiles the others at its first call, which takes longer. The extension's owner: SELECT llm_compile()."
    return _check("compiled modules", f"{fit} of {n}", fit == n, hint)


def _vanished_clients() -> Finding:
    """Without a check, a computation whose client is gone goes on to its end, which nobody will see."""
    interval = (db.row("SELECT current_setting('client_connection_check_interval') AS v") or {})["v"]
    hint = "What a client that is gone has asked for is computed to its end: set it to 10s, in postgresql.conf or for a role."
    return _check("client_connection_check_interval", interval, interval != "0", hint)


def _settings() -> Iterator[Finding]:
    """Settings with values that are not valid, which whatever uses them would refuse."""
    for name, read in SETTINGS.items():
        try:
            read()
        except (InvalidParameter, InsufficientPrivilege) as error:
            yield f"pg_gpt2.{name}", db.setting(name) or "", "error", f"{error.message}. {error.hint}"
    yield from _misnamed()
    with suppress(InvalidParameter, InsufficientPrivilege):
        resources.apply_settings()


def _misnamed() -> Iterator[Finding]:
    """Names that ALTER DATABASE or ALTER ROLE gave this session and that are no settings of ours, which PostgreSQL takes
    without a word. Those of SET and postgresql.conf no query can list."""
    rows = db.query(
        "SELECT DISTINCT split_part(pair, '=', 1) AS name, substr(pair, strpos(pair, '=') + 1) AS value"
        " FROM pg_db_role_setting AS given, unnest(setconfig) AS pair"
        " WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
        " AND setrole IN (0, quote_ident(session_user)::regrole) AND lower(pair) LIKE 'pg\\_gpt2.%'"
        " AND lower(split_part(pair, '=', 1)) NOT IN (SELECT name FROM {schema}.llm_settings) ORDER BY name"
    )
    for row in rows:
        hint = "There is no such setting; llm_settings lists them. ALTER ROLE or ALTER DATABASE ... RESET removes it."
        yield row["name"], row["value"], "warn", hint


def _hardware() -> Iterator[Finding]:
    rate = _gflops()
    hint = "Install OpenBLAS (apt-get install libopenblas0), or NumPy from PyPI, which brings it."
    yield _check("matrix product", f"{rate:.0f} GFLOP/s on one core", rate >= SLOW_GFLOPS, hint)
    yield "threads", f"{threads.threads()} of {resources.cores()} cores", "ok", None
    with suppress(InvalidParameter):  # it is among the settings
        limit = resources.memory_limit()
        hint = "Few models fit, and calls are refused with 53200. Raise pg_gpt2.max_memory, or max_memory in llm_limit."
        yield _check("max_memory", resources.megabytes(limit), limit >= LITTLE_MEMORY, hint)
    available = resources.available_memory()
    if available is not None:
        hint = "Other programs, or other sessions, have the rest: what needs more is refused with 53200."
        yield _check("memory available", resources.megabytes(available), available > 4 * resources.RESERVE, hint)
    shared = _room("/dev/shm", whole=True)
    if shared is not None:
        hint = "PostgreSQL's parallel queries may fail. For Docker: --shm-size=1g."
        yield _check("/dev/shm", resources.megabytes(shared), shared >= SMALL_SHM, hint)
    room = _room(".", whole=False)  # a server's working directory is its data directory
    if room is not None:
        hint = "Without room for a model's file each session keeps a copy of its own, and training cannot commit."
        yield _check("disk available", resources.megabytes(room), room >= LITTLE_ROOM, hint)
    folder = shared_folder.directory()
    usable = folder is not None and (not os.path.exists(folder) or os.access(folder, os.R_OK | os.W_OK | os.X_OK))
    yield _check("shared weights", folder or "none", usable, "Each session keeps a copy of its own.")
    yield "cached weights", resources.megabytes(weights.cache.bytes()), "ok", None


def _gflops(n: int = 512) -> float:
    a = np.ones((n, n), np.float32)
    a @ a
    began = time.thread_time()  # which other work on the machine does not lengthen
    for _ in range(4):
        a @ a
    return 8e-9 * n**3 / (time.thread_time() - began)


def _room(path: str, whole: bool) -> int | None:
    """Bytes of a file system, all or only the free ones; None where they cannot be found out."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_frsize * (found.f_blocks if whole else found.f_bavail)


def _database() -> Iterator[Finding]:
    encoding = (db.row("SELECT current_setting('server_encoding') AS v") or {})["v"]
    hint = "Text functions need a database with ENCODING 'UTF8'."
    yield _check("encoding", encoding, encoding == "UTF8", hint, status="error")
    if not db.may_read(*LISTING):
        role = (db.row("SELECT current_user AS name") or {})["name"]
        yield "models", f"hidden from {role}", "warn", "The extension's owner: SELECT llm_grant_usage(role)."
        return
    yield from _triggers()
    yield from _without_configuration()
    models = db.query(
        "SELECT m.model, base, vocab, n_params, tokenizer_tokens, ids FROM {schema}.llm_models AS m"
        " LEFT JOIN (SELECT model, max(token_id) + 1 AS ids FROM {schema}.llm_bpe_vocab GROUP BY model) AS v"
        " ON v.model = coalesce(m.base, m.model) WHERE n_params > 0 ORDER BY m.model"
    )
    if not models:
        hint = "llm_init_model, the import functions and pg-gpt2 load-model make one."
        yield "models", "none", "warn", hint
    for row in models:
        yield _model(row)
        yield from _shared_file(row["model"])
    yield from _older_versions()
    default = store.model_name(None)
    if not any(row["model"] == default for row in models):
        default = store.only_model(tell=False) or default
    hint = "SET pg_gpt2.model, or ALTER DATABASE ... SET it, to one of the models."
    yield _check("pg_gpt2.model", default, any(row["model"] == default for row in models), hint)


def _triggers() -> Iterator[Finding]:
    """Tables whose triggers are not as CREATE EXTENSION made them. Restoring a dump made with --disable-triggers does that."""
    for table, modes in ENABLED.items():
        rows = db.query(
            "SELECT tgname AS name, tgenabled AS mode, tgrelid::regclass::text AS place FROM pg_trigger"
            " WHERE tgrelid = $1::regclass AND NOT tgisinternal ORDER BY tgname",
            ["text"],
            db.qualified(table),
        )
        wrong = [row for row in rows if modes.get(row["name"], row["mode"]) != row["mode"]]
        if wrong:
            names = ", ".join(row["name"] for row in wrong)
            actions = ", ".join(f"{MODES[modes[row['name']]]} TRIGGER {row['name']}" for row in wrong)
            statement = f"ALTER TABLE {wrong[0]['place']} {actions};"
            yield f"triggers of {table}", f"not as installed: {names}", "warn", statement


def _without_configuration() -> Iterator[Finding]:
    """Weights that belong to no model; no row where there are none."""
    rows = db.query(
        "SELECT DISTINCT model FROM {schema}.llm_param AS p"
        " WHERE NOT EXISTS (SELECT FROM {schema}.llm_model_config AS c WHERE c.model = p.model) ORDER BY model"
    )
    if rows:
        hint = (
            "They are no models without their rows of llm_model_config. Where a dump was restored that --disable-triggers"
            " made: DELETE FROM llm_model_config WHERE preset, and restore that table again. llm_drop_model removes them."
        )
        yield "weights without a configuration", ", ".join(row["model"] for row in rows), "error", hint


def _older_versions() -> Iterator[Finding]:
    """What llm_param takes on the disk, beside what its rows hold; no row for a role that does not see all of them."""
    found = db.row(
        "SELECT sum(octet_length(data) + coalesce(octet_length(grad), 0) + coalesce(octet_length(m), 0)"
        " + coalesce(octet_length(v), 0)) AS held, pg_total_relation_size('{schema}.llm_param') AS taken"
        " FROM {schema}.llm_param HAVING NOT row_security_active('{schema}.llm_param')"
    )
    if found is None:
        return
    held, taken = int(found["held"] or 0), int(found["taken"])
    hint = (
        "The rest is versions of before, and their free space. VACUUM llm_param makes it usable again, VACUUM FULL gives it back;"
        " for many short runs set autovacuum_naptime to 5s."
    )
    value = f"{resources.megabytes(taken)} for {resources.megabytes(held)} in its rows"
    yield _check("llm_param", value, taken <= LEAN * held or taken - held < MUCH_ROOM, hint)


def _model(row: db.Row) -> Finding:
    try:
        reading.require_whole(row["model"], store.config(row["model"]))
    except PgGpt2Error as error:
        return f"model {row['model']}", error.message, "error", error.hint
    adapts = "" if row["base"] is None else f", adapter of {row['base']}"
    value = f"{row['n_params']:,} weights, {row['tokenizer_tokens']:,} tokens{adapts}"
    hint = "It has no vocabulary: only functions on token ids work."
    if row["tokenizer_tokens"]:
        hint = (
            f"Ids of its vocabulary reach {row['ids'] - 1}, and its weights are for {row['vocab']} tokens: text with"
            " the others is refused. Load the vocabulary that belongs to it."
        )
    return _check(f"model {row['model']}", value, 0 < (row["ids"] or 0) <= row["vocab"], hint)


def _shared_file(model: str) -> Iterator[Finding]:
    """Whether the file that sessions share is what was written; no row without a file. Large files are verified only here."""
    config = store.find_config(model)
    if config is None or config.adapter is not None:  # an adapter is mapped as its base is
        return
    file = weights.file_of(model, reading.version_of(model))
    if file and file.is_there():
        damage = file.damage()
        hint = (
            "Memory or disk is at fault. The extension's owner: SELECT llm_cache_clear(); then sessions connect again."
        )
        yield _check(f"shared weights of {model}", damage or "as written", damage is None, hint, status="error")
