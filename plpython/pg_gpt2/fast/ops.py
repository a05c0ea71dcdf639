"""Importing this enters the ops, what each of them asks of its inputs, and their faster forms."""

from .. import op_checks
from ..core.op import lookup, registry, use_fast
from . import activations, attention, dropout, elementwise, embedding, linear, losses, norm, shapes

__all__ = [
    "activations",
    "attention",
    "dropout",
    "elementwise",
    "embedding",
    "linear",
    "lookup",
    "losses",
    "norm",
    "op_checks",
    "registry",
    "shapes",
    "use_fast",
]
