"""A GPT-2 in a checkpoint file: our names over the file's, its configuration, and the checks of an import.

Names lose `transformer.`, the `module.` of DataParallel and the `_orig_mod.` of torch.compile; attention masks that older files
carry are skipped. Where the output layer is tied, `lm_head.weight` may be missing, or must equal `wte`, or stands for it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, final

import numpy as np

from .. import host
from ..core.config import ARCHITECTURE, ENDS, LM_HEAD, GPT2Config
from ..errors import InconsistentData, InvalidParameter, MalformedData
from ..tensor import to_bytes
from .source import TensorReader, shown

READ_BYTES = 4 << 20
STOPS = "stop_token_ids"
COUNTS = ("n_layer", "n_head", "d_model", "n_positions", "vocab", "eos_token_id")
RowReader = Callable[[int, int], np.ndarray]  # (start, stop) -> rows
BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


def canonical_name(name: str) -> str | None:
    """Our name of a tensor that a checkpoint calls `name`; None for an attention mask."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[:1] in (["transformer"], ["module"]):
        parts.pop(0)
    ours = ".".join(parts)
    if BUFFER.fullmatch(ours):
        return None
    return {"wte.weight": "wte", "wpe.weight": "wpe"}.get(ours, ours)


def is_bias_free(missing: Sequence[str], names: Iterable[str]) -> bool:
    """Whether what is missing is all of the biases, as nanoGPT writes a model with bias = False."""
    return (
        bool(missing)
        and all(name.endswith(".bias") for name in missing)
        and not any(n.endswith(".bias") for n in names)
    )


