"""A GGUF file of llama.cpp, with its tokenizer. Needs the package gguf (pip install pg_gpt2[gguf]).

All quantisations that gguf can expand are read, into float32. Linear weights are (out, in) in these files. llama.cpp computes the
gelu of OpenAI for them, whatever the model had that was converted: the file does not say. An output layer of its own is one that
differs from the embedding, as also where the two were quantised in different ways.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pg_gpt2.tokenizer.added import AddedToken

from loaders.common import LoaderError
from loaders.vocabulary import Vocabulary
from loaders.weights.tensors import Tensor, Weights

MAGIC = b"GGUF"
NAMES = {
    "token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head",
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
SIZES = {
    "n_layer": "block_count", "n_head": "attention.head_count", "n_embd": "embedding_length",
    "n_positions": "context_length", "n_inner": "feed_forward_length",
}  # fmt: skip
SPLITS = ("gpt-2", "default", None)  # of text, by GPT-2's pattern; llama.cpp calls others by other names
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # kinds of tokens: special, added, and such as only pad the vocabulary
ROLES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask",
}  # fmt: skip  # as they are spelt there


@dataclass(frozen=True)
class Quantised:
    """A tensor in blocks of a quantisation, or of plain numbers, row after row."""

    data: np.ndarray
    kind: Any
    shape: tuple[int, ...]
    dtype: str = "F32"  # what it is expanded to

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Expanded by gguf."""
        import gguf

        return np.ascontiguousarray(gguf.dequantize(self.data[start:stop], self.kind), "<f4")


def read(path: Path) -> Weights:
    """What metadata and tensors say; LoaderError when they are not a GPT-2's, or when gguf cannot read them."""
    try:
        import gguf
    except ImportError:
        raise LoaderError(f"{path} is a GGUF file, which needs the package gguf: pip install 'pg_gpt2[gguf]'") from None
    with _readable(path):
        reader = gguf.GGUFReader(path)
        said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        eos = reader.get_field("tokenizer.ggml.eos_token_id")
        fields = {theirs: said.get(f"gpt2.{ours}") for theirs, ours in SIZES.items()}
        fields |= {} if eos is None else {"eos_token_id": eos.contents()}
    if said.get("general.architecture") != "gpt2":
        raise LoaderError(f"{path} is of architecture {said.get('general.architecture')}, and not gpt2")
    if reader.byte_order == "S":
        raise LoaderError(f"{path} is of the other byte order than this machine")
    with _readable(path):
        tensors = [(_name(tensor.name), _tensor(tensor)) for tensor in reader.tensors]
    fields["vocab_size"] = next((tensor.shape[0] for name, tensor in tensors if name == "wte.weight"), None)
    if (epsilon := said.get("gpt2.attention.layer_norm_epsilon")) is not None:
        fields["layer_norm_epsilon"] = epsilon
        if isinstance(epsilon, float):
            fields["layer_norm_epsilon"] = float(str(np.float32(epsilon)))  # 1e-5 is written as the next float32
    has_tokens = reader.get_field("tokenizer.ggml.tokens") is not None
    return Weights(
        tensors,
        fields,
        described=str(path),
        assumed={"activation_function", "tie_word_embeddings"},
        vocabulary=(lambda: _vocabulary(reader, path)) if has_tokens else None,
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """LoaderError for damage, about which the package raises whatever NumPy does."""
    try:
        yield
    except LoaderError:
        raise
    except Exception as error:
        raise LoaderError(f"{path} is not a GGUF file that gguf can read: {error}") from None


def _name(theirs: str) -> str:
    """blk.0.attn_qkv.weight -> h.0.attn.c_attn.weight"""
    *block, module, kind = theirs.split(".")
    place = ["h", *block[1:]] if block[:1] == ["blk"] else block
    return ".".join([*place, NAMES.get(module, module), kind])


def _tensor(tensor: Any) -> Tensor:
    import gguf

    try:
        gguf.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError:
        raise LoaderError(f"tensor {tensor.name} is {tensor.tensor_type.name}, which gguf cannot expand") from None
    return Quantised(tensor.data, tensor.tensor_type, tuple(reversed(tensor.shape.tolist())))


def _vocabulary(reader: Any, path: Path) -> Vocabulary:
    """The tokenizer in the file, unless it is not GPT-2's."""

    def said(name: str) -> Any:
        with _readable(path):
            field = reader.get_field(f"tokenizer.{name}")
            return None if field is None else field.contents()

    def texts(name: str) -> list[str]:
        found = said(f"ggml.{name}") or []
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise LoaderError(f"{path} has a tokenizer whose {name} are no texts")
        return found

    model, pre = said("ggml.model"), said("ggml.pre")
    if model != "gpt2" or pre not in SPLITS:
        raise LoaderError(f"{path} has a tokenizer of kind {model}, {pre}, and not GPT-2's")
    for setting in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if said(f"ggml.{setting}"):
            raise LoaderError(f"{path} has a tokenizer with {setting}, which GPT-2's does not do")
    tokens = texts("tokens")
    kinds = said("ggml.token_type") or [1] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise LoaderError(f"{path} has a tokenizer whose token_type is not one for each of its {len(tokens)} tokens")
    ids = {token: number for number, (token, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    added = {
        number: AddedToken(token, special=kind == CONTROL)
        for number, (token, kind) in enumerate(zip(tokens, kinds))
        if kind in (CONTROL, USER_DEFINED)
    }
    roles = {ours: said(f"ggml.{theirs}_token_id") for ours, theirs in ROLES.items()}
    known = {role: number for role, number in roles.items() if number in ids.values()}
    named = {number: AddedToken(tokens[number], special=True) for number in known.values()}  # whatever their kind
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in texts("merges"))]
    template = said("chat_template")
    found = Vocabulary(ids, merges, named | added, known, template if isinstance(template, str) else None)
    found.tokenizer()
    return found
