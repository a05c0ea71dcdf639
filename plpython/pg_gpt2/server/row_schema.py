"""The JSON schema of a row: what jsonb_populate_record turns into a row that a table takes.

Every column that is described is required, in the order of the columns, and may be null unless the table forbids it. Left out is
what the server fills in (defaults, identities, generated columns), and a column of a type that no schema describes, if it may be
null. $comment says what was left out, and which constraints the schema does not hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from ..errors import FeatureNotSupported, InvalidParameter, LimitExceeded, PgGpt2Error, UndefinedObject
from ..generation.constraints.json_schema import grammar, json_text
from ..limits import MOST_SCHEMA_LEVELS, MOST_SUBSCHEMAS
from . import db, row_constraints, row_numbers
from .check_expressions import Conditions, conditions

Schema = dict[str, Any]

_FORMATS = {
    "date": "date",
    "uuid": "uuid",
    "time without time zone": "time",
    "time with time zone": "time",
    "timestamp without time zone": "date-time",
    "timestamp with time zone": "date-time",
}
_ROWS = "rpfvmc"  # kinds of relations whose rows people write, or pass


class _NoSchemaError(Exception):
    """A type that no schema describes, by its name; the constraints on it are not held."""

    def __init__(self, kind: str, unheld: list[str]) -> None:
        super().__init__(kind)
        self.kind, self.unheld = kind, unheld


@dataclass(frozen=True)
class _Base:
    """What is under a domain, or a type itself."""

    row: db.Row  # of pg_type
    name: str  # without a length
    modifier: int
    not_null: bool
    has_default: bool
    checks: list[tuple[str, str]]  # (name, expression) of its domains


class _Size:
    """The size of a schema while it is made; each schema within it is made in a `with` of this."""

    def __init__(self, relation: str) -> None:
        self.relation = relation
        self.count = self.level = 0
        # rows within it that were made, with what they do not hold and their counts
        self.rows: dict[tuple[int, bool], tuple[Schema, list[str], int]] = {}

    def __enter__(self) -> None:
        self.level += 1
        self.add(1)

    def __exit__(self, *_: object) -> None:
        self.level -= 1

    def add(self, count: int) -> None:
        self.count += count
        if self.level > MOST_SCHEMA_LEVELS or self.count > MOST_SUBSCHEMAS:
            raise LimitExceeded(
                f"the schema of {self.relation} has more than {MOST_SCHEMA_LEVELS} levels or {MOST_SUBSCHEMAS} columns"
                " with those of the rows within it",
                hint="Make a view or a type of fewer columns.",
            )


def schema_of(relation: str) -> str:
    """The schema as JSON. 42704 where there is no such relation, 22023 where it has no rows of its own, 0A000 for a column that
    must be given and cannot be described."""
    found = db.row(
        "SELECT c.oid, relkind, relispartition, format('%I.%I', nspname, relname) AS name"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = $1",
        ["regclass"],
        relation,
    )
    if found is None:
        raise UndefinedObject(f"relation {relation} does not exist", hint="Give a table, a view or a composite type.")
    if found["relkind"] not in _ROWS:
        raise InvalidParameter(
            f"{found['name']} is neither a table nor a view nor a composite type", hint="Example: 'ticket'::regclass."
        )
    return json_text(_relation(found), found["name"])


def _relation(found: db.Row) -> Schema:
    checks = row_constraints.checks("conrelid", found["oid"])
    properties: Schema = {}
    size = _Size(found["name"])
    out, refusing, unheld = [], [], row_constraints.of_partitions(found)
    for column in _columns(found["oid"]):
        own = [(name, text) for name, text, columns in checks if columns == [column["attnum"]]]
        base = _base(column["atttypid"], column["atttypmod"])
        has_default = base.has_default and found["relkind"] != "c"  # nothing is inserted into a type
        if filled := column["filled"] or (has_default and "default"):
            out.append(f"{column['attname']} ({filled})")
            if _may_refuse_null(base):
                refusing.append(column["attname"])
            if filled == "generated":
                unheld += _of_generated(column, base, own)
            continue
        try:
            with size:
                properties[column["attname"]], more = _column(column, base, own, found["name"], size)
        except _NoSchemaError as error:
            out.append(f"{column['attname']} ({error.kind})")
            more = error.unheld
        unheld += more
    unheld += [f"CHECK {name}" for name, _, columns in checks if len(columns) != 1 or columns[0] < 1]
    unheld += row_constraints.on_other_rows(found["oid"])
    return _object(properties) | _comment(out, unheld, refusing)


def _may_refuse_null(base: _Base) -> bool:
    """Whether a domain is not known to take the null that jsonb_populate_record gives for a property that is not there."""
    wanted, unheld = _conditions(base, [], "")
    return base.not_null or wanted.not_null or bool(unheld)


def _of_generated(column: db.Row, base: _Base, checks: list[tuple[str, str]]) -> list[str]:
    """Constraints on what a generated column is, which follows from the other columns."""
    not_null = [f"NOT NULL {column['attname']}"] if column["attnotnull"] or base.not_null else []
    return not_null + [f"CHECK {name}" for name, _ in (*base.checks, *checks)]


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _comment(out: list[str], unheld: Sequence[str] = (), refusing: Sequence[str] = ()) -> Schema:
    by_record = "Rows by jsonb_to_record only, as a domain may refuse the null of jsonb_populate_record"
    parts = {"Left out": out, "Not held": unheld, by_record: refusing}
    said = " ".join(f"{what}: {', '.join(names)}." for what, names in parts.items() if names)
    return {"$comment": said} if said else {}


def _cannot(column: db.Row, relation: str, kind: str) -> FeatureNotSupported:
    return FeatureNotSupported(
        f'column "{column["attname"]}" of {relation} has the type {kind}, which no JSON schema describes, and must not be null',
        hint="Give it a default or allow null, and it is left out; or make a view or a type of the other columns.",
    )


def _columns(relation: int) -> list[db.Row]:
    """Columns in their order; `filled` says what fills one in, if anything does."""
    return db.query(
        "SELECT attnum, attname, atttypid, atttypmod, attnotnull, CASE WHEN attidentity <> '' THEN 'identity'"
        " WHEN attgenerated <> '' THEN 'generated' WHEN atthasdef THEN 'default' END AS filled"
        " FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        ["oid"],
        relation,
    )


# --- a column ---------------------------------------------------------------------------------------------------------------


def _column(
    column: db.Row, base: _Base, checks: list[tuple[str, str]], relation: str, size: _Size
) -> tuple[Schema, list[str]]:
    """The schema of a column, and the constraints that it does not hold."""
    wanted, unheld = _conditions(base, checks, column["attname"])
    not_null = column["attnotnull"] or base.not_null or wanted.not_null
    try:
        schema, more = _type(base, wanted, size)
    except _NoSchemaError as error:
        if not_null:
            raise _cannot(column, relation, error.kind) from None
        raise _NoSchemaError(error.kind, unheld) from None
    if not_null and schema.get("enum") == []:
        raise InvalidParameter(
            f'column "{column["attname"]}" of {relation} can have no value: none fulfils its CHECK constraints and its type',
            hint="Look at the constraints; \\d shows them.",
        )
    return schema if not_null else _or_null(schema), unheld + more


def _or_null(schema: Schema) -> Schema:
    if schema.get("enum") == []:
        return {"type": "null"}
    return {"anyOf": [schema, {"type": "null"}]}


def _base(type_id: int, modifier: int) -> _Base:
    """The type under the domains of a type, and what these say."""
    not_null = has_default = False
    checks: list[tuple[str, str]] = []
    while True:
        row = db.row(
            "SELECT oid, typtype, typcategory, typelem, typlen, typrelid, typbasetype, typtypmod, typnotnull,"
            " typdefault IS NOT NULL AS has_default, format_type(oid, NULL) AS name FROM pg_type WHERE oid = $1",
            ["oid"],
            type_id,
        )
        assert row is not None  # a column has a type
        if row["typtype"] != "d":
            return _Base(row, row["name"], modifier, not_null, has_default, checks)
        checks += [(name, text) for name, text, _ in row_constraints.checks("contypid", type_id)]
        not_null |= row["typnotnull"]
        has_default |= row["has_default"]
        type_id, modifier = row["typbasetype"], row["typtypmod"]


def _conditions(base: _Base, checks: list[tuple[str, str]], column: str) -> tuple[Conditions, list[str]]:
    """What CHECK constraints say about a column's values, and the names of those that are not held wholly."""
    found, unheld = Conditions(), []
    for subject, some in (("VALUE", base.checks), (column, checks)):
        for name, expression in some:
            one = conditions(expression, subject, base.name)
            if one.values is not None and not (
                _is_listed(base) and all(_fits(value, base.name) for value in one.values)
            ):
                one = replace(one, values=None, complete=False)
            if not one.complete:
                unheld.append(f"CHECK {name}")
            found.add(one)
    return found, unheld


