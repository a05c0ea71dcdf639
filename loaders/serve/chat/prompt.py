"""The prompt of a chat: its messages, rendered by the model's template, as token ids.

Special tokens are those that the template puts there. One that stands in a message is text, as it is to llm_encode: else whoever
writes a message could end it, and begin another's. So what would become a special token is one private character while the
template works, and text again where the rest has its ids. A chat without such text has the ids that transformers gives it.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..database import Connection, Database
from ..errors import ApiError
from ..prompts import ids_of

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
PRIVATE = 0xF0000  # the first character that Unicode leaves to private use on its plane 15


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
    plain_end = next((number for number, token in token_of.items() if token == "<|endoftext|>"), eos)
    end = roles.get("eos", plain_end if eos is None else eos)
    known = {
        "bos": plain_end,
        "eos": end,
        "unk": plain_end,
    } | roles  # as GPT2Tokenizer has them, where files do not say
    values = {f"{role}_token": token_of[number] for role, number in known.items() if number in token_of}
    ends = [eos] if stops is None else stops
    overlooked = end not in ends and None not in ends
    special = {number: token for number, token, _, is_special in rows if is_special}
    return Template(text, special, values, token_of.get(end) if overlooked else None)


class Hidden:
    """Texts in which what would be one of the `special` tokens is one character each, of those that are not `taken`."""

    def __init__(self, special: Collection[str], taken: Collection[str]) -> None:
        longest_first = sorted(special, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first))) if special else None
        self._beginnings = {token[:length] for token in special for length in range(1, len(token))}
        self._longest = max(map(len, special), default=0)
        self._free = (chr(n) for n in range(PRIVATE, PRIVATE + 0xFFFE) if chr(n) not in taken)
        self._characters: dict[str, str] = {}

    def hide(self, text: str) -> str:
        """`text` so. At its end also the beginning of a token, which what follows could complete."""
        if self._whole is None:
            return text
        text = self._whole.sub(lambda found: self._character(found[0]), text)
        end = next((text[-n:] for n in range(self._longest, 0, -1) if text[-n:] in self._beginnings), "")
        return text.removesuffix(end) + self._character(end) if end else text

    def shown(self, text: str) -> str:
        """What was hidden in `text`, as it was."""
        return text.translate({ord(character): hidden for hidden, character in self._characters.items()})

    def _character(self, text: str) -> str:
        if text not in self._characters:
            self._characters[text] = next(self._free)
        return self._characters[text]


def hidden_in(messages: Sequence[dict[str, str]], template: Template) -> tuple[list[dict[str, str]], Hidden]:
    """The messages without what would be a special token, and what that was."""
    taken = {character for text in (template.text, *(t for m in messages for t in m.values())) for character in text}
    hidden = Hidden([*template.special.values()], taken)
    return [
        {key: value if key == "role" else hidden.hide(value) for key, value in message.items()} for message in messages
    ], hidden


async def encoded(
    database: Database, conn: Connection, model: str, text: str, hidden: Hidden, special: Collection[int]
) -> list[int]:
    """The ids of a rendered chat: what is hidden in it is ordinary text, together with what stands around it."""
    ((ids,),) = await (await conn.execute(database.query(ENCODED), (text, model))).fetchall()
    if hidden.shown(text) == text:
        return ids
    runs = [(is_special, [*run]) for is_special, run in groupby(ids, key=lambda token: token in special)]
    places = [place for place, (_, run) in enumerate(runs) for _ in run]
    texts = await (await conn.execute(database.query(RUNS), (model, ids, places))).fetchall()
    plain = [hidden.shown(text) for (text,), (is_special, _) in zip(texts, runs) if not is_special]
    again = iter(await ids_of(database, conn, model, plain))
    return [token for is_special, run in runs for token in (run if is_special else next(again))]
