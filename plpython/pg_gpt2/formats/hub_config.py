"""The config.json of a Hugging Face model: its sizes and architecture, and whether it is of GPT-2's family. Bytes in, GPT2Config
out.

Names are those of transformers' GPT2Config, or the general ones that its attribute_map lets stand for them. The loaders read
their config.json here, too.
"""

from collections.abc import Mapping
from typing import Any

from ..core.config import ARCHITECTURE, GPT2Config
from ..errors import InconsistentData, InvalidParameter, MalformedData
from .source import load_json, shown

MAX_CONFIG_BYTES = 1 << 20  # those of GPT-2 have 700

# What the whole family has in common, by the names of config.json; also what a missing one means.
FIXED: dict[str, Any] = {"model_type": "gpt2", "add_cross_attention": False}
SIZES = {
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "d_model": ("n_embd", "hidden_size"),
    "n_positions": ("n_positions", "max_position_embeddings"),
    "vocab": ("vocab_size",),
}  # ours -> theirs


def read_config(data: bytes, source: str = "config.json", generation: bytes | None = None) -> GPT2Config:
    """What a config.json says; 22P02 when it is no such file, 22000 when it is not of a GPT-2. `source` names it in errors;
    `generation` is the generation_config.json beside it."""
    beside = None if generation is None else _object(generation, "generation_config.json")
    return config_of(_object(data, source), source, beside)


def _object(data: bytes, source: str) -> dict[str, Any]:
    fields = load_json(data, source)
    if not isinstance(fields, dict):
        raise MalformedData(
            f"{source} is not a JSON object",
            hint="Give the weights a directory of their own where it is of something else.",
        )
    return fields


def config_of(
    fields: Mapping[str, Any], source: str = "config.json", generation: Mapping[str, Any] | None = None
) -> GPT2Config:
    """The same of the objects in them."""
    for name, value in FIXED.items():
        if fields.get(name, value) != value:
            raise InconsistentData(
                f"{source} has {name} = {shown(fields[name])}; a GPT-2 has {value!r}",
                hint="pg_gpt2 would compute something else from these weights: it runs what transformers calls gpt2.",
            )
    sizes: dict[str, Any] = {ours: _size(fields, names, source) for ours, names in SIZES.items()}
    kind = {name: fields[name] for name in ARCHITECTURE if name in fields}
    eos = _ids(fields, sizes["vocab"])
    stops = eos if generation is None else _ids(generation, sizes["vocab"])
    first = eos[0] if eos else None
    try:
        return GPT2Config(**sizes, **kind, eos_token_id=first, stop_token_ids=None if stops == eos[:1] else stops)
    except InvalidParameter as error:
        raise InconsistentData(f"{source} is of no GPT-2: {error}", hint=error.hint) from error


def _ids(fields: Mapping[str, Any], vocab: int) -> tuple[int, ...]:
    """Its eos_token_id, one or a list. Small models keep the library's default of 50256, which is no token of theirs."""
    found = fields.get("eos_token_id")
    return tuple(i for i in (found if isinstance(found, list) else [found]) if type(i) is int and 0 <= i < vocab)


def _size(fields: Mapping[str, Any], names: tuple[str, ...], source: str) -> int:
    """The size under one of its names; where it has two, they agree."""
    found = [(name, fields[name]) for name in names if name in fields] or [(names[0], None)]
    for name, value in found:
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise MalformedData(
                f"{source} has {name} = {shown(value)}, which is not a size",
                hint="Give the weights a directory of their own where it is of something else.",
            )
        if value != found[0][1]:
            raise InconsistentData(
                f"{source} has {found[0][0]} = {found[0][1]} and {name} = {value}, which are the same size",
                hint="Keep the one that the weights have.",
            )
    return found[0][1]


def fields_of(config: GPT2Config) -> dict[str, Any]:
    """The object of a config.json from which transformers makes the same model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        **FIXED,
        **config.architecture(),
        **{names[0]: getattr(config, ours) for ours, names in SIZES.items()},
        "bos_token_id": config.eos_token_id,
        "eos_token_id": config.eos_token_id,
    }
