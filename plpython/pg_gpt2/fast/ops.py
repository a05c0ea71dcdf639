"""The ops, in one registry: `registry[name]` is an `Op`; calling it is the forward pass, `grads` the backward pass.

Importing this package enters them all. Rules for writing one are in `op`.
"""

from ..core.op import Op, Sink, lookup, registry
from . import activations, attention, dropout, elementwise, embedding, linear, losses, norm, shapes
from .attend import CHUNK, attend

__all__ = [
    "CHUNK",
    "Op",
    "Sink",
    "activations",
    "attend",
    "attention",
    "dropout",
    "elementwise",
    "embedding",
    "linear",
    "lookup",
    "losses",
    "norm",
    "registry",
    "shapes",
]
