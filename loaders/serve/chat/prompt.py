"""The prompt of a chat: its messages, rendered by the model's template, as token ids.

Special tokens are those that the template puts there. One that stands in a message is text, as it is to llm_encode, which
hiding.py sees to. A chat without such text has the ids that transformers gives it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

from ..database import Connection, Database
from ..errors import ApiError
from ..prompts import ids_of
from .renderer import Rendered

TEMPLATE = """
    SELECT coalesce(c.chat_template, b.chat_template), coalesce(a.base, c.model), c.eos_token_id, c.stop_token_ids
    FROM {llm_model_config} AS c
    LEFT JOIN {llm_adapter} AS a USING (model)
    LEFT JOIN {llm_model_config} AS b ON b.model = a.base
    WHERE c.model = %s
"""
TOKENS = """
    SELECT token_id, token, roles, special OR token = '<|endoftext|>' FROM {llm_bpe_vocab}
    WHERE model = %s AND token <> '' AND (special OR cardinality(roles) > 0 OR token = '<|endoftext|>' OR token_id = %s)
    ORDER BY token_id
"""
ENCODED = "SELECT {llm_encode}(%s::text, %s::text, true)"
RUNS = """
    SELECT {llm_decode}(array_agg(i.id ORDER BY i.place), %s::text)
    FROM unnest(%s::int4[], %s::int4[]) WITH ORDINALITY AS i (id, run, place) GROUP BY i.run ORDER BY i.run
"""


@dataclass(frozen=True)
class Template:
    """A model's template, the special tokens by id, and those that it may put in a text by their roles: bos_token and so on."""

    text: str
    special: dict[int, str]
    values: dict[str, str]
    ends: str | None
    """The tokenizer's end of a text, where generation would not stop there by the model's configuration."""


async def template_of(database: Database, conn: Connection, model: str) -> Template:
    """The template of a model, or of what it adapts; ApiError where there is none."""
    row = await (await conn.execute(database.query(TEMPLATE), (model,))).fetchone()
    text, owner, eos, stops = row or (None, model, None, None)
    if text is None:
        raise ApiError(
            f'the model "{model}" has no chat template, so that it cannot be said how it would mark the turns of a chat: set'
            " chat_template in its row of llm_model_config, or send the text to continue to /v1/completions",
            param="model",
            code="no_chat_template",
        )
    rows = await (await conn.execute(database.query(TOKENS), (owner, eos))).fetchall()
    token_of = {number: token for number, token, _, _ in rows}
    roles = {role: number for number, _, roles, _ in rows for role in roles}
    first = next((number for number, token in token_of.items() if token == "<|endoftext|>"), eos)
    end = roles.get("eos", first if eos is None else eos)
    known = {"bos": first, "eos": end, "unk": first} | roles  # GPT2Tokenizer's, where its files do not say
    values = {f"{role}_token": token_of[number] for role, number in known.items() if number in token_of}
    ends = [eos] if stops is None else stops
    overlooked = end not in ends and None not in ends
    special = {number: token for number, token, _, is_special in rows if is_special}
    return Template(text, special, values, token_of.get(end) if overlooked else None)


async def encoded(
    database: Database, conn: Connection, model: str, chat: Rendered, special: Collection[int]
) -> list[int]:
    """The ids of a rendered chat: what is hidden in it is ordinary text, together with what stands around it."""
    ((ids,),) = await (await conn.execute(database.query(ENCODED), (chat.text, model))).fetchall()
    if chat.hidden.keys().isdisjoint(chat.text):
        return ids
    runs = [(is_special, [*run]) for is_special, run in groupby(ids, key=lambda token: token in special)]
    places = [place for place, (_, run) in enumerate(runs) for _ in run]
    texts = await (await conn.execute(database.query(RUNS), (model, ids, places))).fetchall()
    shown = str.maketrans(chat.hidden)
    plain = [text.translate(shown) for (text,), (is_special, _) in zip(texts, runs) if not is_special]
    again = iter(await ids_of(database, conn, model, plain))
    return [token for is_special, run in runs for token in (run if is_special else next(again))]
