"""Checkpoints of nanoGPT and llm.c, written as their programs write them, give the logits of the models that wrote them."""

import numpy as np
import pytest
import torch
from pg_gpt2.core import gpt2
from pg_gpt2.core.tape import Eager
from torch import nn
from torch.nn import functional

from loaders.common import LoaderError
from loaders.hub_model import HubModel

IDS = [5, 200, 299, 0, 77, 1, 250]
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 48, "vocab_size": 300}
TOLERANCE = 1e-5  # of the largest logit: float32, sums in another order


class LayerNorm(nn.Module):
    """With or without a bias, which nanoGPT's model.py has because torch's had one always."""

    def __init__(self, d, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.bias = nn.Parameter(torch.zeros(d)) if bias else None

    def forward(self, x):
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, d, n_head, bias):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d, bias=bias), nn.Linear(d, d, bias=bias)
        self.n_head = n_head

    def forward(self, x):
        heads = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, d, bias, approximate):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(d, 4 * d, bias=bias), nn.Linear(4 * d, d, bias=bias)
        self.approximate = approximate

    def forward(self, x):
        return self.c_proj(functional.gelu(self.c_fc(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, d, n_head, bias, approximate):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(d, bias), Attention(d, n_head, bias)
        self.ln_2, self.mlp = LayerNorm(d, bias), MLP(d, bias, approximate)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The modules and their names of nanoGPT's model.py and of llm.c's train_gpt2.py."""

    def __init__(self, n_layer, n_head, n_embd, block_size, vocab_size, bias=True, approximate="tanh"):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList([Block(n_embd, n_head, bias, approximate) for _ in range(n_layer)]),
                "ln_f": LayerNorm(n_embd, bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids):
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def made(**options):
    torch.manual_seed(0)
    model = GPT(**SIZES | options)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.2 * torch.randn_like(tensor) + (tensor.ndim == 1))
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([IDS]))[0].numpy()


def ours(hub):
    params = {name: np.concatenate(list(hub.parts(name))) for name in hub.tensors}
    return gpt2.logits(Eager(), params, np.array([IDS]), hub.config.engine())[0]


def assert_close(found, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


# --- nanoGPT ----------------------------------------------------------------------------------------------------------------


def save_nanogpt(model, path, bias, prefix=""):
    """As train.py saves: the optimizer and its own settings are in the file, too."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.tensor([IDS])).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": {f"{prefix}{name}": values for name, values in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": SIZES | {"bias": bias, "dropout": 0.0},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(3.25),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True},
    }
    torch.save(checkpoint, path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_checkpoints(tmp_path, bias, prefix):
    model = made(bias=bias)
    save_nanogpt(model, tmp_path / "ckpt.pt", bias, prefix)
    for source in (tmp_path, tmp_path / "ckpt.pt"):
        hub = HubModel(source, "gelu_new")
        assert hub.notes == ([] if bias else ["it has no biases: zeros stand for them"])
        assert (hub.config.n_positions, hub.config.eos_token_id) == (48, None)
        assert_close(ours(hub), logits(model))


@pytest.mark.parametrize("bias", [True, False])
def test_the_gelu_of_a_nanogpt_checkpoint_is_that_of_its_model_py_and_told(tmp_path, bias):
    """The exact one, where it once had that of OpenAI; the file does not say."""
    model = made(bias=bias, approximate="none")
    save_nanogpt(model, tmp_path / "ckpt.pt", bias)
    hub = HubModel(tmp_path)
    assert "taken for gelu, else --activation-function" in hub.notes[0]
    assert hub.config.activation_function == "gelu"
    assert_close(ours(hub), logits(model))


# --- llm.c ------------------------------------------------------------------------------------------------------------------

ORDER = [
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
]


def save_llmc(model, path, dtype, padded=384):
    """As write_model of train_gpt2.py writes: a header of 256 integers, then each tensor for all layers."""
    header = torch.zeros(256, dtype=torch.int32)
    header[:8] = torch.tensor([20240326, 3 if dtype == torch.float32 else 5, 48, 300, 2, 2, 32, padded])
    params = {name: values.detach() for name, values in model.named_parameters()}
    wte = functional.pad(params["transformer.wte.weight"], (0, 0, 0, padded - 300))
    tensors = [wte, params["transformer.wpe.weight"]]
    tensors += [params[f"transformer.h.{i}.{name}"] for name in ORDER for i in range(2)]
    tensors += [params["transformer.ln_f.weight"], params["transformer.ln_f.bias"]]
    with open(path, "wb") as file:
        file.write(header.numpy().tobytes())
        for tensor in tensors:
            file.write(tensor.to(dtype).view(torch.int32 if dtype == torch.float32 else torch.int16).numpy().tobytes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_llmc_checkpoints(tmp_path, dtype):
    model = made()
    save_llmc(model, tmp_path / "gpt2.bin", dtype)
    hub = HubModel(tmp_path / "gpt2.bin")
    assert (hub.config.vocab, hub.config.n_positions) == (300, 48)  # without the padding
    assert_close(ours(hub), logits(model.to(dtype).float()))


def test_llmc_checkpoints_that_are_not_whole(tmp_path):
    path = tmp_path / "gpt2.bin"
    save_llmc(made(), path, torch.float32)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(LoaderError, match=r"has \d+ bytes, and its header is that of one of"):
        HubModel(path)
    path.write_bytes(whole[:4] + (1).to_bytes(4, "little") + whole[8:])
    with pytest.raises(LoaderError, match=r"no checkpoint of llm\.c of version 3"):
        HubModel(path)
    path.write_bytes(whole[:100])
    with pytest.raises(LoaderError, match=r"no checkpoint of llm\.c"):
        HubModel(path)
    path.write_bytes(whole[:16] + (100_000).to_bytes(4, "little") + whole[20:])
    with pytest.raises(LoaderError, match="n_layer 100000 is more than 10000"):
        HubModel(path)
    path.write_bytes(whole[:16] + bytes(4) + whole[20:])
    with pytest.raises(LoaderError, match="cannot have the sizes"):
        HubModel(path)
