"""Ops on bytes, the functions `pg_llm_*` of SQL: pure, with no table, no setting, nothing recorded.

A kernel reads float32 bytes into arrays of the shapes that its scalars say, calls `lookup(name)`, and gives bytes
back. The arithmetic is the ops'; here are only the shapes. The optimizer's kernels call `optim`, the sampler's
`sampling`.
"""

import struct
from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from . import host, limits
from .core.ops import CHUNK
from .errors import InvalidParameter, MalformedData, NullNotAllowed, OutOfMemory
from .fast.attention import GROUP, MOST_SCORES
from .fast.dropout import backward_from_output
from .fast.elementwise import copied
from .fast.ops import lookup
from .generation.processors import History
from .generation.sampling import Draws, Sampling, choose
from .op_checks import check_length, check_p
from .tensor import FLOAT32, from_bytes, to_bytes
from .training import optim

SENT = np.dtype([("length", ">i4"), ("value", ">f8")])  # an element of an array as array_send has it
FLOAT8 = 701  # the type's number in there


def require_dims(**dims: int) -> None:
    """Refuse (22023) a dimension below 1, by its name."""
    for name, value in dims.items():
        if value < 1:
            raise InvalidParameter(f"{name} must be 1 or more, not {value}", hint="It is a dimension of a tensor.")


def require_eps(eps: float) -> None:
    """Refuse (22023) an `eps` that is negative or not finite."""
    if not (isfinite(eps) and eps >= 0):
        raise InvalidParameter(f"eps must be a finite number of at least 0, not {eps}", hint="GPT-2 has 1e-5.")


def _vector(data: bytes, name: str) -> np.ndarray:
    """A tensor of at least one value, as a vector."""
    if not data:
        raise InvalidParameter(f"{name} is empty", hint="A tensor has at least one float32 value.")
    return from_bytes(data, name=name)


def _same_length(**tensors: np.ndarray) -> None:
    """Refuse (22023) tensors that have not as many values as the first."""
    (first, wanted), *others = tensors.items()
    for name, array in others:
        if array.size != wanted.size:
            raise InvalidParameter(
                f"{name} has {array.size} values, and {first} has {wanted.size}",
                hint=f"{name} and {first} must have the same length.",
            )


def tensor(sent: bytes | None, count: int) -> bytes:
    """An array of `count` numbers, in any number of dimensions, as array_send has it -> bytes; None where they are too many.

    PL/Python would make an object of each number first, in 70 bytes that nobody asked for.
    """
    if sent is None:
        raise InvalidParameter(
            f"the array has {count} elements; the most is {limits.MOST_NUMBERS}",
            hint="Make a tensor of each part: they are put together by ||.",
        )
    if count < 1:
        raise InvalidParameter("the array is empty", hint="A tensor has at least one value.")
    wide = _numbers(sent, count)
    with np.errstate(over="ignore"):
        narrow = wide.astype(FLOAT32)
    if (np.isinf(narrow) & np.isfinite(wide)).any():
        bad = wide[np.isinf(narrow) & np.isfinite(wide)][0]
        raise InvalidParameter(f"{bad} is out of range for a float32", hint="The largest is about 3.4e38.")
    return to_bytes(narrow)


def _numbers(sent: bytes, count: int) -> np.ndarray:
    """The elements of an array as array_send has it: three numbers, two for each dimension, then length and value of each."""
    dimensions, nulls, kind = struct.unpack(">3i", sent[:12].ljust(12, b"\0"))
    start = 12 + 8 * dimensions
    if kind != FLOAT8 or dimensions < 1 or not (nulls or len(sent) == start + count * SENT.itemsize):
        raise _no_array()
    if len(sent) != start + count * SENT.itemsize:
        raise NullNotAllowed("an element is null", hint="A tensor has no nulls; use coalesce or 'NaN'.")
    elements = np.frombuffer(sent, SENT, count, start)
    if (elements["length"] != elements["value"].itemsize).any():
        raise _no_array()
    return elements["value"].astype(np.float64)


def _no_array() -> MalformedData:
    return MalformedData(
        "these bytes are not an array of double precision", hint="Call pg_llm_tensor, which makes them."
    )


