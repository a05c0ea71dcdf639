"""Adapters: a directory of PEFT goes in and comes out as it was, and what is refused leaves nothing behind."""

import json

import numpy as np
import psycopg
import pytest
import safetensors.numpy

from loaders import load_adapter, save_adapter, save_model
from loaders.common import Database, LoaderError
from loaders.hub_model import HubModel
from loaders.peft_adapter import peft_name
from loaders.vocabulary import Vocabulary
from tests.server.loaders.hub import CONFIG, assert_same, bfloat16_file, load, run, stored, truncated_to_bfloat16

R, WIDTHS = 4, {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16)}
FIELDS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "acme/base",
    "peft_version": "0.21.2",
    "r": R,
    "lora_alpha": 6,
    "lora_dropout": 0.25,
    "target_modules": ["c_attn", "mlp.c_proj"],
    "bias": "none",
    "fan_in_fan_out": True,
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "loftq_config": {},
}
TARGETS = ["attn.c_attn", "mlp.c_proj"]


def weights(targets=TARGETS, seed=0, r=R):
    """An adapter's tensors, by our names and in our orientation."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(CONFIG.n_layer):
        for target in targets:
            rows, columns = WIDTHS[target]
            found[f"h.{i}.{target}.lora_A"] = rng.standard_normal((rows, r)).astype(np.float32)
            found[f"h.{i}.{target}.lora_B"] = rng.standard_normal((r, columns)).astype(np.float32)
    return found


def peft(tensors):
    return {peft_name(name): np.ascontiguousarray(values.T) for name, values in tensors.items()}


def write(path, tensors, **fields):
    path.mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(FIELDS | fields))
    return path


@pytest.fixture
def adapter(tmp_path):
    """A directory as PEFT writes it."""
    return write(tmp_path / "adapter", peft(weights()))


@pytest.fixture
def base(conn, directory, vocabulary, request):
    """A model of the database; with a vocabulary."""
    name = f"base of {request.node.name}"
    load(conn, directory, name)
    with conn.transaction():
        Vocabulary.find(vocabulary).store(Database(conn), name, replace=False)
    return name


def into(conn, path, base, model, **options):
    with conn.transaction():
        load_adapter.load_adapter(Database(conn), path, base, model, **options)


def described(conn, model):
    return conn.execute(
        "SELECT base, r, alpha, targets, dropout_p, seed FROM llm_adapter WHERE model = %s", [model]
    ).fetchone()


def test_adapter_goes_in_and_comes_out(conn, base, adapter, tmp_path):
    into(conn, adapter, base, "round")
    assert_same(stored(conn, "round"), weights())
    assert described(conn, "round") == (base, R, 6.0, TARGETS, 0.25, None)
    with conn.transaction():
        save_adapter.save_adapter(Database(conn), "round", tmp_path / "saved", base="acme/base")
    assert_same(safetensors.numpy.load_file(tmp_path / "saved" / "adapter_model.safetensors"), peft(weights()))
    written = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    wanted = {name: FIELDS.get(name) for name in written}
    assert written == wanted | {"target_modules": TARGETS}
    assert not list((tmp_path / "saved").glob("*.partial"))


def test_it_computes_what_its_matrices_say(conn, base, adapter, directory):
    """A model whose layers are W + (alpha / r) A B gives the same logits, but for the order of sums in float32."""
    into(conn, adapter, base, "computes")
    load(conn, directory, "by hand")
    merged = stored(conn, base)
    for i in range(CONFIG.n_layer):
        for target in TARGETS:
            a, b = (weights()[f"h.{i}.{target}.lora_{part}"] for part in "AB")
            changed = merged[f"h.{i}.{target}.weight"] + 6 / R * (a @ b)
            conn.execute(
                "UPDATE llm_param SET data = %s WHERE model = 'by hand' AND name = %s",
                [changed.astype(np.float32).tobytes(), f"h.{i}.{target}.weight"],
            )
    logits = "SELECT llm_logits(ARRAY[1, 2, 3, 299], %s)"
    (found,), (expected,) = (conn.execute(logits, [name]).fetchone() for name in ("computes", "by hand"))
    found, expected = np.frombuffer(found, "<f4"), np.frombuffer(expected, "<f4")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())
    (plain,) = conn.execute(logits, [base]).fetchone()
    assert not np.allclose(found, np.frombuffer(plain, "<f4"), atol=0.1)


def test_adapter_is_trained_on(conn, base, adapter):
    into(conn, adapter, base, "trains")
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('tables are the truth ', 40)$$, 'trains', 8)")
    before = conn.execute(
        "SELECT array_agg(xmin::text || ctid::text) FROM llm_param WHERE model = %s", [base]
    ).fetchone()
    conn.execute("SELECT llm_train('trains', 2, batch_size => 2)")
    assert (
        before
        == conn.execute("SELECT array_agg(xmin::text || ctid::text) FROM llm_param WHERE model = %s", [base]).fetchone()
    )
    assert any((values != weights()[name]).any() for name, values in stored(conn, "trains").items())


def test_rank_stabilized(conn, base, tmp_path):
    """Its factor is alpha / sqrt(r)."""
    into(conn, write(tmp_path / "rs", peft(weights()), use_rslora=True), base, "rank-stabilized")
    assert described(conn, "rank-stabilized")[2] == 12.0


def test_what_peft_takes_for_missing_fields(conn, base, tmp_path):
    path = write(tmp_path / "bare", peft(weights(["attn.c_attn"], r=8)))
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    into(conn, path, base, "bare")
    assert described(conn, "bare") == (base, 8, 8.0, ["attn.c_attn"], 0.0, None)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision(conn, base, adapter, dtype):
    path = adapter / "adapter_model.safetensors"
    if dtype == "f16":
        safetensors.numpy.save_file({name: v.astype(np.float16) for name, v in peft(weights()).items()}, path)
        expected = {name: v.astype(np.float16).astype(np.float32) for name, v in weights().items()}
    else:
        bfloat16_file(path, peft(weights()))
        expected = {name: truncated_to_bfloat16(values) for name, values in weights().items()}
    into(conn, adapter, base, dtype)
    assert_same(stored(conn, dtype), expected)


def test_replace(conn, base, adapter, tmp_path):
    """Weights, rank and targets are others; rows to learn from stay."""
    into(conn, adapter, base, "again")
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('tables are the truth ', 40)$$, 'again', 8)")
    with pytest.raises(LoaderError, match='model "again" is there already; --replace replaces an adapter'):
        into(conn, adapter, base, "again")
    other = write(tmp_path / "other", peft(weights(["mlp.c_fc"], 1, 3)), target_modules=["c_fc"], r=3)
    into(conn, other, base, "again", replace=True)
    assert_same(stored(conn, "again"), weights(["mlp.c_fc"], 1, 3))
    assert described(conn, "again") == (base, 3, 6.0, ["mlp.c_fc"], 0.25, None)
    assert conn.execute("SELECT count(*) > 0 FROM llm_dataset WHERE model = 'again'").fetchone() == (True,)
    conn.execute("SELECT llm_logits(ARRAY[1, 2, 3], 'again')")
    into(conn, other, base, "first time", replace=True)


def test_replace_replaces_an_adapter_of_the_same_base_only(conn, base, adapter, directory):
    load(conn, directory, "ordinary")
    load(conn, directory, "another base")
    into(conn, adapter, "another base", "elsewhere")
    for model, what in (
        ("ordinary", "no adapter"),
        ("elsewhere", 'an adapter of "another base"'),
        (base, "no adapter"),
    ):
        with pytest.raises(LoaderError, match=f'model "{model}" is {what}, which .* does not replace'):
            into(conn, adapter, base, model, replace=True)


def test_adapters_and_models_are_not_mixed_up(conn, base, adapter, directory, vocabulary, tmp_path):
    into(conn, adapter, base, "support")
    with conn.transaction(), pytest.raises(LoaderError, match=f'"support" is an adapter of "{base}": save-adapter'):
        save_model.save_model(Database(conn), "support", tmp_path / "out")
    with conn.transaction(), pytest.raises(LoaderError, match="is no adapter; save-model writes it"):
        save_adapter.save_adapter(Database(conn), base, tmp_path / "out")
    with conn.transaction(), pytest.raises(LoaderError, match='model "nowhere" does not exist'):
        save_adapter.save_adapter(Database(conn), "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(LoaderError, match=f'"support" is an adapter of "{base}", which a model does not replace'):
        load(conn, directory, "support", replace=True)
    with conn.transaction(), pytest.raises(LoaderError, match="uses the vocabulary of its base"):
        Vocabulary.find(vocabulary).store(Database(conn), "support", replace=True)
    with pytest.raises(LoaderError, match="has an adapter: load-adapter loads it"):
        HubModel(adapter)
    with pytest.raises(LoaderError, match=r"has no adapter_config\.json; it has a config\.json: load-model"):
        into(conn, directory, base, "none")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match='"support" is an adapter, of which there are no'):
        into(conn, adapter, "support", "of an adapter")


def test_vocabulary_of_the_base_serves(conn, base, adapter):
    into(conn, adapter, base, "speaks")
    assert Vocabulary.from_database(Database(conn), "speaks") == Vocabulary.from_database(Database(conn), base)


def changed(change):
    tensors = peft(weights())
    change(tensors)
    return tensors


A = peft_name("h.1.mlp.c_proj.lora_A")


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"tensor .*h\.1\.mlp\.c_proj\.lora_A\.weight is missing", lambda t: t.pop(A)),
        (r"tensor .*h\.2\..* is not part of an adapter of attn\.c_attn, mlp\.c_proj in 2 blocks",
         lambda t: t.update({A.replace("h.1", "h.2"): t[A]})),
        (r"mlp\.c_fc\.lora_A\.weight is not part of", lambda t: t.update({A.replace("c_proj", "c_fc"): t[A]})),
        (r"wte\.weight is not part of", lambda t: t.update({"base_model.model.transformer.wte.weight": t[A]})),
        (r"h\.1\.mlp\.c_proj\.lora_A is not part of", lambda t: t.update({A.removesuffix(".weight"): t.pop(A)})),
        (r"has shape \[64, 4\]; with r = 4 and a base of d_model = 16 it is \[4, 64\]",
         lambda t: t.update({A: np.ascontiguousarray(t[A].T)})),
        (r"has shape \[4, 32\]", lambda t: t.update({A: np.zeros((4, 32), np.float32)})),
        (r"has shape \[5, 64\]", lambda t: t.update({A: np.zeros((5, 64), np.float32)})),
        ("has a value that is not finite", lambda t: t[A].put(3, np.inf)),
        ("has dtype F64", lambda t: t.update({A: t[A].astype(np.float64)})),
    ],
)  # fmt: skip
def test_refused_weights_change_nothing(conn, base, tmp_path, message, change):
    path = write(tmp_path / "refused", changed(change))
    with pytest.raises(LoaderError, match=message):
        into(conn, path, base, "refused")
    assert_nothing_of(conn, "refused")


def assert_nothing_of(conn, model):
    for table in ("llm_model_config", "llm_adapter", "llm_param"):
        assert conn.execute(f"SELECT count(*) FROM {table} WHERE model = %s", [model]).fetchone() == (0,), table
    assert conn.execute("SELECT count(*) FROM llm_param_share WHERE target_model = %s", [model]).fetchone() == (0,)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("peft_type = 'IA3'; LORA can be loaded", {"peft_type": "IA3"}),
        ("peft_type = None", {"peft_type": None}),
        ("use_dora = True: DoRA rescales the columns", {"use_dora": True}),
        ("bias = 'all': it changes the base's biases", {"bias": "all"}),
        (r"modules_to_save = \['wte'\]: it brings layers of its own", {"modules_to_save": ["wte"]}),
        ("use_qalora = True: what it stands for is not known here", {"use_qalora": True}),
        ("layer_replication = ", {"layer_replication": [[0, 1]]}),
        ("of_tomorrow = {'a': 1}: what it stands for is not known here", {"of_tomorrow": {"a": 1}}),
        ("init_lora_weights = 'pissa_niter_4': that changed the base's weights", {"init_lora_weights": "pissa_niter_4"}),
        ("target_modules that are transformer.wte, which is no layer of a block", {"target_modules": ["c_attn", "wte"]}),
        ("target_modules that no layer of a GPT-2 has", {"target_modules": ["q_proj", "v_proj"]}),
        ("target_modules that no layer of a GPT-2 has", {"target_modules": []}),
        ("leaves out h.1.attn.c_attn; an adapter here adapts a layer in all 2 blocks", {"layers_to_transform": [0]}),
        ("r = 4 for h.0.attn.c_attn and 5 for h.0.mlp.c_proj", {"rank_pattern": {"mlp.c_proj": 5}}),
        ("lora_alpha = 6 for h.0.attn.c_attn and 7 for h.1.attn.c_attn", {"alpha_pattern": {"h.1.*": 7}}),
        ("rank_pattern that is not an object", {"rank_pattern": ["c_attn"]}),
        ("r = '4', which is no such number", {"r": "4"}),
        ("r = 4.5, which is no such number", {"r": 4.5}),
        ("r = True, which is no such number", {"r": True}),
        ("r must be a positive integer, not 0", {"r": 0}),
        ("lora_alpha = inf, which is no such number", {"lora_alpha": float("inf")}),
        ("too large to convert to float|int too large", {"lora_alpha": 10**400}),
        ("dropout_p must be at least 0 and below 1, not 1", {"lora_dropout": 1}),
        ("target_modules that is neither a string nor a list of strings", {"target_modules": {"c_attn": 1}}),
        ("target_modules that is neither a string nor a list of strings", {"target_modules": [1]}),
        ("target_modules that is no regular expression", {"target_modules": "(c_attn"}),
        ("layers_pattern that is no regular expression", {"layers_to_transform": [0, 1], "layers_pattern": "("}),
        ("layers_pattern that is neither a string nor a list", {"layers_to_transform": [0, 1], "layers_pattern": 3}),
        (r"not part of an adapter of attn\.c_attn in 2 blocks", {"target_modules": ["c_attn"]}),
        (r"attn\.c_proj\.lora_A\.weight is missing", {"target_modules": "all-linear", "exclude_modules": ["c_fc"]}),
    ],
)  # fmt: skip
def test_refused_configurations_change_nothing(conn, base, tmp_path, message, fields):
    path = write(tmp_path / "refused", peft(weights()), **fields)
    with pytest.raises(LoaderError, match=message):
        into(conn, path, base, "refused")
    assert_nothing_of(conn, "refused")


def test_base_of_another_shape(conn, base, adapter):
    conn.execute("SELECT llm_init_model('narrow', 2, 2, 8, 32, 300), llm_init_model('deep', 3, 2, 16, 32, 300)")
    conn.execute("SELECT llm_init_model('flat', 1, 2, 16, 32, 300)")
    for other, message in (
        ("narrow", r"has shape \[4, 16\]; with r = 4 and a base of d_model = 8 it is \[4, 8\]"),
        ("deep", r"h\.2\.attn\.c_attn\.lora_A\.weight is missing"),
        ("flat", r"h\.1\.attn\.c_attn\.lora_A\.weight is not part of an adapter of .* in 1 blocks"),
        ("nowhere", 'model "nowhere" does not exist'),
    ):
        with pytest.raises(LoaderError, match=message):
            into(conn, adapter, other, "misfit")
    conn.execute(
        "INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab)"
        " VALUES ('empty', 2, 2, 16, 32, 300)"
    )
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has no weights"):
        into(conn, adapter, "empty", "misfit")
    assert_nothing_of(conn, "misfit")


def test_other_forms_of_weights_are_refused(conn, base, adapter):
    weights_file = adapter / "adapter_model.safetensors"
    whole = weights_file.read_bytes()
    weights_file.write_bytes(whole[:-1])
    with pytest.raises(LoaderError, match=r"adapter_model\.safetensors: .*[Ee]rror"):
        into(conn, adapter, base, "other")
    weights_file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(LoaderError, match="is a git-LFS pointer"):
        into(conn, adapter, base, "other")
    weights_file.unlink()
    with pytest.raises(LoaderError, match=r"has no adapter_model\.safetensors"):
        into(conn, adapter, base, "other")
    (adapter / "adapter_model.safetensors.index.json").write_text("{}")
    with pytest.raises(LoaderError, match="several files, which PEFT does not read either"):
        into(conn, adapter, base, "other")
    (adapter / "adapter_model.bin").touch()
    with pytest.raises(LoaderError, match=r"adapter_model\.bin, a pickle, which is not read: open it with PeftModel"):
        into(conn, adapter, base, "other")
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(LoaderError, match="is not a JSON object"):
        into(conn, adapter, base, "other")


def test_incomplete_adapter_is_not_saved(conn, base, adapter, tmp_path):
    into(conn, adapter, base, "incomplete")
    conn.execute("DELETE FROM llm_param WHERE model = 'incomplete' AND name = 'h.0.attn.c_attn.lora_B'")
    with conn.transaction(), pytest.raises(LoaderError, match=r"h\.0\.attn\.c_attn\.lora_B .* has 0 of 4 rows"):
        save_adapter.save_adapter(Database(conn), "incomplete", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_programs(dsn, conn, base, adapter, tmp_path, monkeypatch, capsys):
    run(load_adapter, monkeypatch, adapter, "--dsn", dsn, "--base", base, "--model", "by program")
    run(save_adapter, monkeypatch, "by program", tmp_path / "out", "--dsn", dsn)
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1, "as the umask has it"
    assert capsys.readouterr().out == (
        f'loaded adapter "by program" of "{base}" from {adapter}\nsaved adapter "by program" in {tmp_path / "out"}\n'
    )
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    run(load_adapter, monkeypatch, tmp_path / "out", "--dsn", dsn, "--base", base)
    assert_same(stored(conn, "out"), weights())


def test_known_bases_have_the_names_of_the_hub(conn, directory, adapter, tmp_path):
    load(conn, directory, "gpt2-small")
    into(conn, adapter, "gpt2-small", "of gpt2")
    with conn.transaction():
        save_adapter.save_adapter(Database(conn), "of gpt2", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "gpt2"
