"""The lock of a model, which all take that change its weights, and those of the models whose weights it shares. Readers take
none.

It is advisory, because a procedure that commits has to hold it across its commits.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from ...errors import LockNotAvailable
from .. import db
from . import store

LOCK = "'{schema}.llm_param'::regclass::oid::integer, hashtext($1)"


class _Changed(Exception):
    """While locks were waited for, it became other ones that are needed."""


def lock(*models: str, beside: Callable[[], str | None] = lambda: None) -> str | None:
    """Wait until no other session changes `models` and the one that `beside` finds, which is returned; and make others wait until
    this transaction ends.

    If it is other locks that are needed when all are taken, these are let go first: out of the order of names, two sessions could
    wait for each other.
    """
    while True:
        with suppress(_Changed), db.savepoint():
            other = beside()
            wanted = models if other is None else (*models, other)
            names = locked_with(*wanted)
            for name in names:
                _take(name, "advisory_xact_lock")
            if beside() != other or locked_with(*wanted) != names:
                raise _Changed
            return other


def _take(model: str, function: str) -> None:
    """Take the lock of `model`; a session that has to wait is told which session it waits for."""
    if not _tried(model, function):
        db.notice(f'waiting for the lock of model "{model}": {_holder(model)}')
        db.run(f"SELECT pg_{function}({LOCK})", ["text"], model)


def _tried(model: str, function: str) -> bool:
    return (db.row(f"SELECT pg_try_{function}({LOCK}) AS taken", ["text"], model) or {})["taken"]


def _holder(model: str) -> str:
    """Who has the lock of `model`, and what makes it let go."""
    row = db.row(
        # Whether a session of another role is idle is hidden from most: null.
        "SELECT l.pid, (SELECT a.state LIKE 'idle%' FROM pg_stat_activity AS a WHERE a.pid = l.pid) AS idle"
        " FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND l.classid = '{schema}.llm_param'::regclass AND l.objid = hashtext($1)::oid LIMIT 1",
        ["text"],
        model,
    )
    if row is None:
        return "another session had it a moment ago"
    pid = row["pid"]
    if pid is None:
        return "a prepared transaction of pg_prepared_xacts has it, until COMMIT PREPARED or ROLLBACK PREPARED"
    if row["idle"]:
        return f"session {pid} has it, idle in a transaction; SELECT pg_terminate_backend({pid}) ends that"
    return (
        f"session {pid} has it; SELECT pg_cancel_backend({pid}) ends its statement, SELECT llm_train_stop('{model}') ends"
        " llm_train_run after the step that it is at"
    )


def locked_with(*models: str) -> list[str]:
    """`models` and those that they share weights of, in the order in which all take their locks; but not the base of an adapter,
    which it only reads."""
    rows = db.query(
        f"SELECT DISTINCT source_model FROM {store.TRAINED_SHARES} AS s WHERE target_model = ANY ($1)",
        ["text[]"],
        list(models),
    )
    return sorted({*models, *(row["source_model"] for row in rows)})


@contextmanager
def session_lock(model: str, wait: bool) -> Iterator[None]:
    """Hold the lock of `model` across commits; 55P03 when another session has it and `wait` is false."""
    names: list[str] = []
    with ExitStack() as taken:
        while (needed := locked_with(model)) != names:  # see `lock`
            taken.close()
            names = needed
            for name in names:
                _take_for_session(name, wait)
                taken.callback(db.run, f"SELECT pg_advisory_unlock({LOCK})", ["text"], name)
        yield


def _take_for_session(model: str, wait: bool) -> None:
    if wait:
        _take(model, "advisory_lock")
    elif not _tried(model, "advisory_lock"):
        holder = _holder(model)
        raise LockNotAvailable(
            f'model "{model}" is being trained by another session',
            hint=f"{holder[0].upper()}{holder[1:]}; wait => true waits for it.",
        )
