"""Tapes that come back from records: gradients of a training step bit for bit, replay, gradcheck, errors, pictures."""

import inspect
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from pg_gpt2.autograd import attributes, tape_dot
from pg_gpt2.autograd.compare import compare
from pg_gpt2.autograd.gradcheck import check_gradients
from pg_gpt2.autograd.graph import Graph
from pg_gpt2.autograd.records import Application, Tensor, ancestors, check_complete, values_read
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.errors import InvalidParameter, PgGpt2Error, UndefinedObject
from pg_gpt2.fast.ops import registry
from pg_gpt2.generation import tracing
from pg_gpt2.training.trainer import Trainer

from tests.engine.arithmetic import gradients_of

CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=16, n_positions=16, vocab=61)
TOKENS = np.arange(12)[None] * 5 % 61


class Recorder:
    """What `recording.Recorder` does, with dicts for tables."""

    def __init__(self) -> None:
        self.data: dict[int, np.ndarray] = {}
        self.tensors: dict[int, Tensor] = {}
        self.applications: list[Application] = []

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> int:
        handle = len(self.data) + 1
        self.data[handle] = data
        self.tensors[handle] = Tensor(handle, data.shape, requires_grad)
        return handle

    def apply(self, name: str, *inputs: int, **attrs: object) -> int:
        y = registry[name](*(self.data[handle] for handle in inputs), **attrs)
        output = self.leaf(y, any(self.tensors[handle].requires_grad for handle in inputs))
        stored = attributes.parse(name, attributes.to_json(attrs))  # as through jsonb
        self.applications.append(Application(len(self.applications) + 1, name, inputs, output, stored))
        return output

    def forget(self, handle: int) -> None:
        """Everything stays."""


def recorded(dropout_p: float = 0.0) -> tuple[Recorder, dict[str, int], dict[str, np.ndarray]]:
    """A recorded loss, the handles of its parameters, the parameters."""
    params = {
        k: w + np.float32(0.1) * np.sin(np.arange(w.size, dtype=np.float32)).reshape(w.shape)
        for k, w in gpt2.init_params(CONFIG, 1).items()
    }
    run = Recorder()
    handles = {name: run.leaf(array, True) for name, array in params.items()}
    drop = gpt2.Dropout(dropout_p, seed=3, step=4)
    gpt2.loss(run, handles, TOKENS, TOKENS[:, ::-1].copy(), CONFIG, drop=drop)
    return run, handles, params


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_gradients_from_records_are_the_trainers_bits(dropout_p: float) -> None:
    run, handles, params = recorded(dropout_p)
    trainer = Trainer(CONFIG, {name: array.copy() for name, array in params.items()})
    loss, _ = trainer.gradients([(TOKENS, TOKENS[:, ::-1].copy())], dropout_p=dropout_p, seed=3, step_no=4)
    start = run.applications[-1].output
    assert float(run.data[start]) == loss
    read = values_read(run.applications)
    graph = Graph(run.applications, run.tensors, {handle: run.data[handle] for handle in read})
    graph.backward(start)
    grads = dict(graph.gradients())
    for name, grad in trainer.grads.items():
        np.testing.assert_array_equal(grads[handles[name]], grad)


def with_gradients() -> tuple[Recorder, dict[int, np.ndarray]]:
    run, _, _ = recorded(0.1)
    graph = Graph(run.applications, run.tensors, run.data)
    graph.backward(run.applications[-1].output)
    return run, dict(graph.gradients())


def test_an_untouched_record_replays_exactly() -> None:
    run, grads = with_gradients()
    assert list(compare(run.applications, run.tensors, run.data, grads)) == []


def test_every_changed_value_and_gradient_is_found() -> None:
    run, grads = with_gradients()
    for application in run.applications:
        handle = application.output
        changed = run.data | {handle: run.data[handle] + np.float32(1)}
        found = list(compare(run.applications, run.tensors, changed, grads))
        assert (application.id, "value") in {(each.application.id, each.what) for each in found}
        changed = grads | {handle: grads[handle] * np.float32(1.5)}
        assert list(compare(run.applications, run.tensors, run.data, changed))


def test_a_changed_attribute_is_found() -> None:
    run, grads = with_gradients()
    place = next(i for i, application in enumerate(run.applications) if application.name == "dropout")
    changed = list(run.applications)
    changed[place] = replace(changed[place], attrs=changed[place].attrs | {"seed": 99})
    found = [each.application.id for each in compare(changed, run.tensors, run.data, grads)]
    assert changed[place].id in found


def test_ancestors_leave_out_what_the_start_does_not_need() -> None:
    run = Recorder()
    a, b = run.leaf(np.ones(3, np.float32), True), run.leaf(np.ones(3, np.float32), True)
    y = run.apply("gelu", a)
    run.apply("gelu", b)
    total = run.apply("sum", y)
    assert [each.output for each in ancestors(run.applications, total)] == [y, total]


def test_a_missing_tensor_names_op_and_row() -> None:
    run, _ = with_gradients()
    application = run.applications[5]
    del run.tensors[application.inputs[1]]
    with pytest.raises(UndefinedObject, match=rf"llm_tape row {application.id} \({application.name}\)"):
        check_complete(run.applications[5:6], run.tensors)


