"""What an op is said to take in memory is what it takes: measured, op by op."""

import tracemalloc

import numpy as np
import pytest
from pg_gpt2.autograd import room
from pg_gpt2.core.op import lookup, registry
from pg_gpt2.fast import buffers, threads
from pg_gpt2.fast.elementwise import contiguous

SLACK = 2 << 20  # bytes: whatever is small
CASES = {
    "add": ([(4096, 1), (1, 2048)], {}),
    "mul": ([(2048, 2048), (2048, 2048)], {}),
    "scale": ([(2048, 2048)], {"factor": 2.0}),
    "ones_like": ([(2048, 2048)], {}),
    "zeros_like": ([(2048, 2048)], {}),
    "gelu": ([(2048, 2048)], {}),
    "gelu_exact": ([(2048, 2048)], {}),
    "relu": ([(2048, 2048)], {}),
    "silu": ([(2048, 2048)], {}),
    "quick_gelu": ([(2048, 2048)], {}),
    "tanh": ([(2048, 2048)], {}),
    "softmax": ([(2, 1 << 21)], {}),
    "dropout": ([(2048, 2048)], {"p": 0.5, "seed": 1}),
    "matmul": ([(16, 128, 16), (16, 16, 2048)], {}),
    "addmm": ([(4096, 1024), (4096, 16), (16, 1024)], {}),
    "linear": ([(4096, 16), (16, 1024), (1024,)], {}),
    "lm_head": ([(2048, 16), (4096, 16)], {}),
    "mlp": ([(2048, 256), (256, 1024), (1024,), (1024, 256), (256,)], {}),
    "causal_attention": ([(2048, 1536)], {"n_head": 8}),
    "causal_attention, many": ([(8, 512, 1536)], {"n_head": 8}),
    "causal_attention, long": ([(4096, 96)], {"n_head": 8, "chunk": 4096}),
    "causal_attention, masked": ([(1024, 192)], {"n_head": 8, "p": 0.5, "seed": 1}),
    "attention": ([(2048, 256), (256, 768), (768,), (256, 256), (256,)], {"n_head": 8}),
    "embedding": ([(1000, 2048)], {"ids": [1] * 2048}),
    "cross_entropy": ([(4096, 1024)], {"target": [1] * 4096}),
    "cross_entropy, wide": ([(2, 1 << 21)], {"target": [1] * 2}),
    "lm_head_loss": ([(1024, 16), (8192, 16)], {"target": [1] * 1024}),
    "lm_head_loss, ignoring": ([(4096, 512), (512, 512)], {"target": [1, 1, 1, -100] * 1024}),
    "lm_head_loss, weighted": ([(1024, 16), (8192, 16)], {"target": [1] * 1024, "weight": [0.5] * 1024}),
    "lm_head_loss, wide": ([(2048, 16), (65536, 16)], {"target": [1] * 2048}),
    "layernorm": ([(2, 1 << 21), (1 << 21,), (1 << 21,)], {"eps": 1e-5}),
    "transpose": ([(2048, 2048)], {}),
    "reshape": ([(2048, 2048)], {"shape": [-1]}),
    "slice": ([(2048, 2048)], {"axis": 1, "start": 0, "stop": 1000}),
    "concat": ([(2048, 1024), (2048, 1024)], {"axis": 1}),
    "sum": ([(2048, 2048)], {"axis": 0}),
    "mean": ([(2048, 2048)], {"axis": 1}),
}


def test_every_op_is_measured():
    assert {case.partition(",")[0] for case in CASES} == set(registry)


@pytest.mark.parametrize("case", CASES)
def test_an_op_takes_no_more_than_is_asked_for(case):
    name, (shapes, attrs) = case.partition(",")[0], CASES[case]
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    threads.set_threads(2)
    buffers.forget()
    tracemalloc.start()
    try:
        result = contiguous(lookup(name)(*arrays, **attrs))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = room.result_bytes(name, shapes, attrs) + room.working_bytes(name, shapes, attrs)
    assert result.nbytes <= room.result_bytes(name, shapes, attrs) + SLACK
    assert peak <= 1.2 * said + SLACK, f"{peak >> 20} MB, {said >> 20} MB asked for"
    assert said <= 3 * max(peak, result.nbytes) + 4 * SLACK, f"{peak >> 20} MB, {said >> 20} MB asked for"
