"""Memory is asked for before it is taken and kept no longer than needed; llm_doctor tells what a server is short of."""

import contextlib
import os
import re
import subprocess

import psycopg
import pytest

from tests.server.test_hostile import EXAMPLES, arguments
from tests.server.test_nulls import BY_IDS

CALLS = int(os.environ.get("PG_GPT2_CALLS", "1500"))  # by hand: 10000
GROWTH = 8 << 10  # kB that a session may grow by after it is warm: pieces that the C library keeps


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SET client_min_messages = warning")
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 2, 2, 16, 32)")
    module_conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 200)$$, 'm', 16, val_fraction => 0.2)")
    module_conn.execute("SELECT llm_init_model('large', 4, 8, 512, 512, 20000)")
    module_conn.execute(
        "CREATE TABLE words AS SELECT string_agg(md5(i::text), ' ') AS body FROM generate_series(1, 600000) AS i"
    )


@pytest.fixture
def finding(conn):
    """`finding(item)`: value, status and hint that llm_doctor gives."""

    def look(item: str) -> tuple[str, str, str | None] | None:
        return conn.execute("SELECT value, status, hint FROM llm_doctor() WHERE item = %s", [item]).fetchone()

    return look


# --- memory -----------------------------------------------------------------------------------------------------------------

LARGE = {
    "samples": "SELECT llm_generate_batch(array_fill(NULL::text, '{100000}'), 1, model_name => 'm', options => '{\"n\": 1024}')",
    "the weights": "SELECT llm_logits('{1}', 'large')",
    "a new model": "SELECT llm_init_model('x', 12, 12, 768, 1024, 50257)",
    "training": "SELECT llm_train('large', 1)",
    "a step": "SELECT llm_train_step('large')",
    "encoding": "SELECT count(*) FROM words, llm_tokenize(body, 'm')",
    "a vocabulary": "SELECT llm_train_bpe('SELECT body FROM words', 300, 'x')",
    "data": "SELECT llm_dataset_load('SELECT body FROM words', 'm', 16)",
    "handles": "SELECT llm_materialize_params('large')",
    "a product": "SELECT llm_op('matmul', ARRAY[llm_variable(b, '{5000,1}', true), llm_variable(b, '{1,5000}', true)])"
    " FROM decode(repeat('00', 20000), 'hex') AS b",
    "a trace": "SELECT count(*) FROM llm_trace(array_fill(1, '{500}'), 'large')",
}


def test_the_buffers_of_long_prompts_are_kept_until_llm_cache_clear(conn):
    conn.execute("SELECT llm_generate_tokens(array_fill(1, '{300}'), 1, model_name => 'large')")
    conn.execute("""
        CREATE FUNCTION pg_temp.kept() RETURNS bigint LANGUAGE plpython3u AS $$
import sys
buffers = next(module for name, module in sys.modules.items() if name.endswith('.fast.buffers'))
return sum(buffer.nbytes for buffer in buffers.kept()._buffers)
        $$""")
    # Without panels long prompts are read in blocks.
    assert conn.execute("SELECT pg_temp.kept()").fetchone()[0] >= 2 << 20
    conn.execute("SELECT llm_cache_clear()")
    assert conn.execute("SELECT pg_temp.kept()").fetchone()[0] == 0


def test_tables_of_constraints_are_given_up_where_memory_is_short(conn):
    conn.execute("""SELECT llm_generate('low', 5, model_name => 'm', options => '{"choices": [" low", " lower"]}')""")
    conn.execute("""
        CREATE FUNCTION pg_temp.kept(is_short boolean) RETURNS bigint LANGUAGE plpython3u AS $$
import sys
module = lambda end: next(m for name, m in sys.modules.items() if name.startswith('pg_gpt2_') and name.endswith(end))
resources, vocabularies = module('.server.resources'), module('.server.vocabularies')
if is_short:
    available = resources.available_memory
    resources.available_memory = lambda: 0
    try:
        resources.require_memory(2 << 20, 'a test')
    except resources.OutOfMemory:
        pass
    finally:
        resources.available_memory = available
return sum(len(tokenizer.kept) for _, tokenizer in vocabularies._cache.values())
        $$""")
    assert conn.execute("SELECT pg_temp.kept(false)").fetchone()[0] > 0
    assert conn.execute("SELECT pg_temp.kept(true)").fetchone()[0] == 0


