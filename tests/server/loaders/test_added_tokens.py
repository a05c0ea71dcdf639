"""Added tokens, ends of text of their own, weights that pad: from files into the database, used there, and back."""

import json
import re

import numpy as np
import psycopg
import pytest
import safetensors.numpy
from pg_gpt2.tokenizer.added import AddedToken
from tokenizers import AddedToken as HubToken
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from loaders import ingest_tokenizer, load_model, prepare_dataset, save_model
from loaders.common import Database, LoaderError
from loaders.hub_model import Config
from loaders.vocabulary import Vocabulary
from tests.server.loaders.hub import hub_names, load, run

SPECIAL = ["<|user|>", "<|bot|>"]
COLUMNS = "token_id, token, bytes, roles, added, special, lstrip, rstrip, single_word, normalized"


def model_directory(directory, vocab=303, seed=0, **fields):
    """A model of `vocab` ids whose logits differ much, so that it says what it says, in the place of the one that is there."""
    config = Config(n_layer=1, n_head=2, d_model=16, n_positions=32, vocab=vocab, eos_token_id=vocab - 1)
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in config.shapes().items()}
    safetensors.numpy.save_file(hub_names(weights), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config.to_hub() | fields))
    return directory


def plain_files(directory, vocabulary):
    for name in ("vocab.json", "merges.txt"):
        (directory / name).write_bytes((vocabulary / name).read_bytes())


@pytest.fixture
def as_transformers_4(directory, vocabulary):
    """vocab.json and merges.txt of 300 tokens, tokenizer.json with three more, and added_tokens.json."""
    plain_files(model_directory(directory), vocabulary)
    made = Vocabulary.find(vocabulary).tokenizer()
    made.add_tokens([HubToken("<think>", lstrip=True)])
    made.add_special_tokens(SPECIAL)
    made.save(str(directory / "tokenizer.json"))
    (directory / "added_tokens.json").write_text(json.dumps({"<think>": 300, "<|user|>": 301, "<|bot|>": 302}))
    config = {"eos_token": "<|endoftext|>", "pad_token": "<|user|>", "tokenizer_class": "GPT2Tokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_added_tokens_come_with_a_model_and_go_with_it(conn, as_transformers_4, tmp_path):
    load(conn, as_transformers_4, "added")
    assert conn.execute("SELECT vocab, tokenizer_tokens FROM llm_models WHERE model = 'added'").fetchone() == (303, 303)
    assert conn.execute("SELECT llm_decode(ARRAY[301, 39, 302, 300], 'added')").fetchone() == (
        "<|user|>H<|bot|><think>",
    )
    (hello,) = conn.execute("SELECT llm_encode('Hello', 'added')").fetchone()
    text = "<|user|>Hello<|bot|>  <think>"
    find = "SELECT llm_encode(%s, 'added', special => %s)"
    assert conn.execute(find, [text, True]).fetchone() == ([301, *hello, 302, 300],)
    (ordinary,) = conn.execute(find, [text, False]).fetchone()
    assert ordinary[-1] == 300
    assert not {301, 302} & set(ordinary)
    shown = conn.execute("SELECT token_id, token FROM llm_tokenize('<think>', 'added')").fetchall()
    assert shown == [(300, "<think>")]
    conn.execute("SELECT llm_copy_model('added', 'copy')")
    rows = f"SELECT {COLUMNS} FROM llm_bpe_vocab WHERE model = %s ORDER BY 1"
    assert conn.execute(rows, ["copy"]).fetchall() == conn.execute(rows, ["added"]).fetchall()
    with conn.transaction():
        save_model.save_model(Database(conn), "added", tmp_path / "saved")
    load(conn, tmp_path / "saved", "again")
    differ = [
        (ours, theirs)
        for ours, theirs in zip(conn.execute(rows, ["added"]), conn.execute(rows, ["again"]), strict=True)
        if ours != theirs
    ]
    assert all((ours[:3], ours[4:]) == (theirs[:3], theirs[4:]) for ours, theirs in differ)
    assert [(ours[3], theirs[3]) for ours, theirs in differ] == [(["eos"], ["bos", "eos", "unk"])]
    library = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert library.encode(text).ids == [301, *hello, 302, 300]


def test_a_vocabulary_of_a_client_and_of_the_server_is_read_alike(conn, vocabulary, tmp_path):
    """With a byte order mark, line ends of Windows, and empty lines at the end."""
    expected = Vocabulary.find(vocabulary)
    (tmp_path / "vocab.json").write_bytes(b"\xef\xbb\xbf" + (vocabulary / "vocab.json").read_bytes())
    merges = (vocabulary / "merges.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "merges.txt").write_bytes(b"\xef\xbb\xbf" + merges + b"\r\n\r\n\n")
    assert Vocabulary.find(tmp_path) == expected
    (tmp_path / "merges.txt").write_bytes(merges + b"three words here\r\n")
    with pytest.raises(LoaderError, match=r"merges\.txt, line \d+: expected two tokens"):
        Vocabulary.find(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: setattr(t, "normalizer", normalizers.Lowercase()), "normalizer Lowercase"),
        (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)), "add_prefix_space"),
        (lambda t: setattr(t.model, "end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (
            lambda t: setattr(
                t, "post_processor", processors.TemplateProcessing("<|a|> $A", special_tokens=[("<|a|>", 9)])
            ),
            "post_processor TemplateProcessing",
        ),
        (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()), "pre_tokenizer Whitespace"),
    ],
    ids=["normalizer", "add_prefix_space", "suffix", "post_processor", "pre_tokenizer"],
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside vocab.json", "alone"])
def test_a_foreign_tokenizer_is_refused_by_name_and_its_weights_load_alone(
    dsn, conn, directory, vocabulary, monkeypatch, change, named, beside
):
    model_directory(directory)
    made = Vocabulary.find(vocabulary).tokenizer()
    change(made)
    made.save(str(directory / "tokenizer.json"))
    if beside:
        plain_files(directory, vocabulary)
    with pytest.raises(LoaderError, match=rf"{named}.*--no-tokenizer loads the weights alone"):
        load(conn, directory, "foreign")
    assert conn.execute("SELECT count(*) FROM llm_param WHERE model = 'foreign'").fetchone() == (0,)
    run(load_model, monkeypatch, "--dsn", dsn, "--model", "foreign", "--no-tokenizer", directory)
    assert conn.execute("SELECT n_params > 0, tokenizer_tokens FROM llm_models WHERE model = 'foreign'").fetchone() == (
        True,
        0,
    )
    assert (
        len(
            conn.execute("SELECT llm_generate_tokens(ARRAY[1], max_tokens => 3, model_name => 'foreign')").fetchone()[0]
        )
        == 3
    )
    conn.execute("SELECT llm_drop_model('foreign')")


