"""The client-side loaders against a server: what goes in comes out, and what is refused leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest
import safetensors.numpy
from tokenizers import ByteLevelBPETokenizer

from loaders import convert_gpt2_checkpoint, ingest_tokenizer, load_model, prepare_dataset, save_model
from loaders.common import Database, LoaderError
from loaders.hub_model import Config, HubModel
from loaders.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config(n_layer=2, n_head=2, d_model=16, n_positions=32, vocab=300, eos_token_id=299)
TEXTS = [
    "The tables are the truth,\r\nmemory is a cache.\n",
    "# # naïve 日本 <|endoftext|> x\n",
    "arithmetic is BLAS " * 30,
]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in CONFIG.shapes().items()}


def hub_names(tensors):
    return {f"transformer.{n}.weight" if n in ("wte", "wpe") else f"transformer.{n}": v for n, v in tensors.items()}


def bfloat16_file(path, tensors):
    """A safetensors file of bfloat16, which NumPy and so the library's NumPy side cannot write."""
    header, data = {}, b""
    for name, values in tensors.items():
        upper = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [len(data), len(data) + len(upper)]}
        data += upper
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def truncated_to_bfloat16(values):
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.fixture
def directory(tmp_path):
    """A model directory as transformers writes it, without a vocabulary."""
    path = tmp_path / "hub"
    path.mkdir()
    safetensors.numpy.save_file(hub_names(weights()), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG.to_hub()))
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Directory with vocab.json and merges.txt, 300 tokens; the last is <|endoftext|>."""
    path = tmp_path_factory.mktemp("vocabulary")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([Path(__file__).read_text()], vocab_size=299, show_progress=False)
    ids = trained.get_vocab()
    assert len(ids) == 299
    (path / "vocab.json").write_text(json.dumps(ids | {"<|endoftext|>": 299}))
    trained.save_model(str(path), "trained")
    (path / "merges.txt").write_text((path / "trained-merges.txt").read_text())
    return path


def stored(conn, model):
    """Weights of the database by name, put together from their blocks."""
    rows = conn.execute(
        "SELECT name, token_id, shape, data FROM llm_param WHERE model = %s ORDER BY name, token_id", [model]
    )
    found: dict[str, list[np.ndarray]] = {}
    for name, first, shape, data in rows:
        assert first == sum(len(block) for block in found.get(name, []))
        found.setdefault(name, []).append(np.frombuffer(data, "<f4").reshape(shape))
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def load(conn, path, model, **options):
    with conn.transaction():
        load_model.load_model(Database(conn), path, model, **options)


def run(program, monkeypatch, *args):
    """Run a program's main as the command line would."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, args)])
    program.main()


