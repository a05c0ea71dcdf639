"""A pass over a few rows, prepared: the model's ops are bound to weights and buffers once, and a token costs only their calls.

A `PreparedPass` is a Runner, so what it prepares is what gpt2.blocks says, and its kernels are those of the ops: the same bits.
What an adapter has of its own is looked up in every pass: one plan serves all adapters of a base that have the same form.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import host
from ..core import gpt2
from ..core.config import GPT2Config
from ..tensor import FLOAT32
from . import panels, threads
from .activations import INTO, Into
from .layout import DecoderWeights
from .norm import normalize
from .panels import Panels, Table
from .products import product, product_tasks

MOST_ROWS = 64  # more cost so much that preparing them is no gain
MOST_PREPARED = 256  # rows of all plans of a model and its adapters: no budget counts their buffers; a plan costs 2 ms

# (layer, qkv [m, 3D], out [m, D], factor of scores)
Attend = Callable[[int, np.ndarray, np.ndarray, float | None], None]


class Rows:
    """A value of the pass: `data` [m, n], in a buffer that may have a row and columns more, as panels want it."""

    def __init__(self, buffer: np.ndarray, data: np.ndarray) -> None:
        self.buffer, self.data = buffer, data


class _Product(NamedTuple):
    """A linear layer in panels, to be bound when the next one is known."""

    x: np.ndarray
    w: Panels
    y: np.ndarray
    b: np.ndarray


class _Own(NamedTuple):
    """In the place of a tensor of an adapter: that of its name, which another adapter has as well, `like` this one."""

    name: str
    like: Panels | np.ndarray


class PreparedPass:
    """The blocks of a model and ln_f, for passes over m rows."""

    def __init__(self, params: DecoderWeights, config: GPT2Config, m: int) -> None:
        self._m = m
        self._calls: list[Any] = []  # calls, and while the plan is made products
        self._buffers: list[tuple[np.ndarray, weakref.ref[Rows]]] = []
        self._given = _Given()
        x = self._new(config.d_model)
        self._x = x.data
        known = {**params, **{name: _Own(name, params[name]) for name in config.adapter_shapes()}}
        self._y = gpt2.blocks(self, known, x, config, gpt2.Pass(attend=self._bind_attention)).data
        self._bind_products(gpt2.output_table(params))

    def __call__(self, params: DecoderWeights, x: np.ndarray, attend: Attend) -> np.ndarray:  # [m, D] -> [m, D]
        """The stream after ln_f, valid until the next pass; `attend` supplies attention over the positions so far."""
        self._x[...] = x
        self._given.params, self._given.attend = params, attend
        try:
            for call in self._calls:
                call()
        finally:
            del self._given.params, self._given.attend
        return self._y

    def leaf(self, data: np.ndarray, requires_grad: bool = False) -> np.ndarray:
        """The data themselves: what a plan is made of is not recorded."""
        return data

    def apply(self, name: str, *inputs: Rows, **attrs: float) -> Rows:
        """Prepare an op; the result is there once the pass has come to it."""
        if name in INTO:
            return self._activation(INTO[name], *inputs)
        return getattr(self, f"_{name}")(*inputs, **attrs)

    def _layernorm(self, x: Rows, gamma: np.ndarray, beta: np.ndarray, *, eps: float) -> Rows:
        y = self._new(x.data.shape[1])
        stats = np.empty((2, self._m, 1), FLOAT32)
        self._calls.append(partial(normalize, x.data, gamma, beta, y.data, stats, eps))
        return y

    def _linear(self, x: Rows, w: np.ndarray | Panels, b: np.ndarray) -> Rows:
        y = self._new(w.shape[1])
        if isinstance(w, Panels):
            self._calls.append(_Product(x.buffer[:, : w.shape[0]], w, y.buffer, b))
        else:
            self._calls.append(threads.prepared(product_tasks(x.data, w, y.data, bias=b)))
        return y

    def _matmul(self, x: Rows, a: _Own) -> Rows:
        y = self._new(a.like.shape[1])
        if isinstance(a.like, Panels):
            self._multiply_in_panels(x, a.name, a.like, y)
        else:
            self._calls.append(partial(self._given.multiply, partial(product, x.data, out=y.data), a.name))
        return y

    def _addmm(self, c: Rows, a: Rows, b: _Own, *, factor: float) -> Rows:
        scaled, y = self._new(a.data.shape[1]), self._new(c.data.shape[1])
        self._calls.append(partial(np.multiply, a.data, FLOAT32.type(factor), out=scaled.data))
        if isinstance(b.like, Panels):
            self._multiply_in_panels(scaled, b.name, b.like, y)
            self._calls.append(partial(np.add, y.data, c.data, out=y.data))
        else:
            self._calls.append(partial(np.copyto, y.data, c.data))
            self._calls.append(
                partial(self._given.multiply, partial(product, scaled.data, out=y.data, accumulate=True), b.name)
            )
        return y

    def _multiply_in_panels(self, x: Rows, name: str, like: Panels, y: Rows) -> None:
        times = panels.bind_late(x.buffer[:, : like.shape[0]], y.buffer[:, : like.width], like)
        self._calls.append(partial(self._given.multiply, times, name))

    def _bind_products(self, head: np.ndarray | Table) -> None:
        """Bind the products with panels, now that each can be told the weights that follow; lm_head's come last."""
        following = head.T if isinstance(head, Table) else None
        for place in reversed(range(len(self._calls))):
            call = self._calls[place]
            if isinstance(call, _Product):
                self._calls[place] = panels.bind(*call, following)
                following = call.w

    def _activation(self, into: Into, x: Rows) -> Rows:
        y = self._new(x.data.shape[1])
        self._calls.append(partial(into, x.data, y.data))
        return y

    def _add(self, a: Rows, b: Rows) -> Rows:
        y = self._new(a.data.shape[1])
        self._calls.append(partial(np.add, a.data, b.data, out=y.data))
        return y

    def _bind_attention(self, layer: int, qkv: Rows, factor: float | None) -> Rows:
        y = self._new(qkv.data.shape[1] // 3)
        self._calls.append(partial(self._given.attention, layer, qkv.data, y.data, factor))
        return y

    def _new(self, n: int) -> Rows:
        """A value of n columns, in a buffer of this size whose last value is gone, else in a new one."""
        width = -(-n // panels.WIDTH) * panels.WIDTH
        free = (i for i, (buffer, owner) in enumerate(self._buffers) if buffer.shape[1] == width and owner() is None)
        place = next(free, None)
        if place is not None:
            buffer = self._buffers.pop(place)[0]
        else:
            buffer = np.zeros((panels.room(self._m), width), FLOAT32)
        value = Rows(buffer, buffer[: self._m, :n])
        self._buffers.append((buffer, weakref.ref(value)))
        return value


class _Given:
    """What a pass is given for attention, and of an adapter; apart from the plan, which would otherwise hold itself, and the
    weights, in memory."""

    params: DecoderWeights  # there during a pass
    attend: Attend

    def attention(self, layer: int, qkv: np.ndarray, out: np.ndarray, factor: float | None) -> None:
        """Attention of a layer."""
        host.check_interrupts()
        self.attend(layer, qkv, out, factor)

    def multiply(self, times: Callable[[Any], object], name: str) -> None:
        """A product with a tensor of the adapter."""
        times(self.params[name])


def prepared_pass(params: DecoderWeights, config: GPT2Config, m: int) -> PreparedPass:
    """The model's plan for m rows; it stays with the weights, those of a base where this is an adapter."""
    found = params.prepared.get((m, config.adapter))
    if found is None:
        if sum(rows for rows, _ in params.prepared) + m > MOST_PREPARED:
            params.prepared.clear()
        found = params.prepared[m, config.adapter] = PreparedPass(params, config, m)
    return found
