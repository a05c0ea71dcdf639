"""What a request gives as prompt or input: a text, token ids, or several of either."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .database import Connection, Database
from .errors import ApiError

Text = str | Sequence[int]

ENCODED = """
    SELECT t.n, {llm_encode}(t.body, %s::text) FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS t (body, n) ORDER BY t.n
"""
DECODED = """
    SELECT d.body, {llm_encode}(d.body, %(model)s::text) = g.ids
    FROM (SELECT t.ids::int4[], t.n FROM pg_catalog.unnest(%(ids)s::text[]) WITH ORDINALITY AS t (ids, n)) AS g
    CROSS JOIN LATERAL {llm_decode}(g.ids, %(model)s::text) AS d (body) ORDER BY g.n
"""


@dataclass(frozen=True)
class Prompt:
    """A text and token ids that stand for it."""

    text: str
    ids: Sequence[int]
    spelled: bool = True
    """Whether the ids are those that the tokenizer gives for the text. Otherwise they are what is continued."""


def several(given: Any, name: str) -> list[Text]:
    """One text or several, each a string or token ids. ApiError where there is none, or no ids."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    if not given or [] in given:
        raise ApiError(f"{name} must not be empty", param=name, code="invalid_value")
    return list(given)


async def read(database: Database, conn: Connection, model: str, given: Sequence[Text]) -> list[Prompt]:
    """What was given, with its ids, and with the text that ids make."""
    encoded = iter(await ids_of(database, conn, model, [each for each in given if isinstance(each, str)]))
    decoded = iter(await _decoded(database, conn, model, [each for each in given if not isinstance(each, str)]))
    return [Prompt(each, next(encoded)) if isinstance(each, str) else next(decoded) for each in given]


async def _decoded(database: Database, conn: Connection, model: str, given: Sequence[Sequence[int]]) -> list[Prompt]:
    arrays = [f"{{{','.join(map(str, ids))}}}" for ids in given]  # of different lengths: no array of arrays
    cursor = await conn.execute(database.query(DECODED), {"model": model, "ids": arrays})
    return [Prompt(text, ids, same) for ids, (text, same) in zip(given, await cursor.fetchall())]


async def ids_of(database: Database, conn: Connection, model: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts."""
    cursor = await conn.execute(database.query(ENCODED), (model, list(texts)))
    return [ids for _, ids in await cursor.fetchall()]