def test_model_goes_in_and_comes_out(conn, directory, tmp_path):
    load(conn, directory, "round")
    assert_same(stored(conn, "round"), weights())
    row = conn.execute(
        "SELECT n_layer, n_head, d_model, n_positions, vocab, eos_token_id FROM llm_model_config WHERE model = 'round'"
    ).fetchone()
    assert Config(*row) == CONFIG
    with conn.transaction():
        save_model.save_model(Database(conn), "round", tmp_path / "saved")
    assert_same(safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors"), hub_names(weights()))
    assert HubModel(tmp_path / "saved").config == CONFIG
    assert not list((tmp_path / "saved").glob("*.partial"))


def test_half_the_size(conn, directory, tmp_path):
    load(conn, directory, "half")
    with conn.transaction():
        save_model.save_model(Database(conn), "half", tmp_path / "saved", half=True)
    expected = {name: values.astype(np.float16) for name, values in hub_names(weights()).items()}
    assert_same(safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors"), expected)
    load(conn, tmp_path / "saved", "half again")
    conn.execute("UPDATE llm_param SET data = pg_llm_tensor(ARRAY[70000]) || substr(data, 5) WHERE name = 'wpe'")
    with conn.transaction(), pytest.raises(LoaderError, match=r"wpe\.weight has a value beyond float16's 65504"):
        save_model.save_model(Database(conn), "half", tmp_path / "saved", half=True)
    assert not list((tmp_path / "saved").glob("*.partial"))


def test_loaded_model_runs(conn, directory):
    load(conn, directory, "runs")
    (logits,) = conn.execute("SELECT llm_logits(ARRAY[1, 2, 3], 'runs')").fetchone()
    assert len(logits) == 3 * CONFIG.vocab * 4


def test_large_tensors_are_split_as_the_server_splits_them(conn, tmp_path):
    config = Config(n_layer=1, n_head=2, d_model=512, n_positions=8, vocab=5000, eos_token_id=None)
    tensors = {name: np.full(shape, 0.5, np.float32) for name, shape in config.shapes().items()}
    safetensors.numpy.save_file(hub_names(tensors), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hub()))
    load(conn, tmp_path, "split")
    conn.execute("SELECT llm_init_model('split server', 1, 2, 512, 8, 5000)")
    layout = "SELECT name, token_id, shape FROM llm_param WHERE model = %s ORDER BY 1, 2"
    ours = conn.execute(layout, ["split"]).fetchall()
    assert ours == conn.execute(layout, ["split server"]).fetchall()
    assert ("wte", 2048, [2048, 512]) in ours
    assert_same(stored(conn, "split"), tensors)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision(conn, directory, dtype):
    if dtype == "f16":
        tensors = {name: values.astype(np.float16) for name, values in weights().items()}
        safetensors.numpy.save_file(hub_names(tensors), directory / "model.safetensors")
        expected = {name: values.astype(np.float32) for name, values in tensors.items()}
    else:
        bfloat16_file(directory / "model.safetensors", hub_names(weights()))
        expected = {name: truncated_to_bfloat16(values) for name, values in weights().items()}
    load(conn, directory, dtype)
    assert_same(stored(conn, dtype), expected)


def test_shards_prefixes_masks_and_tied_head(conn, directory):
    (directory / "model.safetensors").unlink()
    tensors = {f"_orig_mod.{name}": values for name, values in hub_names(weights()).items()}
    tensors["lm_head.weight"] = weights()["wte"]
    tensors["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), bool))
    names = list(tensors)
    index = {}
    for shard, part in enumerate((names[:9], names[9:])):
        file = f"model-{shard}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, directory / file)
        index |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load(conn, directory, "shards")
    assert_same(stored(conn, "shards"), weights())


def test_preset_gets_its_weights_by_loading(conn, directory):
    load(conn, directory, "gpt2-medium")
    assert conn.execute("SELECT d_model, preset FROM llm_model_config WHERE model = 'gpt2-medium'").fetchall() == [
        (16, False)
    ]


def test_replace(conn, directory):
    load(conn, directory, "again")
    with pytest.raises(LoaderError, match='model "again" has weights already'):
        load(conn, directory, "again")
    safetensors.numpy.save_file(hub_names(weights(1)), directory / "model.safetensors")
    load(conn, directory, "again", replace=True)
    assert_same(stored(conn, "again"), weights(1))


def changed(change):
    tensors = weights()
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("tensor h.1.ln_2.bias is missing", lambda t: t.pop("h.1.ln_2.bias")),
        ("tensor h.7.ln_2.bias is not part", lambda t: t.update({"h.7.ln_2.bias": np.zeros(16, np.float32)})),
        (r"tensor wpe has shape \[32, 3\]", lambda t: t.update(wpe=np.zeros((32, 3), np.float32))),
        ("tensor ln_f.bias has a value that is not finite", lambda t: t["ln_f.bias"].put(3, np.nan)),
        ("tensor transformer.wpe.weight has dtype F64", lambda t: t.update(wpe=t["wpe"].astype(np.float64))),
    ],
)
def test_refused_model_changes_nothing(conn, directory, message, change):
    safetensors.numpy.save_file(hub_names(changed(change)), directory / "model.safetensors")
    with pytest.raises(LoaderError, match=message):
        load(conn, directory, "refused")
    assert conn.execute("SELECT count(*) FROM llm_models WHERE model = 'refused'").fetchone() == (0,)


