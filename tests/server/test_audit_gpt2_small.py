"""What the audit levels keep and cost at full size: gpt2-small, a row of 64 tokens, random weights."""

from collections.abc import Iterator

import psycopg
import pytest

OPS = 3 + 1 + 12 * (10 + 2) + 2  # embeddings and their dropout, blocks with dropout, ln_f, loss
PARAMS = 148

# Steps of a run, without writing the weights, which is most of the time of a short run: a checksum of the state that they lead
# to, and which share of the time of all but the first step went to the auditor.
STEPS = """
CREATE FUNCTION audited_steps(steps integer, level text, OUT state bigint, OUT share double precision)
LANGUAGE plpython3u AS $$
import sys, zlib
plpy.execute("SELECT llm_train_stop('big')")  # modules are loaded at need
from time import perf_counter
modules = {n.partition('.')[2]: m for n, m in sys.modules.items() if n.startswith('pg_gpt2_')}
runs, session = modules['server.training.runs'], modules['server.training.session']
spent = [0.0]
def timed(function):
    def call(*arguments):
        began = perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[0] += perf_counter() - began
    return call
trained = session.Session('big', 1)
settings = session.Settings(0.1, 0.9, 0.999, 1e-8, 0.01, 1e-3, 0, 0.0, None, 0)
run = runs.Run(trained, runs.RunPlan(settings, steps, 1, 1, None, 0, level))
run.begin()
auditor = run._audit
begin = auditor.begin
auditor.begin = timed(lambda *arguments: (lambda tape: tape and timed(tape))(begin(*arguments)))
auditor.end = timed(auditor.end)
auditor.write = timed(auditor.write)
for step in range(steps):
    if step < 2:
        spent[0], began = 0.0, perf_counter()
    run.go_on()
auditor.write()
share = spent[0] / (perf_counter() - began)
state = 0
for arrays in (trained.trainer.params, trained.trainer.m, trained.trainer.v):
    for array in arrays.values():
        state = zlib.crc32(array, state)
return state, share
$$
"""


@pytest.fixture(scope="module")
def big(module_conn: psycopg.Connection) -> psycopg.Connection:
    """A model of 124,439,808 weights and a row of 64 tokens."""
    module_conn.execute("SELECT llm_init_model('big', 12, 12, 768, 1024, 50257, seed => 1)")
    module_conn.execute("""
        INSERT INTO llm_dataset (model, tokens, target)
        SELECT 'big', array_agg(i * 701 % 50257 ORDER BY i), array_agg((i + 1) * 701 % 50257 ORDER BY i)
        FROM generate_series(1, 64) AS i
    """)
    module_conn.execute(STEPS)
    return module_conn


@pytest.fixture
def transaction(big: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """What is written goes again."""
    with big.transaction(force_rollback=True):
        yield big


def test_full_keeps_every_value_and_gradient_with_the_bits_of_none(transaction):
    conn = transaction
    (without,) = conn.execute("SELECT state FROM audited_steps(1, 'none')").fetchone()
    assert conn.execute("SELECT count(*) FROM llm_tape").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM llm_tensor_rt").fetchone() == (0,)
    (before,) = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    assert conn.execute("SELECT state FROM audited_steps(1, 'full')").fetchone() == (without,)
    (logged,) = conn.execute("SELECT (pg_current_wal_insert_lsn() - %s::pg_lsn)::bigint", [before]).fetchone()
    assert conn.execute("SELECT count(*) FROM llm_tape").fetchone() == (OPS,)
    *counts, size, whole = conn.execute("""
        SELECT count(*), count(data), count(grad), sum(octet_length(data) + octet_length(grad))::bigint,
               bool_and(octet_length(data) = 4 * (SELECT coalesce(round(exp(sum(ln(n)))), 1) FROM unnest(shape) AS n))
        FROM llm_tensor_rt
    """).fetchone()
    assert counts == [OPS + PARAMS] * 3
    assert size > 2 * 4 * 124_439_808
    assert whole
    unlogged = (
        "SELECT array_agg(relpersistence::text) FROM pg_class WHERE relname IN ('llm_tensor_rt', 'llm_tensor_map')"
    )
    assert conn.execute(unlogged).fetchone() == (["u", "u"],)
    assert logged < size / 50


def test_tape_costs_less_than_a_twentieth_of_a_step(transaction):
    """With every step kept, and in the smallest step: a batch of any size has as many rows."""
    conn = transaction
    conn.execute("SET LOCAL pg_gpt2.audit_keep = 0")
    (share,) = conn.execute("SELECT share FROM audited_steps(4, 'tape')").fetchone()
    assert conn.execute("SELECT count(*) FROM llm_tape").fetchone() == (4 * OPS,)
    print(f"{share:.2%} of a step")
    assert share < 0.05