@pytest.mark.parametrize("setting", ["add_prefix_space", "add_bos_token", "add_eos_token"])
def test_settings_of_tokenizer_config_are_refused_by_name(vocabulary, tmp_path, setting):
    plain_files(tmp_path, vocabulary)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({setting: True}))
    with pytest.raises(LoaderError, match=setting):
        Vocabulary.find(tmp_path)


def test_vocabularies_of_other_kinds_are_refused(vocabulary, tmp_path):
    plain_files(tmp_path, vocabulary)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(LoaderError, match="tokenizer_class CLIPTokenizer"):
        Vocabulary.find(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    ids = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(ids | {f"{chr(97 + n)}</w>": 300 + n for n in range(26)}))
    with pytest.raises(LoaderError, match="end_of_word_suffix"):
        Vocabulary.find(tmp_path)


def test_a_special_token_without_an_id_is_left_out_and_told(vocabulary, tmp_path, capsys):
    plain_files(tmp_path, vocabulary)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    assert Vocabulary.find(tmp_path) == Vocabulary.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert "has no id for pad_token '[PAD]'" in capsys.readouterr().err


@pytest.fixture
def own_end(directory, vocabulary):
    """A model whose end of text is `</s>`, id 2; its vocabulary has no `<|endoftext|>`."""
    model_directory(directory, vocab=300, eos_token_id=2, bos_token_id=2)
    names = {i: token for token, i in json.loads((vocabulary / "vocab.json").read_text()).items()}
    names[299], names[2] = names[2], "</s>"
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in names.items()}))
    (directory / "merges.txt").write_bytes((vocabulary / "merges.txt").read_bytes())
    return directory


