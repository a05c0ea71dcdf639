"""Which models subscribers get, by the publications of api/publishing.py: none of them may use one that is not among them."""

from collections.abc import Iterable

from ...errors import WrongState
from .. import db


def require_with(target: str, sources: Iterable[str]) -> None:
    """Refuse (55000) to let `target` use tensors of `sources` where subscribers get it, but not all of them."""
    for publication, models in _published():
        missing = [] if target not in models else [source for source in sources if source not in models]
        if missing:
            raise WrongState(
                f'"{target}" is in publication "{publication}", and "{missing[0]}" is not',
                hint=f'Publish "{missing[0]}" first, with llm_publish: without its rows a subscriber cannot compute "{target}".',
            )


def _published() -> Iterable[tuple[str, set[str]]]:
    """Publications of some models, and which. A filter in the catalogue is an expression of constants, columns and built-in
    functions, whoever wrote it. PostgreSQL 14 has none, and publishes all."""
    rows = db.query(
        "SELECT pubname::text AS name, to_jsonb(t) ->> 'rowfilter' AS filter FROM pg_publication_tables AS t"
        " WHERE tablename = 'llm_model_config' AND to_jsonb(t) ->> 'rowfilter' <> '' AND schemaname ="
        " (SELECT nspname FROM pg_namespace WHERE oid = '{schema}'::regnamespace) ORDER BY pubname"
    )
    for row in rows:
        models = db.command("SELECT model FROM {schema}.llm_model_config WHERE {filter}", filter=row["filter"])
        yield row["name"], {found["model"] for found in models}
