"""What the client's methods give is what the SQL functions give, whatever the connection."""

import dataclasses
import inspect
import json
import re

import psycopg
import pytest
from pg_llm_client import AsyncPGLLMClient, Beam, Choice, ChoiceEvaluation, ChosenRow, Confused, PGLLMClient
from pg_llm_client.statements import TYPES, Statements
from psycopg import sql
from psycopg.rows import dict_row

from tests.server.client.models import PROMPT, TEXT, first_value, make_model


def test_generate_gives_what_sql_gives(conn, client):
    call = "llm_generate(%(p)s, 12, model_name => 'tiny', seed => 5)"
    assert client.generate(PROMPT, max_tokens=12, seed=5) == first_value(conn, call, p=PROMPT)


@pytest.mark.parametrize(
    ("option", "value", "written"),
    [
        ("temperature", 0, "temperature => 0"),
        ("temperature", 3.5, "temperature => 3.5"),
        ("topk", 2, "topk => 2"),
        ("topp", 0.1, "topp => 0.1"),
        ("eos_token", 13, "eos_token => 13"),
        ("stop", "a", "stop => '{a}'"),
        ("stop", ["zz", "e"], "stop => '{zz,e}'"),
        ("repetition_penalty", 5, "repetition_penalty => 5"),
        ("min_p", 0.5, "min_p => 0.5"),
        ("echo", False, "echo => false"),
        ("seed", 2**62, "seed => 4611686018427387904"),
    ],
)
def test_every_option_arrives(conn, client, option, value, written):
    options = {"max_tokens": 20, "seed": 11} | {option: value}
    seed = "" if option == "seed" else "seed => 11, "
    expected = first_value(conn, f"llm_generate(%(p)s, 20, model_name => 'tiny', {seed}{written})", p=PROMPT)
    assert client.generate(PROMPT, **options) == expected
    assert expected != client.generate(PROMPT, max_tokens=20, seed=11)
    if option != "seed":
        assert client.generate_batch([PROMPT], **options) == [expected]


@pytest.mark.parametrize(
    "method", ["generate", "stream", "generate_batch", "generate_rows", "generate_json", "beam_search"]
)
def test_keywords_defaults_and_types_are_those_of_sql(module_conn, method):
    function = {"stream": "llm_generate_stream"}.get(method, f"llm_{method}")
    query = "pg_get_function_arguments(oid) FROM pg_proc WHERE proname = %(function)s"
    listed = first_value(module_conn, query, function=function)
    listed = listed.partition(", source_path")[0]  # that of the connection is meant
    expected = {
        "model" if name == "model_name" else name: (kind, json.loads(default.partition("::")[0].lower()))
        for name, kind, default in re.findall(r"(\w+) ([^,]*?) DEFAULT ([^,]+)", listed.replace("llm_texts", "text[]"))
    }
    expected.pop("prompt", None)  # stands before the keywords
    assert expected.pop("options") == ("jsonb", None)
    if method == "beam_search":
        assert expected["beam_width"] == ("integer", 4)
        expected["beam_width"] = ("integer", 3)  # as it has always been here
    keywords = [
        parameter
        for parameter in inspect.signature(getattr(PGLLMClient, method)).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    keys = {p.name: p.default for p in keywords if p.name not in expected}  # of options
    keywords = [p for p in keywords if p.name not in keys]
    kinds = {p.name: first_value(module_conn, "%(kind)s::regtype::text", kind=TYPES[p.name]) for p in keywords}
    assert {p.name: (kinds[p.name], p.default) for p in keywords} == expected
    query = "default_value FROM llm_generation_options WHERE name = %(name)s"
    for name, default in keys.items():
        assert json.loads(first_value(module_conn, query, name=name) or "null") == default


def test_model_of_the_call_then_of_the_client_then_of_the_server(conn, client, client_of):
    with pytest.raises(psycopg.errors.UndefinedObject, match="nobody"):
        client.generate(PROMPT, model="nobody")
    conn.execute("SET pg_gpt2.model = 'tiny'")
    assert client_of(conn, None).perplexity(TEXT) == client.perplexity(TEXT)


def test_generate_batch(client):
    prompts = [PROMPT, "", "memory", "Größe, na"]
    alone = [client.generate(prompt, max_tokens=9, seed=3 + n) for n, prompt in enumerate(prompts)]
    assert client.generate_batch(prompts, max_tokens=9, seed=3) == alone
    assert client.generate_batch([]) == []


def test_generate_json(conn, client):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}, "é": {"enum": ["a", None]}}}
    call = "llm_generate_json(%(p)s, %(s)s, 90, model_name => 'tiny', seed => 3, options => '{\"min_new_tokens\": 2}')"
    expected = first_value(conn, call, p=PROMPT, s=json.dumps(schema))
    assert client.generate_json(PROMPT, schema, max_new_tokens=90, seed=3, min_new_tokens=2) == expected

    class Described:
        @staticmethod
        def model_json_schema():
            return schema

    assert client.generate_json(PROMPT, Described, max_tokens=90, seed=3, min_new_tokens=2) == expected
    options = {"max_tokens": 90, "seed": 3, "min_new_tokens": 2, "echo": False, "json_schema": schema}
    assert json.loads(client.generate(PROMPT, **options)) == expected
    with pytest.raises(TypeError, match="stop"):
        client.generate_json(PROMPT, schema, stop="a")


