"""The SQL that both clients send: a call of one function in named notation, every value cast to its parameter's type."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import psycopg
from psycopg import sql

from .generation_options import KEYS, BeamOptions, GenerationOptions
from .options import AdapterOptions, PairOptions, TrainOptions
from .training_options import TRAINING_KEYS

FIND_SCHEMA = (
    "SELECT n.nspname FROM pg_catalog.pg_extension AS e"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'pg_gpt2'"
)

SCALARS = {int: "int4", float: "float8", bool: "bool", str: "text"}


def _sql_type(kind: Any) -> str:
    """The type of SQL of a keyword's type; where that is one or several of a kind, an array."""
    choices = [choice for choice in get_args(kind) if choice is not NoneType] if isinstance(kind, UnionType) else [kind]
    elements = get_args(choices[-1])
    return f"{SCALARS[elements[0]]}[]" if elements else SCALARS[choices[-1]]


TYPES = {
    name: _sql_type(kind)
    for options in (GenerationOptions, BeamOptions, PairOptions, AdapterOptions, TrainOptions)
    for name, kind in get_type_hints(options).items()
    if name not in (*KEYS, *TRAINING_KEYS)
} | {
    "options": "jsonb",
    "schema": "jsonb",
    "seed": "int8",
    "prompts": "text[]",
    "prompt_ids": "int4[]",
    "choices": "text[]",
    "layer": "int4",
    "from_start": "bool",
    "n_steps": "int4",
    "max_length": "int4",
    "commit_every": "int4",
    "a": "float4[]",
    "b": "float4[]",
}  # of parameters; all others are text

TEXTS = {
    name
    for options in (GenerationOptions, BeamOptions)
    for name, kind in get_type_hints(options).items()
    if {str, Sequence[str]} <= set(get_args(kind))
}  # options that are a text or several

Statement = tuple[sql.Composed, dict[str, Any]]


class Statements:
    """Calls of the extension's functions in the schema that it was installed in."""

    def __init__(self, found: Sequence[Any] | None, database: str) -> None:
        if found is None:
            raise psycopg.ProgrammingError(
                f'database "{database}" does not have pg_gpt2; run CREATE EXTENSION pg_gpt2 CASCADE in it'
            )
        self.schema: str = found[0]

    def value(self, function: str, **arguments: Any) -> Statement:
        """SELECT function(...)"""
        return sql.SQL("SELECT ") + self._call(function, arguments), arguments

    def procedure(self, name: str, **arguments: Any) -> Statement:
        """CALL name(...)"""
        return sql.SQL("CALL ") + self._call(name, arguments), arguments

    def ended_run(self, model: str | None) -> Statement:
        """The run_id of the model's run that ended last."""
        query = "SELECT run_id FROM {llm_run} WHERE model = %(model)s AND status IN ('finished', 'early', 'stopped')"
        latest = " ORDER BY finished_at DESC NULLS LAST LIMIT 1"
        return statement(query + latest, self.schema), {"model": model}

    def rows(self, function: str, **arguments: Any) -> Statement:
        """SELECT * FROM function(...), in the order of its first column."""
        return sql.SQL("SELECT * FROM ") + self._call(function, arguments) + sql.SQL(" ORDER BY 1"), arguments

    def evaluation(self, function: str, **arguments: Any) -> Statement:
        """The one row of function(...), once for each element of its confusion, or once alone where there is none."""
        return (
            sql.SQL("SELECT e.accuracy, e.accuracy_norm, e.n, c.* FROM ")
            + self._call(function, arguments)
            + sql.SQL(
                " AS e LEFT JOIN LATERAL pg_catalog.unnest(e.confusion) WITH ORDINALITY AS c ON true ORDER BY c.ordinality"
            )
        ), arguments

    def stream(self, function: str, **arguments: Any) -> Statement:
        """SELECT (function(...)).*, whose rows a cursor returns as they are computed; FROM would collect them first."""
        return sql.SQL("SELECT (") + self._call(function, arguments) + sql.SQL(").*"), arguments

    def _call(self, function: str, names: Iterable[str]) -> sql.Composed:
        given = sql.SQL(", ").join(
            sql.SQL("{} => {}::{}").format(sql.Identifier(n), sql.Placeholder(n), sql.SQL(TYPES.get(n, "text")))
            for n in names
        )
        return statement(f"{{{function}}}", self.schema) + sql.SQL("({})").format(given)


def statement(text: str, schema: str) -> sql.Composed:
    """The statement `text`, in which {name} stands for an object of the extension, which is in `schema`, and %s or %(name)s for
    a parameter."""
    names = {part.split("}")[0] for part in text.split("{")[1:]}
    return sql.SQL(text).format(**{name: sql.SQL(f"{_quoted(schema)}.{_quoted(name)}") for name in names})


def _quoted(name: str) -> str:
    """An identifier in a statement with parameters, where % would start one. psycopg 3.1 cannot quote without a connection."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def arguments(options: Mapping[str, Any], model: str | None, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Options of generation or of beam search as arguments of SQL functions; `model` where they name none. Those that
    are no parameters there but `keys` of its `options` go into that."""
    given = {name: value for name, value in options.items() if name not in (*keys, "model")}
    given["model_name"] = options.get("model") or model
    others = {name: options[name] for name in options if name in keys}
    others |= {name: [value] for name, value in others.items() if name in TEXTS and isinstance(value, str)}
    if others:
        given["options"] = json.dumps(others)
    for name, value in given.items():
        if value is not None and TYPES.get(name, "text").endswith("[]"):
            given[name] = several(value)
    return given


def several(texts: str | Iterable[Any]) -> list[Any]:
    """What an array holds; a text is one, and not its characters."""
    return [texts] if isinstance(texts, str) else list(texts)


def cursor_name() -> str:
    """A new name: each stream needs its own, since the streams of a connection may interleave."""
    return f"pg_llm_client_{uuid.uuid4().hex}"
