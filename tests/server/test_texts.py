"""The types of arguments that may be large: checked before PL/Python makes objects of them, and otherwise as their base types."""

import psycopg
import pytest

from tests.server.test_resources import peak

COUNT = """
CREATE FUNCTION pg_temp.count(texts llm_texts DEFAULT NULL) RETURNS integer LANGUAGE plpython3u AS $$
return None if texts is None else len(texts)
$$
"""


@pytest.fixture(name="count")
def function_of_texts(conn: psycopg.Connection) -> psycopg.Connection:
    """A session with a function that takes texts."""
    conn.execute(COUNT)
    return conn


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("", None),
        ("NULL", None),
        ("'{}'", 0),
        ("'{a,NULL}'", 2),
        ("ARRAY['a', 'b']", 2),
        ("ARRAY['a', 'b']::varchar[]", 2),
        ("'[5:6]={a,b}'::text[]", 2),
        ("'{{a,b},{c,d}}'", 2),
        ("array_fill('a'::text, '{1048576}')", 1 << 20),
    ],
)
def test_texts_are_taken_as_text_is(count, given, number):
    assert count.execute(f"SELECT pg_temp.count({given})").fetchone() == (number,)


def test_a_client_may_send_a_list(count):
    assert count.execute("SELECT pg_temp.count(%s)", [["a", "b"]]).fetchone() == (2,)
    assert count.execute("SELECT pg_temp.count(%s)", [[]]).fetchone() == (0,)


@pytest.mark.parametrize("given", ["array_fill('a'::text, '{10000000}')", "array_fill('a'::text, '{10,1000000}')"])
def test_more_texts_than_may_be_are_refused_before_they_become_objects(count, given):
    count.execute("SELECT pg_temp.count('{a}'), llm_boot()")
    before = peak(count)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="10000000 texts") as caught:
        count.execute(f"SELECT pg_temp.count({given})")
    assert caught.value.diag.message_hint
    assert peak(count) - before < 250 << 10  # the array itself, in two copies


def test_large_bytes_are_copied_where_there_is_memory_only(connect):
    conn = connect(options="-c pg_gpt2.max_memory=50MB")
    conn.execute(
        "CREATE FUNCTION pg_temp.size(b llm_bytes) RETURNS integer LANGUAGE plpython3u STRICT AS 'return len(b)'"
    )
    assert conn.execute("SELECT pg_temp.size(decode(repeat('00', 40000000), 'hex'))").fetchone() == (40_000_000,)
    assert conn.execute("SELECT pg_temp.size('\\x00'), pg_temp.size(NULL) IS NULL").fetchone() == (1, True)
    with pytest.raises(psycopg.errors.OutOfMemory, match="60000000 bytes"):
        conn.execute("SELECT pg_temp.size(decode(repeat('00', 60000000), 'hex'))")
    with pytest.raises(psycopg.errors.OutOfMemory, match="60000000 bytes"):
        conn.execute("SELECT llm_import_safetensors(decode(repeat('00', 60000000), 'hex'), 'x')")


def test_the_functions_that_types_call_say_yes_or_why_not(sql):
    assert sql("SELECT llm_texts_sent(1)") is True
    assert sql("SELECT llm_bytes_sent(1)") is True
