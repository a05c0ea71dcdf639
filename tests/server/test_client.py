"""The Python client against a server: its methods give what the SQL functions give, and streams arrive and end in time."""

import asyncio
import inspect
import random
import re
from contextlib import aclosing, closing
from itertools import pairwise

import psycopg
import pytest
from pg_llm_client import AsyncPGLLMClient, Beam, PGLLMClient, StreamEvent
from pg_llm_client.options import TrainingOptions
from psycopg.rows import dict_row

MODEL = "tiny"
PROMPT = "The tables are"
TEXT = (
    "The tables are the truth, memory is a cache of a version, arithmetic is BLAS on that cache. Größe, naïve, 日本. "
)


def make_model(conn, schema="public"):
    """A model of 2 layers with a vocabulary of 300 tokens."""
    with conn.transaction():
        conn.execute(f'SET LOCAL search_path = "{schema}"')
        conn.execute("SELECT llm_train_bpe(%s, 300, %s)", [f"SELECT '{TEXT * 5}'", MODEL])
        conn.execute("SELECT llm_init_model(%s, 2, 2, 32, 64, 300, 7)", [MODEL])
        # freshly drawn weights are too small to tell one prompt from another
        conn.execute("SELECT llm_dataset_load(%s, %s, 32)", [f"SELECT '{TEXT * 20}'", MODEL])
        conn.execute("SELECT llm_train(%s, 10, dropout_p => 0, lr_max => 1e-2, log_every => 0)", [MODEL])


@pytest.fixture(scope="module")
def model(module_conn):
    make_model(module_conn)


@pytest.fixture
def client(conn, model):
    return PGLLMClient(conn, model=MODEL)


def select(conn, call, **arguments):
    (value,) = conn.execute(f"SELECT {call}", arguments).fetchone()
    return value


# ---- one result


def test_generate_gives_what_sql_gives(conn, client):
    call = "llm_generate(%(p)s, 12, model_name => 'tiny', seed => 5)"
    assert client.generate(PROMPT, max_tokens=12, seed=5) == select(conn, call, p=PROMPT)


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
    expected = select(conn, f"llm_generate(%(p)s, 20, model_name => 'tiny', {seed}{written})", p=PROMPT)
    assert client.generate(PROMPT, **options) == expected
    assert expected != client.generate(PROMPT, max_tokens=20, seed=11)
    if option != "seed":
        assert client.generate_batch([PROMPT], **options) == [expected]


@pytest.mark.parametrize("client_class", [PGLLMClient, AsyncPGLLMClient])
@pytest.mark.parametrize("name", ["generate", "stream", "generate_batch", "beam_search"])
def test_defaults_are_those_of_sql(conn, model, name, client_class):
    function = {"stream": "llm_generate_stream"}.get(name, f"llm_{name}")
    (arguments,) = conn.execute(
        "SELECT pg_get_function_arguments(oid) FROM pg_proc WHERE proname = %s", [function]
    ).fetchone()
    sql = dict(re.findall(r"(\w+) [^,]*? DEFAULT ([^,]+)", arguments))
    if name == "beam_search":
        assert sql.pop("beam_width") == "4"  # the client's has always been 3
    parameters = inspect.signature(getattr(client_class, name)).parameters
    ours = {"model_name" if p == "model" else p: parameters[p].default for p in parameters}
    values = {"true": True, "false": False}
    for parameter, default in sql.items():
        expected = None if default.startswith("NULL") else values.get(default) or float(values.get(default, default))
        assert ours[parameter] == expected, parameter
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values() if p.name in sql and p.name != "prompt")


def test_model_of_the_call_then_of_the_client_then_of_the_server(conn, client):
    with pytest.raises(psycopg.errors.UndefinedObject, match="nobody"):
        client.generate(PROMPT, model="nobody")
    conn.execute("SET pg_gpt2.model = 'tiny'")
    assert PGLLMClient(conn).perplexity(TEXT) == client.perplexity(TEXT)


def test_generate_batch(client):
    prompts = [PROMPT, "", "memory", "Größe, na"]
    alone = [client.generate(prompt, max_tokens=9, seed=3 + n) for n, prompt in enumerate(prompts)]
    assert client.generate_batch(prompts, max_tokens=9, seed=3) == alone
    assert client.generate_batch([]) == []


