"""Audited training steps: their ops as rows of llm_tape, and at level 'full' every value and gradient in llm_tensor_rt.

It only looks on: a step calls it after each op, forward and backward, and computes the same bits at every level. What
pg_gpt2.audit_keep would prune at once is not recorded in the first place, where that can be known.
"""

from collections import deque

import numpy as np

from ...core.op import Sink
from ...errors import InvalidParameter
from ...fast.panels import Panels
from ...fast.tape import Node, Value
from ...training.options import AUDIT_LEVELS
from ...training.trainer import Trainer
from .. import db
from ..storage import store
from ..tape.tape_rows import FLUSH_BYTES, Writer, content, drop, new_tape, update_grads

ROOM = 512  # handles drawn at a time


def check_level(level: str) -> None:
    """Refuse (22023) a `level` that is not one of AUDIT_LEVELS."""
    if level not in AUDIT_LEVELS:
        raise InvalidParameter(
            f"audit must be one of {', '.join(AUDIT_LEVELS)}, not {level!r}",
            hint="tape: one row an op; full: values and gradients as well.",
        )


def steps_kept() -> int | None:
    """How many steps of a model stay (pg_gpt2.audit_keep); None = all."""
    text = db.setting("audit_keep", "1") or "1"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidParameter(
            f"pg_gpt2.audit_keep must be a number of steps, not '{text}'", hint="1 is the default, 0 keeps all."
        )
    return int(text) or None


def drop_all(model: str) -> None:
    """Delete the tapes of all runs of a model."""
    rows = db.query(
        "SELECT DISTINCT t.tape_id FROM {schema}.llm_tape AS t JOIN {schema}.llm_run AS r USING (run_id) WHERE r.model = $1",
        ["text"],
        model,
    )
    if rows:
        drop([row["tape_id"] for row in rows])


class StepTape:
    """The tape of one step; called by the trainer's tape after each op."""

    def __init__(self, level: str, run_id: int, step: int) -> None:
        self.full = level == "full"
        self.writer = Writer(new_tape(), run_id=run_id, step=step, room=ROOM)
        self._handles: dict[int, int] = {}  # of values by id(); of parameters by that of their sink
        self._seen: list[Value | Sink] = []  # held, so that an id() means one object
        self._grads: list[tuple[int, bytes]] = []
        self._held = 0

    @property
    def tape_id(self) -> int:
        """Number of the tape, the tape_id of its rows."""
        return self.writer.tape_id

    def __call__(self, phase: str, node: Node) -> None:
        """Called after an op has run (forward), or has passed its gradient on (backward)."""
        if phase == "forward":
            inputs = [self._handle(value) for value in node.inputs]
            self.writer.op(node.name, inputs, self._handle(node.output), node.attrs)
        elif self.full and node.output.grad is not None:
            self._grad(self._handle(node.output), node.output.grad)

    def _handle(self, value: Value) -> int:
        key = value if value.sink is None else value.sink
        if id(key) not in self._handles:
            data = _bytes_of(value.data) if self.full and value.data is not None else None
            self._handles[id(key)] = self.writer.tensor(value.shape, value.requires_grad, data)
            self._seen.append(key)
        return self._handles[id(key)]

    def _grad(self, handle: int, grad: np.ndarray) -> None:
        self._grads.append((handle, content(grad)))
        self._held += grad.nbytes
        if self._held >= FLUSH_BYTES:
            self._flush_grads()

    def _flush_grads(self) -> None:
        self.writer.flush()
        update_grads(self.tape_id, self._grads)
        self._grads.clear()
        self._held = 0

    def finish(self, trainer: Trainer) -> dict[str, int]:
        """Called after the step, with the gradients of the parameters; returns the handles of all parameters by name."""
        names = {id(sink): name for name, sink in trainer.sinks.items()}
        learning = trainer.sinks.keys() | trainer.tied.keys()  # an adapter's base has no sinks
        still = {id(w): name for name, w in trainer.params.items() if name not in learning}
        for seen in self._seen:
            if isinstance(seen, Value) and id(seen.data) in still:
                names[id(seen)] = still[id(seen.data)]
        params = {names[key]: handle for key, handle in self._handles.items() if key in names}
        if self.full:
            for name, grad in trainer.grads.items():
                self._grad(params[name], grad)
            self._flush_grads()
        self._seen.clear()
        self._handles.clear()
        return params


def _bytes_of(data: np.ndarray | Panels) -> bytes:
    return content(data.plain() if isinstance(data, Panels) else data)


class Auditor:
    """Audits the steps of a run: `begin` and `end` around each, `write` when the weights are written."""

    def __init__(self, model: str, level: str) -> None:
        check_level(level)
        self.model, self.level = model, level
        self._keep = steps_kept()
        self._kept: deque[tuple[StepTape, dict[str, int]]] = deque(maxlen=self._keep)
        self._tape: StepTape | None = None

    def begin(self, run_id: int, step: int, steps_left: int = 0) -> StepTape | None:
        """The recorder of this step; None at level 'none', and where the `steps_left` steps after it would push it out again."""
        self._tape = None
        if self.level != "none" and (self._keep is None or steps_left < self._keep):
            self._tape = StepTape(self.level, run_id, step)
        return self._tape

    def end(self, trainer: Trainer) -> None:
        """End the step that `begin` began, and keep what was recorded of it."""
        if self._tape is None:
            return
        if self.level == "full" and self._keep is not None and len(self._kept) == self._keep:
            drop([self._kept[0][0].tape_id])  # values were written as they came
        self._kept.append((self._tape, self._tape.finish(trainer)))
        self._tape = None
        if self._keep is None:
            self._flush()

    def write(self) -> None:
        """Insert what is kept, and delete the model's older steps."""
        tapes = [tape.tape_id for tape, _ in self._kept]
        self._flush()
        if not tapes or self._keep is None:
            return
        rows = db.query(
            "SELECT t.tape_id FROM {schema}.llm_tape AS t JOIN {schema}.llm_run AS r USING (run_id)"
            " WHERE r.model = $1 GROUP BY t.tape_id ORDER BY t.tape_id DESC OFFSET $2",
            ["text", "int4"],
            self.model,
            self._keep,
        )
        if rows:
            drop([row["tape_id"] for row in rows])

    def _flush(self) -> None:
        for tape, params in self._kept:
            tape.writer.flush()
            db.run(
                "INSERT INTO {schema}.llm_tensor_map (tape_id, model, name, token_id, tensor_id)"
                f" SELECT $1, p.model, p.name, p.token_id, new.tensor_id FROM {store.resolved('$2')} AS p"
                " JOIN unnest($3, $4) AS new (name, tensor_id) ON p.name = new.name",
                ["int8", "text", "text[]", "int8[]"],
                *(tape.tape_id, self.model, list(params), list(params.values())),
            )
        self._kept.clear()
