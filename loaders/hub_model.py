"""A GPT-2 in files, whatever its kind (loaders/weights): our names, in rows, checked against its configuration.

What differs between those who write such files is made equal here: prefixes of names, linear weights as (out, in), a tied output
layer that is there alone or twice, biases that a model does not have. What a file does not say about an architecture is told.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from pg_gpt2.core.config import ARCHITECTURE, LINEAR_LAYERS, LM_HEAD, GPT2Config, in_words
from pg_gpt2.errors import PgGpt2Error
from pg_gpt2.formats.checkpoint import canonical_name, is_bias_free, is_turned
from pg_gpt2.formats.hub_config import config_of, fields_of

from loaders import weights
from loaders.common import LoaderError
from loaders.weights.tensors import DTYPES, Tensor, Transposed, Weights, Zeros

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT
PART_BYTES = 4 << 20  # of a tensor that is read part by part


@dataclass(frozen=True)
class Config:
    """The columns of llm_model_config."""

    n_layer: int
    n_head: int
    d_model: int
    n_positions: int
    vocab: int
    eos_token_id: int | None
    stop_token_ids: tuple[int, ...] | None = None
    activation_function: str = ARCHITECTURE["activation_function"]
    n_inner: int | None = ARCHITECTURE["n_inner"]
    layer_norm_epsilon: float = ARCHITECTURE["layer_norm_epsilon"]
    scale_attn_weights: bool = ARCHITECTURE["scale_attn_weights"]
    scale_attn_by_inverse_layer_idx: bool = ARCHITECTURE["scale_attn_by_inverse_layer_idx"]
    reorder_and_upcast_attn: bool = ARCHITECTURE["reorder_and_upcast_attn"]
    tie_word_embeddings: bool = ARCHITECTURE["tie_word_embeddings"]

    @classmethod
    def from_hub(
        cls, said: dict[str, Any], generation: dict[str, Any] | None = None, *, source: str = "config.json"
    ) -> "Config":
        """From config.json and, if any, generation_config.json; LoaderError when pg_gpt2 does not compute such a model. `source`
        is for the error."""
        try:
            found = config_of(said, source, generation)
        except PgGpt2Error as error:
            raise LoaderError(f"{error.message}. {error.hint}") from None
        return cls(*(getattr(found, field.name) for field in fields(cls)))

    def to_hub(self) -> dict[str, Any]:
        """The fields of config.json, as transformers has them."""
        return fields_of(self.engine())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return self.engine().param_shapes()

    def engine(self) -> GPT2Config:
        """The same as the engine has it."""
        return GPT2Config(**asdict(self))

    def n_bytes(self) -> int:
        """Bytes of all weights in float32."""
        return sum(4 * prod(shape) for shape in self.shapes().values())


LINEAR_WEIGHTS = tuple(f"{layer}.weight" for layer in LINEAR_LAYERS)


class HubModel:
    """Configuration and tensors of a model in a file or directory. `activation` is for files that do not say theirs.

    `notes` says what is not as GPT-2's files have it.
    """

    def __init__(self, source: Path, activation: str | None = None) -> None:
        self.directory = source if source.is_dir() else source.parent
        self._refuse_adapter(source)
        found = weights.read(source)
        self.vocabulary = found.vocabulary
        self.config, self._assumed = _configuration(found, activation), found.assumed
        self.notes: list[str] = []
        if activation is None and "activation_function" in found.assumed:
            taken = f"taken for {self.config.activation_function}"
            self.notes.append(f"it does not say its activation function: {taken}, else --activation-function names it")
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in found.tensors:
            ours = canonical_name(name)
            if ours in self.tensors:
                raise LoaderError(f"tensor {ours} is in {source} twice, the second time as {name}")
            if ours is not None:
                if tensor.dtype not in DTYPES:
                    raise LoaderError(f"tensor {name} has dtype {tensor.dtype}; F32, F16 and BF16 can be read")
                self.tensors[ours] = tensor
        self._theirs = [name for name, _ in found.tensors]
        self._complete()
        self._check()
        if differences := self.config.engine().differences():
            self.notes.append(f"not as in GPT-2: {in_words(differences)}")

    def _refuse_adapter(self, source: Path) -> None:
        if not (source.is_dir() or source.name == ADAPTER_WEIGHTS):
            return
        if (self.directory / ADAPTER_CONFIG).exists() and not (self.directory / "config.json").exists():
            raise LoaderError(f"{self.directory} has an adapter: load-adapter loads it")

    def _complete(self) -> None:
        """Make of the file's tensors those of a GPT-2, where it is known how."""
        head = self.tensors.get(LM_HEAD)
        if head is not None and "wte" not in self.tensors and self.config.tie_word_embeddings:
            self.tensors["wte"] = self.tensors.pop(LM_HEAD)
        elif head is not None and "tie_word_embeddings" in self._assumed and not self._equals_wte(head):
            self.config = replace(self.config, tie_word_embeddings=False)
        shapes = self.config.shapes()
        missing = [name for name in shapes if name not in self.tensors]
        if is_bias_free(missing, self.tensors):
            self.notes.append("it has no biases: zeros stand for them")
            self.tensors |= {name: Zeros(shapes[name]) for name in missing}
        self._transpose(shapes)

    def _transpose(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Turn linear weights that are (out, in); LoaderError when some are and some are not."""
        linear = [name for name in shapes if name in self.tensors and name.endswith(LINEAR_WEIGHTS)]
        turned = [name for name in linear if is_turned(name, self.tensors[name].shape, shapes[name])]
        straight = [name for name in linear if self.tensors[name].shape == shapes[name] != shapes[name][::-1]]
        if turned and straight:
            raise LoaderError(
                f"tensor {turned[0]} is (out, in), as torch.nn.Linear stores it, and {straight[0]} is (in, out), as Conv1D"
            )
        if turned:
            self.tensors |= {name: Transposed(self.tensors[name]) for name in linear}

    def _check(self) -> None:
        """LoaderError unless every tensor is there in its shape, none is unknown, and a tied output layer is wte."""
        shapes = self.config.shapes()
        head = self.tensors.pop(LM_HEAD, None) if self.config.tie_word_embeddings else None
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise LoaderError(f"tensor {name} is missing; there are {', '.join(self._theirs[:3])} and so on")
            if self.tensors[name].shape != shape:
                raise LoaderError(
                    f"tensor {name} has shape {list(self.tensors[name].shape)}, the model needs {list(shape)}"
                )
        if unknown := sorted(self.tensors.keys() - shapes.keys()):
            raise LoaderError(f"tensor {unknown[0]} is not part of a GPT-2 with n_layer = {self.config.n_layer}")
        if head is not None and not self._equals_wte(head):
            raise LoaderError(
                "tensor lm_head.weight differs from wte, and tie_word_embeddings says that the two are one"
            )

    def _equals_wte(self, head: Tensor) -> bool:
        wte = self.tensors["wte"]
        return head.shape == wte.shape and all(
            np.array_equal(head.rows(*rows), wte.rows(*rows)) for rows in parts(wte.shape)
        )

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one tensor; LoaderError when a value is not finite."""
        values = self.tensors[name].rows(start, stop)
        if not np.isfinite(values).all():
            raise LoaderError(f"tensor {name} has a value that is not finite, in rows {start} to {stop - 1}")
        return values

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """All rows of one tensor, some at a time."""
        for start, stop in parts(self.tensors[name].shape):
            yield self.rows(name, start, stop)


def _configuration(found: Weights, activation: str | None) -> Config:
    said = found.fields or {}
    if activation is not None:
        if "activation_function" not in found.assumed:
            raise LoaderError(f"{found.described} says which activation function the model has")
        said = said | {"activation_function": activation}
    return Config.from_hub(said, found.generation, source=found.described)


def parts(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of a tensor that are read at a time."""
    rows = max(1, PART_BYTES // (4 * prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])
