"""llm_json_schema: the schema of a row."""

from ..entry import entry
from ..row_schema import schema_of


@entry
def row_schema(relation: str | None) -> str | None:
    """JSON schema of a relation's rows."""
    return None if relation is None else schema_of(relation)
