"""Functions over the rows of a query: what they give is what one call a row gives; and no cancel, rollback or LIMIT hurts.

Between two rows of a set no cursor of PL/Python may be open (test_cancel.py), so the query waits in a cursor of the server.
"""

import os
import random
import re
import threading
from pathlib import Path

import psycopg
import pytest

ALL = "SELECT id, body FROM docs ORDER BY id"
AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text() and "PG_GPT2_CORETYPE" not in os.environ


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SET client_min_messages = warning")
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 2, 2, 64, 64, seed => 1)")
    module_conn.execute("ALTER DATABASE CURRENT SET pg_gpt2.model = 'm'".replace("CURRENT", module_conn.info.dbname))
    module_conn.execute("""
        CREATE TABLE docs AS SELECT i AS id, CASE WHEN i % 11 = 0 THEN NULL WHEN i % 13 = 0 THEN ''
            ELSE repeat('low lower ', i % 9) || CASE WHEN i % 17 = 0 THEN repeat('newer', 40) ELSE i::text END END AS body
        FROM generate_series(1, 400) AS i
    """)


@pytest.fixture
def session(connect):
    """A session in which the model is the default."""
    return connect(options="-c client_min_messages=warning")


# --- what they give -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("fast", ["on", "off"])
def test_perplexities_of_rows_are_those_of_each_text(session, fast, from_start):
    session.execute(f"SET pg_gpt2.fast = {fast}")
    rows = session.execute("SELECT * FROM llm_perplexity_rows(%s, NULL, %s)", [ALL, from_start]).fetchall()
    alone = session.execute(
        "SELECT id::text, llm_perplexity(body, from_start => %s),"
        " CASE WHEN body IS NOT NULL THEN greatest(0, llm_token_count(body) - 1 + %s) END FROM docs ORDER BY docs.id",
        [from_start, int(from_start)],
    ).fetchall()
    assert [(key, tokens) for key, _, tokens in rows] == [(key, tokens) for key, _, tokens in alone]
    for (_, found, _), (_, expected, _) in zip(rows, alone):
        exact = expected is None or (AVX512 and fast == "on")
        assert found == (expected if exact else pytest.approx(expected, rel=1e-5))


@pytest.mark.parametrize("arguments", ["NULL, 'mean'", "1, 'last'"])
@pytest.mark.parametrize("fast", ["on", "off"])
def test_embeddings_of_rows_are_those_of_each_text(session, fast, arguments):
    session.execute(f"SET pg_gpt2.fast = {fast}")
    rows = session.execute(f"SELECT * FROM llm_embedding_rows(%s, {arguments})", [ALL]).fetchall()
    alone = session.execute(
        f"SELECT id::text, llm_text_embedding(body, {arguments}) FROM docs ORDER BY docs.id"
    ).fetchall()
    assert [key for key, _ in rows] == [key for key, _ in alone]
    for (_, found), (_, expected) in zip(rows, alone):
        exact = expected is None or (AVX512 and fast == "on")
        assert found == (expected if exact else pytest.approx(expected, rel=1e-4, abs=1e-5))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("fast", ["on", "off"])
def test_texts_of_rows_are_those_of_each_prompt_with_its_seed(session, fast, n):
    session.execute(f"SET pg_gpt2.fast = {fast}")
    source = "SELECT id, body FROM docs WHERE id < 60 ORDER BY id"
    options = f'{{"n": {n}}}'
    rows = session.execute("SELECT * FROM llm_generate_rows(%s, 9, seed => 7, options => %s)", [source, options])
    alone = session.execute(
        "SELECT id::text, llm_generate(body, 9, seed => 7 + (id - 1) * %(n)s + i - 1), i FROM docs,"
        " generate_series(1, %(n)s) AS i WHERE id < 60 ORDER BY docs.id, i",
        {"n": n},
    )
    assert rows.fetchall() == alone.fetchall()


