"""The clients that people have speak to `pg-gpt2 serve`: openai, langchain-openai, litellm and llm, each by its own way in."""

import asyncio
import json
import os
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

from loaders.common import Database
from loaders.load_model import SHIPPED, load_model
from tests.server.serve.serving import serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks for a list of prices when it is imported

openai = pytest.importorskip("openai")

MODEL, KEY, PROMPT = "postgresql-docs for clients", "a-key", "To create an index on a large table"
TOKENS = 12
CHAT = "a chat for clients"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture(scope="module")
def base_url(dsn: str) -> Iterator[str]:
    """Of a server that has the shipped model and wants a key."""
    with psycopg.connect(dsn) as conn:
        load_model(Database(conn), SHIPPED / "postgresql-docs", MODEL)
        make_chat_model(conn)
    try:
        with serving(dsn, "--api-key", KEY) as client:
            yield f"{client.base_url}v1"
    finally:
        with psycopg.connect(dsn) as conn:
            conn.execute("SELECT llm_drop_model(%s), llm_drop_model(%s)", [MODEL, CHAT])


def make_chat_model(conn: psycopg.Connection) -> None:
    """A random model with tokens that mark turns, 270 and 271, and a template that puts them there."""
    conn.execute("SELECT llm_train_bpe($$SELECT 'To create an index on a large table'$$, 270, %s)", [CHAT])
    conn.execute(
        "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes, added, special)"
        " VALUES (%s, 270, '<|im_start|>', '<|im_start|>', true, true), (%s, 271, '<|im_end|>', '<|im_end|>', true, true)",
        [CHAT, CHAT],
    )
    conn.execute("SELECT llm_init_model(%s, 2, 2, 16, 128, seed => 3)", [CHAT])
    conn.execute("UPDATE llm_model_config SET chat_template = %s WHERE model = %s", [CHATML, CHAT])


@pytest.fixture
def replies(conn: psycopg.Connection):
    """`replies(temperature, seed)`: what SQL says to MESSAGES."""

    def run(temperature: float = 0, seed: int | None = None) -> str:
        chat = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in MESSAGES)
        query = (
            "SELECT llm_generate(NULL, %s, %s, 0, 1, %s, seed => %s, echo => false, options => jsonb_build_object("
            "'prompt_ids', llm_encode(%s, %s, true)))"
        )
        given = (TOKENS, temperature, CHAT, seed, f"{chat}<|im_start|>assistant\n", CHAT)
        row = conn.execute(query, given).fetchone()
        assert row is not None
        return row[0]

    return run


@pytest.fixture
def generate(conn: psycopg.Connection):
    """`generate(temperature, seed)`: what SQL says, with OpenAI's defaults."""

    def run(temperature: float = 0, seed: int | None = None) -> str:
        query = "SELECT llm_generate(%s, %s, %s, 0, 1, %s, seed => %s, echo => false)"
        row = conn.execute(query, (PROMPT, TOKENS, temperature, MODEL, seed)).fetchone()
        assert row is not None
        return row[0]

    return run


@pytest.fixture
def client(base_url):
    return openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0)


ASKED = {"model": MODEL, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}


def test_openai_lists_and_completes(client, generate):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).owned_by == "pg_gpt2"
    answer = client.completions.create(**ASKED)
    assert answer.choices[0].text == generate()
    assert answer.usage.completion_tokens == TOKENS
    drawn = client.completions.create(**ASKED | {"temperature": 0.8, "seed": 7, "n": 2, "logprobs": 2, "echo": True})
    assert drawn.choices[0].text == PROMPT + generate(0.8, 7)
    assert drawn.choices[1].text == PROMPT + generate(0.8, 8)
    assert "".join(drawn.choices[0].logprobs.tokens) == drawn.choices[0].text
    assert answer.model_extra == {}, "a field that the client does not know"


def test_openai_streams(client, generate):
    with client.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}) as stream:
        *parts, last = stream
    assert "".join(part.choices[0].text for part in parts) == generate()
    assert len(parts) == TOKENS
    assert last.usage.completion_tokens == TOKENS


def test_openai_asynchronously(base_url, generate):
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY) as client:
            asked = [client.completions.create(**ASKED) for _ in range(3)]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(run()) == [generate()] * 3


def test_openai_passes_our_own_options(client):
    chosen = client.completions.create(**ASKED, extra_body={"choices": [" CONCURRENTLY", " slowly"]})
    assert chosen.choices[0].text in (" CONCURRENTLY", " slowly")
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    held = client.completions.create(**ASKED | {"max_tokens": 40}, extra_body={"response_format": schema})
    assert held.choices[0].text.startswith('{"n"')


def test_openai_embeds(client, conn):
    """In base64, which it asks for, and in numbers."""
    texts = ["an index", "a role"]
    for more in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model=MODEL, input=texts, **more)
        for text, each in zip(texts, answer.data):
            query = "SELECT llm_text_embedding(%s, model_name => %s)"
            expected = conn.execute(query, (text, MODEL)).fetchone()[0]
            np.testing.assert_allclose(each.embedding, expected, rtol=1e-4, atol=1e-4)


