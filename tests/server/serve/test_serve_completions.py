"""What OpenAI's API gives is what SQL gives, in the fields that its clients read."""

import base64
import codecs
import json
import math

import httpx
import numpy as np
import psycopg
import pytest
from psycopg import conninfo

from tests.server.client.models import MODEL, PROMPT
from tests.server.serve.conftest import SLOW
from tests.server.serve.serving import events, serving

GREEDY = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
DRAWN = GREEDY | {"temperature": 1, "seed": 5}


def complete(http: httpx.Client, **body: object) -> dict:
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def texts(answer: dict) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return [choice["text"] for choice in answer["choices"]]


@pytest.fixture
def generate(module_conn: psycopg.Connection):
    """`generate(prompt, options)`: what llm_generate writes with OpenAI's defaults."""

    def run(
        prompt: str = PROMPT, max_tokens: int = 12, temperature: float = 0, seed: int = 1, options: str = "{}"
    ) -> str:
        query = "SELECT llm_generate(%s, %s, %s, 0, 1, %s, seed => %s, echo => false, options => %s)"
        row = module_conn.execute(query, (prompt, max_tokens, temperature, MODEL, seed, options)).fetchone()
        assert row is not None
        return row[0]

    return run


def test_models_are_those_with_weights_and_a_vocabulary(http):
    found = http.get("/v1/models").json()
    assert found["object"] == "list"
    assert [model["id"] for model in found["data"]] == [SLOW, MODEL]
    one = http.get(f"/v1/models/{MODEL}").json()
    assert one in found["data"]
    assert (one["object"], one["max_model_len"], one["parent"]) == ("model", 64, None)


def test_a_completion_is_what_llm_generate_writes(http, generate, module_conn):
    answer = complete(http, **GREEDY)
    assert texts(answer) == [generate()]
    assert (answer["object"], answer["model"]) == ("text_completion", MODEL)
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["logprobs"] is None
    read = module_conn.execute("SELECT llm_token_count(%s, %s)", (PROMPT, MODEL)).fetchone()[0]
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": 12, "total_tokens": read + 12}


def test_defaults_are_openais(http, generate):
    """16 tokens, temperature 1, every token may come."""
    answer = complete(http, model=MODEL, prompt=PROMPT, seed=5)
    assert texts(answer) == [generate(max_tokens=16, temperature=1, seed=5)]
    assert (
        complete(http, model=MODEL, prompt=PROMPT, seed=5, n=None, logit_bias=None, user="me")
        | {key: answer[key] for key in ("id", "created")}
        == answer
    )


def test_samples_and_prompts_draw_by_seeds_of_their_own(http, generate):
    answer = complete(http, **DRAWN | {"prompt": [PROMPT, "The truth"], "n": 2})
    expected = [
        generate(prompt, temperature=1, seed=5 + k) for k, prompt in enumerate([PROMPT] * 2 + ["The truth"] * 2)
    ]
    assert texts(answer) == expected


def test_best_of_keeps_the_likeliest(http):
    many = complete(http, **DRAWN | {"n": 4, "logprobs": 0})["choices"]
    means = [sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["tokens"]) for choice in many]
    best = complete(http, **DRAWN | {"best_of": 4})
    assert texts(best) == [many[means.index(max(means))]["text"]]
    assert best["usage"]["completion_tokens"] == sum(len(choice["logprobs"]["tokens"]) for choice in many)


@pytest.mark.parametrize(
    "more",
    [
        {"n": 3},
        {"prompt": [PROMPT, "The truth", PROMPT], "echo": True},
        {"prompt": ["a", "b"], "stop": "e"},
        {"n": 2, "choices": ["no"]},
        {"n": 2, "max_tokens": 0},
        {"n": 2, "temperature": 0.0, "do_sample": False},
        {"n": 3, "seed": 2**63 - 2},
    ],
    ids=str,
)
def test_texts_that_are_written_together_are_those_written_one_by_one(http, more):
    """Log-probabilities of tokens are what makes the server write one after the other."""
    asked = DRAWN | more
    together, one_by_one = complete(http, **asked), complete(http, **asked | {"logprobs": 0})
    assert together["usage"] == one_by_one["usage"]
    assert [each | {"logprobs": None} for each in one_by_one["choices"]] == together["choices"]


