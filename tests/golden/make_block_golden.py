"""Writes block.json: one GPT-2 block of random weights, its output, and the gradients of sum(output * g), by torch.

Run it with the oracle extras installed: python tests/golden/make_block_golden.py
"""

import json
from pathlib import Path

import torch
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

T, D, H = 4, 8, 2
SHAPES = {
    "x": (T, D),
    "ln_1.weight": (D,),
    "ln_1.bias": (D,),
    "attn.c_attn.weight": (D, 3 * D),
    "attn.c_attn.bias": (3 * D,),
    "attn.c_proj.weight": (D, D),
    "attn.c_proj.bias": (D,),
    "ln_2.weight": (D,),
    "ln_2.bias": (D,),
    "mlp.c_fc.weight": (D, 4 * D),
    "mlp.c_fc.bias": (4 * D,),
    "mlp.c_proj.weight": (4 * D, D),
    "mlp.c_proj.bias": (D,),
}


def block(x: torch.Tensor, p: dict[str, torch.Tensor]) -> torch.Tensor:
    """The block, in torch's own words."""
    h = layer_norm(x, (D,), p["ln_1.weight"], p["ln_1.bias"])
    q, k, v = (
        part.view(T, H, D // H).transpose(0, 1)
        for part in (h @ p["attn.c_attn.weight"] + p["attn.c_attn.bias"]).split(D, -1)
    )
    mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(T, D)
    x = x + mixed @ p["attn.c_proj.weight"] + p["attn.c_proj.bias"]
    h = layer_norm(x, (D,), p["ln_2.weight"], p["ln_2.bias"])
    h = gelu(h @ p["mlp.c_fc.weight"] + p["mlp.c_fc.bias"], approximate="tanh")
    return x + h @ p["mlp.c_proj.weight"] + p["mlp.c_proj.bias"]


def main() -> None:
    """Float32 inputs, float64 arithmetic."""
    torch.manual_seed(0)
    p = {name: torch.randn(shape) * 0.5 for name, shape in SHAPES.items()}
    g = torch.randn(T, D)
    wide = {name: value.double().requires_grad_() for name, value in p.items()}
    y = block(wide["x"], wide)
    (y * g).sum().backward()
    out = {
        "n_head": H,
        "shapes": SHAPES,
        "inputs": {name: value.flatten().tolist() for name, value in p.items()},
        "g": g.flatten().tolist(),
        "y": y.flatten().tolist(),
        "grads": {name: value.grad.flatten().tolist() for name, value in wide.items()},
    }
    Path(__file__).with_name("block.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