def test_openai_raises_the_errors_that_it_has(client, base_url):
    with pytest.raises(openai.NotFoundError) as absent:
        client.completions.create(**ASKED | {"model": "absent"})
    assert absent.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**ASKED, suffix="the end")
    assert refused.value.param == "suffix"
    with pytest.raises(openai.BadRequestError) as untold:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    assert untold.value.code == "no_chat_template"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key="another", max_retries=0).models.list()


CHATTED = {"model": CHAT, "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0}


def test_openai_chats(client, replies):
    answer = client.chat.completions.create(**CHATTED)
    assert answer.choices[0].message.content == replies()
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", TOKENS)
    assert answer.model_extra == answer.choices[0].message.model_extra == {}, "a field that the client does not know"
    drawn = client.chat.completions.create(
        **CHATTED | {"temperature": 0.8, "seed": 7, "n": 2, "logprobs": True, "top_logprobs": 2}
    )
    assert [choice.message.content for choice in drawn.choices] == [replies(0.8, 7), replies(0.8, 8)]
    assert all(len(token.top_logprobs) == 2 for token in drawn.choices[0].logprobs.content)
    with client.chat.completions.create(**CHATTED, stream=True, stream_options={"include_usage": True}) as stream:
        *parts, last = stream
    assert "".join(part.choices[0].delta.content or "" for part in parts) == replies()
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices[0].finish_reason == "length"
    assert last.usage.completion_tokens == TOKENS
    history = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "and?"}]}]
    assert client.chat.completions.create(**CHATTED | {"messages": history}).choices[0].message.content
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**CHATTED, tools=[tool])
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported")


def test_openai_parses_a_chat_into_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    held = client.chat.completions.create(**CHATTED | {"max_tokens": 60}, response_format=form)
    assert held.choices[0].message.content.startswith('{"n"')


def test_langchain_chats(base_url, replies):
    langchain = pytest.importorskip("langchain_openai")
    given = {"model": CHAT, "base_url": base_url, "api_key": KEY}
    writer = langchain.ChatOpenAI(**given, max_tokens=TOKENS, temperature=0)
    messages = [(m["role"], m["content"]) for m in MESSAGES]
    answer = writer.invoke(messages)
    assert answer.content == replies()
    assert answer.usage_metadata["output_tokens"] == TOKENS
    assert "".join(part.content for part in writer.stream(messages)) == replies()
    assert [each.content for each in writer.batch([messages, messages])] == [replies()] * 2


def test_litellm_chats(base_url, replies):
    litellm = pytest.importorskip("litellm")
    given = {"api_base": base_url, "api_key": KEY, **CHATTED, "model": f"openai/{CHAT}"}
    assert litellm.completion(**given).choices[0].message.content == replies()
    parts = [part.choices[0].delta.content or "" for part in litellm.completion(**given, stream=True)]
    assert "".join(parts) == replies()


def test_llm_chats(base_url, replies, tmp_path, monkeypatch):
    llm = pytest.importorskip("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: chat\n  model_name: '{CHAT}'\n  api_base: '{base_url}'\n  api_key_name: docs\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"docs": KEY}))
    model = llm.get_model("chat")
    options = {"max_tokens": TOKENS, "temperature": 0}
    system, asked = (m["content"] for m in MESSAGES)
    assert model.prompt(asked, system=system, **options, stream=False).text() == replies()
    assert "".join(model.prompt(asked, system=system, **options)) == replies()


def test_langchain_completes_streams_and_embeds(base_url, generate):
    langchain = pytest.importorskip("langchain_openai")
    given = {"model": MODEL, "base_url": base_url, "api_key": KEY}
    writer = langchain.OpenAI(**given, max_tokens=TOKENS, temperature=0)
    assert writer.invoke(PROMPT) == generate()
    assert "".join(writer.stream(PROMPT)) == generate()
    assert writer.batch([PROMPT, PROMPT]) == [generate()] * 2
    # it would send ids of OpenAI's vocabulary otherwise
    embedder = langchain.OpenAIEmbeddings(**given, check_embedding_ctx_length=False)
    assert len(embedder.embed_query("an index")) == 256
    assert len(embedder.embed_documents(["an index", "a role"])) == 2


def test_litellm_completes_streams_and_embeds(base_url, generate):
    litellm = pytest.importorskip("litellm")
    given = {"api_base": base_url, "api_key": KEY}
    asked = {"model": f"text-completion-openai/{MODEL}", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    assert litellm.text_completion(**asked, **given).choices[0].text == generate()
    parts = [part.choices[0].text or "" for part in litellm.text_completion(**asked, **given, stream=True)]
    assert "".join(parts) == generate()
    answer = litellm.embedding(f"openai/{MODEL}", ["an index"], **given)
    assert len(answer.data[0]["embedding"]) == 256
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.text_completion(**asked | {"model": "text-completion-openai/absent"}, **given)


def test_llm_completes(base_url, generate, tmp_path, monkeypatch):
    """By the file that its documentation describes, for a model of completions."""
    llm = pytest.importorskip("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: docs\n  model_name: '{MODEL}'\n  api_base: '{base_url}'\n  completion: true\n  api_key_name: docs\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"docs": KEY}))
    model = llm.get_model("docs")
    options = {"max_tokens": TOKENS, "temperature": 0}
    assert model.prompt(PROMPT, **options, stream=False).text() == generate()
    assert "".join(model.prompt(PROMPT, **options)) == generate()