def test_untied_head_is_refused(conn, directory):
    tensors = hub_names(weights()) | {"lm_head.weight": weights()["wte"] + 1}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    with pytest.raises(LoaderError, match=r"lm_head\.weight differs from wte"):
        load(conn, directory, "untied")


@pytest.mark.parametrize(
    ("field", "value"), [("activation_function", "relu"), ("n_inner", 17), ("model_type", "bert"), ("n_embd", None)]
)
def test_other_architectures_are_refused(directory, field, value):
    config = CONFIG.to_hub() | {field: value}
    if value is None:
        del config[field]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoaderError, match=field):
        HubModel(directory)


def test_damaged_and_absent_files(directory, tmp_path):
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(LoaderError, match=r"model\.safetensors"):
        HubModel(directory)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").touch()
    with pytest.raises(LoaderError, match="is a pickle"):
        HubModel(directory)
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(LoaderError, match="of its own directory"):
        HubModel(directory)
    with pytest.raises(LoaderError, match="does not exist"):
        load_model.locate(str(tmp_path / "nowhere"))


def test_npz_is_what_the_server_imports(conn, directory, tmp_path, server_files, monkeypatch):
    output = tmp_path / "model.npz"
    run(convert_gpt2_checkpoint, monkeypatch, "--source", directory, "--output", output)
    with np.load(output, allow_pickle=False) as found:
        assert_same(dict(found), weights())
    shared = server_files / "converted.npz"
    shared.write_bytes(output.read_bytes())
    shared.chmod(0o644)
    conn.execute("SELECT pg_llm_import_npz(%s, 'converted')", [str(shared)])
    assert_same(stored(conn, "converted"), weights())


# Vocabularies


@pytest.mark.parametrize("source", ["files", "directory", "tokenizer.json"])
def test_ingested_vocabulary_encodes_as_the_library(dsn, conn, vocabulary, tmp_path, monkeypatch, source):
    model = f"vocabulary from {source}"
    options = ["--tokenizer", vocabulary]
    if source == "files":
        options = ["--vocab", vocabulary / "vocab.json", "--merges", vocabulary / "merges.txt"]
    elif source == "tokenizer.json":
        Vocabulary.find(vocabulary).save(tmp_path, 32)
        options = ["--tokenizer", tmp_path / "tokenizer.json"]
    run(ingest_tokenizer, monkeypatch, "--dsn", dsn, "--model", model, *options)
    expected = Vocabulary.find(vocabulary).tokenizer()
    for text in TEXTS:
        (ids,) = conn.execute("SELECT llm_encode(%s, %s)", [text, model]).fetchone()
        assert ids == expected.encode(text).ids
        assert conn.execute("SELECT llm_decode(%s::int[], %s)", [ids, model]).fetchone() == (text,)
    assert conn.execute(
        "SELECT token_id, bytes FROM llm_bpe_vocab WHERE model = %s AND token = '<|endoftext|>'", [model]
    ).fetchall() == [(299, b"<|endoftext|>")]


def test_vocabulary_is_replaced_only_when_told(dsn, conn, vocabulary, monkeypatch):
    command = ["--dsn", dsn, "--model", "twice", "--tokenizer", vocabulary]
    run(ingest_tokenizer, monkeypatch, *command)
    with pytest.raises(LoaderError, match="has a vocabulary already"):
        run(ingest_tokenizer, monkeypatch, *command)
    run(ingest_tokenizer, monkeypatch, *command, "--truncate")
    assert conn.execute("SELECT count(*) FROM llm_bpe_vocab WHERE model = 'twice'").fetchone() == (300,)


def test_vocabulary_comes_with_the_model_and_is_saved(conn, directory, vocabulary, tmp_path):
    Vocabulary.find(vocabulary).save(directory, 32)
    load(conn, directory, "whole")
    saved = tmp_path / "saved"
    with conn.transaction():
        save_model.save_model(Database(conn), "whole", saved)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert json_or_text(saved / name) == json_or_text(directory / name)
    load(conn, directory, "whole", replace=True)