def test_a_batch_gives_samples_as_rows_do(session):
    prompts = ["low", None, "newer wider", ""]
    batch = session.execute(
        "SELECT n::text, text, sample FROM llm_generate_batch(%s, 6, seed => 3, options => '{\"n\": 70}')", [prompts]
    ).fetchall()
    source = "SELECT n, x FROM unnest(ARRAY['low', NULL, 'newer wider', '']) WITH ORDINALITY AS t (x, n) ORDER BY n"
    rows = session.execute("SELECT * FROM llm_generate_rows(%s, 6, seed => 3, options => '{\"n\": 70}')", [source])
    assert batch == rows.fetchall()
    assert len({text for _, text, _ in batch[:70]}) > 50, "samples differ"


def test_without_a_seed_setseed_decides(session):
    call = "SELECT array_agg(text) FROM llm_generate_rows('SELECT 1, ''low'' UNION ALL SELECT 2, ''low''', 6)"
    found = []
    for seed in (0.1, 0.1, 0.2):
        session.execute("SELECT setseed(%s)", [seed])
        found.append(session.execute(call).fetchone())
    assert found[0] == found[1] != found[2]


def test_a_statement_does_not_die_of_one_row(session):
    """Of one that the model cannot read, or whose every token the options exclude: a NOTICE tells."""
    session.execute("SELECT llm_init_model('little', 1, 2, 16, 16, 258)")
    session.execute(
        "INSERT INTO llm_bpe_vocab SELECT 'little', token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'm'"
    )
    session.execute(
        "INSERT INTO llm_bpe_merges SELECT 'little', rank, \"left\", \"right\", pair FROM llm_bpe_merges WHERE model = 'm'"
    )
    notices: list[str] = []
    session.add_notice_handler(lambda diag: notices.append(diag.message_primary))
    session.execute("SET client_min_messages = notice")
    source = "VALUES ('good', 'xyz'), ('bad', 'lower'), ('bad too', 'lowest'), ('long', repeat('xyz', 9))"
    rows = session.execute("SELECT key, text IS NULL FROM llm_generate_rows(%s, 3, model_name => 'little')", [source])
    assert rows.fetchall() == [("good", False), ("bad", True), ("bad too", True), ("long", False)]
    assert re.fullmatch(r"2 rows have no result; first: key bad: token id \d+ .*", notices[0])
    assert notices[1] == "1 prompt is longer than the 16-token window; only its end was used"
    for function in ("llm_perplexity_rows", "llm_embedding_rows"):
        found = session.execute(f"SELECT * FROM {function}(%s, model_name => 'little')", [source]).fetchall()
        assert [row[1] is None for row in found] == [False, True, True, False]
    (some,) = session.execute("SELECT array_agg(i)::text FROM generate_series(0, 257) AS i").fetchone()
    every = f'{{"suppress_tokens": [{some[1:-1]}], "n": 2}}'
    rows = session.execute(
        "SELECT key, text, sample FROM llm_generate_rows('SELECT 1, ''xyz''', 3, model_name => 'little', options => %s)",
        [every],
    )
    assert rows.fetchall() == [("1", None, 1), ("1", None, 2)]
    assert notices[-1].startswith("2 rows have no result; first: key 1: the options exclude every")
    session.execute("SELECT llm_drop_model('little')")