def values(data: bytes) -> list[float]:
    """Bytes -> numbers."""
    array = from_bytes(data)
    if array.size > limits.MOST_VALUES:
        raise InvalidParameter(
            f"the tensor has {array.size} values; the most is {limits.MOST_VALUES}",
            hint="Look at a part of it: pg_llm_values(substring(data FROM 1 FOR 4000)) shows the first 1,000.",
        )
    return array.tolist()


# --- forward and backward, in the order of the ops --------------------------------------------------------------------


def matmul(a: bytes, b: bytes, m: int, k: int, n: int) -> bytes:  # [m,k], [k,n] -> [m,n]
    """a @ b."""
    require_dims(m=m, k=k, n=n)
    if 4 * m * n > limits.MOST_BYTES:
        raise OutOfMemory(f"a result of {m} x {n} does not fit a value of 1 GB", hint="Multiply fewer rows at a time.")
    left, right = from_bytes(a, (m, k), name="a"), from_bytes(b, (k, n), name="b")
    host.require_room(left.nbytes + right.nbytes + 2 * 4 * m * n, "pg_llm_matmul")
    return to_bytes(lookup("matmul")(left, right))


def add(a: bytes, b: bytes) -> bytes:  # [m,n], [n] or [m,n] -> [m,n]
    """a + b; b may be one row."""
    left, right = _vector(a, "a"), _vector(b, "b")
    if left.size % right.size:
        raise InvalidParameter(
            f"b has {right.size} values, which do not repeat over the {left.size} of a",
            hint="b has the length of a, or of one row of it.",
        )
    return to_bytes(lookup("add")(left.reshape(-1, right.size), right))


def gelu(a: bytes) -> bytes:
    """gelu, tanh form."""
    return to_bytes(lookup("gelu")(_vector(a, "a")))


def gelu_backward(x: bytes, dy: bytes) -> bytes:
    """dx."""
    array, d = _vector(x, "x"), _vector(dy, "dy")
    _same_length(x=array, dy=d)
    return to_bytes(_backward("gelu", d, None, array)[0])


def softmax(a: bytes, n: int | None) -> bytes:  # [m,n] -> [m,n]
    """softmax of rows of n; None is one row."""
    return to_bytes(lookup("softmax")(_rows(a, n, "a")))


def softmax_backward(y: bytes, dy: bytes, n: int | None) -> bytes:  # [m,n], [m,n] -> [m,n]
    """y * (dy - sum(y * dy)) of each row of n; None is one row."""
    rows, d = _rows(y, n, "y"), _rows(dy, n, "dy")
    _same_length(y=rows, dy=d)
    return to_bytes(_backward("softmax", d, rows, rows)[0])


def layernorm(x: bytes, gamma: bytes, beta: bytes, eps: float) -> bytes:  # [m,n], [n], [n] -> [m,n]
    """layernorm of rows of gamma's length."""
    require_eps(eps)
    scale, shift = _vector(gamma, "gamma"), _vector(beta, "beta")
    _same_length(gamma=scale, beta=shift)
    return to_bytes(lookup("layernorm")(_rows(x, scale.size, "x"), scale, shift, eps=eps))


def layernorm_backward(x: bytes, dy: bytes, gamma: bytes, eps: float) -> tuple[bytes, ...]:
    """dx, dgamma, dbeta."""
    require_eps(eps)
    scale = _vector(gamma, "gamma")
    rows, d = _rows(x, scale.size, "x"), _rows(dy, scale.size, "dy")
    _same_length(x=rows, dy=d)
    return _bytes(_backward("layernorm", d, None, rows, scale, np.zeros_like(scale), eps=eps))


def cross_entropy(logits: bytes, target: int) -> float:  # [n] -> scalar
    """logsumexp - z[target]."""
    return float(lookup("cross_entropy")(_vector(logits, "logits"), target=target))


def cross_entropy_backward(logits: bytes, target: int) -> bytes:
    """softmax - onehot."""
    array = _vector(logits, "logits")
    return to_bytes(_backward("cross_entropy", np.ones((), FLOAT32), None, array, target=target)[0])


def dropout(data: bytes, p: float, training: bool, seed: int) -> bytes:
    """Inverted dropout when training, else the input."""
    check_p(p)
    array = _vector(data, "input")
    return to_bytes(lookup("dropout")(array, p=p, seed=seed)) if training else data


