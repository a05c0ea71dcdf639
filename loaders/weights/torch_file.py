"""What torch.save wrote: pytorch_model.bin of older models, and ckpt.pt of nanoGPT. Needs torch (pip install pg_gpt2[torch]).

Read with weights_only, so that nothing but tensors and plain values is unpickled.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loaders.common import LoaderError
from loaders.weights.tensors import Tensor, Weights

MAGIC = (b"PK\3\4", b"\x80\2")  # a zip file, or the pickle of torch before 1.6
SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_positions": "block_size",
    "vocab_size": "vocab_size",
}
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class TorchTensor:
    """A tensor of torch, which is read from the file when it is used."""

    values: Any
    dtype: str
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """As float32, whatever it is stored as."""
        return np.ascontiguousarray(self.values[start:stop].detach().float().numpy(), "<f4")


def read(path: Path) -> Weights:
    """The tensors of a state_dict; with what nanoGPT says about its model beside it."""
    found = _loaded(path)
    arguments = found.get("model_args") if isinstance(found, dict) else None
    state = found["model"] if isinstance(arguments, dict) and "model" in found else found
    tensors = _tensors(state, path)
    if not isinstance(arguments, dict):
        return Weights(tensors)
    fields = {theirs: arguments.get(ours) for theirs, ours in SIZES.items()}
    # Its model.py has the exact form, and once had that of OpenAI: the file does not say.
    assumed = {"activation_function", "tie_word_embeddings"}
    return Weights(tensors, fields | {"activation_function": "gelu"}, str(path), assumed=assumed)


def _loaded(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise LoaderError(
            f"{path} was written by torch, which reads it: pip install 'pg_gpt2[torch]' (or torch)"
        ) from None
    try:
        # A memory map keeps what is never used (the moments of a checkpoint) out of memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the library raises whatever its unpickler stumbles over in a damaged file
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise LoaderError(f"{path} is not weights alone, or damaged: {what[0]}") from None


def _tensors(state: Any, path: Path) -> list[tuple[str, Tensor]]:
    import torch

    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state).__name__
        raise LoaderError(f"{path} is neither a state_dict nor a checkpoint of nanoGPT; it has {keys}")
    return [(name, TorchTensor(values, _dtype(values), tuple(values.shape))) for name, values in state.items()]


def _dtype(values: Any) -> str:
    """By the name that safetensors has for it; one that is none for numbers that do not lie there one after another."""
    dtype, layout = (str(said).removeprefix("torch.") for said in (values.dtype, values.layout))
    if layout != "strided" or values.is_meta:
        return f"{dtype} ({'meta' if values.is_meta else layout})"
    return NAMES.get(dtype, dtype)
