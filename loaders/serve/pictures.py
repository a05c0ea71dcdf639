"""The statements behind the pictures of the page, with the parameters that a request gives them.

The page shows each of them under its picture, as it ran: nothing that comes from a request is put into the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ApiError

PLACEHOLDER = re.compile(r"%\((\w+)\)s|%%")
PLAIN = re.compile(r'"(public|(?:pg_)?llm_\w+)"')  # names that need no quotes
SEEN = 96  # tokens that a picture of attention shows


@dataclass(frozen=True)
class Picture:
    """A statement; `parameters` are its %(name)s with the types of JSON that they have, None in them where it may be null."""

    sql: str
    parameters: Mapping[str, tuple[type | None, ...]]
    generating: bool = False
    """Whether it computes with a model, and waits its turn."""
    writing: bool = False
    """Whether it changes something, which the server has to allow."""

    def given(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters in the body of a request, checked; ApiError names what is wrong."""
        for name in body:
            if name not in self.parameters:
                raise ApiError(
                    f"{name} is no parameter of this; it has {', '.join(self.parameters) or 'none'}", param=name
                )
        found = {name: body.get(name) for name in self.parameters}
        for name, value in found.items():
            kinds = self.parameters[name]
            if value is None and None in kinds:
                continue
            if isinstance(value, bool) or not isinstance(value, tuple(kind for kind in kinds if kind is not None)):
                raise ApiError(f"{name} must be {_described(kinds)}, not {value!r}", param=name, code="invalid_value")
        return found


def shown(sql: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """A statement as PostgreSQL gets it, with $1 for the first parameter, and the values in their order."""
    order: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return "%" if found[1] is None else f"${order.setdefault(found[1], len(order) + 1)}"

    text = PLAIN.sub(r"\1", PLACEHOLDER.sub(number, sql))
    lines = text.strip("\n").split("\n")
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[indent:].rstrip() for line in lines).rstrip(), [values[name] for name in order]


def _described(kinds: tuple[type | None, ...]) -> str:
    words: dict[type | None, str] = {str: "text", int: "an integer", float: "a number", None: "null"}
    return " or ".join(words[kind] for kind in kinds if not (kind is int and float in kinds))


TEXT: tuple[type | None, ...] = (str,)
WHOLE: tuple[type | None, ...] = (int,)
NUMBER: tuple[type | None, ...] = (int, float)

# Tokens whose names in a text are plain text.
SPECIAL = """ARRAY(
                SELECT v.token_id FROM {llm_bpe_vocab} AS v WHERE (v.special OR v.token = '<|endoftext|>') AND v.model =
                coalesce((SELECT base FROM {llm_adapter} WHERE model = %(model)s::text), %(model)s::text) ORDER BY 1)"""

WRITE = Picture(
    f"""
    SELECT s.*, {{llm_decode_bytes}}(ARRAY[s.token_id], %(model)s::text) AS bytes,
        s.token_id = ANY ({SPECIAL}) AS special
    FROM (SELECT ({{llm_generate_stream}}(
        %(prompt)s::text, max_tokens => %(max_tokens)s::integer, temperature => %(temperature)s::float8,
        topk => %(topk)s::integer, topp => %(topp)s::float8, min_p => %(min_p)s::float8,
        seed => %(seed)s::bigint, model_name => %(model)s::text, echo => false)).*) AS s
    """,
    {
        "prompt": TEXT,
        "max_tokens": WHOLE,
        "temperature": NUMBER,
        "topk": WHOLE,
        "topp": NUMBER,
        "min_p": NUMBER,
        "seed": (int, None),
        "model": TEXT,
    },
    generating=True,
)
"""One row a token, as they are computed."""

