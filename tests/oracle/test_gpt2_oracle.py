"""The engine beside transformers' GPT-2 and torch's AdamW, live, on several shapes up to gpt2-small's real size."""

import numpy as np
import pytest
import torch
import transformers
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.training.trainer import Trainer
from torch.nn.functional import cross_entropy

SHAPES = {
    "one layer, one head": GPT2Config(n_layer=1, n_head=1, d_model=8, n_positions=12, vocab=11),
    "odd sizes": GPT2Config(n_layer=3, n_head=3, d_model=45, n_positions=70, vocab=307),
    "four heads, long": GPT2Config(n_layer=4, n_head=4, d_model=128, n_positions=200, vocab=1000),
    "large vocabulary": GPT2Config(n_layer=2, n_head=6, d_model=96, n_positions=65, vocab=20_001),
}
GPT2_SMALL = GPT2Config(n_layer=12, n_head=12, d_model=768, n_positions=1024, vocab=50257)


def hugging_face(config: GPT2Config, params: dict[str, np.ndarray]) -> torch.nn.Module:
    """GPT2LMHeadModel with these weights, in training mode, without dropout."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.d_model,
            n_positions=config.n_positions,
            vocab_size=config.vocab,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for name, p in by_checkpoint_name(model).items():
            p.copy_(torch.from_numpy(params[name]))
    return model


def by_checkpoint_name(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters under the names the engine uses."""
    names = {"transformer.wte.weight": "wte", "transformer.wpe.weight": "wpe"}
    return {names.get(k, k.removeprefix("transformer.")): p for k, p in model.named_parameters()}


def random_params(config: GPT2Config, seed: int = 0, spread: float = 0.1) -> dict[str, np.ndarray]:
    """Initial weights with every tensor perturbed: biases and gains that are 0 and 1 would hide errors."""
    rng = np.random.default_rng(seed)
    return {
        name: w + (spread * rng.normal(size=w.shape)).astype(np.float32)
        for name, w in gpt2.init_params(config, seed).items()
    }


def random_batch(config: GPT2Config, batch: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(0, config.vocab, (batch, length + 1))
    return tokens[:, :-1], tokens[:, 1:]


def torch_loss(model: torch.nn.Module, tokens: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    logits = model(torch.from_numpy(tokens)).logits
    return cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())


def check_logits(config: GPT2Config, params: dict[str, np.ndarray], batch: int, length: int) -> None:
    tokens, _ = random_batch(config, batch, length)
    with torch.no_grad():
        expected = hugging_face(config, params)(torch.from_numpy(tokens)).logits.numpy()
    expected_scale = max(1.0, float(expected.std()))  # the tolerance is for logits of unit scale
    difference = np.abs(gpt2.logits(Eager(), params, tokens, config) - expected).max()
    assert difference / expected_scale <= 2e-4


def check_gradients(config: GPT2Config, params: dict[str, np.ndarray], batch: int, length: int) -> None:
    tokens, targets = random_batch(config, batch, length)
    model = hugging_face(config, params)
    expected = torch_loss(model, tokens, targets)
    expected.backward()  # type: ignore[no-untyped-call]
    trainer = Trainer(config, params)
    loss, n = trainer.gradients([(tokens, targets)])
    assert n == batch * length
    assert loss == pytest.approx(expected.item(), rel=2e-6)
    for name, p in by_checkpoint_name(model).items():
        assert p.grad is not None
        reference = p.grad.numpy()
        assert np.linalg.norm(trainer.grads[name] - reference) <= 1e-5 * np.linalg.norm(reference), name


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name: str) -> None:
    config = SHAPES[name]
    check_logits(config, random_params(config), 3, config.n_positions)


def test_logits_equal_transformers_at_the_size_of_gpt2_small() -> None:
    check_logits(GPT2_SMALL, gpt2.init_params(GPT2_SMALL, 1), 1, 200)


@pytest.mark.parametrize("name", SHAPES)
def test_first_gradients_equal_torch(name: str) -> None:
    config = SHAPES[name]
    check_gradients(config, random_params(config), 2, config.n_positions - 1)


def test_first_gradients_equal_torch_at_the_size_of_gpt2_small() -> None:
    check_gradients(GPT2_SMALL, gpt2.init_params(GPT2_SMALL, 1), 2, 64)


@pytest.mark.parametrize("name", ["odd sizes", "large vocabulary"])
def test_fifty_steps_of_adamw_follow_torch(name: str) -> None:
    config = SHAPES[name]
    params = random_params(config, spread=0.02)
    model = hugging_face(config, params)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    trainer = Trainer(config, params)
    for step in range(1, 51):
        tokens, targets = random_batch(config, 2, 32, seed=step % 5)
        optimizer.zero_grad()
        expected = torch_loss(model, tokens, targets)
        expected.backward()  # type: ignore[no-untyped-call]
        # torch's own float32 norm of a large tensor is off by 1e-4
        norm = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        result = trainer.step(
            [(tokens, targets)],
            lr=1e-3,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            grad_clip=1.0,
            dropout_p=0.0,
            step_no=step,
        )
        assert result.loss == pytest.approx(expected.item(), rel=1e-4), step
        if step == 1:
            assert result.grad_norm == pytest.approx(norm, rel=1e-5)


def test_greedy_continuations_equal_transformers() -> None:
    config = SHAPES["four heads, long"]
    params = random_params(config, spread=0.2)
    model = hugging_face(config, params).eval()
    ids = list(random_batch(config, 1, 8)[0][0])
    expected = model.generate(  # type: ignore[operator]
        torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    for _ in range(64):
        ids.append(int(gpt2.logits(Eager(), params, np.array(ids), config)[-1].argmax()))
    assert ids == expected
