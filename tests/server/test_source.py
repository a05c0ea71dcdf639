"""A source is a query of one text column, counted by its descriptor, whatever kind of statement returns rows."""

import psycopg
import pytest

TRAIN = "SELECT llm_train_bpe(%s, 258, 'm', %s)"


@pytest.fixture
def mine(conn):
    """A session whose search_path begins with a schema that has a table of documents; it is rolled back."""
    with conn.transaction(force_rollback=True):
        conn.execute("CREATE SCHEMA mine; CREATE TABLE mine.documents (body text, title text)")
        conn.execute("INSERT INTO mine.documents VALUES ('zzzz zzzz', 'qqqq'), (NULL, NULL)")
        yield conn


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("SELECT a.body, b.body FROM documents a, documents b", "body, body"),
        ("SELECT body, title FROM documents", "body, title"),
        ("SELECT body, body FROM documents WHERE false", "body, body"),
        ("SELECT FROM documents", ""),
        ("SELECT 1 AS n", "n"),
        ("SELECT ARRAY[body] AS list FROM documents", "list"),
    ],
)
def test_a_source_of_other_columns_than_one_text_is_refused(mine, source, columns):
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught, mine.transaction():
        mine.execute(TRAIN, [source, "mine"])
    assert f"source must return one text column, not ({columns})" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "SELECT body FROM documents",
        "SELECT body FROM documents -- a comment\n;",
        "VALUES ('zzzz'), ('zz')",
        "WITH a AS (SELECT body FROM documents) TABLE a",
        "UPDATE documents SET title = 'seen' || coalesce(title, '') RETURNING body",
        "SELECT body::varchar(20) FROM documents",
    ],
)
def test_whatever_returns_one_text_column_is_a_source(mine, source):
    mine.execute(TRAIN, [source, "mine"])
    assert mine.execute("SELECT \"left\" FROM llm_bpe_merges WHERE model = 'm'").fetchone() == ("z",)
    seen = "seenqqqq" if source.startswith("UPDATE") else "qqqq"
    assert mine.execute("SELECT max(title) FROM mine.documents WHERE body IS NOT NULL").fetchone() == (seen,), "once"


INTERRUPTED = """
    DO LANGUAGE plpython3u $$
    import sys
    module = next(m for name, m in sys.modules.items() if name.endswith('.server.caller_query'))
    server = module.plpy

    class Interrupted:
        def __getattr__(self, name):
            return getattr(server, name)

        def prepare(self, text):
            raise server.spiexceptions.QueryCanceled('canceling statement due to user request')

    module.plpy = Interrupted()
    try:
        module._without_its_end('SELECT 1;')
    finally:
        module.plpy = server
    $$
"""


def test_a_cancel_while_the_end_of_a_source_is_sought_takes_effect(mine):
    mine.execute(TRAIN, ["SELECT body FROM documents;", "mine"])  # loads the package
    with pytest.raises(psycopg.errors.QueryCanceled):
        mine.execute(INTERRUPTED)


def test_cursors_of_the_caller_are_left_alone(mine):
    mine.execute("DECLARE zzz CURSOR FOR SELECT n FROM generate_series(1, 3) AS n")
    mine.execute(TRAIN, ["SELECT body FROM documents", "mine"])
    assert mine.execute("FETCH ALL FROM zzz").fetchall() == [(1,), (2,), (3,)]
    assert mine.execute("SELECT array_agg(name) FROM pg_cursors").fetchone() == (["zzz"],)


CALLS_WITH_A_PATH = [
    "SELECT * FROM llm_perplexity_rows($$SELECT 1, 'low'::pg_catalog.text$$, 'm', source_path => {path})",
    "SELECT llm_dataset_load_pairs($$SELECT 'low'::pg_catalog.text, 'low'::pg_catalog.text$$, 'm', source_path => {path})",
]


def test_names_of_the_callers_path_do_not_reach_our_statements(connect):
    """A statement of ours is kept for the session: one that is prepared under the caller's path would go on using its types and
    functions, with the rights of whoever calls next."""
    conn = connect()
    conn.execute("SELECT llm_train_bpe($$SELECT 'low lower'$$, 258, 'm'), llm_init_model('m', 1, 1, 8, 16)")
    for call in CALLS_WITH_A_PATH:
        conn = connect()
        conn.execute(
            "CREATE SCHEMA hers;"
            " CREATE FUNCTION hers.evil(pg_catalog.text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE 'evil ran'; END$$;"
            " CREATE DOMAIN hers.text AS pg_catalog.text CHECK (hers.evil(VALUE));"
            " CREATE VIEW hers.pg_type AS SELECT * FROM pg_catalog.pg_type WHERE hers.evil(typname::pg_catalog.text);"
        )
        conn = connect()
        conn.execute(call.format(path="'hers, pg_catalog'"))
        conn.execute("DROP SCHEMA hers CASCADE")
        conn.execute(call.format(path="'public'"))


@pytest.mark.parametrize(
    "end", ["", ";", " ; ;\n", "; -- the end", "-- the; end\n; /* a /* nested */ ; */ --;", "; --'é"]
)
@pytest.mark.parametrize("text", ["low", "low; -- low", "a 'quoted; -- low"])
def test_what_follows_the_semicolon_of_a_source_is_left_out(mine, text, end):
    """Only that: a semicolon within a string stays."""
    mine.execute("SELECT llm_train_bpe($$SELECT 'low lower'$$, 258, 'ends'), llm_init_model('ends', 1, 1, 8, 64)")
    source = f"SELECT 'é', {psycopg.sql.quote(text)}::text{end}"
    rows = mine.execute("SELECT key, perplexity FROM llm_perplexity_rows(%s, 'ends')", [source]).fetchall()
    assert rows == mine.execute("SELECT 'é', llm_perplexity(%s, model_name => 'ends')", [text]).fetchall()
    mine.execute("SELECT llm_dataset_load_pairs(%s, 'ends')", [source])
