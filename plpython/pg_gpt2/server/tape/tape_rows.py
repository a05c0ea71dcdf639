"""Tapes as rows: llm_tape, llm_tensor_rt and llm_tensor_map, written in batches and read back as records of `autograd.records`.

A transaction has one tape, with a number that no other ever has; functions touch the rows of that number only. With
pg_gpt2.tape = session, it is the session that has it: a pooler gives one session to many clients, so that must be asked for.
Tapes of audited training steps have numbers of their own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ... import host
from ...autograd import attributes
from ...autograd.records import Application, Tensor
from ...errors import InconsistentData, InvalidParameter, PgGpt2Error, UndefinedObject, WrongState
from ...limits import MOST_DIMENSIONS
from ...tensor import FLOAT32, to_bytes
from .. import db, resources
from ..storage.store import joined

FLUSH_BYTES = 16 << 20  # of tensors a statement: each is a subtransaction, and in memory a few times
COPIES = 5  # of a value that is written: as bytes, as an argument, cut out of it, in its row, and where it came from
BATCH = 10_000  # rows that are read, or written, between two looks for an interrupt
OP_BYTES = 8192  # of memory that an op of a tape and its values take, beside their data
READ_COPIES = 3  # of a value that is read: of the server, as bytes, and what is made of it
OWNERS = ("transaction", "session")
MOST_TAPES = 64  # of a transaction or session, one for each role: then the first is forgotten
OWN_HANDLES = (
    "Handles live as long as their transaction: work between BEGIN and COMMIT. Or SET pg_gpt2.tape = 'session' before, but not"
    " behind a pooler in transaction mode (pgbouncer and others), where the next statement may be another session's."
)


def own_tape() -> int:
    """The number of the tape of this transaction or session; drawn when it is first needed.

    A setting keeps it, beside the sequence that it was drawn from, which DROP EXTENSION may have made anew, and the role: each
    that works in the session, such as the owner of a SECURITY DEFINER function, has a tape of its own, and finds it again. So it
    ends with what it belongs to, with a rollback of what drew it, and with DISCARD ALL, which the interpreter's memory would
    outlive.
    """
    kept = db.row(
        "SELECT '{schema}.llm_tape_tape_id_seq'::regclass::oid || '/' || quote_ident(current_user)::regrole::oid AS drawn_by,"
        " current_setting('pg_gpt2.tape', true) AS owner,"
        " current_setting('pg_gpt2.transaction_tape', true) AS transaction,"
        " current_setting('pg_gpt2.session_tape', true) AS session"
    )
    settings: db.Row = kept or {}
    owner, drawn_by = _checked_owner(settings["owner"]), settings["drawn_by"]
    others = (settings[owner] or "").split()
    for place in others:
        if found := re.fullmatch(rf"{drawn_by}/([0-9]{{1,18}})", place):
            return int(found[1])
    number = new_tape()
    db.run(
        "SELECT set_config($1, $2, $3)",
        ["text", "text", "bool"],
        *(
            f"pg_gpt2.{owner}_tape",
            " ".join([*others[1 - MOST_TAPES :], f"{drawn_by}/{number}"]),
            owner == "transaction",
        ),
    )
    return number


def tape_owner() -> str:
    """transaction or session: what handles, and the mode set by llm_autograd_mode, belong to (pg_gpt2.tape)."""
    return _checked_owner(db.setting("tape"))


def _checked_owner(text: str | None) -> str:
    owner = (text or OWNERS[0]).strip().lower()
    if owner not in OWNERS:
        raise InvalidParameter(f"pg_gpt2.tape must be transaction or session, not '{text}'", hint="RESET pg_gpt2.tape;")
    return owner


def new_tape() -> int:
    """A number that no tape has."""
    return reserve("llm_tape_tape_id_seq", 1)[0]


def reserve(sequence: str, count: int) -> list[int]:
    """`count` new numbers of a sequence, ascending."""
    rows = db.query(
        "SELECT nextval($1) AS id FROM generate_series(1, $2)", ["regclass", "int4"], db.qualified(sequence), count
    )
    return [row["id"] for row in rows]


class Writer:
    """Collects rows of one tape and inserts them, values and ops of one batch together."""

    def __init__(self, tape_id: int, *, run_id: int | None = None, step: int | None = None, room: int = 64) -> None:
        """`room`: how many handles are drawn at a time."""
        self.tape_id, self.run_id, self.step, self.room = tape_id, run_id, step, room
        self._ids: list[int] = []
        self._tensors: list[tuple[int, str, bool, bytes | None]] = []
        self._ops: list[tuple[str, str, int, str]] = []
        self._held = 0

    def tensor(self, shape: tuple[int, ...], requires_grad: bool, data: bytes | None = None) -> int:
        """Add a value; its handle."""
        if self._held >= FLUSH_BYTES:
            self.flush()
        if not self._ids:
            self._ids = reserve("llm_handle_seq", self.room)[::-1]
        handle = self._ids.pop()
        self._tensors.append((handle, _array(shape), requires_grad, data))
        self._held += len(data or b"")
        return handle

    def op(self, name: str, inputs: Sequence[int], output: int, attrs: dict[str, Any]) -> None:
        """Add an application of an op."""
        self._ops.append((name, _array(inputs), output, attributes.to_json(attrs)))

    def flush(self) -> None:
        """Insert what was added."""
        if self._tensors:
            ids, shapes, flags, data = map(list, zip(*self._tensors, strict=True))
            whole, places = joined([part or b"" for part in data])
            sizes = [None if part is None else len(part) for part in data]
            with db.planned_once(len(whole)):
                db.run(
                    "INSERT INTO {schema}.llm_tensor_rt (tape_id, id, shape, requires_grad, data)"
                    " SELECT $1, id, shape::int[], requires_grad, substring($7 FROM place FOR size)"
                    " FROM unnest($2, $3, $4, $5, $6) AS new (id, shape, requires_grad, place, size)",
                    ["int8", "int8[]", "text[]", "bool[]", "int4[]", "int4[]", "bytea"],
                    *(self.tape_id, ids, shapes, flags, places, sizes, whole),
                )
        if self._ops:
            db.run(
                "INSERT INTO {schema}.llm_tape (tape_id, run_id, step, name, inputs, output, extra)"
                " SELECT $1, $2, $3, name, inputs::bigint[], output, extra::jsonb"
                " FROM unnest($4, $5, $6, $7) WITH ORDINALITY AS new (name, inputs, output, extra, place) ORDER BY place",
                ["int8", "int8", "int8", "text[]", "text[]", "int8[]", "text[]"],
                *(self.tape_id, self.run_id, self.step, *map(list, zip(*self._ops, strict=True))),
            )
        self._tensors.clear()
        self._ops.clear()
        self._held = 0
        host.check_interrupts()


def content(values: np.ndarray) -> bytes:
    """Bytes of a value that is to be written. 53200 when there is no room for that."""
    if values.nbytes >= host.ASKED:
        resources.require_memory(COPIES * values.nbytes, f"a value of {values.size} numbers on the tape")
    return to_bytes(values)


def _array(numbers: Iterable[int]) -> str:
    """Text of an integer array: PL/Python cannot pass an array of arrays of different lengths."""
    return "{" + ",".join(map(str, numbers)) + "}"


# --- reading --------------------------------------------------------------------------------------------------------


def applications(tape_id: int) -> list[Application]:
    """The ops of a tape in the order of their recording."""
    _require_room(tape_id)
    rows = db.batches(
        "SELECT id, name, inputs, output, extra::text AS extra FROM {schema}.llm_tape WHERE tape_id = $1 ORDER BY id",
        ["int8"],
        tape_id,
    )
    return [_application(row) for row in rows]


def _require_room(tape_id: int) -> None:
    """Refuse (53200) a tape that is too large to be read: its ops, its values and what is computed from them."""
    size = db.row(
        "SELECT count(*) AS ops, coalesce(sum(pg_column_size(t)), 0)::bigint AS bytes FROM {schema}.llm_tape AS t"
        " WHERE tape_id = $1",
        ["int8"],
        tape_id,
    )
    ops, held = (size or {})["ops"], (size or {})["bytes"]
    if ops >= BATCH:
        resources.require_memory(OP_BYTES * ops + 10 * held, f"tape {tape_id} of {ops} ops")


def _application(row: db.Row) -> Application:
    bare = Application(row["id"], row["name"], tuple(row["inputs"]), row["output"], {})
    if not all(type(handle) is int for handle in bare.inputs):
        raise bare.about(
            InconsistentData(
                "inputs must be an array of handles, of one dimension and without null",
                hint="The row was changed by hand; record again.",
            )
        )
    try:
        return replace(bare, attrs=attributes.parse(row["name"], row["extra"]))
    except PgGpt2Error as error:
        raise bare.about(error) from None


def tensors(tape_id: int) -> dict[int, Tensor]:
    """The values of a tape, without their bytes."""
    rows = db.batches(
        "SELECT id, shape, requires_grad FROM {schema}.llm_tensor_rt WHERE tape_id = $1", ["int8"], tape_id
    )
    return {row["id"]: Tensor(row["id"], _shape(row["id"], row["shape"]), row["requires_grad"]) for row in rows}


def _shape(handle: int, shape: Sequence) -> tuple[int, ...]:
    if len(shape) > MOST_DIMENSIONS or not all(type(n) is int and n > 0 for n in shape):
        raise InconsistentData(
            f"handle {handle} has a shape that none of our tensors has: {str(shape)[:60]}",
            hint="Its row of llm_tensor_rt was changed by hand; record again.",
        )
    return tuple(shape)


def data(tape_id: int, handles: Iterable[int], column: str = "data") -> dict[int, np.ndarray]:
    """Data (or grad) of those handles that have it."""
    wanted = list(handles)
    turns = [wanted[i : i + BATCH] for i in range(0, len(wanted), BATCH)]
    total = 0
    for turn in turns:
        size = db.row(
            f"SELECT sum(octet_length({column})) AS bytes FROM {{schema}}.llm_tensor_rt WHERE tape_id = $1 AND id = ANY ($2)",
            ["int8", "int8[]"],
            *(tape_id, turn),
        )
        total += (size or {})["bytes"] or 0
        host.check_interrupts()
    resources.require_memory(2 * total, f"reading tape {tape_id}")
    found = {}
    for turn in turns:
        rows = db.cursor(
            f"SELECT id, shape, {column} AS bytes FROM {{schema}}.llm_tensor_rt"
            f" WHERE tape_id = $1 AND id = ANY ($2) AND {column} IS NOT NULL",
            ["int8", "int8[]"],
            *(tape_id, turn),
        )
        for row in rows:
            found[row["id"]] = checked_values(row["id"], row["bytes"], row["shape"])
            host.check_interrupts()
    return found


def checked_values(handle: int, content: bytes, shape: Sequence[int]) -> np.ndarray:
    """The array; 22000 naming the handle when bytes and shape do not belong together."""
    array = np.frombuffer(content[: len(content) // 4 * 4], FLOAT32)
    checked = _shape(handle, shape)
    try:
        if len(content) % 4:
            raise ValueError
        return array.reshape(checked)
    except ValueError:
        raise InconsistentData(
            f"handle {handle} has {len(content)} bytes, which are not float32 values of shape {list(shape)}",
            hint="Its row of llm_tensor_rt was changed by hand; record again.",
        ) from None


def value(handle: int) -> tuple[Tensor, np.ndarray]:
    """One value of the own tape; 42704 when it has no such handle, 55000 when the data was not kept."""
    what, place = "FROM {schema}.llm_tensor_rt WHERE tape_id = $1 AND id = $2", (own_tape(), handle)
    row = db.row(
        f"SELECT shape, requires_grad, size, CASE WHEN size < {host.ASKED} THEN data END AS data"
        f" FROM (SELECT shape, requires_grad, data, octet_length(data) AS size {what} OFFSET 0) AS t",
        ["int8", "int8"],
        *place,
    )
    if row is None:
        raise unknown(handle)
    if row["size"] is not None and row["data"] is None:
        resources.require_memory(READ_COPIES * row["size"], f"the value of handle {handle}")
        row["data"] = (db.row(f"SELECT data {what}", ["int8", "int8"], *place) or {})["data"]
    if row["data"] is None:
        raise WrongState(f"handle {handle} has no data", hint="Audit level 'tape' keeps no values; use 'full'.")
    found = Tensor(handle, _shape(handle, row["shape"]), row["requires_grad"])
    return found, checked_values(handle, row["data"], found.shape)


def unknown(handle: int) -> UndefinedObject:
    """The error for a handle that is not on the own tape."""
    return UndefinedObject(f"handle {handle} does not exist in this {tape_owner()}", hint=OWN_HANDLES)


# --- changing -------------------------------------------------------------------------------------------------------


def write_grads(tape_id: int, grads: Iterable[tuple[int, np.ndarray]]) -> None:
    """Replace all gradients of a tape."""
    db.run("UPDATE {schema}.llm_tensor_rt SET grad = NULL WHERE tape_id = $1 AND grad IS NOT NULL", ["int8"], tape_id)
    batch: list[tuple[int, bytes]] = []
    held = 0
    for handle, grad in grads:
        batch.append((handle, content(grad)))
        held += len(batch[-1][1])
        if held >= FLUSH_BYTES or len(batch) >= BATCH:
            update_grads(tape_id, batch)
            batch, held = [], 0
    update_grads(tape_id, batch)


def update_grads(tape_id: int, batch: list[tuple[int, bytes]]) -> None:
    """Set some gradients, given as (handle, bytes), in one statement."""
    if not batch:
        return
    handles, grads = map(list, zip(*batch, strict=True))
    whole, places = joined(grads)
    with db.planned_once(len(whole)):
        db.run(
            "UPDATE {schema}.llm_tensor_rt AS t SET grad = substring($5 FROM place FOR size)"
            " FROM unnest($2, $3, $4) AS new (id, place, size) WHERE t.tape_id = $1 AND t.id = new.id",
            ["int8", "int8[]", "int4[]", "int4[]", "bytea"],
            *(tape_id, handles, places, list(map(len, grads)), whole),
        )
    host.check_interrupts()


def drop(tape_ids: Sequence[int]) -> int:
    """Delete tapes with their values; the number of values."""
    dropped = 0
    for table in ("llm_tensor_map", "llm_tape", "llm_tensor_rt"):
        dropped = db.run(f"DELETE FROM {{schema}}.{table} WHERE tape_id = ANY ($1)", ["int8[]"], list(tape_ids))
    return dropped
