"""What is wrong is said in OpenAI's error objects, with the status that its clients know what to do about."""

import re

import httpx
import psycopg
import pytest
from pg_gpt2 import errors

from loaders.serve.errors import KINDS
from tests.server.client.models import MODEL, PROMPT
from tests.server.serve.serving import serving

GOOD = {"model": MODEL, "prompt": PROMPT, "max_tokens": 3}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "minProperties": 3}}}


@pytest.mark.parametrize(
    ("asked", "status", "param", "code"),
    [
        ({"model": None}, 400, "model", "missing_parameter"),
        ({"model": "absent"}, 404, "model", "model_not_found"),
        ({"model": "gpt2-small"}, 404, "model", "model_not_found"),  # a preset without weights
        ({"model": 3}, 400, "model", "invalid_type"),
        ({"prompt": {"a": 1}}, 400, "prompt", "invalid_type"),
        ({"prompt": []}, 400, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, 400, "prompt", "invalid_type"),
        ({"prompt": [[]]}, 400, "prompt", "invalid_value"),
        ({"prompt": [1] * 65}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": [999999]}, 400, None, "22023"),
        ({"prompt": "low " * 200}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": "a\0b"}, 400, None, "invalid_value"),
        ({"suffix": "the end"}, 400, "suffix", "unsupported"),
        ({"n": 0}, 400, "n", "invalid_value"),
        ({"n": 1000}, 400, "n", "invalid_value"),
        ({"n": True}, 400, "n", "invalid_type"),
        ({"n": 2, "best_of": 1}, 400, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, 400, "best_of", "unsupported"),
        ({"logprobs": 21}, 400, "logprobs", "invalid_value"),
        (
            {"logprobs": 2, "max_tokens": 80},
            400,
            "logprobs",
            "context_length_exceeded",
        ),
        ({"temperature": -1}, 400, "temperature", "22023"),
        ({"temperature": "hot"}, 400, "temperature", "invalid_type"),
        ({"top_p": 2}, 400, "top_p", "22023"),
        ({"top_p": 0.5, "topp": 0.5}, 400, None, "invalid_value"),
        ({"max_tokens": -1}, 400, "max_tokens", "22023"),
        ({"max_tokens": 10**12}, 400, None, "22003"),
        ({"seed": 10**30}, 400, None, "22003"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias", "22023"),
        ({"logit_bias": {"5": "much"}}, 400, "logit_bias", "invalid_type"),
        ({"stop": [1]}, 400, "stop", "invalid_type"),
        ({"num_beams": 4}, 400, None, "invalid_value"),
        ({"colour": "blue"}, 400, "colour", "unknown_parameter"),
        ({"regex": "("}, 400, None, "2201B"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format", "invalid_value"),
        ({"response_format": SCHEMA}, 400, None, "0A000"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(http, asked, status, param, code):
    for more in ({}, {"stream": True}) if asked.get("best_of") is None else ({},):
        response = http.post("/v1/completions", json=GOOD | asked | more)
        assert response.headers["content-type"] == "application/json", "an error before the first event is no event"
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (status, param, code), error
        assert error["type"] == "invalid_request_error"
        assert "pg_gpt2:" not in error["message"]
        assert error["message"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("completions", {"prompt": PROMPT, "max_tokens": 3}),
        ("completions", {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 0}),
        ("completions", {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 2, "stream": True}),
        ("embeddings", {"input": PROMPT}),
    ],
    ids=str,
)
def test_what_is_not_finite_is_said_and_never_sent(http, module_conn, path, asked):
    """JSON has no number for it."""
    module_conn.execute("SELECT llm_copy_model(%s, 'spoiled')", [MODEL])
    nan = "overlay(data PLACING '\\x0000c07f' FROM 1)"
    module_conn.execute(f"UPDATE llm_param SET data = {nan} WHERE model = 'spoiled' AND name = 'ln_f.bias'")
    try:
        response = http.post(f"/v1/{path}", json=asked | {"model": "spoiled"})
    finally:
        module_conn.execute("SELECT llm_drop_model('spoiled')")
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_error_between_two_tokens_has_our_words(http, stream):
    """PL/Python has others for it, in the language of the server, and makes ours their detail."""
    asked = {"suppress_tokens": [*range(300)], "stream": stream}
    error = http.post("/v1/completions", json=GOOD | asked).json()["error"]
    assert error["message"].startswith("the options exclude every token")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b'{"temperature": 1e999}', "invalid_value"),
        (b'{"logit_bias": {"5": -1e999}}', "invalid_value"),
        (
            b'{"response_format": {"type": "json_schema", "json_schema": {"schema": {"maximum": 1e999}}}}',
            "invalid_value",
        ),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100000, "invalid_json"),
    ],
    ids=repr,
)
def test_a_body_that_is_no_object_of_json(http, content, code):
    response = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


def test_a_body_that_is_too_long_is_not_read(http):
    response = http.post("/v1/completions", json={"model": MODEL, "prompt": "a" * (17 << 20)})
    assert response.status_code == 413


def test_paths_and_methods_that_are_not_there(http):
    assert http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert (http.get("/v1/nothing").status_code, http.get("/v1/completions").status_code) == (404, 405)
    assert http.get("/v1/models/absent").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"model": "absent"}, "model"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 7}, "dimensions"),
        ({"layer": 99}, None),
        ({"pooling": "max"}, "pooling"),
    ],
    ids=str,
)
def test_embeddings_say_what_is_wrong(http, asked, param):
    response = http.post("/v1/embeddings", json={"model": MODEL, "input": "a"} | asked)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


def test_as_many_texts_as_openai_takes_are_embedded(http):
    response = http.post("/v1/embeddings", json={"model": MODEL, "input": ["a"] * 2048})
    assert (response.status_code, len(response.json()["data"])) == (200, 2048)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("models", None),
        ("completions", {"prompt": PROMPT}),
        ("embeddings", {"input": "a"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ],
    ids=str,
)
def test_a_database_that_has_lost_the_extension_is_not_available(new_database, path, asked):
    """It was dropped after the server began; made anew, it is served again."""
    dsn = new_database()
    with serving(dsn) as http, psycopg.connect(dsn, autocommit=True) as conn:

        def answer() -> httpx.Response:
            return (
                http.get(f"/v1/{path}") if asked is None else http.post(f"/v1/{path}", json={"model": MODEL, **asked})
            )

        conn.execute("DROP EXTENSION pg_gpt2 CASCADE")
        response = answer()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")
        assert "does not have pg_gpt2" in response.json()["error"]["message"]
        conn.execute("CREATE EXTENSION pg_gpt2")
        assert answer().status_code == (200 if asked is None else 404)


def test_a_chat_needs_a_template(http):
    response = http.post(
        "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (400, "no_chat_template")


def test_every_sqlstate_of_ours_has_its_status():
    """So that a new one is thought of."""
    ours = {cls.sqlstate for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "sqlstate")}
    left = {state for state in ours if state not in KINDS and state[:2] not in KINDS}
    assert left == {"XX000", "2BP01", "2D000", "39P01", "42710", "58P01", "58030"}, (
        "defects, and what only changes models or files"
    )
    assert all(re.fullmatch(r"[0-9A-Z]{2}(...)?", state) for state in KINDS)