def test_options_that_contradict_each_other_are_named_for_several_texts_too(http):
    response = http.post("/v1/completions", json=DRAWN | {"n": 2, "do_sample": False})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("do_sample=False and temperature=1")


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"presence_penalty": 1.5, "frequency_penalty": 0.5}, '{"presence_penalty": 1.5, "frequency_penalty": 0.5}'),
        ({"logit_bias": {"101": 100}}, '{"logit_bias": {"101": 100}}'),
        ({"top_k": 3}, '{"top_k": 3}'),
        ({"top_k": -1}, "{}"),
        ({"top_p": 0.4, "repetition_penalty": 1.3}, '{"top_p": 0.4, "repetition_penalty": 1.3}'),
        ({"min_p": 0.1, "no_repeat_ngram_size": 2}, '{"min_p": 0.1, "no_repeat_ngram_size": 2}'),
        ({"stop": "e"}, '{"stop_strings": ["e"]}'),
        ({"stop": ["e", "a"]}, '{"stop_strings": ["e", "a"]}'),
        ({"choices": ["one", "two"]}, '{"choices": ["one", "two"]}'),
        ({"regex": "[0-9]{4}"}, '{"regex": "[0-9]{4}"}'),
    ],
    ids=str,
)
def test_options_mean_what_they_mean_in_sql(http, module_conn, asked, options):
    query = "SELECT llm_generate(%s, 12, 1, model_name => %s, seed => 5, echo => false, options => %s::jsonb || %s)"
    defaults = '{"top_k": 0, "top_p": 1}'
    expected = module_conn.execute(query, (PROMPT, MODEL, defaults, options)).fetchone()[0]
    assert texts(complete(http, **DRAWN | asked)) == [expected]


def test_response_format_holds_a_schema(http):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    asked = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
    answer = complete(http, **DRAWN | {"response_format": asked, "max_tokens": 40})
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"].startswith('{"n"')
    same = complete(http, **DRAWN | {"json_schema": schema, "max_tokens": 40})
    assert texts(same) == texts(answer)


def test_an_end_is_a_stop_and_the_rest_is_length(http):
    assert complete(http, **GREEDY | {"choices": ["no"]})["choices"][0]["finish_reason"] == "stop"
    assert complete(http, **GREEDY | {"max_tokens": 0})["choices"][0] == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "length",
    }


def test_token_ids_are_the_text_that_they_encode(http, module_conn):
    ids = module_conn.execute("SELECT llm_encode(%s, %s)", (PROMPT, MODEL)).fetchone()[0]
    plain = texts(complete(http, **GREEDY))
    assert texts(complete(http, **GREEDY | {"prompt": ids})) == plain
    assert texts(complete(http, **GREEDY | {"prompt": [ids, ids]})) == plain * 2


@pytest.fixture
def of_no_text(module_conn: psycopg.Connection) -> list[list[int]]:
    """Prompts of ids that the tokenizer gives for no text: an end of text, a byte of a character, and some with one of them."""
    query = "SELECT llm_encode(%s, %s), (SELECT eos_token_id FROM llm_model_config WHERE model = %s)"
    row = module_conn.execute(query, (PROMPT, MODEL, MODEL)).fetchone()
    assert row is not None
    ids, end = row
    return [[end], [255], [end, *ids], [*ids, 255]]


@pytest.mark.parametrize(
    "more", [{}, {"n": 2}, {"echo": True}, {"n": 2, "echo": True}, {"logprobs": 0, "n": 2}], ids=str
)
def test_ids_of_no_text_are_continued_as_in_sql(http, module_conn, of_no_text, more):
    """One prompt and several, whole and as a stream."""
    call = "SELECT llm_generate(NULL, 12, 1, 0, 1, %s, seed => %s, options => %s)"
    n = more.get("n", 1)

    def expected(prompts: list[list[int]]) -> list[str]:
        written = []
        for k, ids in enumerate(prompts):
            for seed in range(5 + k * n, 5 + k * n + n):
                options = json.dumps({"prompt_ids": ids, "echo": more.get("echo", False)})
                written.append(module_conn.execute(call, (MODEL, seed, options)).fetchone()[0])
        return written

    for ids in of_no_text:
        assert texts(complete(http, **DRAWN | more | {"prompt": ids})) == expected([ids])
    answer = complete(http, **DRAWN | more | {"prompt": of_no_text})
    assert texts(answer) == expected(of_no_text)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, of_no_text))
    with http.stream("POST", "/v1/completions", json=DRAWN | more | {"prompt": of_no_text, "stream": True}) as got:
        *parts, _ = events(got)
    for place, text in enumerate(expected(of_no_text)):
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == place]
        assert "".join(part["text"] for part in mine) == text


