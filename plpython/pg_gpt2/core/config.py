"""The shape of a GPT-2: hyperparameters, and the names and shapes of the tensors that follow from them.

Names are those of the Hugging Face checkpoints without `transformer.`; linear weights are (in, out).
Reference: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any

from ..errors import InvalidParameter, shown
from ..limits import MOST_LAYERS, MOST_STOPS

LAYER_NORM_EPS = 1e-5
MOST_EPS = 1.0
LM_HEAD = "lm_head.weight"  # the output layer of a model that does not tie it to `wte`

# What config.json may call the function between the two layers of a block's network -> the op that it is. Three names mean the
# same: they differ in the order in which one formula is computed.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "quick_gelu": "quick_gelu",
    "tanh": "tanh",
}
MOST_ALPHA = 1e30  # float32 holds what it makes of x A: beyond are infinities, which times a B of zeros are NaN


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Adapter:
    """Matrices of rank r beside some of a model that stays as it is: y = x W + b + (alpha / r) (x A) B.

    `targets` are linear layers of a block, which all blocks adapt. Reference: Hu et al. 2021, "LoRA".
    """

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn.c_attn",)
    dropout_p: float = 0.0  # of x on its way to A, in training

    def __post_init__(self) -> None:
        if type(self.r) is not int or not 0 < self.r < 1 << 31:
            raise InvalidParameter(
                f"r must be a positive integer, not {shown(self.r)}", hint="LoRA uses 1 to 64; 8 is usual."
            )
        if not _is_number(self.alpha) or not abs(self.alpha) <= MOST_ALPHA:
            raise InvalidParameter(
                f"alpha must be within -1e30 and 1e30, not {shown(self.alpha)}", hint="16 is usual, twice an r of 8."
            )
        unknown = [target for target in self.targets if target not in LINEAR_LAYERS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise InvalidParameter(
                f"targets {shown(self.targets)} are not different linear layers of a block",
                hint=f"Give some of {', '.join(LINEAR_LAYERS)}.",
            )
        if not _is_number(self.dropout_p) or not 0 <= self.dropout_p < 1:
            raise InvalidParameter(
                f"dropout_p must be at least 0 and below 1, not {shown(self.dropout_p)}", hint="0 is usual."
            )

    @property
    def scale(self) -> float:
        """Factor of the product of the two matrices."""
        return self.alpha / self.r


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What GPT-2's relatives have in their own ways, named as in config.json. The defaults are GPT-2's."""

    activation_function: str = "gelu_new"
    n_inner: int | None = None  # width of a block's network; None = 4 d_model
    layer_norm_epsilon: float = LAYER_NORM_EPS
    scale_attn_weights: bool = True  # whether scores are divided by sqrt(d_head)
    scale_attn_by_inverse_layer_idx: bool = False  # whether those of layer i are divided by i + 1
    reorder_and_upcast_attn: bool = False  # a matter of half precision: here it changes nothing
    tie_word_embeddings: bool = True  # whether `wte` is the output layer, too

    def __post_init__(self) -> None:
        if not isinstance(self.activation_function, str) or self.activation_function not in ACTIVATIONS:
            raise InvalidParameter(
                f"activation_function {shown(self.activation_function)} is not known",
                hint=f"It is one of {', '.join(ACTIVATIONS)}; GPT-2's is gelu_new.",
            )
        inner, eps = self.n_inner, self.layer_norm_epsilon
        if inner is not None and (type(inner) is not int or not 0 < inner < 1 << 31):
            raise InvalidParameter(
                f"n_inner must be a positive integer, not {shown(inner)}",
                hint="Null stands for 4 d_model, as in GPT-2.",
            )
        if type(eps) not in (int, float) or not 0 < eps <= MOST_EPS:
            raise InvalidParameter(
                f"layer_norm_epsilon must be above 0 and at most {MOST_EPS:g}, not {shown(eps)}",
                hint="GPT-2's is 1e-5.",
            )
        object.__setattr__(self, "layer_norm_epsilon", float(eps))
        for field in fields(Architecture):
            value = getattr(self, field.name)
            if type(field.default) is bool and type(value) is not bool:
                raise InvalidParameter(
                    f"{field.name} must be true or false, not {shown(value)}",
                    hint=f"GPT-2's is {str(field.default).lower()}.",
                )

    def architecture(self) -> dict[str, Any]:
        """These fields and their values."""
        return {field.name: getattr(self, field.name) for field in fields(Architecture)}

    def differences(self) -> dict[str, Any]:
        """Those that are not GPT-2's."""
        return {name: value for name, value in self.architecture().items() if value != ARCHITECTURE[name]}