def _is_listed(base: _Base) -> bool:
    """Whether a schema can list values of a type, as they stand in a constraint."""
    known = base.name in ("date", "uuid", "boolean", *row_numbers.NAMES)
    return known or base.row["typtype"] == "e" or base.row["typcategory"] == "S"


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of a constraint is one of a type that schemas list."""
    if kind in row_numbers.NAMES:
        return isinstance(value, Decimal)
    return isinstance(value, bool if kind == "boolean" else str)


# --- types ------------------------------------------------------------------------------------------------------------------


def _type(base: _Base, wanted: Conditions, size: _Size) -> tuple[Schema, list[str]]:
    """The schema of the values of a type that are wanted, and what it does not hold."""
    row, name = base.row, base.name
    if name in row_numbers.NAMES:
        return row_numbers.number(name, base.modifier, wanted)
    if name == "boolean":
        return ({"type": "boolean"} if wanted.values is None else {"enum": _distinct(wanted.values)}), []
    if row["typtype"] == "e":
        return {"enum": [v for v in _labels(row["oid"]) if wanted.values is None or v in wanted.values]}, []
    if name in _FORMATS:
        listed = {"enum": _distinct(wanted.values or [])}
        return listed if wanted.values is not None else {"type": "string", "format": _FORMATS[name]}, []
    if row["typcategory"] == "S" and name != '"char"':
        return _text(base, wanted)
    if row["typcategory"] == "A" and row["typelem"] and row["typlen"] == -1 and name not in ("int2vector", "oidvector"):
        inner = _base(row["typelem"], base.modifier)
        conditions_of_items, unheld = _conditions(inner, [], "")
        with size:
            items, more = _type(inner, conditions_of_items, size)
        if items.get("enum") == []:
            return {"type": "array", "maxItems": 0}, unheld + more
        return {"type": "array", "items": items}, unheld + more
    if row["typtype"] == "c":
        return _composite(row["typrelid"], name, wanted.not_null, size)
    raise _NoSchemaError(name, [])


def _composite(relation: int, name: str, full: bool, size: _Size) -> tuple[Schema, list[str]]:
    """A row within a row: neither defaults nor the constraints of its table apply to it, but domains do. `full`: none of its
    fields is null, which IS NOT NULL means for a row."""
    if (relation, full) in size.rows:
        made, unheld, count = size.rows[relation, full]
        size.add(count)
        return made, unheld
    before = size.count
    properties: Schema = {}
    out, unheld = [], []
    for column in _columns(relation):
        base = _base(column["atttypid"], column["atttypmod"])
        try:
            with size:
                field = column | {"attnotnull": column["attnotnull"] or full}
                properties[column["attname"]], more = _column(field, base, [], name, size)
        except _NoSchemaError as error:
            out.append(f"{column['attname']} ({error.kind})")
            more = error.unheld
        unheld += more
    made = _object(properties) | _comment(out)
    size.rows[relation, full] = made, unheld, size.count - before
    return made, unheld


def _labels(type_id: int) -> list[str]:
    rows = db.query("SELECT enumlabel FROM pg_enum WHERE enumtypid = $1 ORDER BY enumsortorder", ["oid"], type_id)
    return [row["enumlabel"] for row in rows]


def _distinct(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _text(base: _Base, wanted: Conditions) -> tuple[Schema, list[str]]:
    """A text: enum, or lengths and one pattern, if the generator can hold them together."""
    most = base.modifier - 4 if base.name in ("character varying", "character") and base.modifier > 4 else None
    if wanted.most is not None:
        most = wanted.most if most is None else min(most, wanted.most)
    if wanted.values is not None:
        good = [v for v in wanted.values if wanted.least <= len(v) and (most is None or len(v) <= most)]
        return {"enum": [v for v in _distinct(good) if all(_matches(v, one) for one in wanted.patterns)]}, []
    schema: Schema = {"type": "string"}
    if wanted.least > 0:
        schema["minLength"] = wanted.least
    if most is not None:
        schema["maxLength"] = max(0, most)
        if most < wanted.least:
            return {"enum": []}, []
    unheld = []
    for pattern in wanted.patterns:
        try:
            grammar(schema | {"pattern": pattern})
        except PgGpt2Error:
            unheld.append(f"pattern {pattern[:60]}")
            continue
        if "pattern" in schema:
            unheld.append(f"pattern {pattern[:60]}")
        else:
            schema["pattern"] = pattern
    return schema, unheld


def _matches(value: str, pattern: str) -> bool:
    return (db.row("SELECT $1 ~ $2 AS found", ["text", "text"], value, pattern) or {})["found"]
