"""llm_generate_json: JSON that fits a schema; llm_json_schema: the schema of a row."""

from typing import Any

from ... import host
from ...errors import require
from ...generation.constraints.json_schema import SchemaText
from ...generation.options import Drafting, TextGeneration, gather
from ...generation.sampling import Sampling
from ..entry import entry
from ..row_schema import schema_of
from ..texts import TextJob


@entry
def generate_json(prompt: str | None, schema: str | None, **given: Any) -> str | None:
    """JSON after a prompt."""
    if prompt is None:
        return None
    require(schema=schema)
    given |= {"echo": False, "json_schema": SchemaText(schema)}
    job = TextJob(prompt, *gather(given, TextGeneration, Sampling, Drafting))
    for _ in job.tokens:
        host.check_interrupts()
    return job.finish()


@entry
def row_schema(relation: str | None) -> str | None:
    """JSON schema of a relation's rows."""
    return None if relation is None else schema_of(relation)