def is_turned(name: str, found: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether it is the weight of a linear layer, transposed."""
    return name.startswith("h.") and len(expected) == 2 and tuple(found) == tuple(expected)[::-1] != tuple(expected)


def hub_name(name: str, prefix: str = "transformer.") -> str:
    """The name under which `GPT2LMHeadModel.save_pretrained` writes our tensor `name`."""
    if name == LM_HEAD:
        return name
    return f"{prefix}{name}.weight" if name in ("wte", "wpe") else f"{prefix}{name}"


def hub_metadata(config: GPT2Config) -> dict[str, str]:
    """What shapes do not say about a model, for the metadata of an exported file."""
    found: dict[str, Any] = {"n_head": config.n_head, "eos_token_id": config.eos_token_id}
    if config.stop_token_ids is not None:
        found[STOPS] = " ".join(map(str, config.stop_token_ids))
    found |= config.differences()
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items() if value is not None
    }


def agreed(model: str, known: GPT2Config, said: Mapping[str, Any], source: str) -> GPT2Config:
    """`known` with the tokens that end texts as `source` says where it has none; 22000 where `source` says another value."""
    for name, value in said.items():
        ours = getattr(known, name)
        if value != ours and not (name in ENDS and (value is None or ours is None)):
            raise InconsistentData(
                f'{source} says {name} = {value}, and model "{model}" has {ours}',
                hint="Import it under another name, or change llm_model_config to what the weights have.",
            )
    ends: dict[str, Any] = {name: said.get(name) for name in ENDS if getattr(known, name) is None}
    try:
        return replace(known, **ends)
    except InvalidParameter as error:
        raise InconsistentData(f"{source}: {error}", hint=error.hint) from error


def max_file_bytes(config: GPT2Config) -> int:
    """The most that a checkpoint of this model can hold: float64, another lm_head, masks of every block."""
    masks = config.n_layer * 4 * (config.n_positions**2 + 16)
    return 8 * (config.n_params() + config.vocab * config.d_model) + masks + (1 << 20)


@final
class Checkpoint:
    """The tensors of `reader` under our names. Use as a context manager; leaving it closes the file."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self._names: dict[str, str] = {}
        for name in reader.names():
            ours = canonical_name(name)
            if ours is None:
                continue
            if ours in self._names:
                raise InconsistentData(
                    f"{self._names[ours]} and {name} in the file are both tensor {ours}",
                    hint="Keep one of the two in the file.",
                )
            self._names[ours] = name
        if "wte" not in self._names:  # of two tensors that are one, safetensors.torch.save_model writes the first
            self._names = {"wte" if ours == LM_HEAD else ours: name for ours, name in self._names.items()}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings that the file carries beside the tensors."""
        return self._reader.metadata

    def names(self) -> Sequence[str]:
        """Our names, in file order; among them `lm_head.weight` when the file has it."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor `name`."""
        return self._reader.shape(self._names[name])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of tensor `name`, float32; 22000 when a value is not finite."""
        values = self._reader.rows(self._names[name], start, stop)
        if not np.isfinite(values).all():
            at = np.argwhere(~np.isfinite(values))[0].tolist()
            at[0] += start
            raise InconsistentData(
                f"tensor {name} has a value that is not finite, at {at}",
                hint="The training that wrote this file diverged, or the file is damaged.",
            )
        return values

    def said(self) -> dict[str, Any]:
        """What the file's metadata says of the configuration, by our names; empty unless pg_gpt2 wrote it."""
        said: dict[str, Any] = {
            name: self._count(name, self.metadata[name]) for name in COUNTS if name in self.metadata
        }
        if "n_head" in said:
            said |= {name: self._value(name) if name in self.metadata else ARCHITECTURE[name] for name in ARCHITECTURE}
        if STOPS in self.metadata:
            said[STOPS] = tuple(self._count(STOPS, word) for word in self.metadata[STOPS].split())
        return said

    def config(self) -> GPT2Config | None:
        """The configuration that the shapes say, or None when the file does not know `n_head`."""
        said = self.said()
        if "n_head" not in said:
            return None
        for name in ("wte", "wpe"):
            if name not in self._names:
                raise InconsistentData(f"tensor {name} is missing", hint="Is this the checkpoint of a GPT-2?")
            if len(self.shape(name)) != 2:
                raise InconsistentData(
                    f"tensor {name} has shape {list(self.shape(name))}, not two dimensions",
                    hint="Is this the checkpoint of a GPT-2?",
                )
        (vocab, d_model), (n_positions, _) = self.shape("wte"), self.shape("wpe")
        blocks = {name.split(".")[1] for name in self._names if re.match(r"h\.\d+\.", name)}
        try:
            rest: dict[str, Any] = {name: said.get(name) for name in (*ENDS, *ARCHITECTURE)}
            return GPT2Config(len(blocks), said["n_head"], d_model, n_positions, vocab, **rest)
        except InvalidParameter as error:
            raise InconsistentData(f"the file's configuration is invalid: {error}", hint=error.hint) from error

    def _value(self, key: str) -> Any:
        """Of the architecture: a text as it stands, else JSON."""
        text = self.metadata[key]
        if isinstance(ARCHITECTURE[key], str):
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise MalformedData(
                f"the file's metadata says {key} = {text!r:.80}, which is no value",
                hint="Export the file again, or remove its metadata.",
            ) from None

    def _count(self, key: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise MalformedData(
                f"the file's metadata says {key} = {text!r:.80}, which is not a count",
                hint="Export the file again, or remove its metadata.",
            )
        return int(text)

    def check(self, config: GPT2Config) -> None:
        """Refuse (22000) a file that has not exactly the tensors of `config`, of an adapter its own, each in its shape; the error
        names the tensor."""
        expected = config.trained_shapes()
        missing = [name for name in expected if name not in self._names]
        if config.adapter is None and is_bias_free(missing, self._names):
            raise InconsistentData(
                "the file has no biases, and GPT-2 has some: it is of a model with bias = False",
                hint="pg-gpt2 load-model enters zeros for them.",
            )
        for name, shape in expected.items():
            if name in missing:
                what = "A model" if config.adapter is None else "An adapter"
                raise InconsistentData(
                    f"tensor {name} is missing from the file",
                    hint=f"{what} with n_layer = {config.n_layer} has {len(expected)} tensors; see llm_model_config."
                    f" The file's are called {shown(list(self._reader.names())[:3])} and so on.",
                )
            self._check_shape(name, shape)
        if LM_HEAD in self._names and "wte" in expected and LM_HEAD not in expected:
            self._check_shape(LM_HEAD, expected["wte"])
        for name in self._names:
            if name not in expected and (name != LM_HEAD or config.adapter is not None):
                raise InconsistentData(
                    f"tensor {name} in the file is not part of this model",
                    hint="Compare n_layer in llm_model_config with the file.",
                )

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self.shape(name) != shape and is_turned(name, self.shape(name), shape):
            raise InconsistentData(
                f"tensor {name} has shape {list(self.shape(name))}, (out, in) as torch.nn.Linear stores it",
                hint="GPT-2's are (in, out). pg-gpt2 load-model transposes such files.",
            )
        if self.shape(name) != shape:
            raise InconsistentData(
                f"tensor {name} has shape {list(self.shape(name))}, the model's configuration needs {list(shape)}",
                hint="Linear weights are (in, out), as Conv1D stores them; compare with llm_model_config.",
            )

    def tensors(self, config: GPT2Config) -> Iterator[tuple[str, tuple[int, ...], RowReader]]:
        """(name, shape, reader of rows) of every tensor, in file order, checked against `config`.

        The caller reads all rows of each, ascending, before it takes the next: then the file is read once and in order.
        That a tied `lm_head.weight` is not `wte` shows after the last tensor, so insert inside one transaction.
        """
        self.check(config)
        twice = LM_HEAD in self._names and config.tie_word_embeddings
        wte, head = blake2b(), blake2b()
        for name in self._names:
            if twice and name == LM_HEAD:
                self._digest(name, head)
            elif twice and name == "wte":
                yield name, self.shape(name), self._digesting(name, wte)
            else:
                yield name, self.shape(name), partial(self.rows, name)
        if twice and wte.digest() != head.digest():
            raise InconsistentData(
                "tensor lm_head.weight differs from wte, and the model's configuration ties the two",
                hint="A model with tie_word_embeddings = false says so in its config.json, or in llm_model_config.",
            )

    def _digest(self, name: str, digest: blake2b) -> None:
        rows, width = self.shape(name)
        step = max(1, READ_BYTES // (4 * width))
        for start in range(0, rows, step):
            digest.update(to_bytes(self.rows(name, start, min(start + step, rows))))
            host.check_interrupts()

    def _digesting(self, name: str, digest: blake2b) -> RowReader:
        def read(start: int, stop: int) -> np.ndarray:
            values = self.rows(name, start, stop)
            digest.update(to_bytes(values))
            return values

        return read
