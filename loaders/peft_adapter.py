"""A directory of PEFT with a LoRA adapter: adapter_config.json and adapter_model.safetensors, under our names.

Follows PEFT's LoraConfig and how it finds the layers that a configuration means. PEFT keeps A as [r, in] and B as [out, r], which
are the transposes of ours. What computes something else than y = x W + b + (alpha / r) (x A) B in every block is refused by name.
"""

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from pg_gpt2.core.config import LINEAR_LAYERS, Adapter, GPT2Config
from pg_gpt2.errors import PgGpt2Error
from pg_gpt2.formats.source import shown

from loaders.common import Database, LoaderError, complete, read_json
from loaders.hub_model import ADAPTER_CONFIG as CONFIG
from loaders.hub_model import ADAPTER_WEIGHTS as WEIGHTS
from loaders.hub_model import Config
from loaders.weights import beginning, safetensors_file
from loaders.weights.tensors import DTYPES, Transposed

PREFIX, SUFFIX = "base_model.model.transformer.", ".weight"
GPT2_TARGETS = ["c_attn"]  # what PEFT adapts where a configuration does not say what
OTHER_LAYERS = ("transformer.wte", "transformer.wpe", "lm_head")  # that LoRA can adapt, and an adapter here does not
MERGED = "model.merge_and_unload().save_pretrained(...) of PEFT makes a model of it that load-model loads"

# Fields that change what an adapter computes, unless they are empty, and how.
VARIANTS = {
    "use_dora": "DoRA rescales the columns of the matrices that it adapts",
    "lora_bias": "B has a bias",
    "modules_to_save": "it brings layers of its own, besides A and B",
    "trainable_token_indices": "it brings embeddings of its own",
    "target_parameters": "it adapts parameters that are no layers",
    "alora_invocation_tokens": "it adapts only what follows certain tokens",
}
# Fields that do not: about its origin and training, or of use to others only.
IMMATERIAL = (
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "velora_config"),
    *("eva_config", "corda_config", "loftq_config", "lora_ga_config"),
)
READ = (
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
)
# How A and B began. Others, such as PiSSA, take something out of the base's weights.
INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")