@pytest.mark.parametrize("statement", LARGE.values(), ids=LARGE)
def test_what_needs_more_than_the_limit_is_refused_before_it_is_taken(connect, statement):
    conn = connect(options="-c pg_gpt2.max_memory=16MB")
    conn.execute("SELECT llm_generate('low', 3, model_name => 'm')")
    before = peak(conn)
    with pytest.raises(psycopg.errors.OutOfMemory) as caught:
        conn.execute(statement)
    assert caught.value.sqlstate == "53200"
    assert "smaller model" in (caught.value.diag.message_hint or "")
    # A text of 20 MB is in memory in a few copies, and 16 MB that are free are kept.
    assert peak(conn) - before < 160 << 10
    assert conn.execute("SELECT llm_generate('low', 0, model_name => 'm')").fetchone() == ("low",)


WITHIN = {  # statement, SQLSTATE, megabytes
    "ids that are too many": ("SELECT llm_decode(array_fill(7, '{10000000}'), 'm')", "22023", 200),
    "as many ids as an array takes": ("SELECT length(llm_decode(array_fill(7, '{1048576}'), 'm'))", None, 200),
    "a text of too many tokens": ("SELECT llm_encode(repeat('q ', 10000000), 'm')", "22023", 150),
    "rows of tokens": ("SELECT count(*) FROM llm_tokenize(repeat('low q ', 20000), 'm')", None, 20),
    "their number": ("SELECT llm_token_count(repeat('low q ', 200000), 'm')", None, 20),
    "special tokens": ("SELECT llm_token_count(repeat('<|endoftext|>', 200000), 'm', special => true)", None, 40),
    "a vocabulary of long tokens": ("SELECT llm_decode(array_fill(1, '{100}'), 'long')", "22023", 30),
    "one of many tokens that are not as long": ("SELECT llm_decode(array_fill(1, '{900}'), 'many')", "53200", 150),
}


@pytest.mark.parametrize(("statement", "sqlstate", "megabytes"), WITHIN.values(), ids=WITHIN)
def test_texts_and_ids_of_any_size_stay_within_the_limit(connect, module_conn, statement, sqlstate, megabytes):
    """What PL/Python makes of arguments and results included; some MB of the server's own for the arguments."""
    module_conn.execute(
        "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) SELECT 'long', n, n, decode(repeat('61', 20000000), 'hex')"
        " FROM generate_series(1, 20) AS n WHERE NOT EXISTS (SELECT FROM llm_bpe_vocab WHERE model = 'long')"
    )
    module_conn.execute(
        "INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) SELECT 'many', n, n, decode(repeat('61', 1000000), 'hex')"
        " FROM generate_series(1, 20) AS n WHERE NOT EXISTS (SELECT FROM llm_bpe_vocab WHERE model = 'many')"
    )
    conn = connect(options="-c pg_gpt2.max_memory=300MB")
    conn.execute("SELECT llm_encode('low', 'm')")
    before = peak(conn)
    if sqlstate is None:
        conn.execute(statement)
    else:
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(statement)
        assert caught.value.sqlstate == sqlstate
    assert peak(conn) - before < megabytes << 10


MEMBERS = """
    SELECT p.oid::regprocedure::text, p.proname, p.proargnames, a.place, format_type(a.type, NULL), l.lanname
    FROM pg_depend AS d JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
    JOIN pg_language AS l ON l.oid = p.prolang CROSS JOIN unnest(p.proargtypes) WITH ORDINALITY AS a (type, place)
    JOIN pg_type AS t ON t.oid = a.type
    WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
      AND t.typcategory IN ('A', 'P') AND a.type NOT IN ('text[]'::regtype, 'llm_texts'::regtype)
    ORDER BY p.proname, p.oid, a.place
"""


