"""The way from SQL into Python and back: arguments out of the scope of a PL/Python body, results and errors to PostgreSQL."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..core import op
from ..errors import TriggerProtocolViolated
from . import db, resources
from .arrays import not_one_dimension
from .importer import is_set_oddly, own_settings
from .sql_errors import for_sql

Function = Callable[..., Any]
_END = object()
PL_PYTHON = frozenset(("GD", "SD", "plpy"))  # what the globals of a PL/Python function have beside its arguments


def entry(function: Function, matrices: bool = False) -> Callable[[dict[str, Any]], Any]:
    """Make `function` callable from SQL, where a body hands over its `globals()`: arguments are taken out of them, and errors,
    also those of a generator that is returned, become PostgreSQL errors. A function that ends in **keywords gets those that
    follow its own parameters by their names in SQL. `matrices`: arrays may have several dimensions."""
    own = _own_parameters(function)

    @functools.wraps(function)
    def guarded(scope: dict[str, Any]) -> Any:
        args, named = _taken(scope, own)
        outer = op.is_fast()  # of a call that this one is within, which goes on after it
        op.use_fast(True)  # whatever an earlier call had: one that computes asks for the setting
        resources.forget_settings()
        try:
            with own_settings() if is_set_oddly() else nullcontext(), np.errstate(all="ignore"):
                if not matrices:
                    _refuse_nested_arrays(function, args, named)
                result = function(*args, **named)
                return _guarded_rows(result, op.is_fast()) if isinstance(result, Iterator) else result
        except Exception as error:  # nothing is swallowed: a cancel, too, goes on to the server
            raise for_sql(error) from None
        finally:
            op.use_fast(outer)
            resources.forget_settings()

    return guarded


def _own_parameters(function: Function) -> int | None:
    """How many arguments go to `function` by their place; None for all."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return len(kinds) - 1 if inspect.Parameter.VAR_KEYWORD in kinds else None


def _taken(scope: dict[str, Any], own: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, the first `own` of them by place and the others by name; a trigger's one argument is TD.

    PL/Python leaves them in the function's globals, each by its name and all as `args`, until the next call of the same function:
    a session that once called seven kernels on 200 MB would hold 1.7 GB until its end.
    """
    args = scope.get("args") if "TD" not in scope else [scope["TD"]]
    names = scope.get("__names")
    if names is None:
        names = scope["__names"] = [name for name in scope if name not in PL_PYTHON and not name.startswith("__")]
    named = {} if own is None else {name: scope[name] for name in names[own:] if name != "args"}
    for name in names:
        scope[name] = None
    return tuple(args or ())[:own], named


def _refuse_nested_arrays(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse (22023) a matrix: PostgreSQL gives it the type text[] as well, and it arrives as a list of lists."""
    for place, value in [*enumerate(args), *named.items()]:
        if type(value) is list and value and type(value[0]) is list:
            raise not_one_dimension(
                place if isinstance(place, str) else inspect.unwrap(function).__code__.co_varnames[place]
            )


def _guarded_rows(rows: Iterator[Any], fast: bool) -> Iterator[Any]:
    """Rows of a set. A cancel is left to the executor, which looks between rows, unless a row takes long.

    No cursor is open between rows: where the statement is cancelled there, PL/Python closes it while the server closes all, which
    can end in a crash of the server. Each row is computed by the forms of ops that the call chose, whatever calls come between.
    """
    while True:
        outer = op.is_fast()
        op.use_fast(fast)
        resources.forget_settings()
        before = db.open_cursors()
        try:
            with (
                db.within_a_row(),
                own_settings() if is_set_oddly() else nullcontext(),
                np.errstate(all="ignore"),
            ):
                row = next(rows, _END)
            if db.open_cursors() > before and row is not _END:
                raise RuntimeError("a cursor is open between the rows of a set")
        except Exception as error:
            raise for_sql(error) from None
        finally:
            op.use_fast(outer)
        if row is _END:
            return
        yield row


def require_trigger_of(trigger: dict[str, Any], what: str, *tables: str) -> None:
    """Refuse, with 39P01, a trigger that is not `what`, such as "BEFORE INSERT ROW", of one of our own `tables`."""
    kind = " ".join(trigger[key] for key in ("when", "event", "level"))
    ours = db.row(
        "SELECT $1::oid = ANY ($2::regclass[]) AS ours",
        ["text", "text[]"],
        trigger["relid"],
        [*map(db.qualified, tables)],
    )
    if not (ours or {})["ours"] or not kind.startswith(what):
        raise TriggerProtocolViolated(
            f'trigger "{trigger["name"]}", {kind}, of table "{trigger["table_name"]}" cannot use this function, which serves'
            f" {' and '.join(tables)} of pg_gpt2 only",
            hint="DROP TRIGGER it, and write a function of your own for your table.",
        )
