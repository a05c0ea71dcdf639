"""llm_variable, llm_op, llm_backprop and their family: values as rows, recorded, differentiated."""

from math import prod
from typing import Any

from ... import host
from ...autograd import attributes, room
from ...autograd.graph import Graph
from ...autograd.records import Application, Tensor, ancestors, check_complete, require_kept, values_read
from ...errors import (
    InvalidParameter,
    NullNotAllowed,
    OutOfMemory,
    PgGpt2Error,
    UndefinedObject,
    WrongState,
    require,
    shown,
)
from ...fast.ops import lookup
from ...limits import MOST_BYTES, MOST_INPUTS
from ...tensor import from_bytes, to_bytes
from .. import db, resources
from ..arrays import received
from ..entry import entry, require_trigger_of
from ..prompts import draw_seed
from ..storage import store
from ..tape import recording, tape_rows
from ..tape.recording import Recorder
from ..tape.tape_rows import own_tape, tape_owner

# --- the mode -------------------------------------------------------------------------------------------------------


@entry
def set_mode(trigger: dict[str, Any]) -> None:
    """Carry out an UPDATE of llm_autograd_mode; it lasts as long as the tape does."""
    require_trigger_of(trigger, "INSTEAD OF UPDATE ROW", "llm_autograd_mode")
    flag = trigger["new"]["flag"]
    require(flag=flag)
    word, is_local = "on" if flag else "off", tape_owner() == "transaction"
    done = db.row(
        "SELECT set_config('pg_gpt2.autograd', $1, $2), now() = statement_timestamp() AS is_alone",
        ["text", "bool"],
        *(word, is_local),
    )
    if is_local and (done or {})["is_alone"]:  # or in one string with its BEGIN, and then it is true as well
        db.notice(f"llm_autograd_mode is {word} until this transaction ends; see pg_gpt2.tape in llm_settings")


@entry
def tape_id() -> int:
    """The number of the tape of this transaction, or session."""
    return own_tape()


# --- values and ops -------------------------------------------------------------------------------------------------


@entry
@received(shape="integer")
def variable(data: bytes, shape: list[int], requires_grad: bool) -> int:
    """A handle for a value."""
    require(data=data, shape=shape, requires_grad=requires_grad)
    recorder = Recorder(room=1)
    value = recorder.leaf(from_bytes(data, shape, name="data"), requires_grad)
    recorder.flush()
    return value.id


@entry
@received(inputs="bigint")
def op(name: str, inputs: list[int], extra: str | None) -> int:
    """The handle of an op's result."""
    require(name=name, inputs=inputs)
    lookup(name)
    if len(inputs) > MOST_INPUTS:
        raise InvalidParameter(
            f"{name}: {len(inputs)} inputs are more than {MOST_INPUTS}",
            hint="Apply it to parts, and then to their results.",
        )
    attrs = attributes.parse(name, extra)
    if "p" in attrs and "seed" not in attrs:  # of dropout, also within causal_attention
        attrs["seed"] = draw_seed()
    if name in ("attention", "causal_attention"):
        attrs.setdefault("chunk", resources.attention_chunk())
    resources.apply_settings()
    recorder = Recorder(room=1)
    try:
        values = _values(name, inputs)
        _require_room(name, [value.data.shape for value in values], attrs)
        result = recorder.apply(name, *values, **attrs)
    except PgGpt2Error as error:
        described = f"{error.detail}; " if error.detail else ""
        error.detail = f"{described}op {name} of handles {shown(inputs)}"
        raise
    recorder.flush()
    return result.id


def _require_room(name: str, shapes: list[tuple[int, ...]], attrs: dict) -> None:
    """Refuse (53200) an op whose result no bytea could hold, or for which there is no memory: for its inputs, its work, its
    result and for writing that."""
    result = room.result_bytes(name, shapes, attrs)
    if result > MOST_BYTES:
        raise OutOfMemory(
            f"{name}: a result of {result // 4} values does not fit a value of 1 GB",
            hint="Work on fewer rows at a time.",
        )
    wanted = 4 * sum(map(prod, shapes)) + room.working_bytes(name, shapes, attrs) + tape_rows.COPIES * result
    host.require_room(wanted, f"op {name}")


