"""Constraints on the rows of a relation, as the catalogs have them: CHECKs with their texts, of the others the names.

What a DEFAULT or an identity gives is taken to fulfil them: a schema has no part in it.
"""

from . import db

_KINDS = {"p": "PRIMARY KEY", "u": "UNIQUE", "x": "EXCLUDE", "f": "FOREIGN KEY", "i": "UNIQUE INDEX"}


def checks(column: str, oid: int) -> list[tuple[str, str, list[int]]]:
    """(name, expression, numbers of columns) of the CHECK constraints of a relation or of a domain. 0 stands for the whole row, a
    negative number for a column of the server."""
    rows = db.query(
        f"SELECT conname, pg_get_expr(conbin, conrelid) AS expression, conkey FROM pg_constraint"
        f" WHERE {column} = $1 AND contype = 'c' ORDER BY conname",
        ["oid"],
        oid,
    )
    return [(row["conname"], row["expression"], row["conkey"] or []) for row in rows]


def on_other_rows(relation: int) -> list[str]:
    """Constraints on what other rows there are, which no schema can hold. Their key has 0 for an expression."""
    rows = db.query(
        "SELECT name, kind FROM ("
        "SELECT conname AS name, contype AS kind, conkey AS key FROM pg_constraint"
        " WHERE conrelid = $1 AND contype IN ('p', 'u', 'x', 'f')"
        " UNION ALL SELECT relname, 'i', (indkey::int2[])[0:indnkeyatts - 1] FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " WHERE indrelid = $1 AND indisunique AND NOT EXISTS ("
        "SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))) AS k"
        " WHERE 0 = ANY (key) OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1 AND attnum = ANY (key)"
        " AND (attgenerated <> '' OR NOT atthasdef AND attidentity = '')) ORDER BY name",
        ["oid"],
        relation,
    )
    return [f"{_KINDS[row['kind']]} {row['name']}" for row in rows]


def of_partitions(relation: db.Row) -> list[str]:
    """What a table that is partitioned, or a partition, has beside its own constraints."""
    found = ["the bounds of the partition"] if relation["relispartition"] else []
    return found + (["the bounds and own constraints of its partitions"] if relation["relkind"] == "p" else [])