def test_no_python_function_takes_an_array_of_numbers(module_conn):
    """PL/Python would make an object of each element before our code runs, and nothing interrupts it. So arrays come as bytea in
    the binary form, from functions in SQL, which leave out what is too long; those of texts are llm_texts."""
    found = module_conn.execute(MEMBERS).fetchall()
    assert len(found) > 12
    assert [signature for signature, *_, language in found if language != "sql"] == []


def test_arrays_of_any_size_are_refused_before_they_become_objects(connect, module_conn):
    """By every function and parameter of the catalogue."""
    conn = connect()
    conn.execute("SELECT llm_encode('low', 'm'), llm_sparkline('{1}')")
    for signature, name, names, place, kind, _ in module_conn.execute(MEMBERS).fetchall():
        parameter = names[place - 1]
        good = arguments(BY_IDS.get(signature, EXAMPLES[name]), names)
        given = good | {parameter: f"array_fill(1::{kind.removesuffix('[]')}, '{{10000000}}')"}
        before = peak(conn)
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="elements") as caught:
            conn.execute(f"SELECT {name}({', '.join(f'{key} => {value}' for key, value in given.items())})")
        assert caught.value.diag.message_hint
        assert peak(conn) - before < 250 << 10, (signature, parameter)  # the array itself, in two copies


def test_the_owners_cap_holds_whatever_a_user_sets(conn, module_conn):
    module_conn.execute("INSERT INTO llm_limit VALUES ('max_memory', '16MB')")
    try:
        conn.execute("SET pg_gpt2.max_memory = '1TB'")
        with pytest.raises(psycopg.errors.OutOfMemory, match="16 MB"):
            conn.execute(LARGE["the weights"])
    finally:
        module_conn.execute("DELETE FROM llm_limit")


def status(conn: psycopg.Connection, field: str) -> int:
    """kB, of the session's process."""
    with open(f"/proc/{conn.info.backend_pid}/status", encoding="ascii") as file:
        return int(re.search(rf"^{field}:\s+(\d+) kB", file.read(), re.MULTILINE)[1])


def peak(conn: psycopg.Connection) -> int:
    return status(conn, "VmHWM")


MIXED = [
    "SELECT llm_generate('low', 4, model_name => 'm', seed => {n})",
    "SELECT llm_generate_tokens('{{1,2}}', 3, model_name => 'm', seed => {n})",
    "SELECT count(*) FROM llm_generate_batch('{{low,new}}', 3, model_name => 'm', seed => {n})",
    "SELECT count(*) FROM llm_beam_search('low', 2, 3, model_name => 'm')",
    "SELECT count(*) FROM llm_generate_rows($$SELECT {n}, 'low'$$, 3, model_name => 'm', seed => {n})",
    "SELECT (llm_perplexity_rows($$VALUES (1, 'low {n}'), (2, 'lower')$$, 'm')).key LIMIT 1",
    "SELECT (llm_generate_stream('low', 3, model_name => 'm', seed => {n})).text LIMIT 1",
    "SELECT llm_decode(llm_encode('lower {n} newest', 'm'), 'm')",
    "SELECT llm_train_step('m', lr_max => 1e-4)",
    "SELECT llm_loss('m', '{{1,2}}', '{{2,3}}')",
    "SELECT llm_value(llm_op('gelu', ARRAY[llm_variable(pg_llm_tensor('{{1,2}}'), '{{2}}', true)]))",
    "SELECT llm_prune_autograd_state()",
    "SELECT count(*) FROM llm_logprobs('low lower', 'm')",
    "SELECT llm_copy_model('m', 'copy')",
    "SELECT llm_drop_model('copy')",
    "SELECT llm_generate('low', model_name => 'none')",  # an error
    "SELECT pg_llm_values(pg_llm_matmul(a, a, 2, 2, 2)) FROM pg_llm_tensor('{{1,2,3,4}}') AS a",
    "SELECT count(*) FROM llm_export_safetensors('m')",
    "UPDATE llm_bpe_vocab SET score = {n} WHERE model = 'm' AND token_id = 1",
    "SELECT count(*) FROM llm_attention_weights('low lower', 0, 0, 'm')",
]


