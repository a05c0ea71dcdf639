"""The chat template of a tokenizer: read where releases of transformers have it, kept with the vocabulary, and written again."""

import json

import psycopg
import pytest

from loaders import ingest_tokenizer, load_adapter, save_adapter, save_model
from loaders.common import Database, LoaderError
from loaders.vocabulary import Vocabulary
from tests.server.loaders.hub import load, run
from tests.server.loaders.test_added_tokens import model_directory, plain_files
from tests.server.loaders.test_load_adapter import peft, weights, write

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}é"
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]


def template_of(conn, model):
    return conn.execute("SELECT chat_template FROM llm_model_config WHERE model = %s", [model]).fetchone()[0]


@pytest.fixture
def with_template(directory, vocabulary):
    plain_files(model_directory(directory, vocab=300, eos_token_id=299), vocabulary)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    return directory


@pytest.mark.parametrize(
    ("said", "file", "expected"),
    [
        (CHATML, None, CHATML),
        (NAMED, None, CHATML),
        (NAMED[:1], None, None),
        ([{"name": ["tool_use"], "template": "x"}, {"name": "tool_use"}, *NAMED], None, CHATML),
        (None, CHATML, CHATML),
        ("of before", CHATML, CHATML),
        (None, None, None),
    ],
    ids=["one", "named", "named without a default", "a name that is none", "chat_template.jinja", "both", "none"],
)
def test_it_is_the_one_that_transformers_uses(vocabulary, tmp_path, capsys, said, file, expected):
    plain_files(tmp_path, vocabulary)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file, encoding="utf-8")
    assert Vocabulary.find(tmp_path).chat_template == expected
    assert ("tool_use" in capsys.readouterr().err) == isinstance(said, list)


@pytest.mark.parametrize(("said", "named"), [({"a": 1}, "no text"), ("é" * 600_000, "longer than 1,048,576 bytes")])
def test_what_is_no_template_is_refused(vocabulary, tmp_path, said, named):
    plain_files(tmp_path, vocabulary)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
    with pytest.raises(LoaderError, match=named):
        Vocabulary.find(tmp_path)


def test_a_chat_template_goes_with_the_vocabulary(dsn, conn, with_template, tmp_path, monkeypatch, capsys):
    """Loaded, copied, saved and loaded back; replaced with it, and dropped with it."""
    load(conn, with_template, "chat")
    assert template_of(conn, "chat") == CHATML
    conn.execute("SELECT llm_copy_model('chat', 'copy'), llm_adapter_create('adapter', 'chat')")
    conn.execute("SELECT llm_copy_model('chat', 'as saved', llm_checkpoint_save('chat'))")
    assert template_of(conn, "copy") == template_of(conn, "as saved") == CHATML
    assert template_of(conn, "adapter") is None, "it uses that of its base"
    conn.execute("UPDATE llm_model_config SET chat_template = 'own' WHERE model = 'adapter'")
    conn.execute("SELECT llm_copy_model('adapter', 'second'), llm_adapter_merge('adapter', 'merged')")
    assert [template_of(conn, model) for model in ("second", "merged")] == ["own", "own"]
    with conn.transaction():
        save_model.save_model(Database(conn), "chat", tmp_path / "saved")
    load(conn, tmp_path / "saved", "again")
    assert template_of(conn, "again") == CHATML
    again = ["--dsn", dsn, "--model", "copy", "--truncate", "--tokenizer", tmp_path / "saved"]
    run(ingest_tokenizer, monkeypatch, *again)
    assert template_of(conn, "copy") == CHATML
    (tmp_path / "saved" / "tokenizer_config.json").unlink()
    run(ingest_tokenizer, monkeypatch, *again)
    assert template_of(conn, "copy") is None
    capsys.readouterr()
    run(ingest_tokenizer, monkeypatch, "--dsn", dsn, "--model", "words alone", "--tokenizer", with_template)
    assert "no place for its chat template" in capsys.readouterr().err
    models = ["adapter", "second", "merged", "chat", "copy", "as saved", "again", "words alone"]
    for model in models:
        conn.execute("SELECT llm_drop_model(%s)", [model])


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_an_adapter_brings_its_own_and_takes_it_along(conn, with_template, tmp_path, place):
    """Where it is another than the base's; one that a directory does not have stays."""
    load(conn, with_template, "base of chats")
    tensors = {name: values for name, values in weights().items() if name.startswith("h.0.")}  # of a base of one block
    adapter = write(tmp_path / "adapter", peft(tensors))

    def loaded(template: str | None) -> str | None:
        if template is None:
            (adapter / place).unlink()
        else:
            (adapter / place).write_text(template if "jinja" in place else json.dumps({"chat_template": template}))
        with conn.transaction():
            load_adapter.load_adapter(Database(conn), adapter, "base of chats", "chats", replace=True)
        return template_of(conn, "chats")

    def saved(model: str) -> bytes | None:
        with conn.transaction():
            save_adapter.save_adapter(Database(conn), model, tmp_path / "saved")
        path = tmp_path / "saved" / "chat_template.jinja"
        return path.read_bytes() if path.exists() else None

    assert loaded(CHATML) is None, "it is the base's"
    assert saved("chats") is None
    assert loaded("own é") == "own é"
    assert saved("chats") == "own é".encode()
    assert loaded(None) == "own é"
    with conn.transaction():
        load_adapter.load_adapter(Database(conn), tmp_path / "saved", "base of chats", "again")
    assert template_of(conn, "again") == "own é"
    assert loaded(CHATML) is None, "it is the base's again"
    conn.execute("UPDATE llm_model_config SET chat_template = NULL WHERE model = 'again'")
    assert saved("again") is None
    for model in ("again", "chats", "base of chats"):
        conn.execute("SELECT llm_drop_model(%s)", [model])


def test_a_preset_gives_its_template_back(conn):
    conn.execute("UPDATE llm_model_config SET chat_template = 'a' WHERE model = 'gpt2-xl'")
    conn.execute("SELECT llm_drop_model('gpt2-xl')")
    assert template_of(conn, "gpt2-xl") is None
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("UPDATE llm_model_config SET chat_template = repeat('a', 1048577) WHERE model = 'gpt2-xl'")