def _values(name: str, handles: list[int]) -> list[recording.Recorded]:
    """The values of handles, each read once; 42704 naming the op and the handle when there is none."""
    found = {}
    for place, handle in enumerate(handles, 1):
        if handle is None:
            raise NullNotAllowed(
                f"{name}: input {place} is null", hint="Inputs are handles of llm_variable and llm_op."
            )
        if handle not in found:
            try:
                tensor, data = tape_rows.value(handle)
            except (UndefinedObject, WrongState) as error:
                raise type(error)(f"{name}: input {place}: {error.message}", hint=error.hint) from None
            found[handle] = recording.Recorded(handle, data, tensor.requires_grad)
    return [found[handle] for handle in handles]


@entry
def value(handle: int | None) -> bytes | None:
    """Data of a handle."""
    return None if handle is None else to_bytes(tape_rows.value(handle)[1])


@entry
def grad(handle: int | None) -> bytes | None:
    """Gradient of a handle; null when it has none."""
    if handle is None:
        return None
    row = db.row(
        "SELECT grad FROM {schema}.llm_tensor_rt WHERE tape_id = $1 AND id = $2",
        ["int8", "int8"],
        own_tape(),
        handle,
    )
    if row is None:
        raise tape_rows.unknown(handle)
    return row["grad"]


@entry
def backprop(start_id: int | None, model: str | None) -> None:
    """Gradients of everything that `start_id`, else the last recorded value, was computed from."""
    resources.apply_settings()
    if model is not None:
        store.config(model)
    tape = own_tape()
    recorded = tape_rows.applications(tape)
    if start_id is None:
        if not recorded:
            raise WrongState(
                f"nothing is recorded in this {tape_owner()}",
                hint="UPDATE llm_autograd_mode SET flag = true, then call llm_loss; or build a graph with llm_op. "
                f"{tape_rows.OWN_HANDLES}",
            )
        start_id = recorded[-1].output
    tensors = tape_rows.tensors(tape)
    if start_id not in tensors:
        raise tape_rows.unknown(start_id)
    needed = ancestors(recorded, start_id)
    if model is not None:
        _require_use(model, needed)
    check_complete(needed, tensors)
    read = values_read(needed)
    _require_room_for_gradients(tensors, needed)
    data = tape_rows.data(tape, read)
    require_kept(read, data)
    graph = Graph(needed, tensors, data)
    graph.backward(start_id)
    tape_rows.write_grads(tape, graph.gradients())
    graph.close()


def _require_room_for_gradients(tensors: dict[int, Tensor], needed: list[Application]) -> None:
    """Refuse (53200) a backward pass without memory for a gradient of each value, and for what the largest op needs besides."""
    handles = {handle for application in needed for handle in (*application.inputs, application.output)}
    sizes = [4 * prod(tensors[handle].shape) for handle in handles]
    wanted = sum(sizes) + 3 * max(sizes, default=0)
    host.require_room(wanted, f"gradients of {len(sizes)} values")


def _require_use(model: str, needed: list[Application]) -> None:
    """Refuse (55000) to go back from a value that no mapped parameter of `model` went into."""
    inputs = sorted({handle for application in needed for handle in application.inputs})
    if not db.row(
        "SELECT 1 FROM {schema}.llm_tensor_map WHERE tape_id = $1 AND model = $2 AND tensor_id = ANY ($3) LIMIT 1",
        ["int8", "text", "int8[]"],
        *(own_tape(), model, inputs),
    ):
        raise WrongState(
            f'the value to start from does not depend on a parameter of model "{model}"',
            hint="Record llm_loss of that model, or leave the model out.",
        )
