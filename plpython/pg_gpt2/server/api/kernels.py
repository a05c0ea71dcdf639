"""`pg_llm_*`: `bytea_ops` behind SQL, with seeds and settings resolved."""

import functools
from collections.abc import Callable
from typing import Any

from ... import bytea_ops, host
from ...errors import require
from ...generation.sampling import Sampling
from .. import resources
from ..entry import entry
from ..prompts import draw_seed

# Bytes: below it no kernel uses a second core, and asking for the setting would cost more than the work.
SMALL = 1 << 18
# Bytes for each that was given: the arguments' own, and a result as an array and as bytes, which the server copies.
MADE = 3


def kernel(function: Callable[..., Any], made: int = MADE) -> Callable[..., Any]:
    """Make a kernel callable from SQL. A large one uses the cores of pg_gpt2.threads, and asks for `made` times what it is given,
    unless it asks by itself (0)."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        given = sum(len(value) for value in args if type(value) is bytes)
        if given >= SMALL:
            resources.apply_settings()
            host.require_room(made * given, f"pg_llm_{function.__name__}")
        return function(*args)

    return entry(run)


values = kernel(bytea_ops.values, made=16)
matmul = kernel(bytea_ops.matmul, made=0)
add = kernel(bytea_ops.add)
gelu = kernel(bytea_ops.gelu)
gelu_backward = kernel(bytea_ops.gelu_backward)
layernorm = kernel(bytea_ops.layernorm)
layernorm_backward = kernel(bytea_ops.layernorm_backward, made=4)
cross_entropy = kernel(bytea_ops.cross_entropy)
cross_entropy_backward = kernel(bytea_ops.cross_entropy_backward)
dropout_backward = kernel(bytea_ops.dropout_backward)
ones_like = kernel(bytea_ops.ones_like)
zeros_like = kernel(bytea_ops.zeros_like)
transpose = kernel(bytea_ops.transpose)
mlp_backward = kernel(bytea_ops.mlp_backward, made=0)
adamw_step = kernel(bytea_ops.adamw_step, made=0)
grad_clip = kernel(bytea_ops.grad_clip)
lr_schedule = kernel(bytea_ops.lr_schedule)


@kernel
def tensor_received(sent: bytes | None, elements: int | None) -> bytes | None:
    """A tensor of the numbers of an array; null for null."""
    return None if elements is None else bytea_ops.tensor(sent, elements)


@kernel
def softmax(a: bytes | None, n: int | None) -> bytes | None:
    """softmax of rows; null for null."""
    return None if a is None else bytea_ops.softmax(a, n)


@kernel
def softmax_backward(y: bytes | None, dy: bytes | None, n: int | None) -> bytes | None:
    """dx of rows; null for null."""
    return None if y is None or dy is None else bytea_ops.softmax_backward(y, dy, n)


@kernel
def dropout(data: bytes | None, p: float, training: bool, seed: int | None) -> bytes | None:
    """Inverted dropout; without a seed, one is drawn."""
    if data is None:
        return None
    require(p=p, training=training)
    return bytea_ops.dropout(data, p, training, draw_seed() if training and seed is None else seed or 0)


@kernel
def attention(x: bytes, w_qkv: bytes, b_qkv: bytes, w_o: bytes, b_o: bytes, n_head: int, t: int, d: int) -> bytes:
    """Causal self-attention, in chunks of pg_gpt2.attention_chunk rows."""
    return bytea_ops.attention(x, w_qkv, b_qkv, w_o, b_o, n_head, t, d, resources.attention_chunk())


@kernel
def attention_backward(
    x: bytes, w_qkv: bytes, b_qkv: bytes, w_o: bytes, b_o: bytes, dy: bytes, n_head: int, t: int, d: int
) -> tuple[bytes, ...]:
    """Gradients of `attention` by its five tensors."""
    return bytea_ops.attention_backward(x, w_qkv, b_qkv, w_o, b_o, dy, n_head, t, d, resources.attention_chunk())


@kernel
def sample(logits: bytes | None, temperature: float, topk: int, topp: float, seed: int | None) -> int | None:
    """Id of a token; without a seed, one is drawn."""
    if logits is None:
        return None
    return bytea_ops.sample(logits, Sampling(temperature, topk, topp), draw_seed() if seed is None else seed)
