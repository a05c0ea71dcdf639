"""A session has one interpreter for all of its PL/Python: our functions neither suffer from what others set there nor keep what
they were given."""

import pytest

OTHERS = {
    "floating-point errors": "import numpy; numpy.seterr(all='raise')",
    "a callback for floating-point errors": "import numpy; numpy.seterrcall(lambda *e: 1 / 0); numpy.seterr(all='call')",
    "warnings as errors": "import warnings; warnings.simplefilter('error')",
    "a low limit of recursion": "import sys; sys.setrecursionlimit(60)",
    "a locale": "import locale; locale.setlocale(locale.LC_ALL, '')",
    "random numbers": "import random, numpy; random.seed(1); numpy.random.seed(1)",
    "short integers as text": "import sys; sys.set_int_max_str_digits(640)",
    "print options": "import numpy; numpy.set_printoptions(precision=1, threshold=2)",
    "a decimal context": "import decimal; decimal.getcontext().prec = 2",
    "no garbage collection": "import gc; gc.disable()",
    "small stacks of threads": "import threading; threading.stack_size(65536)",
}
USES = (
    "SELECT llm_generate('low lower', 8, model_name => 'm', seed => 1)",
    "SELECT llm_perplexity('low lower newest', 'm')",
    "SELECT llm_evaluate('m', 'train')::text",
    "SELECT sum(logprob)::text FROM llm_generate_stream('low', 8, model_name => 'm', seed => 2)",
    "SELECT md5(pg_llm_softmax(pg_llm_tensor('{1e-30,-1e30,3e38}'), 3))",
    "SELECT md5(string_agg(c, '')) FROM llm_export_safetensors('m') AS c",
    "SELECT llm_train_step('m', dropout_p => 0.1)",
)


@pytest.fixture(autouse=True, scope="module")
def model(module_conn):
    module_conn.execute("CREATE EXTENSION IF NOT EXISTS plpython3u")
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 2, 2, 16, 32)")
    module_conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 50)$$, 'm', 16)")


def results(conn):
    with conn.transaction(force_rollback=True):
        return [conn.execute(statement).fetchone() for statement in USES]


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_other_functions_set_in_the_interpreter_changes_no_result(connect, body):
    expected = results(connect())
    conn = connect()
    conn.execute(f"DO LANGUAGE plpython3u $$ {body} $$")
    assert results(conn) == expected
    assert results(conn) == expected


def test_our_functions_leave_the_interpreter_as_it_was(connect):
    conn = connect()
    conn.execute("""
        CREATE FUNCTION pg_temp.state() RETURNS text LANGUAGE plpython3u AS $$
            import numpy, random, sys, warnings
            return str((numpy.geterr(), warnings.filters, sys.getrecursionlimit(), random.getstate(), numpy.random.get_state()))
        $$
    """)
    conn.execute("DO LANGUAGE plpython3u $$ import sys, numpy; sys.setrecursionlimit(60); numpy.seterr(all='raise') $$")
    before = conn.execute("SELECT pg_temp.state()").fetchone()
    results(conn)
    assert conn.execute("SELECT pg_temp.state()").fetchone() == before


def test_arguments_are_not_kept_after_a_call(connect):
    """PL/Python keeps those of a function's last call in its globals."""
    conn = connect()
    results(conn)
    conn.execute("SELECT pg_llm_add(a, a), pg_llm_gelu(a) FROM decode(repeat('00', 4000), 'hex') AS a")
    kept = conn.execute("""
        DO LANGUAGE plpython3u $$
            import gc
            gc.unfreeze()  # those that loading the package has set aside are listed as well
            scopes = [o for o in gc.get_objects() if type(o) is dict and "GD" in o and "plpy" in o]
            ours = [scope for scope in scopes if any("__plpython_procedure_" in name and "llm_" in name for name in scope)]
            kept = {name for scope in ours for name, value in scope.items() if value and not name.startswith("__")}
            if len(ours) < 10 or kept - {"GD", "SD", "plpy"}:
                plpy.error(f"{len(ours)} functions keep {kept}")
        $$
    """)
    assert kept.statusmessage == "DO"
