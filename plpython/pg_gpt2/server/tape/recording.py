"""Recording: a `Runner` whose handles are rows, so that model code written for training leaves its tape in tables.

A parameter is the handle that is mapped for it on the own tape, else one made from the stored weights and mapped. A tensor
given as bytes has no identity: it is the latest value of the tape with the same bytes, else a new one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ... import host
from ...core.config import block_shapes
from ...core.tape import Eager, Handle, Runner
from ...errors import InvalidParameter, WrongState
from ...fast.elementwise import contiguous
from ...fast.ops import lookup
from ...tensor import check_shape, to_bytes
from .. import db, resources
from ..storage import store, weights
from .tape_rows import COPIES, FLUSH_BYTES, Writer, checked_values, content, own_tape


def enabled() -> bool:
    """Whether recording is on in this session (pg_gpt2.autograd)."""
    return db.flag("autograd", "off")


@dataclass(eq=False)
class Recorded:
    """A value on the own tape, with its data at hand."""

    id: int
    data: np.ndarray
    requires_grad: bool


class Recorder:
    """Runs ops and writes them to the own tape. Call `flush` at the end."""

    def __init__(self, *, room: int = 64, values: bool = True) -> None:
        """`values`: whether data are kept; without them a tape shows what was done and cannot be differentiated."""
        self.writer = Writer(own_tape(), room=room)
        self._values = values

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> Recorded:
        """A new value."""
        written = content(data) if self._values else None
        return Recorded(self.writer.tensor(data.shape, requires_grad, written), data, requires_grad)

    def apply(self, name: str, *inputs: Recorded, **attrs: Any) -> Recorded:
        """The result of an op, recorded."""
        host.check_interrupts()
        data = contiguous(lookup(name)(*(value.data for value in inputs), **attrs))  # as the next op would read it
        if 0 in data.shape:
            raise InvalidParameter(
                f"{name}: the result of shape {list(data.shape)} has no values", hint="Give at least one id."
            )
        check_shape(data.shape, name=f"{name}: the result")
        found = self.leaf(data, any(value.requires_grad for value in inputs))
        self.writer.op(name, [value.id for value in inputs], found.id, attrs)
        return found

    def flush(self) -> None:
        """Write what is still held."""
        self.writer.flush()

    def params(self, model: weights.Model) -> dict[str, Recorded]:
        """Handles of all parameters of a model; those that are not mapped yet are made and mapped."""
        mapped = mapped_params(model.name)
        found = {}
        shapes = model.config.param_shapes()
        for name, shape in shapes.items():
            if name in mapped:
                found[name] = self._whole(name, mapped[name], shape)
        missing = [name for name in shapes if name not in found]
        found |= materialize(self, model, missing)
        return {name: found[name] for name in shapes}

    def _whole(self, name: str, blocks: Sequence[Recorded], shape: tuple[int, ...]) -> Recorded:
        """One handle for a tensor that is mapped as a whole or in blocks."""
        whole = blocks[0] if len(blocks) == 1 else self.apply("concat", *blocks, axis=0)
        if whole.data.shape != shape:
            raise WrongState(
                f'the handles mapped for "{name}" make shape {list(whole.data.shape)}; the parameter has {list(shape)}',
                hint="Map every block of it, or SELECT llm_materialize_params(model) to map all anew.",
            )
        return whole


def on_tape(
    model: weights.Model, work: Callable[[Runner, Mapping[str, Handle]], Handle], level: str | None = None
) -> np.ndarray:
    """The result of `work(run, params)`, recorded while recording is on, or as the audit level says."""
    if level is None:
        level = "full" if enabled() else "none"
    if level == "none":
        return work(Eager(), model.params)
    recorder = Recorder(values=level == "full")
    result = work(recorder, recorder.params(model))
    recorder.flush()
    return result.data


def materialize(recorder: Recorder, model: weights.Model, names: Sequence[str]) -> dict[str, Recorded]:
    """New handles for parameters, mapped to their rows of llm_param. Those of an adapter's base require no gradient."""
    params = model.params
    shapes = model.config.param_shapes()
    sizes = [4 * prod(shapes[name]) for name in names]
    written = min(sum(sizes), max(FLUSH_BYTES, *sizes)) if sizes else 0
    resources.require_memory(sum(sizes) + COPIES * written, f'handles for model "{model.name}"')
    trained = model.config.trained_shapes()
    found = {name: recorder.leaf(params[name], name in trained) for name in names}
    recorder.flush()
    db.run(
        "INSERT INTO {schema}.llm_tensor_map (tape_id, model, name, token_id, tensor_id)"
        f" SELECT $1, p.model, p.name, p.token_id, new.tensor_id FROM {store.resolved('$2')} AS p"
        " JOIN unnest($3, $4) AS new (name, tensor_id) ON p.name = new.name"
        " ON CONFLICT (tape_id, model, name, token_id) DO UPDATE SET tensor_id = excluded.tensor_id",
        ["int8", "text", "text[]", "int8[]"],
        *(own_tape(), model.name, list(found), [value.id for value in found.values()]),
    )
    return found


