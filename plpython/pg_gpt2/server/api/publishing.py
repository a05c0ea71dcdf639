"""llm_publish: models for the subscriptions of other servers, by PostgreSQL's logical replication.

A publication has the tables below, whole or with a row filter by the model, whose column is in the primary key of each: so UPDATE
and DELETE find their rows on a subscriber. It leaves TRUNCATE out, which would empty what a subscriber has of its own.
"""

from ...errors import DuplicateObject, FeatureNotSupported, InvalidParameter, require
from .. import db
from ..entry import entry
from ..storage import locks, store

# What a reader of a model needs, and the column by which a row belongs to one.
TABLES = {
    "llm_model_config": "model",
    "llm_adapter": "model",
    "llm_param_share": "target_model",
    "llm_param": "model",
    "llm_bpe_vocab": "model",
    "llm_bpe_merges": "model",
}
WHOLE = ", ".join("{schema}." + table for table in TABLES)
FILTERED = ", ".join(f"{{schema}}.{table} WHERE ({column} = ANY ({{models}}))" for table, column in TABLES.items())
KINDS = " WITH (publish = 'insert, update, delete')"


@entry
def publish(publication: str, models: list[str] | None) -> None:
    """Make the publication, or change its models."""
    require(publication=publication)
    if not publication:
        raise InvalidParameter("publication must not be an empty name", hint="Give the publication a name.")
    if models is not None:
        _check(models)
    name, literal = db.quote_identifier(publication), _literal(models)
    tables = WHOLE if models is None else FILTERED
    if not db.row("SELECT 1 FROM pg_publication WHERE pubname = $1::name", ["text"], publication):
        db.command("CREATE PUBLICATION {publication} FOR TABLE " + tables + KINDS, publication=name, models=literal)
        return
    _refuse_other_tables(publication)
    before = _filters(publication)
    db.command("ALTER PUBLICATION {publication} SET TABLE " + tables, publication=name, models=literal)
    # A subscriber's own model of that name stops it: with the DELETE, the publisher's would take the place of its weights.
    db.command("ALTER PUBLICATION {publication} SET (publish = 'insert')", publication=name)
    _send_added(before, None if models is None else literal)
    db.command("ALTER PUBLICATION {publication} SET" + KINDS.removeprefix(" WITH"), publication=name)


def _check(models: list[str]) -> None:
    """Refuse a list that cannot be published: on PostgreSQL 14 (0A000), an empty one, or one that lacks what its models are
    made of (22023), with a null (22004), with a model that does not exist (42704)."""
    if not _has_filters():
        raise FeatureNotSupported(
            "models cannot be named: PostgreSQL 14 publishes whole tables",
            hint="models => NULL publishes all models; PostgreSQL 15 can publish some.",
        )
    if not models:
        raise InvalidParameter("models must not be empty", hint="NULL stands for all; DROP PUBLICATION ends it.")
    for model in models:
        store.config(model)
    row = db.row(
        "SELECT target_model AS model, source_model AS source FROM {schema}.llm_param_share"
        " WHERE target_model = ANY ($1) AND source_model <> ALL ($1)"
        " UNION SELECT model, base FROM {schema}.llm_adapter WHERE model = ANY ($1) AND base <> ALL ($1) ORDER BY 1, 2 LIMIT 1",
        ["text[]"],
        models,
    )
    if row:
        raise InvalidParameter(
            f'"{row["model"]}" uses tensors of "{row["source"]}", which is not among the models',
            hint=f'Publish "{row["source"]}", too: without its rows a subscriber cannot compute "{row["model"]}".',
        )


def _has_filters() -> bool:
    row = db.row("SELECT current_setting('server_version_num')::integer >= 150000 AS filters")
    return (row or {})["filters"]


def _literal(models: list[str] | None) -> str:
    """An array as it stands in the text of a statement."""
    row = db.row("SELECT quote_literal($1::text) || '::text[]' AS literal", ["text[]"], models)
    return (row or {})["literal"] or ""


def _refuse_other_tables(publication: str) -> None:
    """Refuse (42710) to change a publication that somebody made for something else."""
    row = db.row(
        "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ' ORDER BY schemaname, tablename) AS names"
        " FROM pg_publication_tables WHERE pubname = $1::name"
        " AND format('%I.%I', schemaname, tablename)::regclass <> ALL ($2::regclass[])",
        ["text", "text[]"],
        publication,
        [db.qualified(table) for table in TABLES],
    )
    names = (row or {})["names"] or _schemas(publication)
    if names:
        raise DuplicateObject(
            f'publication "{publication}" exists, and has tables that are no models: {names}',
            hint="Choose another name: a subscription can have several publications.",
        )


def _schemas(publication: str) -> str | None:
    """The schemas of which a publication has all tables, those to come included; None where there are none."""
    if not _has_filters():  # both came with PostgreSQL 15
        return None
    row = db.row(
        "SELECT string_agg('all of schema ' || n.pnnspid::regnamespace, ', ' ORDER BY n.pnnspid) AS names"
        " FROM pg_publication AS p JOIN pg_publication_namespace AS n ON n.pnpubid = p.oid WHERE p.pubname = $1::name",
        ["text"],
        publication,
    )
    return (row or {})["names"]


def _filters(publication: str) -> dict[str, str]:
    """The row filters that a publication has, by table."""
    if not _has_filters():
        return {}
    rows = db.query(
        "SELECT t.name, pg_get_expr(r.prqual, r.prrelid) AS filter FROM pg_publication AS p"
        " JOIN pg_publication_rel AS r ON r.prpubid = p.oid JOIN unnest($2, $3) AS t (name, oid) ON t.oid::regclass = r.prrelid"
        " WHERE p.pubname = $1::name AND r.prqual IS NOT NULL",
        ["text", "text[]", "text[]"],
        publication,
        list(TABLES),
        [db.qualified(table) for table in TABLES],
    )
    return {row["name"]: row["filter"] for row in rows}


def _send_added(before: dict[str, str], literal: str | None) -> None:
    """Write rows anew that the filters `before` left out: a subscriber copies a table once, and gets what changes from then on.

    They are deleted and inserted by one statement, a row at a time. A filter in the catalogue is an expression of constants,
    columns and built-in functions, whoever wrote it.
    """
    for table, column in TABLES.items():
        if table not in before:
            continue
        added = f"{before[table]} IS NOT TRUE" + (f" AND {column} = ANY ({literal})" if literal else "")
        if table == "llm_model_config":
            rows = db.command("SELECT model FROM {schema}.llm_model_config WHERE {added}", added=added)
            locks.lock(*(row["model"] for row in rows))
        db.command(
            "WITH added AS (DELETE FROM {schema}.{table} WHERE {added} RETURNING *)"
            " INSERT INTO {schema}.{table} SELECT * FROM added",
            table=table,
            added=added,
        )