def test_an_end_of_text_of_its_own_is_the_models_everywhere(dsn, conn, own_end, tmp_path, monkeypatch):
    load(conn, own_end, "own")
    conn.execute("SELECT llm_dataset_load('VALUES (''one text''), (''another'')', 'own', 4, pack => false)")
    pairs = "SELECT llm_dataset_load_pairs('VALUES (''one'', '' text'')', 'own', split => 'val')"
    conn.execute(pairs)
    last = "SELECT target[cardinality(target)] FROM llm_dataset WHERE model = 'own' ORDER BY id DESC LIMIT 1"
    assert conn.execute(last).fetchone() == (2,)
    assert conn.execute("SELECT count(*) FROM llm_dataset WHERE model = 'own' AND 2 = ANY (target)").fetchone() == (3,)
    (tmp_path / "texts.txt").write_text("some words to be cut")
    encoded = [*Vocabulary.find(own_end).tokenizer().encode("some words to be cut").ids, 2]
    options = ["--model", "own", "--truncate", "--block-size", len(encoded) - 1, "--input", tmp_path / "*.txt"]
    run(prepare_dataset, monkeypatch, "--dsn", dsn, *options)
    assert conn.execute("SELECT target FROM llm_dataset WHERE model = 'own'").fetchall() == [(encoded[1:],)]
    bias = '{"logit_bias": {"2": 100}}'
    draw = f"SELECT llm_generate_tokens(ARRAY[5], max_tokens => 5, options => '{bias}', model_name => 'own')"
    assert conn.execute(draw).fetchone() == ([2],)
    assert conn.execute("SELECT llm_generate('', max_tokens => 0, model_name => 'own')").fetchone() == ("",)
    with conn.transaction():
        save_model.save_model(Database(conn), "own", tmp_path / "saved")
    saved = Vocabulary.find(tmp_path / "saved")
    assert (len(saved.ids), saved.eos, saved.roles["eos"]) == (300, 2, 2)
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["bos_token"], config["unk_token"]) == ("</s>",) * 3


