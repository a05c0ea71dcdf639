"""Kernels in a server: each ends soon after its timeout, asks before it takes memory, and the session keeps none of it."""

import contextlib
import re
import time
from pathlib import Path

import psycopg
import pytest

SOON = 1.5  # seconds; a cancel takes effect within 0.5, the rest is for a busy machine
TIMEOUT = 0.3
SIZE = 48 << 20  # bytes of the tensor a; x is the beginning of it, b has one value, c three, d four
GROWTH = 40 << 10  # kB that a session may keep

# On zeros: large, long and narrow. tests/engine/test_bounded.py has more of these, with the time between two looks.
LARGE = {
    "matmul, a large result": "pg_llm_matmul(substring(a, 1, 12000), substring(a, 1, 12000), 3000, 1, 3000)",
    "matmul, one column": f"pg_llm_matmul(a, b, {SIZE // 4}, 1, 1)",
    "add": "pg_llm_add(a, a)",
    "add, a value": "pg_llm_add(a, b)",
    "gelu": "pg_llm_gelu(a)",
    "gelu_backward": "pg_llm_gelu_backward(a, a)",
    "softmax": "pg_llm_softmax(a, 2)",
    "softmax_backward": "pg_llm_softmax_backward(a, a, 1)",
    "layernorm": "pg_llm_layernorm(a, b, b, 1e-5)",
    "layernorm_backward": "pg_llm_layernorm_backward(a, a, b, 1e-5)",
    "cross_entropy": "pg_llm_cross_entropy(substring(a, 1, 16777216), 1)",
    "cross_entropy_backward": "pg_llm_cross_entropy_backward(substring(a, 1, 16777216), 1)",
    "dropout": "pg_llm_dropout(a, 0.5, true, 1)",
    "dropout_backward": "pg_llm_dropout_backward(a, a, a, 0.5, true)",
    "ones_like": "pg_llm_ones_like(a)",
    "zeros_like": "pg_llm_zeros_like(a)",
    "transpose": f"pg_llm_transpose(a, {SIZE // 8}, 2)",
    "attention": "pg_llm_attention(x, c, c, b, b, 1, 1000000, 1)",
    "attention_backward": "pg_llm_attention_backward(x, c, c, b, b, x, 1, 1000000, 1)",
    "mlp_backward": f"pg_llm_mlp_backward(a, d, d, d, b, a, {SIZE // 4}, 1)",
    "a block": "llm_block_forward(x, c, c, b, b, d, d, d, b, b, b, b, b, 1, 1000000, 1)",
    "adamw_step": "pg_llm_adamw_step(a, a, a, a, 1e-3, 0.9, 0.99, 1e-8, 0, 1)",
    "grad_clip": "pg_llm_grad_clip(a, 1)",
    "sample": "pg_llm_sample(substring(a, 1, 4194304), 1, 0, 0.9, 1)",
    "values": "pg_llm_values(substring(a, 1, 4194304))",
    "the op causal_attention": "llm_op('causal_attention', ARRAY[llm_variable(substring(a, 1, 6000000), '{500000,3}', true)],"
    """ '{"n_head": 1}')""",
}
NOT_REFUSED = {
    "cross_entropy",
    "sample",
    "the op causal_attention",
}  # what these are given and make is less than the limit of the test


@pytest.fixture(scope="module", autouse=True)
def tensors(module_conn):
    module_conn.execute(
        "CREATE UNLOGGED TABLE tensors (a bytea STORAGE EXTERNAL, b bytea, c bytea, d bytea)"
        if module_conn.info.server_version >= 160000
        else "CREATE UNLOGGED TABLE tensors (a bytea, b bytea, c bytea, d bytea);"
        " ALTER TABLE tensors ALTER a SET STORAGE EXTERNAL"
    )
    zeros = ", ".join(f"decode(repeat('00', {n}), 'hex')" for n in (SIZE, 4, 12, 16))
    module_conn.execute(f"INSERT INTO tensors SELECT {zeros}")


def call(conn: psycopg.Connection, what: str) -> None:
    conn.execute(f"SELECT count(y) FROM (SELECT {what} AS y FROM tensors, substring(a, 1, 4000000) AS x OFFSET 0) AS t")


def warm(conn: psycopg.Connection) -> psycopg.Connection:
    conn.execute("SELECT pg_llm_gelu(pg_llm_tensor('{1}'))")
    return conn


