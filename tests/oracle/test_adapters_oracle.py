"""Training an adapter beside PEFT, live: logits, gradients, 50 steps of AdamW with clipping, and what it becomes when merged."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import LINEAR_LAYERS, Adapter, GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.fast import layout
from pg_gpt2.training.trainer import Batch, Trainer
from torch.nn import functional as F

from tests.oracle.peft_models import by_peft, name_of, random_params

BASE = GPT2Config(n_layer=3, n_head=2, d_model=64, n_positions=32, vocab=300, eos_token_id=299)
FORMS = {
    "one matrix": Adapter(r=8, alpha=16),
    "all matrices": Adapter(r=3, alpha=5, targets=LINEAR_LAYERS),
    "of rank 1": Adapter(r=1, alpha=2, targets=("mlp.c_proj",)),
    "two matrices": Adapter(r=4, alpha=1, targets=("attn.c_proj", "mlp.c_fc")),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
panels = pytest.mark.parametrize("panels", [False, True], ids=["rows", "panels"])
# float32 sums of some hundred terms, in other orders.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose by threads, and much on a machine that does other things."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def both(form: Adapter, panels: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, peft.PeftModel]:
    """A trainer of the adapter, beside its base as a session holds it, and the model of PEFT."""
    monkeypatch.setattr(layout, "use_panels", panels)
    config = replace(BASE, adapter=form)
    params = random_params(config, 5)
    model = by_peft(config, params)
    own = {name: params.pop(name) for name in config.adapter_shapes()}
    return Trainer(config, {**layout.lay_out(params, BASE), **own}), model


def drawn(seed: int) -> Batch:
    """Rows of which some targets carry no loss."""
    tokens = np.random.default_rng(seed).integers(0, BASE.vocab, (3, 21))
    targets = tokens[:, 1:].copy()
    targets[0, :5] = -100
    return Batch(tokens[:, :-1], targets)


def torch_loss(model: peft.PeftModel, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=torch.from_numpy(batch.tokens)).logits
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())


def own_of(model: peft.PeftModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that PEFT trains, by our names."""
    return {name_of(full): w for full, w in model.named_parameters() if w.requires_grad}


@forms
@panels
def test_logits_of_an_adapter_are_those_of_peft(both: tuple[Trainer, peft.PeftModel]) -> None:
    trainer, model = both
    ids = drawn(1).tokens
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(
        gpt2.logits(Eager(), trainer.params, ids, trainer.config), expected, rtol=1e-4, atol=2e-4
    )


@forms
@panels
def test_gradients_of_an_adapter_are_those_of_peft(both: tuple[Trainer, peft.PeftModel]) -> None:
    trainer, model = both
    loss = torch_loss(model, drawn(2))
    loss.backward()
    assert trainer.gradients([drawn(2)])[0] == pytest.approx(float(loss), rel=1e-5)
    own = own_of(model)
    assert own.keys() == trainer.grads.keys() == trainer.config.trained_shapes().keys()
    for name, w in own.items():
        expected = w.grad.numpy().T  # type: ignore[union-attr]
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(trainer.grads[name] / scale, expected / scale, **TOLERANCE, err_msg=name)


@forms
@panels
def test_fifty_steps_of_an_adapter_follow_peft(both: tuple[Trainer, peft.PeftModel]) -> None:
    trainer, model = both
    own = own_of(model)
    adamw = torch.optim.AdamW(own.values(), lr=3e-3, weight_decay=0.1)
    for step in range(50):
        batch = drawn(step % 5)
        loss = torch_loss(model, batch)
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        adamw.step()
        result = trainer.step([batch], lr=3e-3, weight_decay=0.1, grad_clip=1.0, dropout_p=0.0, step_no=step + 1)
        assert result.loss == pytest.approx(loss.item(), rel=1e-3)
        assert result.grad_norm == pytest.approx(float(norm), rel=2e-2)
    for name, w in own.items():
        np.testing.assert_allclose(trainer.params[name], w.detach().numpy().T, rtol=1e-2, atol=5e-3, err_msg=name)
    for full, w in model.named_parameters():
        if not w.requires_grad:
            np.testing.assert_array_equal(layout.plain(trainer.params)[name_of(full)], w.numpy())


@forms
@pytest.mark.parametrize("panels", [True])
def test_a_merged_adapter_is_what_peft_merges(both: tuple[Trainer, peft.PeftModel]) -> None:
    trainer, model = both
    found = dict(gpt2.merged(layout.plain(trainer.params), trainer.config))
    merged = model.merge_and_unload()
    expected = {name_of(f"base_model.model.{full}"): w.detach().numpy() for full, w in merged.named_parameters()}
    assert found.keys() == expected.keys()
    for name, w in found.items():
        np.testing.assert_allclose(w, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    ids = drawn(3).tokens
    with torch.no_grad():
        logits = merged(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(gpt2.logits(Eager(), found, ids, BASE), logits, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("target", LINEAR_LAYERS)
def test_an_adapter_begins_within_the_bounds_of_peft(target: str) -> None:
    config = replace(BASE, adapter=Adapter(r=64, targets=(target,)))
    params = gpt2.init_params(config, 3)
    theirs = by_peft(config, params)
    for name, module in theirs.named_modules():
        if name.endswith(target):
            module.reset_lora_parameters("default", init_lora_weights=True)
    for name, w in own_of(theirs).items():
        ours, array = params[name], w.detach().numpy().T
        assert ours.shape == array.shape
        assert ours.std() == pytest.approx(float(array.std()), rel=0.1)
        assert np.abs(ours).max() == pytest.approx(float(np.abs(array).max()), rel=0.05)