def test_beam_search(conn, client):
    found = client.beam_search(PROMPT, beam_width=4, max_tokens=8)
    rows = conn.execute("SELECT * FROM llm_beam_search(%s, 4, 8, model_name => 'tiny')", [PROMPT]).fetchall()
    assert [(beam.rank, beam.score, beam.text, beam.token_ids) for beam in found] == rows
    assert isinstance(found[0], Beam)
    ids = select(conn, "llm_encode(%(p)s, 'tiny')", p=PROMPT)
    assert client.beam_search(prompt_ids=ids, beam_width=4, max_tokens=8) == found
    assert len(client.beam_search(PROMPT, max_tokens=3)) == 3


def test_embed_and_perplexity(conn, client):
    embedding = client.embed(TEXT, layer=1, pooling="last")
    assert embedding == select(conn, "llm_text_embedding(%(t)s, 1, 'last', 'tiny')", t=TEXT)
    assert len(embedding) == 32
    assert all(isinstance(number, float) for number in embedding)
    assert client.perplexity(TEXT) == select(conn, "llm_perplexity(%(t)s, 'tiny')", t=TEXT)
    assert client.perplexity(TEXT, from_start=True) == select(conn, "llm_perplexity(%(t)s, 'tiny', true)", t=TEXT)
    assert (client.perplexity(""), client.embed("")) == (None, None)


# ---- Hugging Face's names


def test_hugging_face_names(client):
    options = {"max_tokens": 7, "topk": 3, "topp": 0.7}
    theirs = {"max_new_tokens": 7, "top_k": 3, "top_p": 0.7, "do_sample": True, "num_beams": 1}
    expected = client.generate(PROMPT, seed=1, **options)
    assert client.generate(PROMPT, seed=1, **theirs) == expected
    assert client.generate_batch([PROMPT], seed=1, **theirs) == [expected]
    assert list(client.stream(PROMPT, seed=1, **theirs))[-1].text == expected
    greedy = client.generate(PROMPT, max_tokens=7, temperature=0)
    assert client.generate(PROMPT, max_new_tokens=7, do_sample=False) == greedy


def test_num_beams_searches_beams(client):
    arguments = {"max_tokens": 8, "length_penalty": 0.5, "early_stopping": True}
    best = client.beam_search(PROMPT, beam_width=4, **arguments)[0].text
    assert client.generate(PROMPT, num_beams=4, do_sample=False, **arguments) == PROMPT + best
    assert client.generate(PROMPT, num_beams=4, echo=False, **arguments) == best
    assert client.beam_search(PROMPT, num_beams=4, max_new_tokens=8) == client.beam_search(
        PROMPT, beam_width=4, max_tokens=8
    )


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("generate", {"max_tokens": 64, "max_new_tokens": 5}, "both max_tokens and max_new_tokens"),
        ("stream", {"topk": 50, "top_k": 5}, "both topk and top_k"),
        ("generate_batch", {"topp": 0.95, "top_p": 0.5}, "both topp and top_p"),
        ("beam_search", {"beam_width": 2, "num_beams": 2}, "both beam_width and num_beams"),
        ("generate", {"do_sample": False, "temperature": 0.7}, "temperature 0 means no sampling"),
        ("generate", {"do_sample": True, "temperature": 0}, "temperature 0 means no sampling"),
        ("generate", {"num_beams": 2, "topk": 5}, "topk, which beam search"),
        ("generate", {"num_beams": 2, "seed": 5}, "seed, which beam search"),
        ("generate", {"length_penalty": 2.0}, "length_penalty, which needs num_beams"),
        ("stream", {"num_beams": 2}, "only generate"),
        ("generate_batch", {"num_beams": 2}, "only generate"),
        ("generate", {"temprature": 1.0}, "unexpected keyword argument 'temprature'"),
        ("generate", {"beams": 1}, "unexpected keyword argument 'beams'"),
        ("beam_search", {"temperature": 1.0}, "unexpected keyword argument 'temperature'"),
        ("train", {"source": "SELECT ''", "commit_every": 1}, "source and commit_every"),
        ("train", {"learning_rate": 1.0}, "unexpected keyword argument 'learning_rate'"),
    ],
)
def test_contradicting_or_unknown_names_are_type_errors(client, method, options, message):
    with pytest.raises(TypeError, match=message):
        getattr(client, method)(1 if method == "train" else PROMPT, **options)


# ---- streams


def open_cursors(conn):
    return conn.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE 'pg_llm_client%'").fetchone()[0]


