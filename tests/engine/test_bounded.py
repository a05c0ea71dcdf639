"""Every kernel, given the worst that its domain admits, looks for an interrupt often."""

import contextlib
import time
from collections.abc import Callable

import numpy as np
import pytest
from pg_gpt2 import bytea_ops, host, limits
from pg_gpt2.fast.ops import lookup
from pg_gpt2.generation.sampling import Sampling

from tests.engine.arithmetic import gradients_of

LONGEST = 0.5  # seconds of processor time, of both threads: a cancel takes effect within as much
ENOUGH = 3.0  # seconds, after which an interrupt comes
M = 1 << 20


class Interrupt(Exception):
    """As the server raises it."""


def zeros(*shape: int) -> bytes:
    return bytes(4 * int(np.prod(shape)))


def adamw(n: int, given: bool) -> object:
    moment = zeros(n) if given else None
    return bytea_ops.adamw_step(zeros(n), zeros(n), moment, moment, 1e-3, 0.9, 0.99, 1e-8, 0.1, 1)


def attention(n_head: int, t: int, d: int, chunk: int = 64) -> object:
    arguments = zeros(t, d), zeros(d, 3 * d), zeros(3 * d), zeros(d, d), zeros(d)
    return bytea_ops.attention(*arguments, n_head, t, d, chunk)


def attention_backward(n_head: int, t: int, d: int, chunk: int = 64) -> object:
    arguments = zeros(t, d), zeros(d, 3 * d), zeros(3 * d), zeros(d, d), zeros(d), zeros(t, d)
    return bytea_ops.attention_backward(*arguments, n_head, t, d, chunk)


def mlp_backward(t: int, d: int) -> object:
    arguments = zeros(t, d), zeros(d, 4 * d), zeros(4 * d), zeros(4 * d, d), zeros(d), zeros(t, d)
    return bytea_ops.mlp_backward(*arguments, t, d)


def op(name: str, *shapes: tuple[int, ...], **attrs: object) -> object:
    arrays = [np.zeros(shape, np.float32) for shape in shapes]
    y = lookup(name)(*arrays, **attrs)
    return gradients_of(lookup(name), np.broadcast_to(np.float32(1), y.shape), *arrays, **attrs)