def mapped_params(model: str) -> dict[str, list[Recorded]]:
    """Parameter name -> handles mapped for it on the own tape, in the order of their blocks."""
    rows = db.cursor(
        "SELECT m.name, t.id, t.data, t.shape, t.requires_grad FROM {schema}.llm_tensor_rt AS t"
        " JOIN (SELECT name, tensor_id, min(token_id) AS token_id FROM {schema}.llm_tensor_map"
        "       WHERE tape_id = $1 AND model = $2 GROUP BY name, tensor_id) AS m ON m.tensor_id = t.id"
        " WHERE t.tape_id = $1 AND t.data IS NOT NULL ORDER BY m.name, m.token_id",
        ["int8", "text"],
        own_tape(),
        model,
    )
    found: dict[str, list[Recorded]] = {}
    for row in rows:
        value = Recorded(row["id"], checked_values(row["id"], row["data"], row["shape"]), row["requires_grad"])
        found.setdefault(row["name"], []).append(value)
        host.check_interrupts()
    return found


# --- tensors given as bytes -----------------------------------------------------------------------------------------


def find(recorder: Recorder, data: np.ndarray) -> Recorded:
    """The latest value of the own tape with these bytes and this shape, else a new one without gradient."""
    row = db.row(
        "SELECT id, requires_grad FROM {schema}.llm_tensor_rt WHERE tape_id = $1 AND data = $2 AND shape = $3"
        " ORDER BY id DESC LIMIT 1",
        ["int8", "bytea", "int4[]"],
        *(own_tape(), to_bytes(data), list(data.shape)),
    )
    return Recorded(row["id"], data, row["requires_grad"]) if row else recorder.leaf(data)


def find_block(recorder: Recorder, given: dict[str, np.ndarray]) -> dict[str, Recorded]:
    """Handles for the parameters of one block, by their names without `h.{i}.`.

    Vectors of zeros or ones are the same bytes in every layer. So the layer is the one that a matrix belongs to, and what
    equals that layer's parameter is that parameter.
    """
    found = {name: find(recorder, array) for name, array in given.items() if array.ndim == 2}
    layer = _mapped_layer(found)
    for name, array in given.items():
        if name in found:
            continue
        handle = layer.get(name)
        if handle is not None and np.array_equal(handle.data, array):
            found[name] = handle
        else:
            found[name] = find(recorder, array)
    return {name: found[name] for name in block_shapes(1)}


def _mapped_layer(matrices: dict[str, Recorded]) -> dict[str, Recorded]:
    """The mapped vectors of the layer that one of these matrices is mapped to."""
    row = db.row(
        "SELECT model, substring(name FROM '^h\\.[0-9]+\\.') AS prefix FROM {schema}.llm_tensor_map"
        " WHERE tape_id = $1 AND tensor_id = ANY ($2) AND name ~ '^h\\.[0-9]+\\.' LIMIT 1",
        ["int8", "int8[]"],
        own_tape(),
        [value.id for value in matrices.values()],
    )
    if row is None:
        return {}
    rows = db.query(
        "SELECT m.name, t.id, t.data, t.shape, t.requires_grad FROM {schema}.llm_tensor_map AS m"
        " JOIN {schema}.llm_tensor_rt AS t ON t.id = m.tensor_id AND t.tape_id = m.tape_id"
        " WHERE m.tape_id = $1 AND m.model = $2 AND starts_with(m.name, $3) AND cardinality(t.shape) = 1"
        " AND t.data IS NOT NULL",
        ["int8", "text", "text"],
        *(own_tape(), row["model"], row["prefix"]),
    )
    return {
        found["name"].removeprefix(row["prefix"]): Recorded(
            found["id"], checked_values(found["id"], found["data"], found["shape"]), found["requires_grad"]
        )
        for found in rows
    }