def dropout_backward(data: bytes, output: bytes, grad: bytes, p: float, training: bool) -> bytes:
    """dx, with the mask read off the output."""
    check_p(p)
    x, y, d = _vector(data, "input"), _vector(output, "output"), _vector(grad, "grad")
    _same_length(input=x, output=y, grad=d)
    return to_bytes(backward_from_output(d, y, x, p=p)) if training else grad


def ones_like(src: bytes) -> bytes:
    """Ones."""
    return to_bytes(lookup("ones_like")(from_bytes(src, name="src")))


def zeros_like(src: bytes) -> bytes:
    """Zeros."""
    return to_bytes(lookup("zeros_like")(from_bytes(src, name="src")))


def transpose(src: bytes, rows: int, cols: int) -> bytes:  # [rows,cols] -> [cols,rows]
    """The transpose."""
    require_dims(rows=rows, cols=cols)
    return to_bytes(lookup("transpose")(from_bytes(src, (rows, cols), name="src")))


def attention(
    x: bytes, w_qkv: bytes, b_qkv: bytes, w_o: bytes, b_o: bytes, n_head: int, t: int, d: int, chunk: int = CHUNK
) -> bytes:  # [T,D], [D,3D], [3D], [D,D], [D] -> [T,D]
    """Causal self-attention with its two projections."""
    arrays = _attention_arrays(x, w_qkv, b_qkv, w_o, b_o, n_head, t, d)
    host.require_room(attention_bytes(t, d, n_head, chunk), "pg_llm_attention")
    return to_bytes(lookup("attention")(*arrays, n_head=n_head, chunk=chunk))


def attention_backward(
    x: bytes,
    w_qkv: bytes,
    b_qkv: bytes,
    w_o: bytes,
    b_o: bytes,
    grad_output: bytes,
    n_head: int,
    t: int,
    d: int,
    chunk: int = CHUNK,
) -> tuple[bytes, ...]:
    """dx, dw_qkv, db_qkv, dw_o, db_o."""
    arrays = _attention_arrays(x, w_qkv, b_qkv, w_o, b_o, n_head, t, d)
    dy = from_bytes(grad_output, (t, d), name="grad_output")
    host.require_room(3 * attention_bytes(t, d, n_head, chunk), "pg_llm_attention_backward")
    return _bytes(_backward("attention", dy, None, *arrays, n_head=n_head, chunk=chunk))


def _attention_arrays(
    x: bytes, w_qkv: bytes, b_qkv: bytes, w_o: bytes, b_o: bytes, n_head: int, t: int, d: int
) -> tuple[np.ndarray, ...]:
    require_dims(n_head=n_head, t=t, d=d)
    check_length(t)
    if d % n_head:
        raise InvalidParameter(f"d {d} is not divisible by n_head {n_head}", hint="Each head is d / n_head wide.")
    shapes = {"x": (t, d), "w_qkv": (d, 3 * d), "b_qkv": (3 * d,), "w_o": (d, d), "b_o": (d,)}
    given = (x, w_qkv, b_qkv, w_o, b_o)
    return tuple(from_bytes(data, shape, name=name) for data, (name, shape) in zip(given, shapes.items(), strict=True))


def attention_bytes(t: int, d: int, n_head: int, chunk: int) -> int:
    """What attention takes: arguments, q, k and v and copies of them, results; norms; scores of a chunk on two threads."""
    scores = min(max(GROUP, min(t, chunk) * t), MOST_SCORES)
    return 4 * (5 * d * d + 16 * t * d + 2 * n_head * t + 2 * scores)


def mlp_backward(
    x: bytes, w_fc: bytes, b_fc: bytes, w_proj: bytes, b_proj: bytes, dy: bytes, t: int, d: int
) -> tuple[bytes, ...]:
    """dx, dw_fc, db_fc, dw_proj, db_proj of linear, gelu, linear with 4 D hidden units."""
    require_dims(t=t, d=d)
    f = 4 * d
    shapes = {"x": (t, d), "w_fc": (d, f), "b_fc": (f,), "w_proj": (f, d), "b_proj": (d,)}
    given = (x, w_fc, b_fc, w_proj, b_proj)
    arrays = [from_bytes(data, shape, name=name) for data, (name, shape) in zip(given, shapes.items(), strict=True)]
    d_result = from_bytes(dy, (t, d), name="dy")
    hidden, matrices = 22 * t * d, 5 * 8 * d * d  # numbers; of matrices each and its gradient
    host.require_room(4 * (hidden + matrices), "pg_llm_mlp_backward")
    return _bytes(_backward("mlp", d_result, None, *arrays))


