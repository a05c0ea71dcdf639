"""Models of PEFT with our weights."""

import numpy as np
import peft
import torch
import transformers
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config


def random_params(config: GPT2Config, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: w + (0.15 * rng.normal(size=w.shape)).astype(np.float32)
        for name, w in gpt2.init_params(config, seed).items()
    }


def by_peft(config: GPT2Config, params: dict[str, np.ndarray]) -> peft.PeftModel:
    """get_peft_model on GPT2LMHeadModel, with these weights; all of its own parameters are set."""
    form = config.adapter
    assert form is not None
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.d_model,
            n_positions=config.n_positions,
            vocab_size=config.vocab,
            bos_token_id=config.eos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=0,
        )
    )
    asked = peft.LoraConfig(
        r=form.r,
        lora_alpha=form.alpha,
        target_modules=rf"transformer\.h\.\d+\.({'|'.join(form.targets)})",
        lora_dropout=form.dropout_p,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    found = peft.get_peft_model(model, asked).eval()
    left = dict(params)
    with torch.no_grad():
        for full, parameter in found.named_parameters():
            name = name_of(full)
            array = left.pop(name)
            parameter.copy_(torch.from_numpy(array.T.copy() if "lora" in name else array))
    assert not left
    return found


def name_of(full: str) -> str:
    """Our name of a parameter of PEFT's."""
    name = full.removeprefix("base_model.model.transformer.").replace(".base_layer", "")
    name = {"wte.weight": "wte", "wpe.weight": "wpe"}.get(name, name)
    return name.replace("lora_A.default.weight", "lora_A").replace("lora_B.default.weight", "lora_B")