def test_a_session_does_not_grow_over_many_mixed_calls(connect):
    conn = connect(options="-c client_min_messages=warning")

    def call(first: int, count: int) -> None:
        for n in range(first, first + count):
            with contextlib.suppress(psycopg.errors.UndefinedObject):
                conn.execute(MIXED[n % len(MIXED)].format(n=n))

    call(0, 30 * len(MIXED))
    warm = status(conn, "VmRSS") - status(conn, "RssShmem")
    call(0, CALLS)
    grown = status(conn, "VmRSS") - status(conn, "RssShmem") - warm
    assert grown < GROWTH, f"{CALLS} calls took {grown} kB"


# --- llm_doctor -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("threads", "many"),
        ("max_memory", "lots"),
        ("attention_chunk", "0"),
        ("autograd", "maybe"),
        ("audit_keep", "-1"),
        ("tape", "forever"),
        ("prefix_cache", "lots"),
    ],
)
def test_the_doctor_lists_a_setting_that_is_no_value(conn, finding, setting, value):
    conn.execute("SELECT set_config(%s, %s, false)", [f"pg_gpt2.{setting}", value])
    found = finding(f"pg_gpt2.{setting}")
    assert found[:2] == (value, "error")
    assert setting in found[2]
    assert finding("encoding") == ("UTF8", "ok", None), "and goes on"


def test_the_doctor_tells_of_a_limit_that_leaves_room_for_little(conn, finding):
    assert finding("max_memory")[1:] == ("ok", None)
    conn.execute("SET pg_gpt2.max_memory = '1kB'")
    value, status_, hint = finding("max_memory")
    assert (value, status_, "53200" in hint) == ("1 kB", "warn", True)
    conn.execute("RESET pg_gpt2.max_memory")


def test_the_doctor_tells_of_names_that_are_no_settings(connect, conn):
    """PostgreSQL takes any name with a prefix."""
    database = conn.info.dbname
    found = "SELECT item, value, status FROM llm_doctor() WHERE hint LIKE 'There is no such setting%'"
    conn.execute(
        "CREATE ROLE misled LOGIN; ALTER ROLE misled SET pg_gpt2.modle = 'm'; ALTER ROLE misled SET pg_gpt2.model = 'm'"
    )
    conn.execute(
        f'ALTER DATABASE "{database}" SET "pg_gpt2.Max_memroy" = \'8GB=\'; ALTER ROLE misled SET pg_gpt2x.y = 1'
    )
    try:
        assert connect(user="misled").execute(found).fetchall() == [
            ("pg_gpt2.Max_memroy", "8GB=", "warn"),
            ("pg_gpt2.modle", "m", "warn"),
        ]
        assert [name for name, *_ in conn.execute(found)] == ["pg_gpt2.Max_memroy"], (
            "the other role's is not this session's"
        )
    finally:
        conn.execute(f'ALTER DATABASE "{database}" RESET "pg_gpt2.Max_memroy"; DROP ROLE misled')


def test_the_doctor_tells_of_a_vocabulary_that_is_larger_than_its_model(conn, finding):
    with conn.transaction(force_rollback=True):
        assert finding("model m")[1] == "ok"
        conn.execute("INSERT INTO llm_bpe_vocab (model, token_id, token, bytes) VALUES ('m', 400, 'low', 'low')")
        _, status_, hint = finding("model m")
        assert (status_, "400" in hint, "265" in hint) == ("warn", True, True)