def test_stream_is_generate_in_steps(client):
    events = list(client.stream(PROMPT, max_tokens=12, seed=5))
    assert isinstance(events[0], StreamEvent)
    assert [event.step for event in events] == list(range(1, len(events) + 1))
    assert [event.is_complete for event in events] == [False] * (len(events) - 1) + [True]
    assert [event.finish_reason for event in events][:-1] == [None] * (len(events) - 1)
    assert events[-1].finish_reason in ("stop", "length")
    assert events[-1].text == client.generate(PROMPT, max_tokens=12, seed=5)
    assert all(event.logprob < 0 and 0 <= event.token_id < 300 for event in events)
    assert list(client.stream(PROMPT, max_tokens=0)) == []


def test_characters_of_several_tokens_arrive_whole(client):
    """At this temperature any byte may follow any other: some make characters, some do not."""
    texts = [
        event.text
        for event in client.stream(PROMPT, max_tokens=600, temperature=100, topk=0, topp=1, seed=1, eos_token=-1)
    ]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert any(after == before for before, after in pairwise(texts)), "no bytes were held back"
    assert texts[-1] == client.generate(PROMPT, max_tokens=600, temperature=100, topk=0, topp=1, seed=1, eos_token=-1)


def test_a_last_event_has_an_end_that_begins_a_stop_string(conn):
    """The smallest case: a model that says HHH."""
    conn.execute("SELECT llm_train_bpe($$VALUES ('ab')$$, 257, 'ab'), llm_init_model('ab', 1, 1, 8, 16)")
    options = {"max_tokens": 3, "temperature": 0, "echo": False, "stop": "Hzz", "model": "ab"}
    client = PGLLMClient(conn)
    assert client.generate("a", **options) == "HHH"
    assert [event.text for event in client.stream("a", **options)] == ["", "H", "HHH"]


@pytest.mark.parametrize("seed", range(4))
def test_every_path_gives_the_same_text_whatever_the_stop_strings(conn, client, seed):
    """llm_generate, its stream and batch, and both clients: also where a text ends in the beginning of a stop string, or in
    bytes of an unfinished character, which at this temperature are most of what is generated."""
    rng = random.Random(seed)
    dsn, ended = conn.info.dsn, set()

    async def through_async_client(options):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            twin = AsyncPGLLMClient(connection, model=MODEL)
            text = await twin.generate(PROMPT, **options)
            (in_batch,) = await twin.generate_batch([PROMPT], **options)
            return [text, in_batch, [event.text async for event in twin.stream(PROMPT, **options)][-1]]

    for _ in range(8):
        options = {"max_tokens": rng.randint(1, 40), "temperature": rng.choice([0, 1, 100]), "seed": rng.randrange(99)}
        options |= {"topk": 0, "topp": 1, "echo": rng.random() < 0.5, "eos_token": rng.choice([-1, None])}
        text = client.generate(PROMPT, **options)[len(PROMPT) if options["echo"] else 0 :]
        places = [rng.randrange(len(text) + 1) for _ in range(2)]
        stops = [text[place : place + rng.randint(1, 4)] + rng.choice(["", "zz", "zz"]) for place in places]
        options["stop"] = [stop for stop in [*stops, text[-2:] + "z"] if stop]
        expected = client.generate(PROMPT, **options)
        events = list(client.stream(PROMPT, **options))
        assert all(after.text.startswith(before.text) for before, after in pairwise(events))
        assert events[-1].text == expected
        assert client.generate_batch([PROMPT, "memory"], **options)[0] == expected
        assert asyncio.run(through_async_client(options)) == [expected] * 3
        ended |= {events[-1].finish_reason}
    assert ended == {"stop", "length"}


@pytest.mark.parametrize("autocommit", [True, False])
def test_events_come_as_they_are_computed_and_closing_ends_the_work(connect, model, autocommit):
    conn = connect(options="-c statement_timeout=5s")  # of each FETCH: far from enough for a million tokens
    conn.autocommit = autocommit
    client = PGLLMClient(conn, model=MODEL)
    seen = []
    with closing(client.stream(PROMPT, max_tokens=1_000_000, eos_token=-1)) as events:
        for event in events:
            seen.append(event)
            if len(seen) == 5:
                break
        assert open_cursors(conn) == 1
    assert [event.step for event in seen] == [1, 2, 3, 4, 5]
    assert open_cursors(conn) == 0
    assert conn.info.transaction_status == (
        psycopg.pq.TransactionStatus.IDLE if autocommit else psycopg.pq.TransactionStatus.INTRANS
    )