def test_beam_search(conn, client):
    found = client.beam_search(PROMPT, beam_width=4, max_tokens=8)
    rows = conn.execute("SELECT * FROM llm_beam_search(%s, 4, 8, model_name => 'tiny')", [PROMPT]).fetchall()
    assert [(beam.rank, beam.score, beam.text, beam.token_ids) for beam in found] == rows
    assert isinstance(found[0], Beam)
    ids = first_value(conn, "llm_encode(%(p)s, 'tiny')", p=PROMPT)
    assert client.beam_search(prompt_ids=ids, beam_width=4, max_tokens=8) == found
    assert len(client.beam_search(PROMPT, max_tokens=3)) == 3


def test_embed_and_perplexity(conn, client):
    embedding = client.embed(TEXT, layer=1, pooling="last")
    assert embedding == first_value(conn, "llm_text_embedding(%(t)s, 1, 'last', 'tiny')", t=TEXT)
    assert len(embedding) == 32
    assert all(isinstance(number, float) for number in embedding)
    assert client.perplexity(TEXT) == first_value(conn, "llm_perplexity(%(t)s, 'tiny')", t=TEXT)
    assert client.perplexity(TEXT, from_start=True) == first_value(conn, "llm_perplexity(%(t)s, 'tiny', true)", t=TEXT)
    assert (client.perplexity(""), client.embed("")) == (None, None)


CHOICES = [" dog", " cat", " and the lot"]


def test_choosing_gives_what_sql_gives(conn, client):
    query = "SELECT * FROM llm_choose(%s, %s, %s, 'tiny')"
    for normalize in ("none", "tokens", "bytes", "prior"):
        found = client.choose(PROMPT, CHOICES, normalize=normalize)
        rows = conn.execute(query, [PROMPT, CHOICES, normalize]).fetchall()
        assert [(c.rank, c.choice, c.logprob, c.probability, c.tokens) for c in found] == rows
        assert client.classify(PROMPT, CHOICES, normalize=normalize) == found[0].choice
    assert isinstance(found[0], Choice)
    source = 'SELECT unnest(\'{" dog"," cat"," and the lot"}\'::text[])'
    assert client.choose_from(PROMPT, source, normalize="prior") == found
    assert (client.choose(PROMPT, []), client.classify(PROMPT, [])) == ([], None)


def test_a_text_in_the_place_of_several_is_one_and_not_its_characters(client):
    assert [each.choice for each in client.choose(PROMPT, " the")] == [" the"]
    assert client.classify(PROMPT, " the") == " the"
    assert [row.choice for row in client.choose_rows(f"VALUES (1, '{PROMPT}')", " the")] == [" the"]
    assert client.evaluate_choices(f"VALUES ('{PROMPT}', ' the')", " the").accuracy == 1
    assert client.generate_batch(PROMPT, max_tokens=4, seed=1) == [client.generate(PROMPT, max_tokens=4, seed=1)]
    assert [each.n for each in client.generate_texts(PROMPT, max_tokens=4)] == [1]