def json_or_text(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()


def test_vocabulary_without_its_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(LoaderError, match="do not fit"):
        Vocabulary.find(tmp_path)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("model", {"type": "WordPiece"}, "not a tokenizer.json"),
        ("model", {"ignore_merges": True}, "ignore_merges"),
        ("model", {"dropout": 0.1}, "dropout"),
        ("model", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ("model", {"merges": ["a b", "a"]}, "not a tokenizer.json"),
        ("model", {"vocab": None}, "not a tokenizer.json"),
        ("pre_tokenizer", {"type": "Whitespace"}, "not a byte-level BPE"),
        ("pre_tokenizer", {"add_prefix_space": True}, "add_prefix_space"),
        ("pre_tokenizer", {"use_regex": False}, "not a byte-level BPE"),
        ("normalizer", {"type": "NFC"}, "normalizes"),
    ],
)
def test_a_tokenizer_that_is_not_gpt2s_is_refused(tmp_path, place, change, message):
    parsed = json.loads((ROOT / "tests/golden/tokenizer/learned/tokenizer.json").read_bytes())
    parsed[place] = {**(parsed[place] or {}), **change}
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(LoaderError, match=message):
        Vocabulary.find(tmp_path)


def test_tokenizer_json_of_older_releases_has_merges_as_strings(tmp_path):
    learned = ROOT / "tests/golden/tokenizer/learned"
    parsed = json.loads((learned / "tokenizer.json").read_bytes())
    parsed["model"]["merges"] = [" ".join(pair) for pair in parsed["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    assert Vocabulary.find(tmp_path) == Vocabulary.from_files(learned / "vocab.json", learned / "merges.txt")


# Data


def rows_of(conn, model):
    found = conn.execute("SELECT split, tokens, target FROM llm_dataset WHERE model = %s ORDER BY id", [model])
    return found.fetchall()


def test_dataset_has_no_seams(dsn, conn, vocabulary, tmp_path, monkeypatch, capsys):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    command = ["--dsn", dsn, "--tokenizer", vocabulary, "--input", tmp_path / "[01].txt", tmp_path / "2.txt"]
    run(prepare_dataset, monkeypatch, *command, "--block-size", 8, "--model", "seams", "--val-fraction", 0.25)
    encoder = Vocabulary.find(vocabulary).tokenizer()
    stream = [number for text in TEXTS for number in [*encoder.encode(text).ids, 299]]
    blocks = (len(stream) - 1) // 8
    found = rows_of(conn, "seams")
    assert [tokens for _, tokens, _ in found] == [stream[8 * i : 8 * i + 8] for i in range(blocks)]
    assert [target for _, _, target in found] == [stream[8 * i + 1 : 8 * i + 9] for i in range(blocks)]
    n_val = round(blocks / 4)
    assert [split for split, _, _ in found] == ["train"] * (blocks - n_val) + ["val"] * n_val
    assert f"{len(stream) - 8 * blocks - 1} of {len(stream)} tokens did not fill a block" in capsys.readouterr().out
    run(prepare_dataset, monkeypatch, *command, "--block-size", 8, "--model", "seams", "--truncate")
    assert [row[1:] for row in rows_of(conn, "seams")] == [row[1:] for row in found]


def test_dataset_from_a_query_equals_the_server_s_own(dsn, conn, vocabulary, monkeypatch):
    conn.execute("CREATE TABLE documents (n int, body text)")
    conn.cursor().executemany("INSERT INTO documents VALUES (%s, %s)", [*enumerate(TEXTS), (9, None)])
    query = "SELECT body FROM documents ORDER BY n"
    for model in ("client", "server"):
        run(ingest_tokenizer, monkeypatch, "--dsn", dsn, "--model", model, "--tokenizer", vocabulary)
    run(
        prepare_dataset, monkeypatch,
        *("--dsn", dsn, "--model", "client", "--query", query, "--block-size", 16, "--val-fraction", 0.3),
    )  # fmt: skip
    conn.execute("SELECT llm_dataset_load(%s, 'server', 16, 'train', 0.3)", [query])
    assert rows_of(conn, "client") == rows_of(conn, "server")
    assert rows_of(conn, "client")


def test_texts_that_cannot_be_used(dsn, vocabulary, tmp_path, monkeypatch):
    command = ["--dsn", dsn, "--tokenizer", vocabulary, "--block-size", 1000, "--input"]
    with pytest.raises(LoaderError, match="no file matches"):
        run(prepare_dataset, monkeypatch, *command, tmp_path / "*.txt")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(LoaderError, match="do not fill one block"):
        run(prepare_dataset, monkeypatch, *command, tmp_path / "*.txt")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    with pytest.raises(LoaderError, match=r"latin\.txt is not UTF-8"):
        run(prepare_dataset, monkeypatch, *command, tmp_path / "*.txt")
    with pytest.raises(LoaderError, match="--query: syntax error"):
        run(prepare_dataset, monkeypatch, *command[:4], "--query", "documents")


def test_rows_fit_the_model_and_what_was_there_is_told_of(dsn, conn, vocabulary, tmp_path, monkeypatch, capsys):
    conn.execute(
        "SELECT llm_init_model('narrow', n_layer => 1, n_head => 1, d_model => 8, n_positions => 16, vocab => 300)"
    )
    (tmp_path / "text.txt").write_text("as many words as fill a few rows " * 20)
    command = ["--dsn", dsn, "--tokenizer", vocabulary, "--model", "narrow", "--input", tmp_path / "text.txt"]
    with pytest.raises(LoaderError, match='--block-size 17 is more than the 16 positions of model "narrow"'):
        run(prepare_dataset, monkeypatch, *command, "--block-size", 17)
    run(prepare_dataset, monkeypatch, *command)
    assert {len(tokens) for _, tokens, _ in rows_of(conn, "narrow")} == {16}
    rows = len(rows_of(conn, "narrow"))
    assert "were there already" not in capsys.readouterr().out
    run(prepare_dataset, monkeypatch, *command)
    assert capsys.readouterr().out.startswith(f"{rows} rows were there already, and stay\nstored {rows} rows")
    run(prepare_dataset, monkeypatch, *command, "--truncate")
    assert "were there already" not in capsys.readouterr().out


# Programs


def test_extension_in_another_schema(new_database, directory, vocabulary, tmp_path):
    with psycopg.connect(new_database("template0"), autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "LLM %"')
        with pytest.raises(LoaderError, match="does not have pg_gpt2"):
            Database(conn)
        conn.execute('CREATE EXTENSION pg_gpt2 SCHEMA "LLM %" CASCADE')
        load(conn, directory, "elsewhere")
        with conn.transaction():
            Vocabulary.find(vocabulary).store(Database(conn), "elsewhere", replace=False)
            save_model.save_model(Database(conn), "elsewhere", tmp_path / "saved")
    assert_same(safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors"), hub_names(weights()))


@pytest.mark.parametrize("way", ["module", "path"])
def test_programs_run_from_the_shell(dsn, directory, tmp_path, way):
    def shell(name, *args, **options):
        program = ["-m", f"loaders.{name}"] if way == "module" else [ROOT / "loaders" / f"{name}.py"]
        directory = ROOT if way == "module" else tmp_path
        command = [sys.executable, *program, *args]
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, env=os.environ | options)

    done = shell("load_model", directory, "--dsn", dsn, "--model", f"by {way}")
    assert (done.returncode, done.stdout) == (0, f'loaded model "by {way}" from {directory}\n'), done.stderr
    again = shell("load_model", directory, "--dsn", dsn, "--model", f"by {way}")
    assert again.returncode == 1
    assert again.stderr == f'error: model "by {way}" has weights already; --replace replaces them\n'
    unreachable = shell("save_model", "any", tmp_path / "out", "--dsn", "host=/nowhere")
    assert unreachable.returncode == 1
    assert unreachable.stderr.startswith("error: ")
    assert "Traceback" not in unreachable.stderr
    unknown = shell("save_model", "unknown", tmp_path / "out", "--dsn", dsn)
    assert unknown.stderr == 'error: model "unknown" does not exist\n'
    for name in ("convert_gpt2_checkpoint", "ingest_tokenizer", "prepare_dataset"):
        assert shell(name, "--help").returncode == 0