def test_scores_of_ids_of_no_text_are_those_of_the_model(http, module_conn, of_no_text):
    """What lm-evaluation-harness asks for: what follows an end of text, which it sends as an id."""
    query = "SELECT token, logprob FROM llm_logprobs(%s, %s, from_start => true) ORDER BY position"
    rows = module_conn.execute(query, (PROMPT, MODEL)).fetchall()
    asked = {"model": MODEL, "prompt": of_no_text[2], "max_tokens": 0, "echo": True, "logprobs": 1}
    told = complete(http, **asked)["choices"][0]["logprobs"]
    assert told["tokens"][1:] == [token for token, _ in rows]
    np.testing.assert_allclose(told["token_logprobs"][1:], [value for _, value in rows], atol=1e-4)  # of float32


def test_an_empty_text_is_one_among_others(http, generate):
    assert texts(complete(http, **GREEDY | {"prompt": [""]})) == [generate("")]
    assert texts(complete(http, **GREEDY | {"prompt": ["", PROMPT]})) == [generate(""), generate()]


def test_logprobs_are_those_of_the_plain_distribution(http, module_conn):
    """Of the prompt with echo, of what follows, and of the alternatives: as llm_logprobs and llm_next_token have them."""
    answer = complete(http, **GREEDY | {"logprobs": 3, "echo": True, "max_tokens": 20})
    text, told = answer["choices"][0]["text"], answer["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == text
    assert [text[at:].startswith(token) for at, token in zip(told["text_offset"], told["tokens"])] == [True] * len(
        told["tokens"]
    )
    query = "SELECT token, logprob FROM llm_logprobs(%s, %s) ORDER BY position"
    rows = module_conn.execute(query, (text, MODEL)).fetchall()
    assert told["tokens"] == [token for token, _ in rows], (
        "the model wrote what the tokenizer would not; take another seed"
    )
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    np.testing.assert_allclose(told["token_logprobs"][1:], [value for _, value in rows[1:]], atol=1e-4)  # of float32
    query = "SELECT token, ln(probability) FROM llm_next_token(%s, 3, 1, %s)"
    expected = dict(module_conn.execute(query, (PROMPT, MODEL)).fetchall())
    first = told["top_logprobs"][answer["usage"]["prompt_tokens"]]
    assert first == pytest.approx(expected, abs=1e-4)
    assert all(3 <= len(top) <= 4 for top in told["top_logprobs"][1:])


def test_ids_that_are_no_tokens_are_no_alternatives(http, module_conn):
    """Of a model with more ids than its vocabulary, in which there is a gap, too, and of its adapter. The log-probabilities are
    those of llm_generate_stream."""
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'gaps')")
    module_conn.execute("DELETE FROM llm_bpe_vocab WHERE model = 'gaps' AND token_id = 3")
    module_conn.execute("SELECT llm_init_model('gaps', 2, 2, 16, 64, 400, seed => 1)")
    module_conn.execute("SELECT llm_adapter_create('of gaps', 'gaps')")
    for model in "gaps", "of gaps":
        asked = {"model": model, "prompt": "low", "temperature": 0, "max_tokens": 9}
        told = complete(http, **asked | {"logprobs": 20, "echo": True})["choices"][0]["logprobs"]
        query = "SELECT token FROM llm_next_token('low', 20, model_name => %s)"
        expected = {token for (token,) in module_conn.execute(query, [model]).fetchall() if "\ufffd" not in token}
        read = module_conn.execute("SELECT llm_token_count('low', %s)", [model]).fetchone()[0]
        assert expected <= told["top_logprobs"][read].keys()
        assert all(20 <= len(top) <= 21 for top in told["top_logprobs"][1:])
        plain = complete(http, **asked | {"logprobs": 0})["choices"][0]["logprobs"]
        np.testing.assert_allclose(told["token_logprobs"][read:], plain["token_logprobs"], atol=1e-4)  # of float32
    module_conn.execute("SELECT llm_drop_model('of gaps'), llm_drop_model('gaps')")


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_logprobs_without_alternatives_cost_no_pass(http, prompt):
    some = complete(http, **DRAWN | {"logprobs": 0, "prompt": prompt})["choices"][0]["logprobs"]
    more = complete(http, **DRAWN | {"logprobs": 2, "prompt": prompt})["choices"][0]["logprobs"]
    assert some["tokens"] == more["tokens"]
    np.testing.assert_allclose(some["token_logprobs"], more["token_logprobs"], atol=1e-4)  # of float32
    assert some["top_logprobs"] == [{}] * len(some["tokens"])