def test_a_statement_does_not_die_of_an_empty_prompt_or_of_bytes_that_are_no_token(session):
    """Of a vocabulary that has neither an end-of-text token nor all bytes."""
    session.execute("SELECT llm_init_model('bare', 1, 2, 16, 16, 265)")
    session.execute(
        "INSERT INTO llm_bpe_vocab SELECT 'bare', token_id, token, score, bytes FROM llm_bpe_vocab"
        " WHERE model = 'm' AND token NOT IN ('<|endoftext|>', 'z')"
    )
    notices: list[str] = []
    session.add_notice_handler(lambda diag: notices.append(diag.message_primary))
    session.execute("SET client_min_messages = notice")
    source = "VALUES ('good', 'low'), ('empty', ''), ('lacks', 'ooze'), ('last', 'lower')"
    rows = session.execute("SELECT key, text IS NULL FROM llm_generate_rows(%s, 3, model_name => 'bare')", [source])
    assert rows.fetchall() == [("good", False), ("empty", True), ("lacks", True), ("last", False)]
    empty = 'an empty prompt needs an end-of-text token, and model "bare" has none'
    assert notices == [f"2 rows have no result; first: key empty: {empty}"]
    call = "SELECT key, choice IS NULL FROM llm_choose_rows(%s, '{low,new}', model_name => 'bare')"
    assert session.execute(call, [source]).fetchall() == [
        *(("good", False), ("empty", True), ("lacks", True), ("last", False)),
    ]
    assert notices[1:] == notices[:1]
    labelled = "VALUES ('low', 'new'), ('', 'new'), ('ooze', 'new')"
    call = "SELECT n FROM llm_evaluate_choices(%s, '{low,new}', model_name => 'bare')"
    assert session.execute(call, [labelled]).fetchone() == (3,)
    assert notices[-1] == f"2 rows have no result and count as wrong; first: row 2: {empty}"
    for function in ("llm_perplexity_rows", "llm_embedding_rows"):
        found = session.execute(f"SELECT key FROM {function}(%s, model_name => 'bare')", [source]).fetchall()
        assert found == [("good",), ("empty",), ("lacks",), ("last",)]
        assert notices[-1].startswith("1 row has no result (key lacks: the vocabulary of")
    session.execute("SELECT llm_drop_model('bare')")


def test_a_long_call_tells_how_far_it_is(session):
    session.execute("CREATE EXTENSION IF NOT EXISTS plpython3u")
    session.execute(
        "CREATE FUNCTION pg_temp.every(seconds float) RETURNS void LANGUAGE plpython3u AS $$\n"
        "import sys\n"
        "next(m for n, m in sys.modules.items() if n.startswith('pg_gpt2_') and n.endswith('.host')).TELL_EVERY = seconds\n$$"
    )
    session.execute("SELECT llm_token_count('low')")
    session.execute("SELECT pg_temp.every(0); SET client_min_messages = notice")
    notices: list[str] = []
    session.add_notice_handler(lambda diag: notices.append(diag.message_primary))
    session.execute(f"SELECT count(*) FROM llm_perplexity_rows('{ALL}')")
    assert notices[-1] == "scoring: 400 rows done"
    session.execute(f"SELECT count(*) FROM llm_embedding_rows('{ALL}')")
    assert notices[-1] == "embedding: 400 rows done"
    session.execute(f"SELECT count(*) FROM llm_generate_rows('{ALL} LIMIT 30', 2)")
    assert "generating: 30 rows done" in notices
    notices.clear()
    session.execute("SELECT pg_temp.every(5)")
    session.execute(f"SELECT count(*) FROM llm_generate_rows('{ALL} LIMIT 30', 2)")
    assert not [notice for notice in notices if "done" in notice], "a short call tells nothing"


# --- whose query it is ------------------------------------------------------------------------------------------------


def test_the_query_has_the_rights_and_the_path_of_its_caller(session):
    with session.transaction(force_rollback=True):
        session.execute(
            "CREATE ROLE reader; CREATE SCHEMA private; CREATE TABLE private.docs AS SELECT 7 AS id, 'low' AS body"
        )
        session.execute(
            "SELECT llm_grant_usage('reader', 'read'); CREATE TABLE closed AS SELECT 1 AS id, 'low' AS body"
        )
        session.execute(
            "ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON docs TO reader USING (id < 4)"
        )
        session.execute("GRANT SELECT ON docs, private.docs TO reader; GRANT USAGE ON SCHEMA private TO reader")
        session.execute("SET ROLE reader")
        key = "SELECT array_agg(key) FROM llm_perplexity_rows('SELECT id, body FROM docs'{})"
        assert session.execute(key.format("")).fetchone() == (["1", "2", "3"],)
        assert session.execute(key.format(", source_path => 'private'")).fetchone() == (["7"],)
        session.execute("SET LOCAL search_path = private, public")
        assert session.execute(key.format("")).fetchone() == (["7"],)
        for function in ("llm_perplexity_rows", "llm_embedding_rows", "llm_generate_rows"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), session.transaction():
                session.execute(f"SELECT * FROM {function}('SELECT id, body FROM closed')")
        session.execute("RESET ROLE")


