"""The other side: Hugging Face transformers on torch, tokenizers, and CTranslate2, each at its best settings for CPU.

That is for torch: inference mode, key-value cache, the fused attention kernel, fused AdamW, as many threads as we have.
Nothing here is imported unless it is installed.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shapes import CLIP, LR, WEIGHT_DECAY, Shape


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

    name = "transformers"

    def __init__(self, directory: Path, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._torch = torch
        self._directory = directory
        self._model = self._load().eval()
        self._training: tuple[Any, Any] | None = None

    def _load(self) -> Any:
        from transformers import GPT2LMHeadModel

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

    def train(self, tokens: list[list[int]], targets: list[list[int]], dropout: float) -> float:
        """One step of forward, backward, clipping and AdamW; the loss. State is kept from call to call."""
        torch = self._torch
        if self._training is None:
            self._training = self._new_training()
        model, optimizer = self._training
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

    def _new_training(self) -> tuple[Any, Any]:
        model = self._load().train()
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return model, self._torch.optim.AdamW(groups, lr=LR, fused=True)


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


class CTranslate2:
    """CTranslate2's generator on the same weights in float32. For decoding only."""

    name = "ctranslate2"

    def __init__(self, directory: Path, threads: int, shape: Shape) -> None:
        import ctranslate2

        self.versions = {"ctranslate2": ctranslate2.__version__}
        target = directory / "ctranslate2"
        # The converter wants a vocabulary beside the weights; ids are all we use, so their numbers will do.
        self._names = [f"t{i}" for i in range(shape.vocab)]
        self._convert(directory, target)
        self._generator = ctranslate2.Generator(
            str(target), device="cpu", compute_type="float32", intra_threads=threads
        )

    def _convert(self, directory: Path, target: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        names = self._names

        class Converter(TransformersConverter):
            def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **options: Any) -> Any:
                return _Names(names)

        Converter(str(directory)).convert(str(target), quantization="float32")

    def generate(self, ids: list[int], count: int) -> list[int]:
        """Greedy continuation by `count` ids."""
        result = self._generator.generate_batch(
            [[self._names[i] for i in ids]],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        return result[0].sequences_ids[0]


class _Names:
    """As much of a tokenizer as CTranslate2's converter asks for."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self.bos_token = self.eos_token = self.unk_token = names[-1]

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return {name: i for i, name in enumerate(self._names)}