def test_rows_are_chosen_for_as_sql_does(conn, client):
    source = "SELECT i, CASE WHEN i % 5 > 0 THEN 'the ' || i END FROM generate_series(1, 250) AS i"
    found = [*client.choose_rows(source, CHOICES, normalize="tokens")]
    rows = conn.execute("SELECT * FROM llm_choose_rows(%s, %s, 'tokens', 'tiny')", [source, CHOICES]).fetchall()
    assert [(row.key, row.choice, row.probability) for row in found] == rows
    assert len(found) == 250
    assert found[4] == ChosenRow("5", None, None)


def test_an_evaluation_is_that_of_sql(conn, client):
    pairs = (
        "SELECT 'the ' || i, CASE WHEN i % 5 > 0 THEN label[1 + i % 2] ELSE 'x' END{} FROM generate_series(1, 20) AS i,"
    )
    pairs += ' CAST(\'{{" dog"," cat"}}\' AS text[]) AS label'
    for source, choices in ((pairs.format(""), CHOICES), (pairs.format(", label[i % 2 :] || 'é'::text"), None)):
        found = client.evaluate_choices(source, choices, normalize="prior")
        call = "llm_evaluate_choices(%s, %s, 'prior', 'tiny')"
        row = conn.execute(f"SELECT accuracy, accuracy_norm, n FROM {call}", [source, choices]).fetchone()
        assert (found.accuracy, found.accuracy_norm, found.n) == row
        confusion = conn.execute(f"SELECT c.* FROM {call}, unnest(confusion) AS c", [source, choices]).fetchall()
        assert [(c.expected, c.chosen, c.n) for c in found.confusion] == confusion
        assert found.n == sum(c.n for c in found.confusion) == 20
    assert isinstance(found.confusion[0], Confused)
    assert client.evaluate_choices(f"{pairs.format('')} LIMIT 0", CHOICES) == ChoiceEvaluation(None, None, 0, [])


@pytest.mark.parametrize("kind", ["dict_row", "RawCursor", "ClientCursor"])
def test_row_factory_cursors_and_search_path_of_the_connection_do_not_matter(connect, model, client_of, loop, kind):
    conn = connect(options="-c search_path=pg_temp")
    if kind == "dict_row":
        conn.row_factory = dict_row
    else:
        conn.cursor_factory = getattr(psycopg, kind if loop is None else f"Async{kind}")
    if kind == "RawCursor":
        conn.server_cursor_factory = psycopg.RawServerCursor if loop is None else psycopg.AsyncRawServerCursor
    client = client_of(conn)
    text = client.generate(PROMPT, max_tokens=4, seed=1)
    assert [*client.stream(PROMPT, max_tokens=4, seed=1)][-1].text == text
    assert client.generate_batch([PROMPT], max_tokens=4, seed=1) == [text]
    assert client.beam_search(PROMPT, max_tokens=4)[0].rank == 1
    assert len(list(client.perplexity_rows("SELECT i, 'the ' || i FROM generate_series(1, 50) AS i"))) == 50


def test_what_is_no_connection_of_its_kind_is_a_type_error(module_conn, dsn):
    with pytest.raises(TypeError, match="AsyncPGLLMClient takes psycopg's AsyncConnection, not a Connection"):
        AsyncPGLLMClient(module_conn)
    forgotten = psycopg.AsyncConnection.connect(dsn)
    for client in (AsyncPGLLMClient, PGLLMClient):
        with pytest.raises(TypeError, match="not a coroutine"):
            client(forgotten)
    forgotten.close()


def test_statements_are_made_without_a_connection(monkeypatch):
    """psycopg 3.1 quotes names for a connection only."""

    def as_bytes(self, context=None):
        raise ValueError("a connection is necessary for Identifier")

    monkeypatch.setattr(sql.Identifier, "as_bytes", as_bytes)
    made, _ = Statements(('a "%" b',), "db").value("llm_generate", prompt="x")
    assert sql.SQL('"a ""%%"" b"."llm_generate"') in made


def test_streams_do_not_rely_on_the_loop_of_the_driver(client, monkeypatch):
    """That of psycopg 3.3.0 ends after the first rows that it fetches, without an error."""

    class Ended:
        def __iter__(self):
            return iter(())

        def __aiter__(self):
            return self

        async def __anext__(self):
            raise StopAsyncIteration

    for kind in (psycopg.ServerCursor, psycopg.AsyncServerCursor):
        monkeypatch.setattr(kind, "__iter__", Ended.__iter__, raising=False)
        monkeypatch.setattr(kind, "__aiter__", lambda cursor: Ended(), raising=False)
    assert len(list(client.stream(PROMPT, max_tokens=5, eos_token=-1))) == 5
    source = "SELECT i, 'the ' || i FROM generate_series(1, 100) AS i"
    assert [row.key for row in client.perplexity_rows(source)] == [str(i) for i in range(1, 101)]


