"""How the weights of a model that only predicts lie in memory: as in the checkpoint, or linear layers in panels where that pays.

The choice follows from what this CPU and BLAS do with panels of the model's sizes, hence is the same in all sessions of a server.
Everything that asks for a tensor by name, a tape or a trace, gets it as the checkpoint has it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..config import GPT2Config
from ..ops import attend_blocks, panels
from ..ops.panels import Panels

Params = Mapping[str, np.ndarray]

use_panels: bool | None = None  # None: where they pay


def in_panels(config: GPT2Config) -> bool:
    """Whether linear layers of such a model lie in panels."""
    if use_panels is not None:
        return use_panels
    d = config.d_model
    return panels.serve((d, 4 * d)) and attend_blocks.serves(config.d_head)


def stored_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what is kept for each tensor."""
    shapes = config.param_shapes()
    if not in_panels(config):
        return shapes
    return {name: panels.stored_shape(shape) if _is_linear(name, shape) else shape for name, shape in shapes.items()}


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.startswith("h.")


class Arranged(dict[str, Any]):
    """Name -> array, or Panels for the weights of a linear layer. `prepared` is what decoding makes of them for its passes."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self.prepared: dict[int, Any] = {}


class Stored(Mapping[str, np.ndarray]):
    """What is kept for each tensor of `params`, made when it is asked for."""

    def __init__(self, params: Params, config: GPT2Config) -> None:
        self._params, self._shapes = params, stored_shapes(config)

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._params[name]
        return array if array.shape == self._shapes[name] else Panels.of(array).data

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Plain(Mapping[str, np.ndarray]):
    """Each tensor as the checkpoint has it; one from panels is a new copy at every call."""

    def __init__(self, arranged: Mapping[str, Any]) -> None:
        self._arranged = arranged

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._arranged[name]
        return found.plain() if isinstance(found, Panels) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._arranged)

    def __len__(self) -> int:
        return len(self._arranged)


def arranged(stored: Params, config: GPT2Config) -> Arranged:
    """The parameters for a `Decoder`, from what is kept for them."""
    shapes = config.param_shapes()
    return Arranged(
        {name: array if array.shape == shapes[name] else Panels(array, shapes[name]) for name, array in stored.items()}
    )


def arrange(params: dict[str, np.ndarray], config: GPT2Config) -> Arranged:
    """The parameters for a `Decoder`, from those of the checkpoint, which are taken out of `params` one by one."""
    stored = Stored(params, config)
    kept = {}
    for name in list(params):
        kept[name] = stored[name]
        kept[name].flags.writeable = False
        del params[name]
    return arranged(kept, config)