def test_nothing_of_the_callers_path_reaches_our_statements_or_the_casts(session):
    """A type `text` of the caller's own, or a function of the name of a server's, is for the query alone."""
    with session.transaction(force_rollback=True):
        session.execute("CREATE SCHEMA snare; CREATE DOMAIN snare.text AS pg_catalog.text CHECK (VALUE <> '1')")
        session.execute(
            "CREATE FUNCTION snare.normalize(a pg_catalog.text, b pg_catalog.text) RETURNS int LANGUAGE sql RETURN 1/0"
        )
        session.execute("SET LOCAL search_path = snare, pg_catalog, public")
        assert session.execute("SELECT key FROM llm_perplexity_rows('SELECT 1, ''low low''')").fetchone() == ("1",)


@pytest.mark.parametrize(
    ("source", "state", "says"),
    [
        ("SELECT 1, 'a'; SELECT 2, 'b'", "22023", "one query"),
        ("SELECT 1, 'a') AS s (key, text); DROP TABLE docs; SELECT * FROM (SELECT 1, 'a'", "42601", "syntax error"),
        ("SELECT 1", "22023", "two columns, key and text, not"),
        ("SELECT 'a', 1", "22023", "must be a text, not of type integer"),
        ("DELETE FROM docs RETURNING id, body", "22023", "only reads"),
        ("SELECT 1 / 0, 'a'", "22012", "division by zero"),
        ("SELECT id, body FROM docs WHERE 1 / (id - 300) < 5", "22012", "division by zero"),
    ],
)
def test_a_source_that_is_none_is_told(session, source, state, says):
    with pytest.raises(psycopg.Error) as caught:
        session.execute("SELECT * FROM llm_perplexity_rows(%s)", [source])
    assert caught.value.sqlstate == state
    assert says in str(caught.value)
    assert session.execute("SELECT count(*) FROM docs").fetchone() == (400,)
    assert session.execute("SELECT count(*) FROM pg_cursors").fetchone() == (0,)


# --- cursors ------------------------------------------------------------------------------------------------------------


def cursors(conn: psycopg.Connection) -> int:
    return conn.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE 'pg_gpt2 %'").fetchone()[0]


def test_a_reader_that_stops_early_leaves_nothing_that_stays(session):
    early = f"SELECT (llm_perplexity_rows('{ALL}')).key LIMIT 3"
    assert session.execute(early).fetchall() == [("1",), ("2",), ("3",)]
    assert cursors(session) == 0, "the transaction is over"
    with session.transaction():
        session.execute(early)
        assert cursors(session) == 1
        session.execute(early)
        assert cursors(session) == 1, "a call closes what others left"
        assert session.execute(f"SELECT count(*) FROM llm_perplexity_rows('{ALL}')").fetchone() == (400,)
        assert cursors(session) == 0
        session.execute(f"DECLARE c CURSOR FOR SELECT (llm_embedding_rows('{ALL}')).key")
        assert session.execute("FETCH 2 FROM c").fetchall() == [("1",), ("2",)]
        session.execute("CLOSE c")
        session.execute(f"SELECT count(*) FROM llm_perplexity_rows('{ALL}')")
        assert cursors(session) == 0


def test_readers_interleave(session):
    both = (
        f"SELECT (llm_perplexity_rows('{ALL}')).key, (llm_embedding_rows('{ALL} OFFSET 100')).key,"
        f" (llm_generate_rows('{ALL}', 1)).key"
    )
    rows = session.execute(both).fetchall()
    assert [row[0] for row in rows] == [row[2] for row in rows] == [str(i) for i in range(1, 401)]
    assert [row[1] for row in rows if row[1]] == [str(i) for i in range(101, 401)]
    joined = f"SELECT count(*) FROM llm_perplexity_rows('{ALL}') AS a JOIN llm_embedding_rows('{ALL}') AS b USING (key)"
    assert session.execute(joined).fetchone() == (400,)
    with session.transaction():
        for name in "ab":
            session.execute(f"DECLARE {name} CURSOR FOR SELECT (llm_perplexity_rows('{ALL}')).key")
        seen: dict[str, list[str]] = {"a": [], "b": []}
        random.seed(1)
        while min(map(len, seen.values())) < 400:
            name, count = random.choice("ab"), random.choice([1, 5, 70])
            seen[name] += [key for (key,) in session.execute(f"FETCH {count} FROM {name}")]
    assert seen["a"] == seen["b"] == [str(i) for i in range(1, 401)]


