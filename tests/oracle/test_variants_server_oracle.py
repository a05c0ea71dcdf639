"""Relatives of GPT-2 through the server: save_pretrained -> load-model -> SQL -> save-model -> from_pretrained; and adapters."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2LMHeadModel

from loaders import load_adapter, load_model, save_adapter, save_model
from loaders.common import Database
from tests.oracle.variant_models import COUNT, drawn, member, random_ids, their_model

NUMBERS = range(0, COUNT, 9)  # one of each activation function
TOLERANCE = 2e-5  # of logits, relative to the largest: float32, sums in another order
NEW = 12


@pytest.fixture(params=NUMBERS)
def relative(request, conn, tmp_path):
    """(number, name in the database) of a configuration that was loaded from the directory of transformers."""
    number = request.param
    name = f"relative {number}"
    member(number)[2].save_pretrained(tmp_path / "theirs")
    load_model.load_model(Database(conn), tmp_path / "theirs", name, tokenizer=False)
    return number, name


def logits_in_sql(conn, ids, name):
    (data,) = conn.execute("SELECT llm_logits(%s::integer[], %s)", [ids, name]).fetchone()
    return np.frombuffer(data, "<f4").reshape(len(ids), -1)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def greedy_in_sql(conn, ids, name):
    query = "SELECT llm_generate_tokens(%s::integer[], %s, 0, model_name => %s, eos_token => -1)"
    return conn.execute(query, [ids, NEW, name]).fetchone()[0]


def greedy_of(model, ids):
    mask = torch.ones(1, len(ids), dtype=torch.long)
    how = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(input_ids=torch.tensor([ids]), attention_mask=mask, **how)[0, len(ids) :].tolist()


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


def test_a_loaded_relative_computes_what_transformers_does(conn, relative):
    number, name = relative
    config, _, model = member(number)
    ids = random_ids(config, 11, seed=11).tolist()
    expected = logits_of(model, ids)
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    for fast in ("on", "off"):
        conn.execute(f"SET LOCAL pg_gpt2.fast = {fast}")
        assert_close(logits_in_sql(conn, ids, name), expected)
        assert greedy_in_sql(conn, ids, name) == greedy_of(model, ids)
        query = "SELECT llm_loss(%s, %s::integer[], %s::integer[], training => false)"
        assert conn.execute(query, [name, ids[:-1], ids[1:]]).fetchone()[0] == pytest.approx(loss, rel=1e-5)


def test_a_saved_relative_opens_in_from_pretrained_with_the_same_bits(conn, relative, tmp_path):
    number, name = relative
    config, _, model = member(number)
    save_model.save_model(Database(conn), name, tmp_path / "ours")
    again, problems = GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(problems.values()), problems
    ours, expected = again.state_dict(), model.state_dict()
    assert ours.keys() == expected.keys()
    for tensor, values in expected.items():
        assert torch.equal(ours[tensor], values), tensor
    ids = random_ids(config, config.n_positions).tolist()
    np.testing.assert_array_equal(logits_of(again.eval(), ids), logits_of(model, ids))


def adapted(number):
    """A relative with an adapter of PEFT whose A and B are random."""
    config, params, _ = member(number)
    layers = LoraConfig(r=3, lora_alpha=7, target_modules=["c_attn", "c_fc", "mlp.c_proj"], fan_in_fan_out=True)
    model = get_peft_model(their_model(config, params), layers).eval()
    torch.manual_seed(number)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.copy_(torch.randn_like(values) / 4)
    return model


def test_an_adapter_of_a_relative_computes_what_peft_does(conn, relative, tmp_path):
    number, base = relative
    config = drawn(number)
    ids = random_ids(config, 9, seed=9).tolist()
    model = adapted(number)
    model.save_pretrained(tmp_path / "adapter")
    load_adapter.load_adapter(Database(conn), tmp_path / "adapter", base, "adapter")
    assert_close(logits_in_sql(conn, ids, "adapter"), logits_of(model, ids))
    assert greedy_in_sql(conn, ids, "adapter") == greedy_of(model, ids)

    save_adapter.save_adapter(Database(conn), "adapter", tmp_path / "again")
    again = PeftModel.from_pretrained(their_model(config, member(number)[1]), tmp_path / "again").eval()
    np.testing.assert_array_equal(logits_of(again, ids), logits_of(model, ids))

    conn.execute("SELECT llm_adapter_merge('adapter', 'merged')")
    assert_close(logits_in_sql(conn, ids, "merged"), logits_of(model, ids))


def test_a_run_on_a_relative_follows_torch(conn, relative):
    """Thirty steps of llm_train without dropout, with all rows in each."""
    number, name = relative
    config, params, _ = member(number)
    rows = random_ids(config, 3, 17, seed=5)
    for row in rows.tolist():
        conn.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES (%s, %s, %s)", [name, row[:-1], row[1:]])
    conn.execute(
        "SELECT llm_train(%s, 30, batch_size => 3, dropout_p => 0, lr_max => 1e-3, warmup => 0, grad_clip => 1)", [name]
    )
    log = conn.execute("SELECT lr, loss FROM llm_train_log WHERE model = %s ORDER BY step", [name]).fetchall()
    assert len(log) == 30
    model = their_model(config, params)
    (settings,) = conn.execute("SELECT config FROM llm_run WHERE model = %s", [name]).fetchone()
    decayed = [[p for p in model.parameters() if (p.ndim >= 2) == want] for want in (True, False)]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed[0], "weight_decay": settings["weight_decay"]},
            {"params": decayed[1], "weight_decay": 0.0},
        ],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["eps"],
    )
    rel = 1e-3 if config.activation_function == "relu" else 1e-4
    for lr, found in log:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        logits = model(torch.from_numpy(rows[:, :-1]), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows[:, 1:]).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert found == pytest.approx(loss.item(), rel=rel)
