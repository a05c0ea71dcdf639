"""The SQL that both clients send: a call of one function in named notation, every value cast to its parameter's type."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import sql

FIND_SCHEMA = (
    "SELECT n.nspname FROM pg_catalog.pg_extension AS e"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'pg_gpt2'"
)

INTEGERS = ("max_tokens", "topk", "eos_token", "beam_width", "layer", "n_steps", "warmup", "batch_size", "grad_accum")
FLOATS = ("temperature", "topp", "repetition_penalty", "min_p", "length_penalty", "val_fraction")
TYPES = (
    dict.fromkeys(
        (*INTEGERS, "eval_every", "log_every", "commit_every", "grad_workers", "prune_workers", "block_size"), "int4"
    )
    | dict.fromkeys((*FLOATS, "dropout_p", "beta1", "beta2", "eps", "wd", "lr_max", "min_lr", "grad_clip"), "float8")
    | dict.fromkeys(("echo", "early_stopping", "from_start"), "bool")
    | {"seed": "int8", "stop": "text[]", "prompts": "text[]", "prompt_ids": "int4[]"}
)  # of parameters; all others are text

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
        """The run_id of the run of the model that ended last."""
        query = "SELECT run_id FROM {} WHERE model = %(model)s AND status IN ('finished', 'stopped')"
        latest = " ORDER BY finished_at DESC NULLS LAST LIMIT 1"
        return sql.SQL(query + latest).format(sql.SQL(self._name("llm_run"))), {"model": model}

    def rows(self, function: str, **arguments: Any) -> Statement:
        """SELECT * FROM function(...), in the order of its first column."""
        return sql.SQL("SELECT * FROM ") + self._call(function, arguments) + sql.SQL(" ORDER BY 1"), arguments

    def stream(self, function: str, **arguments: Any) -> Statement:
        """SELECT (function(...)).*, whose rows a cursor gives as they are computed; FROM would collect them first."""
        return sql.SQL("SELECT (") + self._call(function, arguments) + sql.SQL(").*"), arguments

    def _call(self, function: str, names: Iterable[str]) -> sql.Composed:
        given = sql.SQL(", ").join(
            sql.SQL("{} => {}::{}").format(sql.Identifier(n), sql.Placeholder(n), sql.SQL(TYPES.get(n, "text")))
            for n in names
        )
        return sql.SQL(self._name(function)) + sql.SQL("({})").format(given)

    def _name(self, name: str) -> str:
        return sql.Identifier(self.schema, name).as_string(None).replace("%", "%%")  # % would start a parameter


def generation(
    max_tokens: int,
    temperature: float,
    topk: int,
    topp: float,
    model: str | None,
    eos_token: int | None,
    seed: int | None,
    stop: str | Sequence[str] | None,
    repetition_penalty: float,
    min_p: float,
    echo: bool,
) -> dict[str, Any]:
    """Options of generation as arguments of the SQL functions."""
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "topk": topk,
        "topp": topp,
        "model_name": model,
        "eos_token": eos_token,
        "seed": seed,
        "stop": [stop] if isinstance(stop, str) else None if stop is None else list(stop),
        "repetition_penalty": repetition_penalty,
        "min_p": min_p,
        "echo": echo,
    }


def cursor_name() -> str:
    """A name of its own for each stream, since streams of one connection may interleave."""
    return f"pg_llm_client_{uuid.uuid4().hex}"