class LoraConfig:
    """What an adapter_config.json says; LoaderError where an adapter here cannot be that."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        if (kind := fields.get("peft_type")) != "LORA":
            raise LoaderError(f"{CONFIG} has peft_type = {shown(kind)}; LORA can be loaded")
        if (bias := fields.get("bias", "none")) != "none":
            self._refuse("bias", bias, "it changes the base's biases")
        begun = fields.get("init_lora_weights") or False
        if begun not in INITIALIZATIONS:
            self._refuse("init_lora_weights", begun, "that changed the base's weights when the adapter was made")
        for name, value in fields.items():
            if name not in READ + IMMATERIAL and value not in (None, False, [], {}):
                self._refuse(name, value, VARIANTS.get(name, "what it stands for is not known here"))

    def _refuse(self, name: str, value: Any, why: str) -> None:
        raise LoaderError(f"{CONFIG} has {name} = {shown(value)}: {why}. {MERGED}")

    def adapter(self, n_layer: int) -> Adapter:
        """The adapter of a base of `n_layer` blocks."""
        modules = [name for name in (*_modules(n_layer), *OTHER_LAYERS) if self._targets(name)]
        if others := [name for name in modules if name in OTHER_LAYERS]:
            raise LoaderError(
                f"{CONFIG} has target_modules that are {others[0]}, which is no layer of a block. {MERGED}"
            )
        targets = [target for target in LINEAR_LAYERS if any(name.endswith(f".{target}") for name in modules)]
        if not targets:
            raise LoaderError(f"{CONFIG} has target_modules that no layer of a GPT-2 has")
        for name in _modules(n_layer):
            if name not in modules and name.endswith(tuple(f".{target}" for target in targets)):
                raise LoaderError(
                    f"{CONFIG} leaves out {_short(name)}; an adapter here adapts a layer in all {n_layer} blocks of its base, or"
                    f" in none. {MERGED}"
                )
        try:
            r = self._one("r", "rank_pattern", 8, modules)
            alpha = self._one("lora_alpha", "alpha_pattern", 8, modules)
            if self.fields.get("use_rslora"):
                alpha *= math.sqrt(r)  # its factor is alpha / sqrt(r)
            dropout_p = self._number("lora_dropout", self.fields.get("lora_dropout", 0.0))
            return Adapter(int(r), alpha, tuple(targets), dropout_p)
        except (PgGpt2Error, ValueError, OverflowError) as error:
            raise LoaderError(f"{CONFIG}: {error}") from None

    def _targets(self, module: str) -> bool:
        """Whether PEFT adapts the layer of this name (check_target_module_exists)."""
        wanted = self.fields.get("target_modules")
        wanted = GPT2_TARGETS if wanted is None else wanted
        if self._matches("exclude_modules", self.fields.get("exclude_modules") or [], module):
            return False
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            return module not in OTHER_LAYERS
        if not self._matches("target_modules", wanted, module):
            return False
        layers = self.fields.get("layers_to_transform")
        if isinstance(wanted, str) or module in wanted or layers in (None, []):
            return True
        return self._layer(module) in (layers if isinstance(layers, list) else [layers])

    def _layer(self, module: str) -> int | None:
        """The block that the layer is in, as layers_pattern finds it."""
        patterns = self.fields.get("layers_pattern") or [r"[^.]*"]
        if not isinstance(patterns, str | list):
            raise LoaderError(f"{CONFIG} has a layers_pattern that is neither a string nor a list of strings")
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if found := self._search("layers_pattern", rf"(?:^|.*?\.){pattern}\.(\d+)\..*", module):
                return int(found[1])
        return None

    def _one(self, name: str, pattern: str, default: int, modules: list[str]) -> float:
        """The value of `name`, which is one for all layers; `pattern` is the field with other values for some."""
        value, others = self.fields.get(name, default), self.fields.get(pattern) or {}
        if not isinstance(others, dict):
            raise LoaderError(f"{CONFIG} has a {pattern} that is not an object")
        values = {}
        for module in modules:
            keys = (key for key in others if self._search(pattern, rf"(.*\.)?({key})", module))
            values[module] = self._number(name, others.get(next(keys, ""), value))
        first = modules[0]
        for module, found in values.items():
            if found != values[first]:
                raise LoaderError(
                    f"{CONFIG} has {name} = {values[first]:g} for {_short(first)} and {found:g} for {_short(module)}; an"
                    f" adapter here has one {name}. {MERGED}"
                )
        return values[first]

    def _number(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or (name == "r" and value != int(value)):
            raise LoaderError(f"{CONFIG} has {name} = {shown(value)}, which is no such number")
        return value

    def _matches(self, field: str, wanted: Any, module: str) -> bool:
        """A regular expression matches the whole name; of a list, one is the name or its end."""
        if isinstance(wanted, str):
            return self._search(field, wanted, module) is not None
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise LoaderError(f"{CONFIG} has a {field} that is neither a string nor a list of strings")
        return any(module == name or module.endswith(f".{name}") for name in wanted)

    def _search(self, field: str, pattern: str, module: str) -> re.Match[str] | None:
        try:
            return re.fullmatch(pattern, module)
        except re.error as error:
            raise LoaderError(f"{CONFIG} has a {field} that is no regular expression: {error}") from None


def _modules(n_layer: int) -> list[str]:
    """The layers that an adapter may adapt, by the names that they have in GPT2LMHeadModel."""
    return [f"transformer.h.{i}.{layer}" for i in range(n_layer) for layer in LINEAR_LAYERS]


def _short(module: str) -> str:
    return module.removeprefix("transformer.")


class PeftAdapter:
    """The adapter in a directory, which fits a base of the configuration `base`; LoaderError when it does not, or is none."""

    def __init__(self, directory: Path, base: GPT2Config) -> None:
        lora = LoraConfig(read_config(directory))
        self.adapter = lora.adapter(base.n_layer)
        self.tensors: dict[str, Transposed] = {}
        shapes = replace(base, adapter=self.adapter).adapter_shapes()
        for name, tensor in safetensors_file.read(weights_file(directory)).tensors:
            ours = name.removeprefix(PREFIX).removesuffix(SUFFIX)
            if ours not in shapes or name != peft_name(ours):
                raise LoaderError(
                    f"tensor {name} is not part of an adapter of {', '.join(self.adapter.targets)} in {base.n_layer} blocks,"
                    f" which {CONFIG} and the base make it"
                )
            if tensor.dtype not in DTYPES:
                raise LoaderError(f"tensor {name} has dtype {tensor.dtype}; F32, F16 and BF16 can be read")
            if tensor.shape != shapes[ours][::-1]:
                raise LoaderError(
                    f"tensor {name} has shape {list(tensor.shape)}; with r = {self.adapter.r} and a base of d_model ="
                    f" {base.d_model} it is {list(shapes[ours][::-1])}"
                )
            self.tensors[ours] = Transposed(tensor)
        for name in shapes:
            if name not in self.tensors:
                raise LoaderError(f"tensor {peft_name(name)} is missing")

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one tensor, in our orientation."""
        values = self.tensors[name].rows(start, stop)
        if not np.isfinite(values).all():
            raise LoaderError(f"tensor {peft_name(name)} has a value that is not finite")
        return values