def test_break_closes_too(conn, client):
    for _ in client.stream(PROMPT, eos_token=-1):
        break
    assert open_cursors(conn) == 0
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_stream_undoes_and_commits_nothing_of_the_callers(connect, model, autocommit):
    conn = connect()
    conn.execute("CREATE TEMP TABLE heard (step int)")
    conn.autocommit = autocommit
    client = PGLLMClient(conn, model=MODEL)
    with conn.transaction(force_rollback=True):
        conn.execute("INSERT INTO heard VALUES (0)")
        for event in client.stream(PROMPT, eos_token=-1):
            conn.execute("INSERT INTO heard VALUES (%s)", [event.step])
            if event.step == 3:
                break
        assert conn.execute("SELECT count(*) FROM heard").fetchone() == (4,)
    assert conn.execute("SELECT count(*) FROM heard").fetchone() == (0,)


def test_inserts_during_a_stream_in_autocommit_are_kept(connect, conn, client):
    conn.execute("CREATE TABLE IF NOT EXISTS heard (step int)")
    with closing(client.stream(PROMPT, eos_token=-1)) as events:
        for event in events:
            conn.execute("INSERT INTO heard VALUES (%s)", [event.step])
            if event.step == 3:
                break
    assert connect().execute("SELECT count(*) FROM heard").fetchone() == (3,)


def test_streams_of_one_connection_interleave(conn, client):
    alone = [list(client.stream(PROMPT, max_tokens=n, seed=n, eos_token=-1)) for n in (4, 9)]
    streams = [client.stream(PROMPT, max_tokens=n, seed=n, eos_token=-1) for n in (4, 9)]
    pairs = [(next(streams[0], None), next(streams[1], None)) for _ in range(12)]
    assert [[event for event in events if event] for events in zip(*pairs, strict=True)] == alone
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_an_error_in_a_stream_leaves_a_usable_connection(conn, client):
    with pytest.raises(psycopg.errors.UndefinedObject):
        list(client.stream(PROMPT, model="nobody"))
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert len(list(client.stream(PROMPT, max_tokens=2, eos_token=-1))) == 2


def test_a_closed_connection_does_not_trouble_an_open_stream(connect, model):
    conn = connect()
    events = PGLLMClient(conn, model=MODEL).stream(PROMPT, eos_token=-1)
    next(events)
    conn.close()
    events.close()


# ---- training


def test_train_follows_the_notices_and_returns_the_run(connect, model, capsys):
    conn = connect()
    client = PGLLMClient(conn, model=MODEL)
    source = f"SELECT '{TEXT * 20}'"
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM llm_dataset")
        run = client.train(4, source=source, block_size=16, lr_max=1e-3, batch_size=2, log_every=1, progress=True)
        losses = conn.execute("SELECT loss FROM llm_train_log WHERE run_id = %s ORDER BY step", [run]).fetchall()
        assert len(losses) == 4
        assert conn.execute("SELECT DISTINCT cardinality(tokens) FROM llm_dataset").fetchall() == [(16,)]
        shown = capsys.readouterr().err
        assert "training tiny" in shown
        assert "4/4" in shown
        assert f"loss {losses[-1][0]:.3f}" in shown
        client.train(1, progress=False)
    assert conn.execute("SELECT count(*) FROM llm_run WHERE run_id = %s", [run]).fetchone() == (0,)
    assert capsys.readouterr().err == ""


def test_train_takes_every_option_of_llm_train(conn, client):
    (names,) = conn.execute("SELECT proargnames FROM pg_proc WHERE proname = 'llm_train'").fetchone()
    assert set(names) - {"model", "n_steps", "n_layer", "n_head", "d", "vocab"} == set(TrainingOptions.__annotations__)
    options = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-7, "wd": 0.1, "lr_max": 1e-5, "warmup": 1, "grad_clip": 1.0}
    options |= {"dropout_p": 0.0, "min_lr": 1e-6, "seed": 2**40}
    others = {"batch_size": 2, "grad_accum": 2, "eval_every": 0, "log_every": 1, "grad_workers": 1, "prune_workers": 1}
    with conn.transaction(force_rollback=True):
        run = client.train(2, audit="none", progress=False, **options, **others)
        (config,) = conn.execute("SELECT config FROM llm_run WHERE run_id = %s", [run]).fetchone()
    options["weight_decay"] = options.pop("wd")
    assert {name: config[name] for name in options} == options
    assert (config["batch_size"], config["grad_accum"], config["n_steps"]) == (2, 2, 2)