# --- optimizer and sampler --------------------------------------------------------------------------------------------


def adamw_step(
    weight: bytes | None,
    grad: bytes | None,
    m: bytes | None,
    v: bytes | None,
    lr: float | None,
    beta1: float | None,
    beta2: float | None,
    eps: float | None,
    weight_decay: float | None,
    step: int | None,
) -> tuple[bytes, ...]:
    """weight, m and v after one step; missing moments are zeros."""
    hyper = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "step": step}
    for name, value in {"weight": weight, "grad": grad, **hyper}.items():
        if value is None:
            raise NullNotAllowed(f"{name} must not be null", hint="Only m and v may be null, for zeros.")
    optim.check_adamw(**hyper)  # type: ignore[arg-type]
    given = {"weight": _vector(weight, "weight"), "grad": _vector(grad, "grad")}  # type: ignore[arg-type]
    given |= {name: _vector(data, name) for name, data in (("m", m), ("v", v)) if data}
    _same_length(**given)
    size = given["weight"].size
    # Each result as an array, as bytes and as the server's.
    host.require_room(4 * size * (len(given) + 9), "pg_llm_adamw_step")
    state = {name: copied(given[name]) if name in given else np.zeros(size, FLOAT32) for name in ("weight", "m", "v")}

    optim.adamw(state["weight"], given["grad"], state["m"], state["v"], **hyper)
    return _bytes(tuple(state.values()))


def grad_clip(grad: bytes, clip: float) -> bytes:
    """The gradient, scaled so that its L2 norm is at most `clip`."""
    array = _vector(grad, "grad")
    if not (isfinite(clip) and clip > 0):
        raise InvalidParameter(f"clip must be a finite number above 0, not {clip}", hint="1.0 is a usual one.")
    scale = optim.clip_scale(optim.global_norm([array]), clip)
    return grad if scale == 1.0 else to_bytes(lookup("scale")(array, factor=scale))


def lr_schedule(step: int, warmup: int, total: int, lr_max: float) -> float:
    """Linear warm-up, then half a cosine."""
    for name, value in (("step", step), ("warmup", warmup), ("total", total), ("lr_max", lr_max)):
        if not (isfinite(value) and value >= 0):
            raise InvalidParameter(
                f"{name} must be a finite number of at least 0, not {value}", hint="Steps count from 0 to total."
            )
    return optim.lr_schedule(step, warmup, total, lr_max)


def sample(logits: bytes, how: Sampling, seed: int) -> int:
    """Id of a token."""
    array = _vector(logits, "logits")
    if array.size > limits.MOST_CHOICES:
        raise InvalidParameter(
            f"{array.size} logits; the most is {limits.MOST_CHOICES}", hint="Give the logits of one token."
        )
    if not np.isfinite(array.max()):
        raise InvalidParameter(
            "logits have NaN, or a largest value that is not finite",
            hint="Give finite numbers; -infinity excludes a token.",
        )
    return choose(array, how, Draws(seed).next(), History())


# --- shared -----------------------------------------------------------------------------------------------------------


def _rows(data: bytes, n: int | None, name: str) -> np.ndarray:
    """[m, n]; one row when n is None."""
    flat = _vector(data, name)
    if n is None:
        return flat.reshape(1, -1)
    require_dims(n=n)
    if flat.size % n:
        raise InvalidParameter(
            f"{name} has {flat.size} values, which are not rows of {n}", hint=f"Its length must be a multiple of {n}."
        )
    return flat.reshape(-1, n)


def _backward(name: str, dy: np.ndarray, y: np.ndarray | None, *arrays: np.ndarray, **attrs: Any) -> Sequence[Any]:
    """Gradients by the inputs, from the op's backward pass."""
    op = lookup(name)
    if op.check is not None and y is None:
        op.check(*arrays, **attrs)
    return op.gradients(dy, y, *arrays, **attrs)


def _bytes(arrays: Sequence[np.ndarray]) -> tuple[bytes, ...]:
    return tuple(map(to_bytes, arrays))
