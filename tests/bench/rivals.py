"""The other side: Hugging Face transformers on torch, plain torch, CTranslate2, tokenizers and tiktoken.

Each at its best settings for a CPU. That is for torch: inference mode, key-value cache, the fused attention kernel, fused
AdamW, as many threads as we have; not torch.compile, which wants a C++ compiler and minutes. Nothing here is imported
unless it is installed.
"""

import json
import math
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from ours import timed
from shapes import (
    ALPHA,
    CLIP,
    LR,
    NANOGPT_BETA2,
    NANOGPT_LR,
    NANOGPT_MIN_LR,
    NANOGPT_WARMUP,
    RANK,
    TARGET,
    WEIGHT_DECAY,
    Shape,
)
from targets import CT2, CT2_INT8, PEFT, TORCH

TOGETHER = 8  # rows of a batch of transformers that go on from the same text


def has_torch() -> bool:
    """Whether torch and transformers are installed."""
    return bool(find_spec("torch") and find_spec("transformers"))


def write_config(directory: Path, shape: Shape) -> None:
    """The config.json that makes `directory`, with model.safetensors in it, a model of transformers."""
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.d_model,
        "n_positions": shape.n_positions,
        "vocab_size": shape.vocab,
        "bos_token_id": shape.vocab - 1,
        "eos_token_id": shape.vocab - 1,
    }
    (directory / "config.json").write_text(json.dumps(config))


