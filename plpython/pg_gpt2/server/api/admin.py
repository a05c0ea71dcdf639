"""llm_doctor, llm_cache_status, llm_model_sessions, llm_cache_clear, llm_grant_usage."""

from typing import Any

from ...errors import InvalidParameter, UndefinedObject, require
from ...generation import prefixes
from .. import db, diagnosis, resources, vocabularies
from ..diagnosis import Finding
from ..entry import entry
from ..storage import store, weights


@entry
def doctor() -> list[Finding]:
    """Rows (item, value, status, hint)."""
    return list(diagnosis.findings())


@entry
def cache_status() -> list[tuple[Any, ...]]:
    """Rows (kind, model, version, bytes, shared, entries, tokens_saved), of what the caller may see: another role may have filled
    the caches. What texts began with is shown to the role that gave them only."""
    role = (db.row("SELECT current_user AS role") or {})["role"]
    rows: list[tuple[Any, ...]] = [
        ("prefix", *used.identity[:2], used.nbytes, False, used.entries, used.saved)
        for used in prefixes.session.usage()
        if used.identity.role == role
    ]
    rows += [("weights", m.name, m.version, m.nbytes, m.shared, None, None) for m in weights.cache.models.values()]
    if state := weights.cache.state:
        rows.append(("training", state.model, state.version, state.nbytes, False, None, None))
    known = store.known([model for _, model, *_ in rows])
    rows = [row for row in rows if row[1] in known]
    return rows + [("tokenizer", *found, None, None) for found in vocabularies.cached()]


@entry
def model_sessions() -> list[tuple[str, int]]:
    """Rows (model, pid)."""
    return sorted(weights.sessions())


@entry
def cache_clear() -> int:
    """Bytes of this session's memory given up; for the extension's owner also the files that sessions share."""
    freed = weights.cache.bytes() + prefixes.session.nbytes
    weights.cache.clear()
    vocabularies.forget()
    resources.release_memory()
    if db.is_owner():
        weights.forget_files()
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
OWNERS = (
    *("llm_module", "llm_limit", "llm_bpe_version", "llm_bpe_version_id_seq", "llm_bpe_changed", "llm_grant_usage"),
    "llm_compile",
    "llm_publish",  # whose tables have to be the caller's
)
TRAINING = "^llm_(train|dataset|accumulate|worker)"  # names of functions that train or load data


@entry
def grant_usage(role: str, level: str) -> None:
    """GRANT what `level` needs; each level includes those before it."""
    require(role=role, level=level)
    if level not in ("read", "train", "admin"):
        raise InvalidParameter(
            f"level must be 'read', 'train' or 'admin', not '{level}'", hint="Each level includes those before it."
        )
    if not role:
        raise InvalidParameter("role must not be an empty name", hint="Name a role; public stands for all of them.")
    if role != "public" and not db.row("SELECT 1 FROM pg_roles WHERE rolname = $1", ["text"], role):
        raise UndefinedObject(f'role "{role}" does not exist', hint=f'CREATE ROLE "{role}" first.')
    grantee = "PUBLIC" if role == "public" else db.quote_identifier(role)
    db.command("GRANT USAGE ON SCHEMA {schema} TO {grantee}", grantee=grantee)
    for name, plain, kind in _members():
        if plain in OWNERS:
            continue
        if kind == "sequence":
            if level != "read":
                db.command("GRANT USAGE ON SEQUENCE {name} TO {grantee}", name=name, grantee=grantee)
        elif kind == "table":
            db.command(
                "GRANT {rights} ON {name} TO {grantee}", rights=_rights(level, plain), name=name, grantee=grantee
            )
        elif level == "admin" or (level == "train" and kind == "training"):
            db.command("GRANT EXECUTE ON ROUTINE {name} TO {grantee}", name=name, grantee=grantee)


def _rights(level: str, table: str) -> str:
    """The privileges of a level on a table or view."""
    more = {"train": CHANGED_BY_TRAINING.get(table), "admin": "INSERT, UPDATE, DELETE, TRUNCATE"}.get(level)
    return f"SELECT, {more}" if more else "SELECT"


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