def test_a_source_may_call_functions_of_ours_of_this_kind_too(session):
    source = f"SELECT key, text FROM llm_generate_rows($q${ALL} LIMIT 90$q$, 3, 0) WHERE llm_perplexity(text) > 0"
    rows = session.execute("SELECT * FROM llm_perplexity_rows(%s)", [source]).fetchall()
    alone = session.execute(
        "SELECT id::text, llm_perplexity(text), llm_token_count(text) - 1 FROM (SELECT id, llm_generate(body, 3, 0) AS text"
        f" FROM ({ALL} LIMIT 90) AS d) AS t WHERE llm_perplexity(text) > 0 ORDER BY t.id"
    ).fetchall()
    assert len(rows) > 50
    assert [(key, tokens) for key, _, tokens in rows] == [(key, tokens) for key, _, tokens in alone]
    assert [p for _, p, _ in rows] == pytest.approx([p for _, p, _ in alone], rel=1e-5)


def test_a_source_that_reads_with_the_plain_ops_changes_nothing_here(session):
    """Which form computes is a setting of the call: one that the source makes must not change it for ours."""
    plain = "SELECT id, CASE WHEN set_config('pg_gpt2.fast', 'off', true) = 'off' AND llm_perplexity(body) > 0 THEN body END"
    with session.transaction(force_rollback=True):
        fast = session.execute(f"SELECT * FROM llm_perplexity_rows('{ALL} LIMIT 100')").fetchall()
        found = session.execute("SELECT * FROM llm_perplexity_rows(%s)", [f"{plain} FROM docs ORDER BY id LIMIT 100"])
        known = {row[0]: row for row in fast if row[1] is not None}
        assert [row for row in found if row[1] is not None] == list(known.values())


def test_a_savepoint_that_is_rolled_back_ends_what_began_in_it_and_nothing_else(session):
    first = f"SELECT (llm_perplexity_rows('{ALL}')).key"
    with session.transaction(force_rollback=True):
        session.execute(f"DECLARE before CURSOR FOR {first}")
        session.execute("FETCH 1 FROM before")
        session.execute("SAVEPOINT s")
        session.execute(f"DECLARE inside CURSOR FOR {first}")
        session.execute("FETCH 1 FROM inside; FETCH 100 FROM before; ROLLBACK TO s")
        assert cursors(session) == 1
        assert len(session.execute("FETCH ALL FROM before").fetchall()) == 299
        session.execute(f"DECLARE unread CURSOR FOR {first}")
        session.execute("SAVEPOINT s; FETCH 1 FROM unread; ROLLBACK TO s")
        with pytest.raises(psycopg.errors.InvalidCursorName, match="closed before its end"):
            session.execute("FETCH ALL FROM unread")


STATEMENTS = [
    f"SELECT count(*) FROM llm_perplexity_rows('{ALL}')",
    f"SELECT (llm_perplexity_rows('{ALL}')).*",
    f"SELECT (llm_embedding_rows('{ALL}')).key LIMIT 100",
    f"SELECT (llm_generate_rows('{ALL}', 2, options => '{{\"n\": 2}}')).*",
    f"SELECT (llm_perplexity_rows('{ALL}')).*, (llm_embedding_rows('{ALL}')).*",
    f"SELECT count(*) FROM llm_perplexity_rows('{ALL}') AS a JOIN llm_perplexity_rows('{ALL}') AS b USING (key)",
    f"SELECT (llm_perplexity_rows('SELECT (r).key, (r).key FROM (SELECT llm_perplexity_rows(''{ALL}'') AS r) AS x')).*",
    f"SELECT (llm_perplexity_rows('SELECT id, body || llm_perplexity(body) FROM ({ALL}) AS d')).*",
]