class Torch:
    """GPT2LMHeadModel with our weights, for inference; a copy of its own for training is made when first needed."""

    name = TORCH
    exact = True

    def __init__(self, directory: Path, threads: int, *, random: bool = False) -> None:
        """With `random`, the weights are not read, and the one model that there is is for training."""
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._torch = torch
        self._directory = directory
        self._random = random
        self._model = None if random else self._load().eval()
        self._training: tuple[Any, Any] | None = None

    def _load(self) -> Any:
        from transformers import AutoConfig, GPT2LMHeadModel

        if self._random:
            return GPT2LMHeadModel(AutoConfig.from_pretrained(self._directory, attn_implementation="sdpa"))
        return GPT2LMHeadModel.from_pretrained(
            self._directory, attn_implementation="sdpa", dtype=self._torch.float32, use_safetensors=True
        )

    def generate(self, ids: list[int], count: int) -> list[int]:
        """Greedy continuation by `count` ids."""
        prompt = self._torch.tensor([ids])
        with self._torch.inference_mode():
            out = self._model.generate(
                prompt,
                attention_mask=self._torch.ones_like(prompt),
                max_new_tokens=count,
                do_sample=False,
                use_cache=True,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[0, len(ids) :].tolist()

    def prefill(self, ids: list[int]) -> int:
        """Keys and values of a prompt and the most probable next id."""
        with self._torch.inference_mode():
            logits = self._model(self._torch.tensor([ids]), use_cache=True, logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    def read(self, ids: list[int]) -> None:
        """Keep keys and values of a text, for `after`."""
        with self._torch.inference_mode():
            self._read = self._model(self._torch.tensor([ids]), use_cache=True, logits_to_keep=1).past_key_values
        self._read_ids = len(ids)

    def after(self, ids: list[int]) -> list[int]:
        """The most probable next id of a text that begins with the one that was read, whose keys and values are used again."""
        rest = self._torch.tensor([ids[self._read_ids :]])
        with self._torch.inference_mode():
            logits = self._model(rest, past_key_values=self._read, use_cache=True, logits_to_keep=1).logits
        self._read.crop(-rest.shape[1])
        return [int(logits[0, -1].argmax())]

    def choose(self, rows: list[list[int]], choices: list[int]) -> list[int]:
        """The number of the most probable of `choices`, ids, after the text that was read and each of rows of one length.

        TOGETHER rows are a batch, over views of the keys and values that were read: the cache copies them once, as it grows.
        """
        from transformers import DynamicCache

        found: list[int] = []
        with self._torch.inference_mode():
            for start in range(0, len(rows), TOGETHER):
                some = self._torch.tensor(rows[start : start + TOGETHER])
                cache = DynamicCache(config=self._model.config)
                for number, layer in enumerate(self._read.layers):
                    keys, values = (kept.expand(len(some), -1, -1, -1) for kept in (layer.keys, layer.values))
                    cache.update(keys, values, number)
                logits = self._model(some, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                found += logits[:, choices].argmax(-1).tolist()
        return found

    def perplexity(self, ids: list[int], windows: list[tuple[int, int, int]]) -> float:
        """Of a text, by windows (start, first, stop) that score first..stop; TOGETHER alike are a batch. Logits of those only."""
        torch, total, count = self._torch, 0.0, 0
        with torch.inference_mode():
            for (size, skipped), alike in groupby(windows, lambda w: (w[2] - w[0], w[1] - w[0])):
                for some in _batches(ids, [start for start, _, _ in alike], size):
                    batch = torch.tensor(some)
                    x = self._model.transformer(batch[:, :-1], use_cache=False).last_hidden_state[:, skipped - 1 :]
                    logits = self._model.lm_head(x).flatten(0, 1)
                    total += float(
                        torch.nn.functional.cross_entropy(logits, batch[:, skipped:].flatten(), reduction="sum")
                    )
                    count += len(logits)
        return math.exp(total / count)

    def mean_state(self, ids: list[int], width: int) -> list[float]:
        """Mean of the last hidden states of a text that is read by windows of `width`, TOGETHER of them a batch."""
        whole = len(ids) - len(ids) % width
        batches = _batches(ids, range(0, whole, width), width) + _batches(ids, range(whole, len(ids), width), width)
        total = 0.0
        with self._torch.inference_mode():
            for some in batches:
                states = self._model.transformer(self._torch.tensor(some), use_cache=False).last_hidden_state
                total = total + states.flatten(0, 1).double().sum(0)
        return (total / len(ids)).tolist()

    def train(self, tokens: list[list[int]], targets: list[list[int]], dropout: float) -> float:
        """One step of forward, backward, clipping and AdamW; the loss. State is kept from call to call."""
        torch = self._torch
        model, optimizer = self._learner()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        for block in model.transformer.h:
            block.attn.attn_dropout.p = dropout
        optimizer.zero_grad(set_to_none=True)
        logits = model(torch.tensor(tokens), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    def optimizer_step(self) -> None:
        """Clipping and AdamW alone, with gradients that are made at the first call."""
        model, optimizer = self._learner()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = self._torch.full_like(parameter, 1e-3)
        self._torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    def _learner(self) -> tuple[Any, Any]:
        if self._training is None:
            model = self._load().train()
            self._training = model, fused_adamw(model, LR, 0.999)
        return self._training


def _batches(ids: list[int], starts: Sequence[int], size: int) -> list[list[list[int]]]:
    """The windows of one size that begin at `starts`, TOGETHER at a time."""
    windows = [ids[start : start + size] for start in starts]
    return [windows[i : i + TOGETHER] for i in range(0, len(windows), TOGETHER)]


class Peft(Torch):
    """An adapter of GPT2LMHeadModel that PEFT makes, as ours are made: B is zero."""

    name = PEFT

    def __init__(self, directory: Path, threads: int, *, random: bool = False) -> None:
        super().__init__(directory, threads, random=random)
        self.versions = {"peft": version("peft")}

    def _load(self) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=[TARGET.rpartition(".")[2]], lora_dropout=0.0, fan_in_fan_out=True
        )
        return get_peft_model(super()._load(), config)


def fused_adamw(model: Any, lr: float, beta2: float) -> Any:
    """Torch's fastest AdamW on a CPU; decay on matrices only."""
    import torch

    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)


class NanoGPT:
    """nanoGPT's recipe: its model and loop (karpathy/nanoGPT, model.py and train.py), with biases and GPT-2's GELU."""

    def __init__(self, weights: Path, shape: Shape, threads: int) -> None:
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(threads)
        self._shape = shape
        self._w = {name.removeprefix("transformer."): torch.nn.Parameter(w) for name, w in load_file(weights).items()}
        self._model = torch.nn.ParameterList(self._w.values())

    def loss(self, tokens: Any, targets: Any) -> Any:
        """Mean cross entropy of a batch."""
        from torch.nn import functional as F

        w, s = self._w, self._shape
        width, (batch, length) = (s.d_model,), tokens.shape
        x = F.embedding(tokens, w["wte.weight"]) + w["wpe.weight"][:length]
        for layer in range(s.n_layer):
            p = {name: w[f"h.{layer}.{name}"] for name in BLOCK}
            h = F.layer_norm(x, width, p["ln_1.weight"], p["ln_1.bias"])
            qkv = (h @ p["attn.c_attn.weight"] + p["attn.c_attn.bias"]).split(s.d_model, dim=2)
            q, k, v = (part.view(batch, length, s.n_head, -1).transpose(1, 2) for part in qkv)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, -1)
            x = x + y @ p["attn.c_proj.weight"] + p["attn.c_proj.bias"]
            h = F.layer_norm(x, width, p["ln_2.weight"], p["ln_2.bias"])
            h = F.gelu(h @ p["mlp.c_fc.weight"] + p["mlp.c_fc.bias"], approximate="tanh")
            x = x + h @ p["mlp.c_proj.weight"] + p["mlp.c_proj.bias"]
        x = F.layer_norm(x, width, w["ln_f.weight"], w["ln_f.bias"])
        return F.cross_entropy((x @ w["wte.weight"].T).flatten(0, 1), targets.flatten())

    def train(self, ids: Any, batches: Sequence[Sequence[int]], length: int) -> list[tuple[float, float]]:
        """(seconds, loss) of a step on each of `batches`, which say where in `ids` their rows begin."""
        import torch
        from pg_gpt2.training.optim import run_lr

        stream = torch.from_numpy(ids)
        optimizer = fused_adamw(self._model, NANOGPT_LR, NANOGPT_BETA2)

        def step(number: int, starts: Sequence[int]) -> float:
            for group in optimizer.param_groups:
                group["lr"] = run_lr(number, len(batches), NANOGPT_WARMUP, NANOGPT_LR, NANOGPT_MIN_LR)
            tokens = torch.stack([stream[i : i + length] for i in starts])
            targets = torch.stack([stream[i + 1 : i + 1 + length] for i in starts])
            loss = self.loss(tokens, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
            optimizer.step()
            return float(loss.detach())

        return [timed(partial(step, number, starts)) for number, starts in enumerate(batches, 1)]


BLOCK = [
    f"{layer}.{kind}"
    for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
]


class Tokenizers:
    """Hugging Face's tokenizers on the same vocabulary. `encode` has no cache yet in a new object."""

    name = "tokenizers"

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        self._tokenizer = Tokenizer(models.BPE(vocab, merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text).ids


class TikToken:
    """OpenAI's tiktoken on the same vocabulary."""

    name = "tiktoken"
    PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        import tiktoken

        special = {"<|endoftext|>": ranks[b"<|endoftext|>"]} if b"<|endoftext|>" in ranks else {}
        plain = {data: rank for data, rank in ranks.items() if rank not in special.values()}
        self._encoding = tiktoken.Encoding("bench", pat_str=self.PATTERN, mergeable_ranks=plain, special_tokens=special)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._encoding.encode_ordinary(text)


def tokenizers(names: dict[str, int], ranks: dict[bytes, int], merges: list[tuple[str, str]]) -> list[Any]:
    """Those that are installed, on a vocabulary."""
    found: list[Any] = [Tokenizers(names, merges)] if find_spec("tokenizers") else []
    return [*found, TikToken(ranks)] if find_spec("tiktoken") else found


def convert_for_ctranslate2(directory: Path, target: Path, quantization: str, names: list[str]) -> None:
    """Write the model in `directory` in CTranslate2's format. It wants a vocabulary, for which names of ids will do."""
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **options: Any) -> Any:
            return _Names(names)

    Converter(str(directory)).convert(str(target), quantization=quantization)


class CTranslate2:
    """CTranslate2's generator on the same weights, in float32 or int8. For decoding only."""

    def __init__(self, directory: Path, threads: int, shape: Shape, compute_type: str) -> None:
        import ctranslate2

        self.name = CT2 if compute_type == "float32" else CT2_INT8
        self.exact = compute_type == "float32"
        self.versions = {"ctranslate2": ctranslate2.__version__}
        self._names = [f"t{i}" for i in range(shape.vocab)]
        target = directory / f"ctranslate2_{compute_type}"
        convert_for_ctranslate2(directory, target, compute_type, self._names)
        self._generator = ctranslate2.Generator(
            str(target), device="cpu", compute_type=compute_type, intra_threads=threads
        )

    def generate(self, ids: list[int], count: int) -> list[int]:
        """Greedy continuation by `count` ids."""
        return self.generate_batch([ids], count)[0]

    def generate_batch(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Greedy continuations of several prompts in one pass."""
        results = self._generator.generate_batch(
            [[self._names[i] for i in ids] for ids in prompts],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        return [result.sequences_ids[0] for result in results]


class _Names:
    """As much of a tokenizer as CTranslate2's converter asks for."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self.bos_token = self.eos_token = self.unk_token = names[-1]

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return {name: i for i, name in enumerate(self._names)}
