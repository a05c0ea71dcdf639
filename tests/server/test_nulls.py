"""What NULL gives: docs/nulls.md says it of every function and parameter, and is compared here with what they do.

A function is called with the good arguments of the hostile values' test, one of them NULL.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.server.test_hostile import EXAMPLES, REFUSED, arguments

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nulls.md"
FUNCTIONS = """
    SELECT p.oid::regprocedure::text AS signature, p.proname, p.proargnames[:p.pronargs] AS names, p.proretset,
        ARRAY(SELECT format_type(coalesce(nullif((SELECT typbasetype FROM pg_type WHERE oid = t), 0), t), NULL)
               FROM unnest(p.proargtypes) AS t) AS types, p.prorettype::regtype::text AS result
    FROM pg_depend AS d JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
    WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
      AND p.prokind = 'f' AND p.pronargs > 0
    ORDER BY p.proname, p.oid
"""
BY_IDS = {"llm_trace(integer[],text)": "ids => '{1,2}', model => 'm'"}  # an overload


@pytest.fixture(autouse=True, scope="module")
def model(module_conn: psycopg.Connection) -> None:
    """As the examples want it."""
    module_conn.execute("SET client_min_messages = warning")
    module_conn.execute("CREATE TABLE t AS SELECT 'low lower lowest the cat sat on the mat ' AS x")
    module_conn.execute("SELECT llm_train_bpe('SELECT x FROM t', 270, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 2, 2, 16, 32)")
    module_conn.execute(
        "SELECT llm_copy_model('m', 'x'), llm_copy_model('m', 'y'), llm_share_param('y', 'wte', 0, 'x')"
    )
    module_conn.execute("SELECT llm_dataset_load('SELECT repeat(x, 50) FROM t', 'm', 16, val_fraction => 0.2)")
    module_conn.execute("SELECT llm_checkpoint_save('m'), llm_variable('\\x0000803f', '{1}', true)")
    module_conn.execute("SELECT llm_train('m', 2, batch_size => 2)")


def answer(conn: psycopg.Connection, name: str, given: dict[str, str], is_set: bool) -> str:
    """'NULL', 'no rows', 'a value', or the SQLSTATE of the error; nothing of the call stays."""
    named = ", ".join(f'"{parameter}" => {value}' for parameter, value in given.items())
    try:
        with conn.transaction(force_rollback=True):
            rows = conn.execute(f"SELECT {name}({named})::text").fetchall()
    except psycopg.Error as error:
        return error.sqlstate or "lost"
    if is_set and not rows:
        return "no rows"
    return "NULL" if rows[0][0] is None else "a value"


def answers(conn: psycopg.Connection) -> Iterator[tuple[str, str, str]]:
    """(function, parameter, what NULL there gives), where that is NULL or no rows and the good call gives something."""
    for signature, name, names, is_set, types, result in conn.execute(FUNCTIONS).fetchall():
        if result in ("void", "trigger") or name in REFUSED:
            continue
        good = arguments(BY_IDS.get(signature, EXAMPLES[name]), names)
        shown = signature if signature in BY_IDS else name
        usual = answer(conn, name, good, is_set)
        for parameter, kind in zip(names, types):
            found = answer(conn, name, {**good, parameter: f"NULL::{kind}"}, is_set)
            assert found != "XX000", (signature, parameter)
            if found in ("NULL", "no rows") and found != usual:
                yield shown, parameter, found


def rows(text: str) -> list[tuple[str, str]]:
    """(function, what) of the table on the page."""
    return re.findall(r"^\| `(\w+(?:\([^)]*\))?)` \| (.+) \|$", text, re.MULTILINE)


def test_null_gives_what_the_page_says_in_every_function(module_conn):
    found: dict[tuple[str, str], list[str]] = {}
    for name, parameter, what in answers(module_conn):
        found.setdefault((name, what), []).append(f"`{parameter}`")
    told = [(name, f"{', '.join(parameters)} | {what}") for (name, what), parameters in found.items()]
    text = PAGE.read_text(encoding="utf-8")
    if "PG_GPT2_WRITE_GOLDEN" in os.environ:
        table = "".join(f"| `{name}` | {what} |\n" for name, what in told)
        text = re.sub(r"(?<=\|---\|---\|---\|\n)(?:\|.*\|\n)*", lambda _: table, text)
        PAGE.write_text(text, encoding="utf-8")
    assert rows(text) == told


OF_A_TEXT = ("prompt", "prompts", "text_in", "word", "ids", "token_ids", "token_id", "tokens")


def test_every_function_of_a_text_or_of_ids_gives_null_or_no_rows_of_null(module_conn):
    """Of what only looks at them; a source, a file or a name is no such text."""
    told = dict(rows(PAGE.read_text(encoding="utf-8")))
    expected = {
        signature if signature in BY_IDS else name
        for signature, name, names, _, _, _ in module_conn.execute(FUNCTIONS).fetchall()
        if names[0] in OF_A_TEXT or name == "llm_loss"
    }
    assert expected - set(told) == set()
    assert len(expected) > 15


def test_a_bulk_statement_does_not_die_of_one_row(module_conn):
    """Of texts that are missing, empty or short: what has an answer gets it."""
    found = module_conn.execute("""
        SELECT llm_perplexity(x, 'm') IS NULL, llm_perplexity(x, 'm', from_start => true) IS NULL,
            llm_text_embedding(x, model_name => 'm') IS NULL, llm_generate(x, 2, model_name => 'm') IS NULL,
            llm_encode(x, 'm') IS NULL, (SELECT count(*) FROM llm_next_token(x, 1, 1, 'm'))
        FROM unnest(ARRAY[NULL, '', 'a', 'low the']) WITH ORDINALITY AS t (x, n) ORDER BY n
    """).fetchall()
    assert found == [
        (True, True, True, True, True, 0),
        (True, True, True, False, False, 1),
        (True, False, False, False, False, 1),
        (False, False, False, False, False, 1),
    ]
    batch = module_conn.execute("SELECT * FROM llm_generate_batch((SELECT array_agg(x) FROM t WHERE false))").fetchall()
    assert batch == []
