"""Looking inside: llm_trace and its family for a forward pass, llm_replay_tape and its family for a recorded one."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...autograd import tape_dot
from ...autograd.compare import compare
from ...autograd.gradcheck import check_gradients
from ...autograd.records import Application, Tensor, ancestors, check_complete, require_kept
from ...core.gpt2 import check_window
from ...errors import InconsistentData, InvalidParameter, UndefinedObject, WrongState, require, require_positive
from ...generation import tracing
from ...generation.decode import check_ids
from ...tensor import FLOAT32, to_bytes
from .. import db, resources, vocabularies
from ..arrays import received
from ..entry import entry
from ..prompts import encode_prompt
from ..storage import store, weights
from ..tape import tape_rows

# --- a forward pass -------------------------------------------------------------------------------------------------


def _ids_of(prompt: str, model: weights.Model) -> list[int]:
    """Ids of a prompt; of one longer than the window, its tail."""
    return encode_prompt(prompt, model, vocabularies.tokenizer_of(model.name))[-model.config.n_positions :]


@entry
def trace_text(prompt: str | None, model: str | None) -> Iterator[tuple[Any, ...]]:
    """Rows (seq, layer, op, name, shape, data)."""
    if prompt is None:
        return iter(())
    loaded = weights.load(model)
    return _trace(loaded, _ids_of(prompt, loaded))


@entry
@received(ids="integer")
def trace_ids(ids: list[int] | None, model: str | None) -> Iterator[tuple[Any, ...]]:
    """As trace_text, for token ids."""
    if ids is None:
        return iter(())
    loaded = weights.load(model)
    check_window(len(ids), loaded.config)
    check_ids(ids, loaded.config, loaded.name)
    return _trace(loaded, ids)


def _trace(model: weights.Model, ids: list[int]) -> Iterator[tuple[Any, ...]]:
    config, t = model.config, len(ids)
    layer = t * (14 * config.d_model + 2 * config.inner) + t * t * config.n_head
    resources.require_memory(4 * (config.n_layer * layer + 3 * t * config.vocab), f"a trace of {t} tokens")
    steps = tracing.trace(model.plain(), config, ids)
    return (
        (seq, step.layer, step.op, step.name, list(step.data.shape), to_bytes(step.data))
        for seq, step in enumerate(steps, 1)
    )


@entry
def attention_weights(prompt: str | None, layer: int, head: int, model: str | None) -> list[tuple[Any, ...]]:
    """Rows (query_position, query_token, key_position, key_token, weight)."""
    if prompt is None:
        return []
    require(layer=layer, head=head)
    loaded = weights.load(model)
    for name, value, limit in (("layer", layer, loaded.config.n_layer), ("head", head, loaded.config.n_head)):
        if not 0 <= value < limit:
            raise InvalidParameter(
                f'{name} {value} is not in 0..{limit - 1}, the {name}s of model "{loaded.name}"',
                hint="Layers and heads count from 0, as in the names of parameters.",
            )
    ids = _ids_of(prompt, loaded)
    attention = tracing.layer_attention(loaded.plain(), loaded.config, ids, layer)[head].tolist()
    tokenizer = vocabularies.tokenizer_of(loaded.name)
    tokens = [db.storable(tokenizer.decode([token])) for token in ids]
    return [(q, tokens[q], k, tokens[k], attention[q][k]) for q in range(len(ids)) for k in range(q + 1)]


@entry
def logit_lens(prompt: str | None, model: str | None, n: int) -> list[tuple[Any, ...]]:
    """Rows (layer, rank, token, probability, token_id)."""
    if prompt is None:
        return []
    require_positive(n=n)
    loaded = weights.load(model)
    ids = _ids_of(prompt, loaded)
    tokenizer = vocabularies.tokenizer_of(loaded.name)
    lacking = list(tokenizer.lacking(loaded.config.vocab))
    n = min(n, loaded.config.vocab - len(lacking))
    rows = []
    for layer, probabilities in tracing.logit_lens(loaded.plain(), loaded.config, ids):
        if lacking:
            probabilities[lacking] = 0
            probabilities /= probabilities.sum()
        for rank, token in enumerate(np.argsort(-probabilities, kind="stable")[:n].tolist(), 1):
            rows.append((layer, rank, db.storable(tokenizer.decode([token])), float(probabilities[token]), token))
    return rows


@entry
def token_embedding(token_id: int | None, model: str | None) -> list[float] | None:
    """A row of wte, read from its block alone."""
    if token_id is None:
        return None
    name = store.model_name(model)
    if model is None and not store.has_weights(name):
        name = store.only_model() or name
    config = store.config(name)
    check_ids([token_id], config, name)
    row = db.row(
        "SELECT substring(data FROM 1 + ($2 - token_id) * 4 * shape[2] FOR 4 * shape[2]) AS data, shape[2] AS width"
        f" FROM {store.resolved()} AS p WHERE name = 'wte' AND token_id <= $2 ORDER BY token_id DESC LIMIT 1",
        ["text", "int4"],
        *(name, token_id),
    )
    if row is None:
        raise store.no_weights(name)
    if len(row["data"]) != 4 * config.d_model:
        raise InconsistentData(f'model "{name}" has no row {token_id} of "wte"', hint="Import the model again.")
    return np.frombuffer(row["data"], FLOAT32).tolist()


# --- a tape ---------------------------------------------------------------------------------------------------------


def _tape(tape_id: int | None) -> tuple[int, list[Application], dict[int, Tensor]]:
    """A tape (null: the caller's own) and the shapes on it; a tape that is not there is refused (42704)."""
    number = tape_rows.own_tape() if tape_id is None else tape_id
    recorded = tape_rows.applications(number)
    if not recorded:
        raise UndefinedObject(
            f"tape {number} has no ops", hint="SELECT DISTINCT tape_id, run_id, step FROM llm_tape lists the tapes."
        )
    return number, recorded, tape_rows.tensors(number)


@entry
def dot(tape_id: int | None) -> str:
    """A tape (null: the caller's own) as DOT text."""
    number, recorded, tensors = _tape(tape_id)
    rows = db.query(
        "SELECT tensor_id, min(name) AS name FROM {schema}.llm_tensor_map WHERE tape_id = $1 GROUP BY 1",
        ["int8"],
        number,
    )
    return tape_dot.dot(number, recorded, tensors, {row["tensor_id"]: row["name"] for row in rows})


@entry
def replay_tape(tape_id: int | None) -> list[tuple[Any, ...]]:
    """Rows (tape_row, name, handle, what, max_difference) of what comes out otherwise."""
    number, recorded, tensors = _tape(tape_id)
    resources.apply_settings()
    check_complete(recorded, tensors)
    data = tape_rows.data(number, tensors)
    if not data:
        raise WrongState(
            f"tape {number} keeps no values", hint="Audit level 'tape' records ops only; train with audit => 'full'."
        )
    require_kept({h for a in recorded for h in (*a.inputs, a.output)}, data)
    grads = tape_rows.data(number, tensors, "grad")
    return [
        (found.application.id, found.application.name, found.handle, found.what, found.max_difference)
        for found in compare(recorded, tensors, data, grads)
    ]


@entry
def gradcheck(handle: int, epsilon: float, max_elements: int) -> list[tuple[Any, ...]]:
    """Rows (handle, checked, max_error, max_gradient, ok)."""
    require(handle=handle, epsilon=epsilon)
    require_positive(max_elements=max_elements)
    if not 0 < epsilon < 1:
        raise InvalidParameter(f"epsilon must be above 0 and below 1, not {epsilon}", hint="Leave it out for 1e-5.")
    tape_rows.value(handle)
    recorded = ancestors(tape_rows.applications(tape_rows.own_tape()), handle)
    tensors = tape_rows.tensors(tape_rows.own_tape())
    check_complete(recorded, tensors)
    needed = {h for a in recorded for h in (*a.inputs, a.output)} | {handle}
    data = tape_rows.data(tape_rows.own_tape(), needed)
    require_kept(needed, data)
    checked = check_gradients(recorded, tensors, data, handle, epsilon=epsilon, most=max_elements)
    return [
        (
            each.handle,
            each.n_checked,
            each.max_error,
            each.max_gradient,
            each.max_error <= 1e-6 * (1 + each.max_gradient),
        )
        for each in checked
    ]