PICTURES = {
    "models": Picture(
        """
        SELECT m.model, m.base, m.n_layer, m.n_head, m.d_model, m.n_positions, m.vocab, m.n_params, m.tokenizer_tokens,
            m.step, m.bytes, a.r, a.alpha, a.targets,
            m.model = current_setting('pg_gpt2.model', true) AS is_default,
            ARRAY(SELECT o.model FROM {llm_adapter} AS o WHERE o.base = m.model ORDER BY 1) AS adapters,
            ARRAY(SELECT DISTINCT s.target_model FROM {llm_param_share} AS s WHERE s.source_model = m.model
                  EXCEPT SELECT o.model FROM {llm_adapter} AS o WHERE o.base = m.model ORDER BY 1) AS sharers,
            ARRAY(SELECT p.run_id FROM {llm_train_progress} AS p WHERE p.model = m.model AND p.status = 'running') AS running,
            c.checkpoints, c.checkpoint_bytes
        FROM {llm_models} AS m
        LEFT JOIN {llm_adapter} AS a USING (model)
        LEFT JOIN (
            SELECT model, count(*) AS checkpoints, sum(bytes) AS checkpoint_bytes FROM {llm_checkpoint_list}() GROUP BY model
        ) AS c USING (model)
        WHERE m.n_params > 0
        ORDER BY coalesce(m.base, m.model), m.base NULLS FIRST, m.model
        """,
        {},
    ),
    "memory": Picture(
        "SELECT kind, model, version, bytes, shared, entries, tokens_saved FROM {llm_cache_status}()",
        {},
        generating=True,
    ),
    "sessions": Picture(
        """
        SELECT s.model, count(*) AS sessions, array_agg(DISTINCT a.usename::text ORDER BY a.usename::text) AS roles
        FROM {llm_model_sessions}() AS s JOIN pg_stat_activity AS a USING (pid)
        GROUP BY s.model ORDER BY s.model
        """,
        {},
    ),
    "tokens": Picture(
        """
        SELECT position, token_id, {llm_decode}(ARRAY[token_id], %(model)s::text) AS token, encode(bytes, 'hex') AS bytes
        FROM {llm_tokenize}(%(prompt)s::text, %(model)s::text)
        ORDER BY position LIMIT 1024
        """,
        {"prompt": TEXT, "model": TEXT},
        generating=True,
    ),
    "next": Picture(
        f"""
        SELECT (array_agg(token ORDER BY rank))[:60] AS tokens, (array_agg(token_id ORDER BY rank))[:60] AS ids,
            array_agg(logit ORDER BY rank) AS logits, {{llm_token_count}}(%(prompt)s::text, %(model)s::text) AS n_tokens,
            {SPECIAL} AS special
        FROM {{llm_next_token}}(
            %(prompt)s::text, n => (SELECT vocab FROM {{llm_model_config}} WHERE model = %(model)s::text), temperature => 1,
            model_name => %(model)s::text)
        """,
        {"prompt": TEXT, "model": TEXT},
        generating=True,
    ),
    "attention": Picture(
        f"""
        SELECT layer, shape, encode(data, 'base64') AS weights
        FROM {{llm_trace}}(({{llm_encode}}(%(prompt)s::text, %(model)s::text))[:{SEEN}], %(model)s::text)
        WHERE op = 'softmax' AND layer IS NOT NULL
        ORDER BY seq
        """,
        {"prompt": TEXT, "model": TEXT},
        generating=True,
    ),
    "head": Picture(
        f"""
        SELECT query_position, key_position, weight
        FROM {{llm_attention_weights}}(%(prompt)s::text, layer => %(layer)s::integer, head => %(head)s::integer,
                                   model => %(model)s::text)
        WHERE query_position < {SEEN}
        ORDER BY query_position, key_position
        """,
        {"prompt": TEXT, "layer": WHOLE, "head": WHOLE, "model": TEXT},
        generating=True,
    ),
    "lens": Picture(
        """
        SELECT layer, rank, token, probability
        FROM {llm_logit_lens}(%(prompt)s::text, %(model)s::text, n => 5)
        ORDER BY layer DESC, rank
        """,
        {"prompt": TEXT, "model": TEXT},
        generating=True,
    ),
    "runs": Picture(
        """
        SELECT p.run_id, p.model, p.status, p.step, p.n_steps, p.loss, p.tokens_per_second,
            extract(epoch FROM p.eta)::float8 AS seconds_left, p.started_at
        FROM {llm_train_progress} AS p
        ORDER BY p.run_id DESC LIMIT 50
        """,
        {},
    ),
    "curve": Picture(
        """
        SELECT max(step) AS step, avg(lr) AS lr,
            avg(loss) FILTER (WHERE abs(loss) < 'Infinity') AS loss,
            (array_agg(val_loss ORDER BY step DESC) FILTER (WHERE abs(val_loss) < 'Infinity'))[1] AS val_loss
        FROM (
            SELECT *, (row_number() OVER (ORDER BY step) - 1) * least(600, count(*) OVER ()) / count(*) OVER () AS place
            FROM {llm_train_log} WHERE run_id = %(run_id)s::bigint
        ) AS log
        GROUP BY place ORDER BY place
        """,
        {"run_id": WHOLE},
    ),
    "sample": Picture(
        """
        SELECT {llm_generate}(%(prompt)s::text, 40, temperature => 0.8, model_name => %(model)s::text, seed => 1,
                            echo => false) AS text,
            (SELECT step FROM {llm_models} WHERE model = %(model)s::text) AS step
        """,
        {"prompt": TEXT, "model": TEXT},
        generating=True,
    ),
    "checkpoints": Picture(
        """
        SELECT id, step, run_id, created_at, note, n_params, bytes
        FROM {llm_checkpoint_list}(%(model)s::text)
        UNION ALL
        SELECT NULL, step, NULL, NULL, 'the model as it is now', n_params, bytes FROM {llm_models} WHERE model = %(model)s::text
        ORDER BY id DESC NULLS FIRST
        """,
        {"model": TEXT},
    ),
    "diff": Picture(
        """
        SELECT name, changed, max_abs_diff, relative
        FROM {llm_checkpoint_diff}(%(a)s::integer, %(b)s::integer)
        ORDER BY relative DESC NULLS LAST, name
        """,
        {"a": WHOLE, "b": (int, None)},
        generating=True,
    ),
    "stop": Picture("SELECT {llm_train_stop}(%(model)s::text) AS stopping", {"model": TEXT}, writing=True),
}
