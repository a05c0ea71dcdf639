"""Writes gpt2_tiny.npz: logits, first-step gradients and 50 AdamW losses of a tiny GPT-2, computed by torch and transformers.

Run it with the oracle extras installed: python tests/golden/make_gpt2_golden.py
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 61}
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
CLIP = 1.0
N_BATCHES, N_STEPS, BATCH, LENGTH = 4, 50, 2, 16


def main() -> None:
    """Build the model, run it, save what it gave."""
    torch.manual_seed(0)
    config = GPT2Config(
        **SHAPE, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, attn_implementation="eager"
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():  # larger than GPT-2's initial values, so that no term hides below the tolerance
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.2 + (1.0 if "ln_" in name and name.endswith("weight") else 0.0))
    named = {k.removeprefix("transformer.").replace("wte.weight", "wte").replace("wpe.weight", "wpe"): p
             for k, p in model.named_parameters()}  # fmt: skip
    out = {f"param.{k}": p.detach().numpy().copy() for k, p in named.items()}
    tokens = torch.randint(0, SHAPE["vocab_size"], (N_BATCHES, BATCH, LENGTH + 1))
    out["tokens"] = tokens.numpy().astype(np.int16)
    out["logits"] = model(tokens[0, :, :-1]).logits.detach().numpy()
    decay = [p for p in named.values() if p.ndim >= 2]
    others = [p for p in named.values() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": others, "weight_decay": 0.0}], **ADAMW)
    losses, norms = [], []
    for step in range(N_STEPS):
        batch = tokens[step % N_BATCHES]
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        if step == 0:
            out |= {f"grad.{k}": p.grad.numpy().copy() for k, p in named.items()}
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        losses.append(loss.item())
    out["losses"], out["norms"] = np.array(losses), np.array(norms)
    np.savez_compressed(Path(__file__).with_name("gpt2_tiny.npz"), **out)


if __name__ == "__main__":
    main()