def in_pieces(conn: psycopg.Connection, statement: str) -> None:
    """Through a cursor, with savepoints that are rolled back between."""
    with conn.transaction():
        conn.execute(f"DECLARE c CURSOR FOR {statement}; FETCH 1 FROM c")
        for count in (1, 7, 100, 1, 7, 100):
            conn.execute(f"FETCH {count} FROM c; SAVEPOINT a; FETCH 2 FROM c; ROLLBACK TO a")


def caught(conn: psycopg.Connection, statement: str) -> None:
    """In a savepoint; the transaction goes on."""
    with conn.transaction():
        conn.execute("SELECT 1")
        try:
            with conn.transaction():
                conn.execute(statement)
        finally:
            if conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
                assert conn.execute(f"SELECT count(*) FROM llm_perplexity_rows('{ALL} LIMIT 30')").fetchone() == (30,)


def test_hundreds_of_cancels_at_any_moment_end_nothing_else(session):
    """A cursor of PL/Python that is open between rows is closed twice: one time in two hundred the end of the server."""
    random.seed(3)
    for statement in STATEMENTS:
        session.execute(statement)
    (alive,) = session.execute("SELECT pg_backend_pid()").fetchone()
    cancelled = 0
    for _ in range(400):
        run = random.choice([psycopg.Connection.execute, in_pieces, caught])
        timer = threading.Timer(random.choice([0.01, 0.05, 0.2]) * random.random(), session.cancel)
        timer.start()
        try:
            run(session, random.choice(STATEMENTS))
        except psycopg.errors.QueryCanceled:
            cancelled += 1
        finally:
            timer.join()
    assert cancelled > 100
    assert session.execute("SELECT pg_backend_pid()").fetchone() == (alive,)
    assert cursors(session) == 0
    assert session.execute(STATEMENTS[0]).fetchone() == (400,)


# --- memory -------------------------------------------------------------------------------------------------------------


def anonymous(conn: psycopg.Connection, field: str = "RssAnon") -> int:
    """kB of the session's process."""
    with open(f"/proc/{conn.info.backend_pid}/status", encoding="ascii") as file:
        return int(re.search(rf"^{field}:\s+(\d+) kB", file.read(), re.MULTILINE)[1])


@pytest.mark.parametrize("form", ["SELECT count(key) FROM {}", "SELECT count(k) FROM (SELECT ({}).key AS k) AS r"])
@pytest.mark.parametrize("function", ["llm_perplexity_rows({})", "llm_generate_rows({}, 2)", "llm_embedding_rows({})"])
def test_rows_stream_in_bounded_memory(connect, function, form):
    """What grows with the rows would be 25 MB of them here; FROM keeps results in a file where they are many."""
    session = connect(options="-c client_min_messages=warning -c work_mem=1MB")
    source = "SELECT i, CASE WHEN i % 1000 = 0 THEN 'low lower' END FROM generate_series(1, {}) AS i"
    call = form.replace("{}", function.replace("{}", f"$${source}$$"))
    session.execute(call.format(3000))
    before = anonymous(session)
    (count,) = session.execute(call.format(100_000)).fetchone()
    assert count == 100_000
    assert anonymous(session) - before < 8 << 10


def test_vectors_are_compared_in_parallel_workers_and_refused_there(connect):
    conn = connect()
    name = "debug_parallel_query" if conn.info.server_version >= 160000 else "force_parallel_mode"
    conn.execute(f"SET {name} = on")
    assert conn.execute("SELECT llm_cosine('{1,2}', '{2,4}')").fetchone() == (1.0,)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="different numbers of elements, 2 and 3") as caught:
        conn.execute("SELECT llm_cosine(ARRAY[i, 1]::real[], '{1,2,3}') FROM generate_series(1, 3) AS i").fetchall()
    assert caught.value.diag.message_hint