def status(conn: psycopg.Connection, field: str) -> int:
    """kB, of the session's process."""
    text = Path(f"/proc/{conn.info.backend_pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1])  # type: ignore[index]


def test_every_kernel_is_here(conn):
    """But for those that work on what PL/Python has made already, or on nothing large."""
    names = conn.execute(
        "SELECT substring(proname FROM 8) FROM pg_proc WHERE proname LIKE 'pg\\_llm\\_%'"
        " AND NOT proname ~ 'import|export|autograd|bpe|tensor|lr_schedule'"
    ).fetchall()
    assert {name for (name,) in names} <= {what.split(",")[0] for what in LARGE}


@pytest.mark.parametrize("what", LARGE.values(), ids=LARGE)
def test_a_kernel_ends_soon_after_its_timeout(connect, what):
    conn = warm(connect())
    conn.execute(f"SET statement_timeout = {int(1000 * TIMEOUT)}")
    began = time.monotonic()
    with contextlib.suppress(psycopg.errors.QueryCanceled):
        call(conn, what)
    assert time.monotonic() - began < TIMEOUT + SOON
    with contextlib.suppress(psycopg.errors.QueryCanceled):  # PostgreSQL's own, where the time was up as the call ended
        conn.execute("SELECT")
    conn.execute("RESET statement_timeout")
    warm(conn)


@pytest.mark.parametrize("what", [w for name, w in LARGE.items() if name not in NOT_REFUSED])
def test_a_kernel_that_needs_more_than_the_limit_is_refused_before_it_takes_it(connect, what):
    conn = warm(connect(options="-c pg_gpt2.max_memory=16MB"))
    call(conn, "a")
    before, shared = status(conn, "VmHWM"), status(conn, "RssShmem")
    with pytest.raises(psycopg.errors.OutOfMemory, match="max_memory") as caught:
        call(conn, what)
    assert caught.value.diag.message_hint
    shared = status(conn, "RssShmem") - shared  # the server's buffers, as far as this session had not read them before
    given = (what.count("(a,") + what.count(" a,") + what.count(" a)") + what.count("(a)")) * (SIZE >> 10)
    own = status(conn, "VmHWM") - before - shared
    assert own < 3 * given + (40 << 10), "arguments: as stored, as handed over, as bytes"


def test_the_owners_cap_holds_for_kernels_and_roles_without_rights(connect, module_conn):
    module_conn.execute("INSERT INTO llm_limit VALUES ('max_memory', '16MB'); CREATE ROLE nobody_special")
    try:
        conn = warm(connect(options="-c pg_gpt2.max_memory=1TB"))
        conn.execute("GRANT SELECT ON tensors TO public; SET ROLE nobody_special")
        with pytest.raises(psycopg.errors.OutOfMemory, match="16 MB"):
            call(conn, LARGE["gelu"])
    finally:
        module_conn.execute("DELETE FROM llm_limit; REVOKE SELECT ON tensors FROM public; DROP ROLE nobody_special")


def test_large_kernels_leave_nothing_in_the_session(connect):
    conn = warm(connect())
    call(conn, "pg_llm_gelu(substring(a, 1, 400000))")
    conn.execute("SELECT llm_cache_clear()")
    before = status(conn, "VmRSS") - status(conn, "RssShmem")
    for name in ("gelu", "add", "softmax", "dropout", "dropout_backward", "transpose", "adamw_step"):
        call(conn, LARGE[name])
    conn.execute("SELECT llm_cache_clear()")
    assert status(conn, "VmRSS") - status(conn, "RssShmem") - before < GROWTH


# --- arrays -----------------------------------------------------------------------------------------------------------------


def test_an_array_of_too_many_numbers_is_refused_before_it_is_converted(connect):
    conn = warm(connect())
    most = 4_194_304
    assert conn.execute(f"SELECT octet_length(pg_llm_tensor(array_fill(1, '{{{most}}}')))").fetchone() == (4 * most,)
    conn = warm(connect())
    conn.execute("SELECT cardinality(array_fill(1.0::float8, '{10000000}'))")
    before = status(conn, "VmHWM")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"the most is {most}"):
        conn.execute("SELECT pg_llm_tensor(array_fill(1.0::float8, '{10000000}'))")
    assert status(conn, "VmHWM") - before < 100 << 10
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="the most is 1048576"):
        conn.execute("SELECT pg_llm_values(decode(repeat('00', 4194308), 'hex'))")


def test_an_array_becomes_a_tensor_as_it_is(sql):
    assert sql("SELECT pg_llm_values(pg_llm_tensor('[5:6][2:3]={{1,2},{-3,NaN}}'))::text") == "{1,2,-3,NaN}"
    assert sql("SELECT pg_llm_tensor(NULL)") is None
    assert sql("SELECT pg_llm_tensor((ARRAY[1, NULL, 3])[3:3]) = pg_llm_tensor('{3}')")
    assert sql("SELECT pg_llm_tensor_sent(array_send('{1,2}'::float8[]), 2) = pg_llm_tensor('{1,2}')")


@pytest.mark.parametrize(
    "sent",
    ["''", "'\\x00'", "array_send('{1,2}'::real[])", "array_send('{1}'::float8[])", "decode(repeat('ff', 44), 'hex')"],
)
def test_bytes_that_are_no_array_are_refused(conn, sent):
    with pytest.raises((psycopg.errors.InvalidTextRepresentation, psycopg.errors.NullValueNotAllowed)):
        conn.execute(f"SELECT pg_llm_tensor_sent({sent}, 2)")


# --- dimensions, threads ----------------------------------------------------------------------------------------------------


def test_a_tensor_of_too_many_dimensions_is_refused(conn):
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="65 dimensions"):
        conn.execute("SELECT llm_variable('\\x00000000', array_fill(1, '{65}'), true)")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="16 dimensions"):
        conn.execute(
            "SELECT llm_op('reshape', ARRAY[llm_variable('\\x00000000', '{1}', true)],"
            " jsonb_build_object('shape', array_fill(1, '{64}')))"
        )
    conn.execute(
        "SELECT llm_op('matmul', ARRAY[v, v]) FROM llm_variable('\\x00000000', array_fill(1, '{16}'), true) AS v"
    )


LIMIT_THREADS = """
CREATE FUNCTION pg_temp.no_more_threads() RETURNS void LANGUAGE plpython3u AS $$
import resource, threading
resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
threading.stack_size(32 << 10)
$$"""


def test_where_no_thread_can_be_started_kernels_work_and_give_the_same(connect):
    what = "SELECT md5(pg_llm_gelu(decode(repeat('3f800000', 500000), 'hex')))"
    conn = warm(connect())
    conn.execute(LIMIT_THREADS)
    conn.execute("SELECT pg_temp.no_more_threads()")
    found = conn.execute(what).fetchone()
    assert len(list(Path(f"/proc/{conn.info.backend_pid}/task").iterdir())) == 1
    assert found == warm(connect()).execute(what).fetchone()
