"""The statements behind the page: what is shown is what runs, and nothing of a request gets into it."""

import json
import re

import httpx
import numpy as np
import psycopg
import pytest
from psycopg import conninfo

from loaders.serve.pictures import PICTURES, WRITE, shown

from .conftest import MODEL, PROMPT

GIVEN = {
    "prompt": PROMPT,
    "model": MODEL,
    "layer": 1,
    "head": 0,
    "run_id": 1,
    "a": 1,
    "b": None,
    "max_tokens": 7,
    "temperature": 0.7,
    "topk": 0,
    "topp": 1,
    "min_p": 0,
    "seed": 5,
}
HOSTILE = ["'; DROP TABLE t; --", "$1", "%s %(model)s %%", "{llm_param}", 'a"b', "\\", "\N{SNOWMAN}\n\t"]


def post(address, path, body, **headers):
    """(status, body) of an answer."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = httpx.post(
        f"{address}{path}", content=content, headers={"Content-Type": "application/json", **headers}, timeout=30
    )
    return answer.status_code, answer.text


def drawn(address, name, **given):
    status, text = post(address, f"api/pictures/{name}", given)
    assert status == 200, text
    return json.loads(text)


def arguments(picture, **other):
    return {name: {**GIVEN, **other}[name] for name in picture.parameters}


def prepared(conn, told):
    """The rows of a statement as the page shows it, prepared and executed with the parameters below it."""
    conn.execute(f"PREPARE picture AS {told['sql']}", prepare=False)
    try:
        values = ", ".join(psycopg.sql.Literal(value).as_string(conn) for value in told["parameters"])
        return conn.execute(f"EXECUTE picture({values})" if values else "EXECUTE picture").fetchall()
    finally:
        conn.execute("DEALLOCATE picture")


@pytest.mark.parametrize("name", sorted(PICTURES.keys() - {"memory", "stop"}))  # of one session; changes something
def test_what_is_shown_under_a_picture_gives_its_rows(address, conn, name):
    told = drawn(address, name, **arguments(PICTURES[name]))
    rows = [tuple(row.values()) for row in told["rows"]]
    again = json.loads(json.dumps(prepared(conn, told), default=lambda value: str(value)))
    assert rows or name == "sessions"  # which are told of models of 8 MB
    assert len(again) == len(rows)
    for row, other in zip(rows, again):
        for value, known in zip(row, other):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert float(known) == pytest.approx(value, rel=1e-6)
            elif not re.match(r"\d{4}-", str(value)):
                assert known == value


def test_what_is_written_is_what_its_statement_writes(address, conn):
    _, text = post(address, "api/write", arguments(WRITE))
    first, *rows = (json.loads(line[6:]) for line in text.split("\n\n") if line)
    again = prepared(conn, first)
    assert [row["token_id"] for row in rows] == [row[1] for row in again]
    assert "".join(row["piece"] for row in rows) == again[-1][3]
    assert len(rows) == 7


@pytest.mark.parametrize(
    ("token", "piece", "is_text"), [("\\x61", "a", True), ("\\x62", "b", False), ("\\x00", "\ufffd", False)]
)
def test_what_was_written_is_a_text_where_it_is_read_again_as_it_was_written(address, conn, token, piece, is_text):
    """A model that writes one token and nothing else: a letter, a special one, and U+0000, which PostgreSQL has in no text."""
    conn.execute("SELECT llm_copy_model(%s, 'letters')", [MODEL])
    try:
        conn.execute("UPDATE llm_bpe_vocab SET (added, special) = (true, true) WHERE model = 'letters' AND token = 'b'")
        ((one,),) = conn.execute(
            "SELECT token_id FROM llm_bpe_vocab WHERE model = 'letters' AND bytes = %s::bytea", [token]
        )
        wte = np.zeros((300, 32), "<f4")
        wte[one] = 1
        for name, values in (("wte", wte), ("ln_f.weight", 0 * wte[one]), ("ln_f.bias", wte[one])):
            data = [values.tobytes(), name]
            conn.execute("UPDATE llm_param SET data = %s WHERE model = 'letters' AND name = %s", data)
        conn.execute("SELECT llm_adapter_create('of letters', 'letters')")
        for model in ("letters", "of letters"):
            _, text = post(address, "api/write", arguments(WRITE) | {"model": model, "max_tokens": 2})
            _, *rows = (json.loads(line[6:]) for line in text.split("\n\n") if line)
            assert [(row["token_id"], row["piece"], row["is_text"]) for row in rows] == [(one, piece, is_text)] * 2
    finally:
        conn.execute("SELECT llm_drop_model('of letters')")
        conn.execute("SELECT llm_drop_model('letters')")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", [name for name, picture in PICTURES.items() if "prompt" in picture.parameters])
def test_what_a_request_says_is_a_parameter(address, conn, name, text):
    usual = drawn(address, name, **arguments(PICTURES[name]))
    hostile = drawn(address, name, **arguments(PICTURES[name], prompt=text))
    assert hostile["sql"] == usual["sql"]
    assert text in hostile["parameters"]
    assert conn.execute("SELECT count(*) FROM t").fetchone() == (60,)


def test_no_statement_is_made_of_anything_but_its_text():
    for picture in (*PICTURES.values(), WRITE):
        sql, values = shown(picture.sql.replace("{", "").replace("}", ""), GIVEN)
        assert re.findall(r"\$\d+", sql) or not picture.parameters
        assert len(values) == len(picture.parameters)
        assert "%" not in sql.replace("%%", "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "must be a JSON object"),
        (b"{", "is not JSON"),
        (b'{"prompt": "\\ud83d", "model": "m"}', "is not JSON"),
        ({"prompt": 1, "model": "m"}, "prompt must be text, not 1"),
        ({"prompt": "a"}, "model must be text, not None"),
        ({"prompt": "a", "model": MODEL, "n": 1}, "n is no parameter"),
        ({"prompt": "a\0b", "model": MODEL}, "NUL"),
        ({"prompt": "a", "model": "none such"}, "none such"),
        (b'{"prompt": "' + b"a" * (1 << 20) + b'"}', "longer than"),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_wrong(address, body, message):
    status, text = post(address, "api/pictures/lens", body)
    assert 400 <= status < 500
    assert message in json.loads(text)["error"]["message"]
    if message == "is not JSON":
        assert post(address, "api/write", body)[0] == 400, "before the first event"


def test_forms_of_other_sites_and_unknown_pictures_are_refused(address):
    assert post(address, "api/pictures/models", {}, **{"Content-Type": "text/plain"})[0] == 400
    assert post(address, "api/pictures/models", {}, Origin="http://example.com")[0] == 403
    assert post(address, "api/pictures/none", {})[0] == 400


def test_without_leave_to_train_nothing_is_stopped(serve):
    address = serve()
    assert drawn(address, "runs")["rows"][0]["status"] == "finished"
    status, text = post(address, "api/pictures/stop", {"model": MODEL})
    assert (status, "only reads" in text) == (403, True)


def test_a_role_that_may_only_read_sees_all_pictures(dsn, serve, module_conn):
    module_conn.execute("CREATE ROLE window_reader LOGIN")
    module_conn.execute("SELECT llm_grant_usage('window_reader')")
    try:
        with psycopg.connect(conninfo.make_conninfo(dsn, user="window_reader"), autocommit=True) as conn:
            for picture in PICTURES.values():
                if not picture.writing:
                    text = picture.sql.replace("{", "").replace("}", "")
                    conn.execute(text, arguments(picture))
    finally:
        module_conn.execute("DROP OWNED BY window_reader; DROP ROLE window_reader")