def test_train_that_commits_as_it_goes(new_database):
    with psycopg.connect(new_database(), autocommit=True) as conn:
        make_model(conn)
        client = PGLLMClient(conn, model=MODEL)
        run = client.train(3, commit_every=1, batch_size=2, progress=False)
        assert conn.execute("SELECT count(*) FROM llm_train_log WHERE run_id = %s", [run]).fetchone() == (3,)
        with conn.transaction(), pytest.raises(psycopg.Error, match="autocommit") as error:
            client.train(3, commit_every=1, progress=False)
        assert error.value.sqlstate == "2D000"


def test_without_autocommit_training_is_the_callers_to_commit(connect, model):
    conn = connect()
    conn.autocommit = False
    client = PGLLMClient(conn, model=MODEL)
    before = client.perplexity(TEXT)
    conn.rollback()
    client.train(1, lr_max=1e-2, progress=False)
    assert client.perplexity(TEXT) != before
    conn.rollback()
    assert client.perplexity(TEXT) == before


# ---- connections of all kinds


def test_row_factory_and_search_path_of_the_connection_do_not_matter(connect, model):
    conn = connect(options="-c search_path=pg_temp")
    conn.row_factory = dict_row
    client = PGLLMClient(conn, model=MODEL)
    text = client.generate(PROMPT, max_tokens=4, seed=1)
    assert [*client.stream(PROMPT, max_tokens=4, seed=1)][-1].text == text
    assert client.generate_batch([PROMPT], max_tokens=4, seed=1) == [text]
    assert client.beam_search(PROMPT, max_tokens=4)[0].rank == 1


def test_extension_in_another_schema(new_database):
    with psycopg.connect(new_database("template0"), autocommit=True) as conn:
        client = PGLLMClient(conn, model=MODEL)
        with pytest.raises(psycopg.ProgrammingError, match="CREATE EXTENSION pg_gpt2"):
            client.generate(PROMPT)
        conn.execute('CREATE SCHEMA "LLM %"')
        conn.execute('CREATE EXTENSION pg_gpt2 SCHEMA "LLM %" CASCADE')
        make_model(conn, "LLM %")
        text = client.generate(PROMPT, max_tokens=4, seed=1)
        assert [*client.stream(PROMPT, max_tokens=4, seed=1)][-1].text == text


def test_async_twin(dsn, client):
    async def run():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            twin = AsyncPGLLMClient(conn, model=MODEL)
            assert await twin.generate(PROMPT, max_tokens=6, seed=2) == client.generate(PROMPT, max_tokens=6, seed=2)
            assert await twin.generate(PROMPT, max_new_tokens=6, num_beams=2) == client.generate(
                PROMPT, max_tokens=6, num_beams=2
            )
            events = [event async for event in twin.stream(PROMPT, max_tokens=6, seed=2)]
            assert events == list(client.stream(PROMPT, max_tokens=6, seed=2))
            batch = await twin.generate_batch([PROMPT, "x"], max_tokens=6, seed=2)
            assert batch == client.generate_batch([PROMPT, "x"], max_tokens=6, seed=2)
            assert await twin.beam_search(PROMPT, max_tokens=6) == client.beam_search(PROMPT, max_tokens=6)
            assert await twin.embed(TEXT) == client.embed(TEXT)
            assert await twin.perplexity(TEXT, from_start=True) == client.perplexity(TEXT, from_start=True)
            async with conn.transaction(force_rollback=True):
                assert await twin.train(1, progress=False) > 0
            with pytest.raises(TypeError, match="both max_tokens and max_new_tokens"):
                await twin.generate(PROMPT, max_tokens=1, max_new_tokens=1)

    asyncio.run(run())


def test_async_stream_arrives_and_closes(dsn, model):
    async def run():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("SET statement_timeout = '5s'")
            twin = AsyncPGLLMClient(conn, model=MODEL)
            async with aclosing(twin.stream(PROMPT, max_tokens=1_000_000, eos_token=-1)) as events:
                async for event in events:
                    if event.step == 5:
                        break
            assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            count = await conn.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE 'pg_llm_client%'")
            assert await count.fetchone() == (0,)

    asyncio.run(run())