@pytest.mark.parametrize(
    "more", [{"echo": True, "logprobs": 0}, {"echo": True, "logprobs": 2}, {"logprobs": 1}], ids=str
)
def test_tokens_begin_where_their_characters_do(http, more):
    """Also after characters of several tokens, or of bytes that are none."""
    asked = GREEDY | {"prompt": "日本 naïve 😀", "temperature": 2, "seed": 3, "max_tokens": 40} | more
    for part in complete(http, **asked)["choices"]:
        told, text = part["logprobs"], b""
        for token, at in zip(told["tokens"], told["text_offset"]):
            assert at == len(codecs.getincrementaldecoder("utf-8")("replace").decode(text))
            text += bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:\\x") else token.encode()
        assert text.decode(errors="replace").replace("\0", "\ufffd") == part["text"]
        assert len(text) > len(part["text"]), "no character has several tokens"


def test_a_token_that_is_a_part_of_a_character_is_told_by_its_bytes(http):
    told = complete(http, **GREEDY | {"prompt": "日", "echo": True, "logprobs": 0, "max_tokens": 0})
    pieces = told["choices"][0]["logprobs"]["tokens"]
    assert all(piece.startswith("bytes:\\x") for piece in pieces) or pieces == ["日"]


@pytest.mark.parametrize(
    "more", [{}, {"n": 2}, {"echo": True, "logprobs": 2, "n": 2}, {"logprobs": 0}, {"stop": "e"}], ids=str
)
def test_a_stream_adds_up_to_the_completion(http, more):
    asked = DRAWN | {"max_tokens": 40} | more
    whole = complete(http, **asked)
    with http.stream(
        "POST", "/v1/completions", json=asked | {"stream": True, "stream_options": {"include_usage": True}}
    ) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        *parts, last, done = events(got)
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {part["id"] for part in (*parts, last)} == {last["id"]}
    assert all(part["usage"] is None for part in parts)
    for choice in whole["choices"]:
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        if choice["logprobs"]:
            for key, values in choice["logprobs"].items():
                assert [each for part in mine if part["logprobs"] for each in part["logprobs"][key]] == values


def test_embeddings_are_those_of_llm_text_embedding(http, module_conn):
    inputs = [PROMPT, "The truth", "日本"]
    body = {"model": MODEL, "input": inputs}
    answer = http.post("/v1/embeddings", json=body).json()
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    for text, each in zip(inputs, answer["data"]):
        expected = module_conn.execute("SELECT llm_text_embedding(%s, model_name => %s)", (text, MODEL)).fetchone()[0]
        np.testing.assert_allclose(each["embedding"], expected, atol=1e-5)  # several texts share a pass
    packed = http.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    for each, same in zip(answer["data"], packed["data"]):
        values = np.frombuffer(base64.b64decode(same["embedding"]), "<f4")
        np.testing.assert_array_equal(values, np.asarray(each["embedding"], np.float32))
    counted = module_conn.execute("SELECT sum(llm_token_count(t, %s)) FROM unnest(%s::text[]) AS t", (MODEL, inputs))
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == counted.fetchone()[0]
    ids = module_conn.execute("SELECT llm_encode(%s, %s)", (PROMPT, MODEL)).fetchone()[0]
    of_ids = http.post("/v1/embeddings", json=body | {"input": ids}).json()
    np.testing.assert_allclose(of_ids["data"][0]["embedding"], answer["data"][0]["embedding"], atol=1e-5)
    last = http.post("/v1/embeddings", json=body | {"pooling": "last", "layer": 1}).json()
    assert math.dist(last["data"][0]["embedding"], answer["data"][0]["embedding"]) > 0


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("v1/embeddings", {"model": MODEL, "input": PROMPT}),
        ("v1/completions", DRAWN | {"logprobs": 0, "echo": True}),
        ("api/pictures/next", {"prompt": PROMPT, "model": MODEL}),
        ("api/pictures/runs", {}),
    ],
    ids=str,
)
def test_what_a_role_has_set_changes_no_answer(http, dsn, path, asked):
    options = "-c extra_float_digits=-15 -c DateStyle=German"
    with serving(conninfo.make_conninfo(dsn, options=options)) as other:
        answers = [each.post(path, json=asked).raise_for_status().json() for each in (http, other)]
    usual, found = ({name: each[name] for name in each if name not in ("id", "created")} for each in answers)
    assert found == usual
