"""A Hugging Face model directory: config.json and safetensors, one file or shards, read in blocks of rows under our names.

The safetensors library checks each file; the tensors are then read through a memory map, because NumPy has no bfloat16
and the library cannot give it to NumPy. Pickled weights (pytorch_model.bin) are not read.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.errors import PgGpt2Error
from pg_gpt2.formats.hub_config import config_of, fields_of
from safetensors import SafetensorError, safe_open

from loaders.common import LoaderError

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BLOCK_BYTES = 4 << 20  # of one column of llm_param; with grad, m and v a row stays within 16 MiB


@dataclass(frozen=True)
class Config:
    """The columns of llm_model_config."""

    n_layer: int
    n_head: int
    d_model: int
    n_positions: int
    vocab: int
    eos_token_id: int | None

    @classmethod
    def from_hub(cls, found: dict[str, Any]) -> "Config":
        """From what config.json has; LoaderError when pg_gpt2 does not compute such a model."""
        try:
            config = config_of(found)
        except PgGpt2Error as error:
            raise LoaderError(error.message) from None
        return cls(*(getattr(config, field.name) for field in fields(cls)))

    def to_hub(self) -> dict[str, Any]:
        """The fields of config.json, as transformers has them."""
        return fields_of(GPT2Config(**asdict(self)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        d = self.d_model
        block = {
            "ln_1.weight": (d,), "ln_1.bias": (d,),
            "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
            "ln_2.weight": (d,), "ln_2.bias": (d,),
            "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,),
            "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
        }  # fmt: skip
        found: dict[str, tuple[int, ...]] = {"wte": (self.vocab, d), "wpe": (self.n_positions, d)}
        for i in range(self.n_layer):
            found |= {f"h.{i}.{name}": shape for name, shape in block.items()}
        return found | {"ln_f.weight": (d,), "ln_f.bias": (d,)}

    def n_bytes(self) -> int:
        """Bytes of all weights in float32."""
        return sum(4 * prod(shape) for shape in self.shapes().values())


def our_name(name: str) -> str | None:
    """The tensor that a checkpoint calls `name`; None for an attention mask, which is not a parameter."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[:1] == ["transformer"]:
        parts.pop(0)
    if parts[-2:-1] == ["attn"] and parts[-1] in ("bias", "masked_bias"):
        return None
    ours = ".".join(parts)
    return {"wte.weight": "wte", "wpe.weight": "wpe"}.get(ours, ours)


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, `offset` bytes from its beginning; its values are read when they are asked for."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop as little-endian float32."""
        stored = np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)[start:stop]
        if self.dtype == "BF16":  # a bfloat16 is the upper half of a float32
            return (stored.astype("<u4") << np.uint32(16)).view("<f4")
        return np.ascontiguousarray(stored, "<f4")


class HubModel:
    """Configuration and tensors of a directory, or of one safetensors file with config.json beside it."""

    def __init__(self, source: Path) -> None:
        self.directory = source if source.is_dir() else source.parent
        if (self.directory / "adapter_config.json").exists() and not (self.directory / "config.json").exists():
            raise LoaderError(f"{self.directory} has an adapter: load-adapter loads it")
        self.config = Config.from_hub(read_json(self.directory / "config.json"))
        self.tensors: dict[str, Tensor] = {}
        for path in [source] if source.is_file() else weight_files(source):
            for name, tensor in read_header(path).items():
                ours = our_name(name)
                if ours is None:
                    continue
                if tensor.dtype not in DTYPES:
                    raise LoaderError(f"tensor {name} has dtype {tensor.dtype}; F32, F16 and BF16 can be read")
                if ours in self.tensors:
                    raise LoaderError(f"tensor {ours} is in {source} twice, the second time as {name}")
                self.tensors[ours] = tensor
        self._check()

    def _check(self) -> None:
        """LoaderError unless every tensor is there in its shape, none is unknown, and the output projection is wte."""
        shapes = self.config.shapes()
        head = self.tensors.pop("lm_head.weight", None)
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise LoaderError(f"tensor {name} is missing")
            if self.tensors[name].shape != shape:
                raise LoaderError(
                    f"tensor {name} has shape {list(self.tensors[name].shape)}, config.json needs {list(shape)}"
                )
        if unknown := sorted(self.tensors.keys() - shapes.keys()):
            raise LoaderError(f"tensor {unknown[0]} is not part of a GPT-2 with n_layer = {self.config.n_layer}")
        if head is not None and not self._equals_wte(head):
            raise LoaderError("tensor lm_head.weight differs from wte, but GPT-2 ties its output projection to wte")

    def _equals_wte(self, head: Tensor) -> bool:
        wte = self.tensors["wte"]
        return head.shape == wte.shape and all(
            np.array_equal(head.rows(*rows), wte.rows(*rows)) for rows in row_blocks(wte.shape)
        )

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of one tensor in the blocks that llm_param stores; LoaderError when a value is not finite."""
        for start, stop in row_blocks(self.tensors[name].shape):
            values = self.tensors[name].rows(start, stop)
            if not np.isfinite(values).all():
                raise LoaderError(f"tensor {name} has a value that is not finite, in rows {start} to {stop - 1}")
            yield start, values


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of each block of a tensor; a vector is one block."""
    rows = shape[0] if len(shape) == 1 else max(1, BLOCK_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: one, or all shards."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if not names or any(Path(name).name != name for name in names):
            raise LoaderError(f"{index} does not name files of its own directory")
        return [directory / name for name in names]
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    hint = ""
    if (directory / "pytorch_model.bin").exists():
        hint = "; pytorch_model.bin is a pickle and is not read: open it with transformers and save_pretrained it again"
    raise LoaderError(f"{directory} has no model.safetensors{hint}")


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by the names it has; LoaderError when the safetensors library finds it invalid."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoaderError(f"{path}: {error}") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Tensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; LoaderError when there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoaderError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise LoaderError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise LoaderError(f"{path} is not a JSON object")
    return found