def test_an_end_of_text_of_a_vocabulary_alone_is_that_of_what_is_made_of_it(dsn, conn, own_end, monkeypatch):
    (own_end / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    run(ingest_tokenizer, monkeypatch, "--dsn", dsn, "--model", "alone", "--tokenizer", own_end)
    conn.execute("SELECT llm_dataset_load('VALUES (''one text'')', 'alone', 4, pack => false)")
    assert conn.execute("SELECT count(*) FROM llm_dataset WHERE model = 'alone' AND 2 = ANY (target)").fetchone() == (
        1,
    )
    conn.execute("SELECT llm_init_model('alone', 1, 1, 8, 8)")
    assert conn.execute("SELECT eos_token_id FROM llm_model_config WHERE model = 'alone'").fetchone() == (2,)
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("UPDATE llm_bpe_vocab SET roles = '{eos}' WHERE model = 'alone' AND token_id = 7")


@pytest.mark.parametrize(
    ("config", "generation", "eos", "stops"),
    [
        (59, None, 59, None),
        (59, {"eos_token_id": 23}, 59, [23]),
        (59, {"eos_token_id": [59, 23]}, 59, [59, 23]),
        ([59, 23], None, 59, [59, 23]),
        ([59], {"eos_token_id": 59}, 59, None),
        (59, {}, 59, []),
        (None, {"eos_token_id": 7}, None, [7]),
        (50256, None, None, None),
        ([50256, 7], None, 7, None),
    ],
)
def test_tokens_that_end_generation_are_those_of_the_files(conn, directory, tmp_path, config, generation, eos, stops):
    model_directory(directory, vocab=60, eos_token_id=config)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    load(conn, directory, "ends")
    row = "SELECT eos_token_id, stop_token_ids FROM llm_model_config WHERE model = %s"
    assert conn.execute(row, ["ends"]).fetchone() == (eos, stops)
    for end in stops or [eos] if stops != [] else []:
        if end is None:
            continue
        options = json.dumps({"logit_bias": {str(end): 100}})
        for call in (
            "SELECT llm_generate_tokens(ARRAY[5], max_tokens => 3, options => %s::jsonb, model_name => 'ends')",
            "SELECT token_ids FROM llm_beam_search(prompt_ids => ARRAY[5], max_tokens => 3, options => %s::jsonb,"
            " model_name => 'ends', early_stopping => true) LIMIT 1",
        ):
            assert conn.execute(call, [options]).fetchone() == ([end],)
    conn.execute("SELECT llm_copy_model('ends', 'same')")
    assert conn.execute(row, ["same"]).fetchone() == (eos, stops)
    (exported,) = conn.execute("SELECT string_agg(chunk, '') FROM llm_export_safetensors('ends') AS chunk").fetchone()
    conn.execute("SELECT llm_import_safetensors(%s, 'imported')", [exported])
    assert conn.execute(row, ["imported"]).fetchone() == (eos, stops)
    with conn.transaction():
        save_model.save_model(Database(conn), "ends", tmp_path / "saved")
    load(conn, tmp_path / "saved", "back")
    assert conn.execute(row, ["back"]).fetchone() == (eos, stops)
    conn.execute("SELECT llm_drop_model(m) FROM unnest(ARRAY['ends', 'same', 'imported', 'back']) AS m")


def test_ids_beyond_the_vocabulary_are_never_generated(conn, directory, vocabulary):
    """Weights for 320 ids, a vocabulary of 300, as of nanoGPT's rows that pad; each way draws from 60 prompts."""
    plain_files(model_directory(directory, vocab=320, eos_token_id=None, bos_token_id=None), vocabulary)
    load(conn, directory, "padded")
    drawn = "topk => 0, topp => 1, temperature => 3, model_name => 'padded'"
    for seed in range(60):
        (ids,) = conn.execute(
            f"SELECT llm_generate_tokens(ARRAY[7], max_tokens => 20, seed => {seed}, {drawn})"
        ).fetchone()
        assert max(ids) < 300
    texts = conn.execute(
        "SELECT count(text) FROM llm_generate_batch((SELECT array_agg('a' || n) FROM generate_series(1, 60) AS n),"
        f" max_tokens => 20, seed => 1, {drawn})"
    )
    assert texts.fetchone() == (60,)
    (length,) = conn.execute(
        f"SELECT count(*) FROM llm_generate_stream('a', max_tokens => 20, seed => 2, {drawn})"
    ).fetchone()
    assert length
    beams = (
        "SELECT max(id) FROM llm_beam_search('a', max_tokens => 20, beam_width => 8, model_name => 'padded'),"
        " unnest(token_ids) AS id"
    )
    assert conn.execute(beams).fetchone()[0] < 300
    conn.execute(f"SELECT llm_generate('a', max_tokens => 9, options => '{{\"regex\": \"[0-9]{{5}}\"}}', {drawn})")
    next_tokens = "SELECT count(*), max(token_id), sum(probability) FROM llm_next_token('a', 320, 1, 'padded')"
    assert conn.execute(next_tokens).fetchone() == (300, 299, pytest.approx(1))
    assert conn.execute("SELECT max(token_id) < 300 FROM llm_logit_lens('a', 'padded')").fetchone() == (True,)
    assert conn.execute(
        "SELECT count(*) FROM llm_choose('a', ARRAY[' yes', ' no'], model_name => 'padded')"
    ).fetchone() == (2,)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            "UPDATE llm_bpe_vocab SET special = true WHERE model = 'rows' AND token_id = 3",
            psycopg.errors.CheckViolation,
        ),
        (
            "UPDATE llm_bpe_vocab SET roles = '{end}' WHERE model = 'rows' AND token_id = 3",
            psycopg.errors.CheckViolation,
        ),
        ("UPDATE llm_model_config SET stop_token_ids = '{-1}' WHERE model = 'gpt2-xl'", psycopg.errors.CheckViolation),
        (
            "UPDATE llm_model_config SET stop_token_ids = '{1, NULL}' WHERE model = 'gpt2-xl'",
            psycopg.errors.CheckViolation,
        ),
        (
            "UPDATE llm_model_config SET stop_token_ids = '{50257}' WHERE model = 'gpt2-xl'",
            psycopg.errors.CheckViolation,
        ),
    ],
)
def test_rows_that_say_nothing_sensible_are_refused(conn, vocabulary, change, error):
    with conn.transaction(force_rollback=True):
        Vocabulary.find(vocabulary).store(Database(conn), "rows", replace=False)
        with pytest.raises(error):
            conn.execute(change)


def test_a_change_of_what_is_added_is_seen_at_once(conn, vocabulary):
    Vocabulary.find(vocabulary).store(Database(conn), "seen", replace=False)
    (plain,) = conn.execute("SELECT llm_encode('H', 'seen')").fetchone()
    conn.execute(
        "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes, added) VALUES ('seen', 300, 'H', 'H', true)"
    )
    assert conn.execute("SELECT llm_encode('aHa', 'seen')").fetchone()[0][1] == 300
    conn.execute("DELETE FROM llm_bpe_vocab WHERE model = 'seen' AND token_id = 300")
    assert conn.execute("SELECT llm_encode('H', 'seen')").fetchone() == (plain,)


def test_what_is_stored_says_how_a_token_is_found(conn):
    tokens = [AddedToken(re.sub("_", "", name), **{name: True}) for name in AddedToken._fields[1:]]
    ids = {token.content: n for n, token in enumerate(tokens)}
    stored = Vocabulary(ids, [], {ids[token.content]: token for token in tokens}, {"pad": 3, "eos": 1, "bos": 1})
    stored.store(Database(conn), "flags", replace=False)
    assert Vocabulary.from_database(Database(conn), "flags") == stored