def test_extension_in_another_schema(new_database, connect, client_of):
    conn = connect(new_database("template0"))
    client = client_of(conn)
    with pytest.raises(psycopg.ProgrammingError, match="CREATE EXTENSION pg_gpt2"):
        client.generate(PROMPT)
    conn.execute('CREATE SCHEMA "LLM %"')
    conn.execute('CREATE EXTENSION pg_gpt2 SCHEMA "LLM %" CASCADE')
    make_model(conn, "LLM %")
    text = client.generate(PROMPT, max_tokens=4, seed=1)
    assert [*client.stream(PROMPT, max_tokens=4, seed=1)][-1].text == text


SOURCE = "SELECT i, CASE WHEN i % 5 > 0 THEN left('the memory of a server', 2 * i) END FROM generate_series(1, 12) AS i"


def test_rows_are_those_of_sql(conn, client):
    expected = conn.execute(
        "SELECT * FROM llm_generate_rows(%s, 6, model_name => 'tiny', seed => 4, options => '{\"n\": 2}')", [SOURCE]
    ).fetchall()
    found = list(client.generate_rows(SOURCE, max_tokens=6, seed=4, n=2))
    assert [(row.key, row.text, row.sample) for row in found] == expected
    expected = conn.execute("SELECT * FROM llm_perplexity_rows(%s, 'tiny', true)", [SOURCE]).fetchall()
    found = list(client.perplexity_rows(SOURCE, from_start=True))
    assert [(row.key, row.perplexity, row.tokens) for row in found] == expected
    expected = conn.execute("SELECT * FROM llm_embedding_rows(%s, 1, 'last', 'tiny')", [SOURCE]).fetchall()
    found = list(client.embedding_rows(SOURCE, layer=1, pooling="last"))
    assert [(row.key, row.embedding) for row in found] == expected


def test_samples_of_a_batch_follow_each_other(client):
    texts = client.generate_batch(["the", "a"], max_tokens=5, seed=8, n=3)
    alone = [client.generate(prompt, max_tokens=5, seed=8 + i) for i, prompt in enumerate(["the"] * 3 + ["a"] * 3)]
    assert texts == alone
    with pytest.raises(TypeError, match="unexpected keyword argument 'n'"):
        client.generate("the", n=2)


def test_texts_of_a_batch_tell_how_they_ended(client):
    """As the streams of the same seeds do; log-probabilities of float32, where they are asked for."""
    options = {"max_tokens": 3, "stop": "e", "echo": False}
    found = client.generate_texts(["the", "a"], seed=8, n=3, logprobs=True, **options)
    assert [(each.n, each.sample) for each in found] == [(n, sample) for n in (1, 2) for sample in (1, 2, 3)]
    for i, each in enumerate(found):
        events = list(client.stream(("the", "a")[i // 3], seed=8 + i, **options))
        assert (each.text, each.finish_reason, each.n_tokens) == (
            events[-1].text,
            events[-1].finish_reason,
            len(events),
        )
        assert each.logprob == pytest.approx(sum(event.logprob for event in events), abs=1e-4)
    assert {each.finish_reason for each in found} == {"stop", "length"}
    plain = client.generate_texts(["the", "a"], seed=8, n=3, **options)
    assert plain == [dataclasses.replace(each, logprob=None) for each in found]


def test_cosine(conn, client):
    assert client.cosine([1, 0], [1.5, 0]) == 1
    a, b = client.embed("the memory"), client.embed("a server")
    assert client.cosine(a, b) == first_value(conn, "llm_cosine(%(a)s::real[], %(b)s::real[])", a=a, b=b)


def test_rows_come_as_they_are_computed_and_closing_ends_the_work(conn, client):
    source = "SELECT i, 'the ' || i FROM generate_series(1, 100000) AS i"
    rows = client.generate_rows(source, max_tokens=4, seed=1)
    assert [next(rows).key for _ in range(20)] == [str(i) for i in range(1, 21)]
    rows.close()
    assert first_value(conn, "count(*) FROM pg_cursors") == 0