def test_the_doctor_tells_of_versions_that_fill_the_table(conn, finding):
    assert finding("llm_param")[1:] == ("ok", None)
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM llm_param WHERE model = 'large'")
        value, status_, hint = finding("llm_param")
        assert re.fullmatch(r"\d+ MB for \d+ kB in its rows", value)
        assert (status_, "VACUUM llm_param" in hint) == ("warn", True)
        conn.execute("CREATE ROLE tenant; SELECT llm_grant_usage('tenant'); SET LOCAL ROLE tenant")
        assert finding("llm_param")[1] == "warn"
        conn.execute("RESET ROLE; ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY; SET LOCAL ROLE tenant")
        assert finding("llm_param") is None, "of rows that it does not see nothing can be said"


def test_the_doctor_answers_a_role_that_may_see_no_model(conn, finding):
    conn.execute("CREATE ROLE patient; SET ROLE patient")
    try:
        assert finding("models")[:2] == ("hidden from patient", "warn")
    finally:
        conn.execute("RESET ROLE; DROP ROLE patient")


# What it reads of the machine, answered by another one.
MACHINE = """
CREATE FUNCTION machine(what text) RETURNS void LANGUAGE plpython3u AS $$
import os, sys
module = next(m for name, m in sys.modules.items() if name.endswith('.diagnosis') and name.startswith('pg_gpt2_'))
if what == 'slow':
    module._gflops = lambda: 2.0
elif what == 'latin':
    row = module.db.row
    answer = lambda sql, *rest: {'v': 'LATIN1'} if 'server_encoding' in sql else row(sql, *rest)
    module.db = type('db', (), {**vars(module.db), 'row': staticmethod(answer)})
elif what == 'small':
    class Os:
        environ, path = {'OPENBLAS_CORETYPE': 'Prescott'}, os.path
        def statvfs(self, path):
            return os.statvfs_result((4096, 4096, 100, 50, 50, 0, 0, 0, 0, 0))
    module.os = Os()
    module.resources.available_memory = lambda: 100 << 20
    module.shared_folder.directory = lambda: None
    module.blas_library.set_blas_threads = lambda count: False
    module.np = type('numpy', (), {'__version__': '1.23.5', '__file__': '/somewhere/numpy/__init__.py', 'ones': module.np.ones,
        'float32': module.np.float32})
$$
"""


def test_the_doctor_is_honest_about_a_slow_or_small_machine(conn, finding):
    conn.execute("SELECT count(*) FROM llm_doctor()")
    conn.execute(MACHINE)
    try:
        conn.execute("SELECT machine('slow')")
        assert finding("matrix product")[:2] == ("2 GFLOP/s on one core", "warn")
        assert "OpenBLAS" in finding("matrix product")[2]
        conn.execute("SELECT machine('latin')")
        assert finding("encoding")[:2] == ("LATIN1", "error")
        assert "UTF8" in finding("encoding")[2]
        conn.execute("SELECT machine('small')")
        told = (
            "OPENBLAS_CORETYPE",
            "BLAS",
            "NumPy",
            "/dev/shm",
            "disk available",
            "memory available",
            "shared weights",
        )
        assert {item: finding(item)[1] for item in told} == dict.fromkeys(told, "warn")
        assert all(finding(item)[2] for item in told)
        assert finding("NumPy")[0] == "1.23.5 in /somewhere"
    finally:
        conn.execute("DROP FUNCTION machine")


def test_the_doctor_names_the_interpreter_and_where_numpy_is(conn, finding):
    conn.execute(
        "CREATE FUNCTION pg_temp.python() RETURNS text LANGUAGE plpython3u AS $$import sys; return sys.base_prefix$$"
    )
    (prefix,) = conn.execute("SELECT pg_temp.python()").fetchone()
    assert finding("Python")[0].endswith(f" in {prefix}")
    assert re.fullmatch(r"\d+\.\d+\.\S+ in /\S+", finding("NumPy")[0])
    assert subprocess.run([f"{prefix}/bin/python3", "-c", ""], check=False).returncode == 0