ARCHITECTURE: dict[str, Any] = {field.name: field.default for field in fields(Architecture)}  # GPT-2's


def in_words(architecture: Mapping[str, Any]) -> str:
    """Fields of an architecture, for a message."""
    words = {None: "4 * d_model", True: "true", False: "false"}
    return ", ".join(
        f"{name} {words[value] if value is None or value is True or value is False else value}"
        for name, value in architecture.items()
    )


ENDS = ("eos_token_id", "stop_token_ids")  # fields that may be known or not


@dataclass(frozen=True)
class GPT2Config(Architecture):
    """Hyperparameters. `vocab` and `n_positions` are the rows of `wte` and `wpe`. `stop_token_ids` end generation, where that is
    not `eos_token_id` alone.

    With an `adapter`, the tensors are those of its base and two more for each matrix that it adapts.
    """

    n_layer: int
    n_head: int
    d_model: int
    n_positions: int
    vocab: int
    eos_token_id: int | None = None
    adapter: Adapter | None = None
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("n_layer", "n_head", "d_model", "n_positions", "vocab"):
            value = getattr(self, field)
            if type(value) is not int or not 0 < value < 1 << 31:
                raise InvalidParameter(
                    f"{field} must be a positive integer, not {shown(value)}",
                    hint="GPT-2's smallest size has 12, 12, 768, 1024 and 50257.",
                )
        if self.n_layer > MOST_LAYERS:
            raise InvalidParameter(
                f"n_layer {self.n_layer} is more than {MOST_LAYERS}", hint="GPT-2's largest size has 48."
            )
        eos = self.eos_token_id
        if eos is not None and (type(eos) is not int or not 0 <= eos < self.vocab):
            raise InvalidParameter(
                f"eos_token_id {shown(eos)} is not one of {self.vocab} token ids",
                hint="Null stands for that of the vocabulary.",
            )
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
            if len(self.stop_token_ids) > MOST_STOPS:
                raise InvalidParameter(
                    f"stop_token_ids has {len(self.stop_token_ids)} ids, more than {MOST_STOPS}",
                    hint="Null stands for eos_token_id alone.",
                )
            if unknown := [i for i in self.stop_token_ids if type(i) is not int or not 0 <= i < self.vocab]:
                raise InvalidParameter(
                    f"stop_token_ids has {shown(unknown[0])}, which is not one of {self.vocab} token ids",
                    hint="Null stands for eos_token_id alone.",
                )
        if self.d_model % self.n_head:
            raise InvalidParameter(
                f"d_model {self.d_model} is not divisible by n_head {self.n_head}",
                hint="Each head is d_model / n_head wide; GPT-2 uses 64.",
            )
        super().__post_init__()
        if self.n_inner == 4 * self.d_model:
            object.__setattr__(self, "n_inner", None)

    def to_json(self) -> dict[str, Any]:
        """Its fields, as an object of JSON; `adapter` and `stop_token_ids` only where there are any, and of the
        architecture only what is not GPT-2's."""
        own = {name: value for name, value in asdict(self).items() if name not in ARCHITECTURE}
        optional = ("adapter", "stop_token_ids")
        sizes = {name: value for name, value in own.items() if name not in optional or value is not None}
        return sizes | self.differences()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "GPT2Config":
        """Back from `to_json`. ValueError, TypeError, KeyError or InvalidParameter where it is not what that gives."""
        given = dict(fields)
        own = given.pop("adapter", None)
        if own is None:
            return cls(**given)
        try:
            alpha, dropout_p = float(own["alpha"]), float(own["dropout_p"])
        except OverflowError:
            raise ValueError("alpha or dropout_p") from None
        return cls(**given, adapter=Adapter(own["r"], alpha, tuple(own["targets"]), dropout_p))

    @property
    def stops(self) -> tuple[int, ...] | None:
        """The tokens that end generation; None = the configuration does not say."""
        if self.stop_token_ids is None and self.eos_token_id is not None:
            return (self.eos_token_id,)
        return self.stop_token_ids

    def plain(self) -> "GPT2Config":
        """Its sizes and architecture alone: without an adapter, and without the tokens that end texts."""
        return replace(self, adapter=None, eos_token_id=None, stop_token_ids=None)

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_head

    @property
    def inner(self) -> int:
        """Width of the network of a block."""
        return self.n_inner or 4 * self.d_model

    @property
    def output_table(self) -> str:
        """Name of the tensor [vocab, d_model] that gives logits."""
        return "wte" if self.tie_word_embeddings else LM_HEAD

    def score_factor(self, layer: int) -> float | None:
        """What the products of queries and keys are multiplied with in a layer; None = GPT-2's 1 / sqrt(d_head)."""
        if self.scale_attn_weights and not self.scale_attn_by_inverse_layer_idx:
            return None
        factor = self.d_head**-0.5 if self.scale_attn_weights else 1.0
        return factor / (layer + 1) if self.scale_attn_by_inverse_layer_idx else factor

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, in checkpoint order."""
        d = self.d_model
        shapes: dict[str, tuple[int, ...]] = {"wte": (self.vocab, d), "wpe": (self.n_positions, d)}
        for i in range(self.n_layer):
            shapes |= {f"h.{i}.{name}": shape for name, shape in block_shapes(d, self.n_inner).items()}
        shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
        if not self.tie_word_embeddings:
            shapes[LM_HEAD] = (self.vocab, d)
        return shapes | self.adapter_shapes()

    def adapter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what an adapter has besides its base, A [in, r] and B [r, out] for each matrix; {} without one."""
        if self.adapter is None:
            return {}
        found: dict[str, tuple[int, ...]] = {}
        for i in range(self.n_layer):
            for target in self.adapter.targets:
                rows, columns = block_shapes(self.d_model, self.n_inner)[f"{target}.weight"]
                found[f"h.{i}.{target}.lora_A"] = (rows, self.adapter.r)
                found[f"h.{i}.{target}.lora_B"] = (self.adapter.r, columns)
        return found

    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors that training changes: an adapter's own, else all."""
        return self.adapter_shapes() or self.param_shapes()

    def n_params(self) -> int:
        """Number of scalars; an output layer that is tied to `wte` is not counted twice."""
        block = sum(prod(shape) for shape in block_shapes(self.d_model, self.n_inner).values())
        own = sum(prod(shape) for shape in self.adapter_shapes().values())
        tables = self.n_positions + self.vocab * (1 if self.tie_word_embeddings else 2)
        return (tables + 2) * self.d_model + self.n_layer * block + own

    def n_trained(self) -> int:
        """Number of scalars that training changes."""
        return sum(prod(shape) for shape in self.trained_shapes().values())


def block_shapes(d: int, n_inner: int | None = None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the twelve tensors of one block of width `d`, names without `h.{i}.`; n_inner None = 4 d."""
    inner = n_inner or 4 * d
    return {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d),
        "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d),
        "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, d),
        "mlp.c_proj.bias": (d,),
    }


LINEAR_LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

# The published sizes; sql/models.sql enters them, and dropping a model that took the place of one brings it back.
PRESETS = {
    name: GPT2Config(n_layer, n_head, d_model, 1024, 50257, 50256)
    for name, n_layer, n_head, d_model in (
        ("gpt2-small", 12, 12, 768),
        ("gpt2-medium", 24, 16, 1024),
        ("gpt2-large", 36, 20, 1280),
        ("gpt2-xl", 48, 25, 1600),
    )
}
