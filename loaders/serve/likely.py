"""Log-probabilities in the form of OpenAI's completions: of each token, and of those that were likelier or nearly as likely."""

import codecs
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .database import Connection, Database
from .errors import Failed
from .models import Model

MOST = 20  # alternatives of a token
# Of the logits, float32 [ids, vocabulary], those of the positions from %(first)s on.
LOGITS = """
    SELECT substring(l.data FROM 1 + %(first)s::int4 * (octet_length(l.data) / cardinality(l.ids)))
    FROM (SELECT i.ids, {llm_logits}(i.ids, %(model)s) AS data FROM (VALUES (%(ids)s::int4[])) AS i (ids)) AS l
"""
# Ids of the model that are no token of its vocabulary, which may have gaps and end before the model's ids do.
LACKING = """
    SELECT i.id FROM generate_series(0, %s::int4 - 1) AS i (id)
    WHERE NOT EXISTS (SELECT FROM {llm_bpe_vocab} AS v WHERE v.model = %s::text AND v.token_id = i.id)
"""
# The token that an empty text is continued after.
END = """
    SELECT coalesce(c.eos_token_id, (
        SELECT v.token_id FROM {llm_bpe_vocab} AS v WHERE v.model = %s AND ('eos' = ANY (v.roles) OR v.token = '<|endoftext|>')
        ORDER BY 'eos' = ANY (v.roles) DESC LIMIT 1
    ))
    FROM {llm_model_config} AS c WHERE c.model = %s
"""
BYTES = "SELECT i.id, {llm_decode_bytes}(ARRAY[i.id], %s::text) FROM unnest(%s::int4[]) AS i (id)"


@dataclass
class Logprobs:
    """Tokens with what is told of each: parallel lists, as the API has them."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def extend(self, other: "Logprobs") -> None:
        """Append what `other` has."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)

    def described(self) -> dict[str, Any]:
        """As the API has it."""
        return {name: list(values) for name, values in vars(self).items()}


class Places:
    """Where tokens begin in a text, in characters. Those that make a character together begin where it does."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._next = 0

    def of(self, tokens: Iterable[bytes]) -> list[int]:
        """Of the tokens that come next."""
        places = []
        for token in tokens:
            places.append(self._next)
            self._next += len(self._decoder.decode(token))
        return places


class Scorer:
    """Looks up what a model says of tokens in their places, `most` alternatives of each."""

    def __init__(self, database: Database, conn: Connection, model: Model, most: int) -> None:
        self._database, self._conn, self._model, self._most = database, conn, model, most
        self._tokens: dict[int, bytes] = {}
        self._lacking: list[int] | None = None
        self._owner = model.base or model.name  # of the vocabulary

    async def _named(self, ids: Collection[int]) -> dict[int, str]:
        """Tokens as text; one that is a part of a character is written bytes:\\x.. as OpenAI does."""
        if unknown := sorted({*ids} - self._tokens.keys()):
            cursor = await self._conn.execute(self._database.query(BYTES), (self._model.name, unknown))
            self._tokens.update(await cursor.fetchall())
        return {token: _as_text(self._tokens[token]) for token in ids}

    async def begun(self, ids: Sequence[int]) -> list[int]:
        """What the model reads of a prompt: its ids, or the end of a text where it is empty."""
        if ids:
            return list(ids)
        cursor = await self._conn.execute(self._database.query(END), (self._owner, self._model.name))
        ((end,),) = await cursor.fetchall()
        return [end]

    async def chosen(self, ids: Sequence[int], logprobs: Sequence[float], places: Places) -> Logprobs:
        """Tokens of known log-probabilities, without alternatives."""
        names = await self._named(ids)
        tokens = [names[token] for token in ids]
        return Logprobs(tokens, list(logprobs), [{}] * len(ids), places.of(self._tokens[token] for token in ids))

    async def scored(self, ids: Sequence[int], new: int, places: Places) -> Logprobs:
        """The last `new` of `ids`, which fit the window, with alternatives. Of the first token of a text nothing is said.

        Log-probabilities are over all ids of the model, as those of llm_logprobs and llm_generate_stream are; one that is no
        token is no alternative.
        """
        first = len(ids) - new  # predicted by the logits of the position before
        rows = await self._logits([*ids[:-1]], max(first - 1, 0))
        logprobs, best = _of_logits(rows, ids[max(first, 1) :], self._most, await self._no_tokens(rows))
        names = await self._named({*ids[first:], *(token for each in best for token in each)})
        tops: list[dict[str, float] | None] = [{names[token]: value for token, value in each.items()} for each in best]
        nothing = [None] if first == 0 else []
        tokens = [names[token] for token in ids[first:]]
        begin = places.of(self._tokens[token] for token in ids[first:])
        return Logprobs(tokens, [*nothing, *logprobs], [*nothing, *tops], begin)

    async def _no_tokens(self, rows: np.ndarray) -> list[int]:
        """Those of the ids that `rows` are about that are no tokens, where alternatives are wanted."""
        if self._lacking is None and self._most and len(rows):
            cursor = await self._conn.execute(self._database.query(LACKING), (rows.shape[1], self._owner))
            self._lacking = [token for (token,) in await cursor.fetchall()]
        return self._lacking or []

    async def _logits(self, ids: list[int], first: int) -> np.ndarray:  # [len(ids) - first, vocabulary]
        if len(ids) == first:
            return np.empty((0, 1), np.float32)
        values = {"ids": ids, "first": first, "model": self._model.name}
        cursor = await self._conn.execute(self._database.query(LOGITS), values, binary=True)
        ((data,),) = await cursor.fetchall()
        rows = np.frombuffer(data, "<f4").reshape(len(ids) - first, -1)
        if not np.isfinite(rows).all():
            raise Failed("the model's logits are not finite: its weights have NaN or huge values")
        return rows


def _of_logits(
    rows: np.ndarray, ids: Sequence[int], most: int, lacking: Sequence[int]
) -> tuple[list[float], list[dict[int, float]]]:
    """Of each row its token's log-probability, and the `most` best tokens with theirs, best first, and the token itself; ids that
    are `lacking` are none of the best."""
    most = min(most, rows.shape[1] - len(lacking))
    logprobs, best = [], []
    for row, token in zip(rows.astype(np.float64), ids):
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        logprobs.append(float(row[token]))
        worst = -row
        worst[lacking] = np.inf
        top = np.argsort(worst, kind="stable")[:most].tolist() if most else []
        best.append({each: float(row[each]) for each in ([*top, token] if most else [])})
    return logprobs, best


def _as_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