def test_a_start_without_gradient_is_an_error() -> None:
    run = Recorder()
    y = run.apply("gelu", run.leaf(np.ones(3, np.float32), False))
    with pytest.raises(InvalidParameter, match="requires a gradient"):
        Graph(run.applications, run.tensors, run.data).backward(y)


def test_gradcheck_agrees_and_finds_a_wrong_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = recorded()
    start = run.applications[-1].output
    checked = list(check_gradients(run.applications, run.tensors, run.data, start, epsilon=1e-5, most=2))
    assert len(checked) == 28
    assert all(each.max_error < 1e-6 * (1 + each.max_gradient) for each in checked)
    gelu = registry["gelu"]
    monkeypatch.setitem(registry, "gelu", replace(gelu, backward=lambda dy, y, x, **_: (dy * 2,)))
    checked = list(check_gradients(run.applications, run.tensors, run.data, start, epsilon=1e-5, most=2))
    assert any(each.max_error > 1e-6 * (1 + each.max_gradient) for each in checked)


def test_dot_has_a_box_an_op_and_an_edge_an_input() -> None:
    run, handles, _ = recorded()
    text = tape_dot.dot(7, run.applications, run.tensors, {handle: name for name, handle in handles.items()})
    assert text.startswith('digraph "tape 7" {')
    assert text.count("shape=box") == len(run.applications)
    assert text.count(" -> ") == sum(len(application.inputs) for application in run.applications)
    assert 'label="h.0.attn.c_attn.weight\\n16 × 48"' in text


def test_a_trace_is_the_forward_pass() -> None:
    _, _, params = recorded()
    steps = {step.name: step.data for step in tracing.trace(params, CONFIG, TOKENS[0].tolist())}
    expected = gpt2.logits(Eager(), params, TOKENS, CONFIG)[0]
    np.testing.assert_array_equal(steps["logits"], expected)
    layers = dict(tracing.logit_lens(params, CONFIG, TOKENS[0].tolist()))
    assert list(layers) == [0, 1, 2]
    np.testing.assert_allclose(layers[2], steps["probabilities"][-1], rtol=1e-5)


GOOD = {
    "layernorm": '{"eps": 1e-5}',
    "cross_entropy": '{"target": 3}',
    "embedding": '{"ids": [[1, 2], [3, 4]]}',
    "sum": '{"axis": null}',
    "dropout": '{"p": 0.5, "seed": -7}',
    "gelu": None,
}


@pytest.mark.parametrize("op", GOOD)
def test_attributes_are_read(op: str) -> None:
    assert attributes.parse(op, GOOD[op]) == json.loads(GOOD[op] or "{}")


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("layernorm", '{"eps": "1"}'),
        ("layernorm", '{"eps": -1}'),
        ("layernorm", '{"eps": true}'),
        ("layernorm", '{"epsilon": 1}'),
        ("layernorm", "[1]"),
        ("embedding", '{"ids": [[1], [2, 3]]}'),
        ("embedding", '{"ids": [1.5]}'),
        ("reshape", "{}"),
        ("reshape", '{"shape": 3}'),
        ("attention", '{"n_head": 0}'),
        ("concat", '{"axis": null, "x": 1}'),
        ("dropout", '{"p": 0.1, "seed": 9223372036854775808}'),
    ],
)
def test_wrong_attributes_name_the_op(op: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=f"^{op}: "):
        attributes.parse(op, text)


def test_attributes_come_back_from_json() -> None:
    attrs = {"eps": 1e-5, "ids": np.arange(3), "seed": np.int64(7), "axes": (1, 0)}
    assert json.loads(attributes.to_json(attrs)) == {"eps": 1e-5, "ids": [0, 1, 2], "seed": 7, "axes": [1, 0]}


SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (3, 2), (3, 9), (9,), (2, 3, 9)]
VALUES: dict[str, list] = {
    "eps": [1e-5],
    "factor": [2.0],
    "p": [0.5],
    "axes": [[0], [1, 0], [0, 0]],
    "ids": [0, [[0], [1]], [], [-1]],
    "shape": [[-1], [3, -1], [], [-1, -1], [0]],
    "target": [0, [0, 1], []],
    "axis": [None, 0, -1, 5],
    "n_head": [1, 2],
    "start": [0, -1],
    "stop": [1, 100],
}


@pytest.mark.parametrize("name", registry)
def test_whatever_an_op_is_given_it_works_or_says_why(name: str) -> None:
    """No shape or attribute that a user may give ends in an unexpected error; gradients have the shapes of the inputs."""
    op = registry[name]
    names = [key for key in inspect.signature(op.forward).parameters if key in VALUES]
    draws = np.random.default_rng(0).integers(0, len(SHAPES), (200, len(op.inputs)))
    for shapes in {tuple(SHAPES[i] for i in draw) for draw in draws}:
        arrays = [np.ones(shape, np.float32) for shape in shapes]
        for values in itertools.product(*(VALUES[key] for key in names)):
            try:
                attrs = attributes.parse(name, json.dumps(dict(zip(names, values, strict=True))))
                y = op(*arrays, **attrs)
                grads = gradients_of(op, np.ones(y.shape, np.float32), *arrays, **attrs) if y.size else ()
            except PgGpt2Error:
                continue
            assert y.dtype == np.float32
            assert all(grad is None or grad.shape == array.shape for grad, array in zip(grads, arrays, strict=False))