def configuration(database: Database, model: str) -> GPT2Config:
    """The shape of a model of the database, with what it adds where it is an adapter; LoaderError when it does not exist."""
    row = database.execute(
        f"SELECT r, alpha, targets, dropout_p, {', '.join(field.name for field in fields(Config))}"
        " FROM {llm_model_config} LEFT JOIN {llm_adapter} USING (model) WHERE model = %s",
        model,
    ).fetchone()
    if row is None:
        raise LoaderError(f'model "{model}" does not exist')
    r, alpha, targets, dropout_p, *columns = row
    config = Config(*columns).engine()
    return config if r is None else replace(config, adapter=Adapter(r, alpha, tuple(targets), dropout_p))


def peft_name(name: str) -> str:
    """The name that PEFT gives a tensor of an adapter."""
    return f"{PREFIX}{name}{SUFFIX}"


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of adapter_config.json; LoaderError when the directory has none."""
    if not (directory / CONFIG).exists():
        hint = "; it has a config.json: load-model loads a model" if (directory / "config.json").exists() else ""
        raise LoaderError(f"{directory} has no {CONFIG}{hint}")
    return read_json(directory / CONFIG)


def weights_file(directory: Path) -> Path:
    """adapter_model.safetensors of a directory; LoaderError when the weights are in another form."""
    if (directory / WEIGHTS).exists():
        beginning(directory / WEIGHTS)  # is it the file itself?
        return directory / WEIGHTS
    again = "open it with PeftModel.from_pretrained and save_pretrained it again"
    if (directory / "adapter_model.bin").exists():
        raise LoaderError(f"{directory} has its weights in adapter_model.bin, a pickle, which is not read: {again}")
    if (directory / f"{WEIGHTS}.index.json").exists():
        raise LoaderError(f"{directory} has its weights in several files, which PEFT does not read either: {again}")
    raise LoaderError(f"{directory} has no {WEIGHTS}; if there is an adapter_model.bin, {again}")


def write_peft(directory: Path, adapter: Adapter, base: str, tensors: dict[str, np.ndarray]) -> None:
    """Write the two files, as PEFT does; `base` is what AutoPeftModel takes the base from, `tensors` are ours."""
    directory.mkdir(parents=True, exist_ok=True)
    turned = {peft_name(name): np.ascontiguousarray(values.T) for name, values in tensors.items()}
    with complete(directory / WEIGHTS) as path:
        path.write_bytes(safetensors.numpy.save(turned, {"format": "pt"}))
    alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.r,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout_p,
        "target_modules": list(adapter.targets),
        "fan_in_fan_out": True,  # the base's layers are Conv1D, whose weights are [in, out]
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    text = json.dumps(fields, indent=2) + "\n"
    with complete(directory / CONFIG) as path:
        path.write_text(text, encoding="utf-8")
