"""How the weights of a model that only predicts lie in memory: as in the checkpoint, or matrices in panels where that pays.

The choice follows from what this CPU and BLAS do with panels of the model's sizes, hence is the same in all sessions of a server.
An adapter's weights are those of its base, the very same arrays, and its own beside them; what is kept in a file is the base's.
Everything that asks for a tensor by name, a tape or a trace, gets it as the checkpoint has it.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import host
from ..core.config import LM_HEAD, Adapter, GPT2Config
from . import attend_blocks, panels
from .panels import Panels, Table

Params = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

use_panels: bool | None = None  # None: where they pay


def in_panels(config: GPT2Config) -> bool:
    """Whether matrices of such a model lie in panels."""
    if use_panels is not None:
        return use_panels
    d = config.d_model
    return panels.are_usable((d, config.inner)) and attend_blocks.is_usable(config.d_head)


def stored_shapes(config: GPT2Config) -> Shapes:
    """Name -> shape of what is kept for each tensor; of an adapter, for those of its base."""
    return both_shapes(config)[0 if in_panels(config) else 1]


def both_shapes(config: GPT2Config) -> tuple[Shapes, Shapes]:
    """What `stored_shapes` would be with matrices in panels, and what without: which of the two is not tried out here."""
    shapes = base_config(config).param_shapes()
    laid = shapes.copy()
    for name, shape in shapes.items():
        if kind := _kind(name, shape, config.output_table):
            laid[name] = panels.stored_shape(shape if kind is Panels else shape[::-1])
    return laid, shapes


def base_config(config: GPT2Config) -> GPT2Config:
    """The configuration of an adapter's base; of another model, its own."""
    return replace(config, adapter=None)


def _kind(name: str, shape: tuple[int, ...], output_table: str) -> type[Panels] | None:
    """Of panels, for a tensor that may be in panels; a table of which rows are only picked may not."""
    if name == output_table:
        return Table
    return None if len(shape) != 2 or name in ("wte", "wpe") else Panels


class DecoderWeights(dict[str, Any]):
    """Name -> array, or Panels for a matrix. `prepared` is what decoding makes of them for its passes.

    `identity` says which weights these are: the same for those that are equal, of whatever object; None where nobody knows.
    With `exact`, all matrices lie in panels, hence a row's results have the same bits whatever rows share its pass.
    """

    def __init__(self, tensors: Mapping[str, Any], identity: Hashable = None) -> None:
        super().__init__(tensors)
        self.identity = identity
        table = LM_HEAD if LM_HEAD in tensors else "wte"
        self.exact = all(isinstance(w, Panels) for name, w in tensors.items() if _kind(name, w.shape, table))
        self.prepared: dict[tuple[int, Adapter | None], Any] = {}  # by number of rows, and form of an adapter

    def with_identity(self, identity: Hashable) -> "DecoderWeights":
        """The same weights under another identity."""
        return DecoderWeights(self, identity)._preparing_like(self)

    def with_adapter(self, own: Mapping[str, np.ndarray]) -> "DecoderWeights":
        """The weights of an adapter of this model, whose own tensors are `own`; its identity is nobody's yet.

        The other tensors are these very objects; so is what is prepared, which holds nothing of an adapter's own.
        """
        widths = {name: _width(name, array) for name, array in own.items()}
        if self.exact and (use_panels or all(panels.keep_rows_alone(len(own[name]), widths[name]) for name in own)):
            kept: dict[str, Any] = {name: Panels.of(array, widths[name]) for name, array in own.items()}
        else:
            kept = {name: _read_only(array) for name, array in own.items()}
        return DecoderWeights({**self, **kept})._preparing_like(self)

    def _preparing_like(self, other: "DecoderWeights") -> "DecoderWeights":
        self.prepared = other.prepared
        return self


def _width(name: str, array: np.ndarray) -> int:
    """Of the panels of an adapter's A [in, r] or B [r, out]."""
    return panels.narrow_width(array.shape[1]) if name.endswith("lora_A") else panels.WIDTH


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


class KeptTensors(Mapping[str, np.ndarray]):
    """What is kept for each tensor of `params`, made when it is asked for."""

    def __init__(self, params: Params, config: GPT2Config) -> None:
        self._params, self._shapes, self._table = params, stored_shapes(config), config.output_table

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._params[name]
        kind = _kind(name, array.shape, self._table)
        return array if kind is None or array.shape == self._shapes[name] else kind.of(array).data

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class CheckpointTensors(Mapping[str, np.ndarray]):
    """Each tensor as the checkpoint has it; one from panels is a new copy at every call, but the table, which is kept."""

    def __init__(self, arranged: Mapping[str, Any]) -> None:
        self._arranged = arranged
        self._tables: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._arranged[name]
        if isinstance(found, Table):
            if name not in self._tables:
                host.require_memory(found.nbytes, f'"{name}" outside its panels')
                self._tables[name] = found.plain()
            return self._tables[name]
        return found.plain() if isinstance(found, Panels) else found

    def __contains__(self, name: object) -> bool:
        return name in self._arranged

    def __iter__(self) -> Iterator[str]:
        return iter(self._arranged)

    def __len__(self) -> int:
        return len(self._arranged)


def plain(params: Mapping[str, Any]) -> Params:
    """The parameters as the checkpoint has them: those themselves, unless some are in panels."""
    return CheckpointTensors(params) if any(isinstance(w, Panels) for w in params.values()) else params


def decoder_weights(stored: Params, config: GPT2Config) -> DecoderWeights:
    """The parameters for a `Decoder`, from what is kept for them; of an adapter, its base's."""
    shapes = base_config(config).param_shapes()
    found: dict[str, Any] = dict(stored)
    for name, array in stored.items():
        kind = _kind(name, shapes[name], config.output_table)
        if kind is not None and array.shape != shapes[name]:
            found[name] = kind(array, shapes[name])
    return DecoderWeights(found)


def lay_out(params: dict[str, np.ndarray], config: GPT2Config) -> DecoderWeights:
    """The parameters for a `Decoder`, from those of the checkpoint, which are taken out of `params` one by one."""
    stored = KeptTensors(params, config)
    kept = {}
    for name in stored:
        kept[name] = stored[name]
        kept[name].flags.writeable = False
        del params[name]
    base = decoder_weights(kept, config)
    if config.adapter is None:
        return base
    return base.with_adapter({name: params.pop(name) for name in config.adapter_shapes()})