# Small numbers of large things, large numbers of small things, and what is long in one dimension only.
WORST: dict[str, Callable[[], object]] = {
    "tensor": lambda: bytea_ops.tensor(sent(limits.MOST_NUMBERS), limits.MOST_NUMBERS),
    "values": lambda: bytea_ops.values(zeros(limits.MOST_VALUES)),
    "matmul, a long result": lambda: bytea_ops.matmul(zeros(4000), zeros(4000), 4000, 1, 4000),
    "matmul, a column": lambda: bytea_ops.matmul(zeros(16 * M), zeros(1), 16 * M, 1, 1),
    "matmul, two columns": lambda: bytea_ops.matmul(zeros(8 * M), zeros(2), 8 * M, 1, 2),
    "matmul, one row": lambda: bytea_ops.matmul(zeros(2), zeros(16 * M), 1, 2, 8 * M),
    "matmul, deep": lambda: bytea_ops.matmul(zeros(16 * M), zeros(16 * M), 1, 16 * M, 1),
    "matmul, deep and narrow": lambda: bytea_ops.matmul(zeros(16 * M), zeros(16 * M), 16, M, 16),
    "matmul, square": lambda: bytea_ops.matmul(zeros(3000, 3000), zeros(3000, 3000), 3000, 3000, 3000),
    "add": lambda: bytea_ops.add(zeros(16 * M), zeros(16 * M)),
    "add, one value": lambda: bytea_ops.add(zeros(16 * M), zeros(1)),
    "add, two values": lambda: bytea_ops.add(zeros(16 * M), zeros(2)),
    "add, long rows": lambda: bytea_ops.add(zeros(16 * M), zeros(8 * M)),
    "gelu": lambda: bytea_ops.gelu(zeros(16 * M)),
    "gelu_backward": lambda: bytea_ops.gelu_backward(zeros(16 * M), zeros(16 * M)),
    "softmax, one row": lambda: bytea_ops.softmax(zeros(limits.MOST_ROW), None),
    "softmax, rows of 1": lambda: bytea_ops.softmax(zeros(8 * M), 1),
    "softmax, rows of 2": lambda: bytea_ops.softmax(zeros(8 * M), 2),
    "softmax_backward, one row": lambda: bytea_ops.softmax_backward(zeros(16 * M), zeros(16 * M), None),
    "softmax_backward, rows of 1": lambda: bytea_ops.softmax_backward(zeros(8 * M), zeros(8 * M), 1),
    "layernorm, one row": lambda: bytea_ops.layernorm(*[zeros(limits.MOST_ROW)] * 3, 1e-5),
    "layernorm, rows of 1": lambda: bytea_ops.layernorm(zeros(8 * M), zeros(1), zeros(1), 1e-5),
    "layernorm_backward, one row": lambda: bytea_ops.layernorm_backward(*[zeros(limits.MOST_ROW)] * 3, 1e-5),
    "layernorm_backward, rows of 1": lambda: bytea_ops.layernorm_backward(zeros(8 * M), zeros(8 * M), zeros(1), 1e-5),
    "cross_entropy": lambda: bytea_ops.cross_entropy(zeros(limits.MOST_ROW), 1),
    "cross_entropy_backward": lambda: bytea_ops.cross_entropy_backward(zeros(limits.MOST_ROW), 1),
    "dropout": lambda: bytea_ops.dropout(zeros(16 * M), 0.5, True, 1),
    "dropout_backward": lambda: bytea_ops.dropout_backward(*[zeros(16 * M)] * 3, 0.5, True),
    "ones_like": lambda: bytea_ops.ones_like(zeros(32 * M)),
    "zeros_like": lambda: bytea_ops.zeros_like(zeros(32 * M)),
    "transpose, tall": lambda: bytea_ops.transpose(zeros(16 * M), 8 * M, 2),
    "transpose, wide": lambda: bytea_ops.transpose(zeros(16 * M), 2, 8 * M),
    "transpose, square": lambda: bytea_ops.transpose(zeros(16 * M), 4096, 4096),
    "attention, long": lambda: attention(1, 20_000, 1),
    "attention, long, in large chunks": lambda: attention(1, 20_000, 1, 4096),
    "attention, as many heads as values": lambda: attention(512, 1500, 512),
    "attention, wide": lambda: attention(1, 8000, 768),
    "attention, short and wide": lambda: attention(1, 1, 2000),
    "attention_backward, long": lambda: attention_backward(1, 10_000, 1),
    "attention_backward, long, in large chunks": lambda: attention_backward(1, 10_000, 1, 4096),
    "attention_backward, as many heads as values": lambda: attention_backward(512, 1000, 512),
    "mlp_backward, long": lambda: mlp_backward(M, 1),
    "mlp_backward, wide": lambda: mlp_backward(1, 1500),
    "adamw_step": lambda: adamw(16 * M, True),
    "adamw_step, new": lambda: adamw(16 * M, False),
    "grad_clip": lambda: bytea_ops.grad_clip(np.ones(16 * M, np.float32).tobytes(), 1.0),
    "sample": lambda: bytea_ops.sample(zeros(limits.MOST_CHOICES), Sampling(1.0, 0, 0.95), 1),
    "op matmul, many small": lambda: op("matmul", (M, 2, 2), (M, 2, 2)),
    "op matmul, a few large": lambda: op("matmul", (2, 2000, 2000), (2, 2000, 2000)),
    "op add, broadcast": lambda: op("add", (4000, 1), (1, 4000)),
    "op mul, broadcast": lambda: op("mul", (4 * M, 1), (4,)),
    "op sum, down": lambda: op("sum", (8 * M, 2), axis=0),
    "op sum, across": lambda: op("sum", (8 * M, 2), axis=1),
    "op mean": lambda: op("mean", (16 * M,)),
    "op concat": lambda: op("concat", (8 * M, 1), (8 * M, 1), axis=1),
    "op slice": lambda: op("slice", (16 * M,), axis=0, start=1, stop=16 * M),
    "op transpose": lambda: op("transpose", (4096, 4096)),
    "op embedding": lambda: op("embedding", (8, 512), ids=[1] * 30_000),
    "op cross_entropy": lambda: op("cross_entropy", (20_000, 512), target=[1] * 20_000),
    "op causal_attention": lambda: op("causal_attention", (10_000, 3), n_head=1),
    "op causal_attention, dropped": lambda: op("causal_attention", (5000, 3), n_head=1, p=0.5),
    "op attention": lambda: op("attention", (10_000, 1), (1, 3), (3,), (1, 1), (1,), n_head=1),
    "op mlp": lambda: op("mlp", (M, 1), (1, 4), (4,), (4, 1), (1,)),
    "op lm_head": lambda: op("lm_head", (2000, 8), (8000, 8)),
    "op lm_head_loss": lambda: op("lm_head_loss", (2000, 8), (8000, 8), target=[1] * 2000),
    "op linear": lambda: op("linear", (4 * M, 1), (1, 4), (4,)),
    "op scale": lambda: op("scale", (16 * M,), factor=2.0),
    "op reshape": lambda: op("reshape", (16 * M,), shape=[2, -1]),
    "op softmax": lambda: op("softmax", (4 * M, 2)),
    "op layernorm": lambda: op("layernorm", (4 * M, 2), (2,), (2,)),
    "op gelu": lambda: op("gelu", (16 * M,)),
    "op gelu_exact": lambda: op("gelu_exact", (16 * M,)),
    "op relu": lambda: op("relu", (16 * M,)),
    "op silu": lambda: op("silu", (16 * M,)),
    "op quick_gelu": lambda: op("quick_gelu", (16 * M,)),
    "op tanh": lambda: op("tanh", (16 * M,)),
    "op dropout": lambda: op("dropout", (16 * M,), p=0.5),
    "op ones_like": lambda: op("ones_like", (32 * M,)),
    "op zeros_like": lambda: op("zeros_like", (32 * M,)),
}


def sent(count: int) -> bytes:
    """An array of so many zeros as array_send has it."""
    elements = np.zeros(count, bytea_ops.SENT)
    elements["length"] = 8
    return np.array([1, 0, bytea_ops.FLOAT8, count, 1], ">i4").tobytes() + elements.tobytes()


@pytest.mark.parametrize("work", WORST.values(), ids=WORST)
def test_no_kernel_works_long_without_a_look_for_an_interrupt(work, monkeypatch):
    looks = [time.process_time()]

    def look() -> None:
        looks.append(time.process_time())
        if looks[-1] - looks[0] > ENOUGH:
            raise Interrupt

    monkeypatch.setattr(host, "check_interrupts", look)
    with contextlib.suppress(Interrupt):
        work()
    looks.append(time.process_time())
    longest = float(np.diff(looks).max())
    assert longest < LONGEST, f"{longest:.2f} s, of {looks[-1] - looks[0]:.2f} s in {len(looks)} pieces"
