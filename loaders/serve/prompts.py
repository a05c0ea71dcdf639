"""What a request gives as prompt or input: a text, token ids, or several of either."""

from collections.abc import Sequence
from typing import Any

from .database import Connection, Database
from .errors import ApiError

Text = str | Sequence[int]

ENCODED = """
    SELECT t.n, {llm_encode}(t.body, %s::text) FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS t (body, n) ORDER BY t.n
"""
DECODED = """
    SELECT d.body, {llm_encode}(d.body, %(model)s::text) = %(ids)s::int4[]
    FROM {llm_decode}(%(ids)s::int4[], %(model)s::text) AS d (body)
"""


def several(given: Any, name: str) -> list[Text]:
    """One text or several, each a string or token ids. ApiError where there is none."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    if not given or not all(given):
        raise ApiError(f"{name} must not be empty", param=name, code="invalid_value")
    return list(given)


async def as_text(database: Database, conn: Connection, model: str, text: Text, name: str) -> str:
    """A text that was given as token ids. ApiError where the tokenizer gives other ids for it, which are those of no text."""
    if isinstance(text, str):
        return text
    cursor = await conn.execute(database.query(DECODED), {"model": model, "ids": list(text)})
    ((decoded, same),) = await cursor.fetchall()
    if not same:
        raise ApiError(
            f"the token ids in {name} are not those that the tokenizer of {model} gives for a text; send the text itself",
            param=name,
            code="invalid_value",
        )
    return decoded


async def ids_of(database: Database, conn: Connection, model: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts."""
    cursor = await conn.execute(database.query(ENCODED), (model, list(texts)))
    return [ids for _, ids in await cursor.fetchall()]
