"""Rows changed by hand into nonsense: an error that names the row, never a defect.

First those that are worth a case of their own, then every column of every table that holds bytes, a list or JSON.
"""

import psycopg
import pytest
from psycopg import conninfo

from tests.fuzz_sql.cases import COLUMNS
from tests.fuzz_sql.values import changes

TAPE = [
    *("inputs = '{}'", "inputs = '{999999999}'", "inputs = '{NULL}'", "inputs = '{{1},{2}}'", "output = 999999999"),
    *("inputs = ARRAY[output]", "name = 'nosuch'", "name = 'matmul'", "extra = '[]'", """extra = '{"x": 1}'"""),
    *(
        "name = 'reshape', extra = jsonb_build_object('shape', array_fill(1, '{40}'))",
        "name = 'softmax'",
        "name = 'sum'",
    ),
    *("extra = 'null'", "extra = jsonb_build_object('factor', repeat('9', 4000)::numeric), name = 'scale'"),
]
VALUES = [
    *("shape = '{3}'", "shape = '{}'", "shape = '{{2,2},{1,1}}'", "shape = '{-2,-2}'", "shape = '{NULL}'"),
    *("shape = array_fill(1, '{65}')", "shape = '{0}', data = ''", "shape = '{2,2,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}'"),
    *("shape = '{2147483647,2147483647,2147483647}'", r"data = '\x00'", "data = NULL"),
]
RUN = [
    *(
        "config = '{}'",
        "config = '[]'",
        "config = 'null'",
        "config = config - 'seed'",
        "first_step = 7",
        "model = 'gone'",
    ),
    *(f"config = config || '{more}'" for more in ('{"data": {}}', '{"batch_size": -1}', '{"batch_size": "x"}')),
    *(f"config = config || '{more}'" for more in ('{"data": {"rows": 0, "digest": "x"}}', '{"seed": "x"}')),
    *(f"config = config || '{more}'" for more in ('{"beta1": 7}', '{"lr_max": -1}', '{"tied": ["a"]}')),
    *(
        f"resumed = '{more}'"
        for more in ("{}", "[1]", '[{"after_step": "x", "environment": {}}]', '[{"after_step": 1}]')
    ),
    *(
        "environment = '[]'",
        """environment = '{"attention_chunk": -1}'""",
        """environment = '{"attention_chunk": "a"}'""",
    ),
]
LOG = ["batch = '{}'", "batch = '{NULL}'", "batch = '{{1,2},{3,4}}'", "batch_digest = '{}'", "loss = 'NaN'"]


CHECKPOINT = [
    *(
        "config = '{}'",
        "config = '[]'",
        "config = 'null'",
        """config = '{"n_layer": "x"}'""",
        "config = config - 'vocab'",
    ),
    *(
        f"file_path = '/no/such', manifest = '{manifest}'"
        for manifest in ("{}", "[[1]]", '[[1, 2, 3, 4, "zz", 5, 6]]', "7")
    ),
]


@pytest.fixture(scope="module")
def dsn(dsn: str) -> str:
    """Sessions whose tapes last: these tests use handles in statements of their own."""
    return conninfo.make_conninfo(dsn, options="-c pg_gpt2.tape=session")


@pytest.fixture(scope="module")
def recorded(module_conn: psycopg.Connection) -> psycopg.Connection:
    """A session with a tape of one op, and a run."""
    module_conn.execute("SELECT llm_op('gelu', ARRAY[llm_variable(pg_llm_tensor('{1,2,3,4}'), '{2,2}', true)])")
    module_conn.execute("SELECT llm_backprop()")
    module_conn.execute("SELECT llm_init_model('m', 1, 2, 8, 16, 50)")
    module_conn.execute(
        "INSERT INTO llm_dataset (model, tokens, target) SELECT 'm', '{1,2,3}', '{2,3,4}' FROM generate_series(1, 6)"
    )
    module_conn.execute("SELECT llm_train('m', 3, batch_size => 2, log_every => 0, audit => 'none')")
    return module_conn


def outcome(conn: psycopg.Connection, change: str, statement: str) -> psycopg.Error | tuple | None:
    """What `statement` says after `change`, which does not stay."""
    with conn.transaction(force_rollback=True):
        assert conn.execute(change).rowcount
        try:
            with conn.transaction():
                found = conn.execute(statement).fetchone()
        except psycopg.Error as error:
            found = error
    if isinstance(found, psycopg.Error):
        assert (found.sqlstate != "XX000", bool(found.diag.message_hint)) == (True, True), found
    return found


@pytest.mark.parametrize("change", TAPE)
@pytest.mark.parametrize(
    "statement", ["SELECT llm_backprop()", "SELECT * FROM llm_replay_tape()", "SELECT llm_tape_dot()"]
)
def test_a_row_of_the_tape(recorded, change, statement):
    found = outcome(recorded, f"UPDATE llm_tape SET {change}", statement)
    assert found is not None  # replay finds what backward and the picture do not look at


@pytest.mark.parametrize("change", VALUES)
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT llm_backprop()",
        "SELECT * FROM llm_replay_tape()",
        "SELECT llm_value(max(output)) FROM llm_tape",
        "SELECT g.* FROM (SELECT max(output) AS h FROM llm_tape) AS t, llm_gradcheck(h) AS g",
    ],
)
def test_a_row_of_a_value(recorded, change, statement):
    assert isinstance(outcome(recorded, f"UPDATE llm_tensor_rt SET {change}", statement), psycopg.Error)


@pytest.mark.parametrize("change", RUN)
def test_a_row_of_a_run(recorded, change):
    found = outcome(recorded, f"UPDATE llm_run SET {change}", "SELECT r.* FROM llm_run, llm_replay(run_id) AS r")
    assert isinstance(found, psycopg.Error)


@pytest.mark.parametrize("change", LOG)
@pytest.mark.parametrize("data", ["target", "target || 1, tokens = tokens || 1"], ids=["same data", "other data"])
def test_a_row_of_the_log(recorded, change, data):
    change = f"WITH d AS (UPDATE llm_dataset SET target = {data}) UPDATE llm_train_log SET {change}"
    found = outcome(recorded, change, "SELECT step, what FROM llm_run, llm_replay(run_id)")
    assert found[0] == 1


@pytest.mark.parametrize("change", CHECKPOINT)
@pytest.mark.parametrize("statement", ["SELECT llm_checkpoint_load('m', 1)", "SELECT llm_copy_model('m', 'n', 1)"])
def test_a_row_of_a_checkpoint(recorded, change, statement):
    with recorded.transaction(force_rollback=True):
        recorded.execute("SELECT llm_checkpoint_save('m')")
        recorded.execute("UPDATE llm_checkpoint_part SET checkpoint_id = 1; UPDATE llm_checkpoint SET id = 1")
        assert isinstance(outcome(recorded, f"UPDATE llm_checkpoint SET {change}", statement), psycopg.Error)


def test_a_number_of_thousands_of_digits(recorded):
    """jsonb has them, Python refuses to read them."""
    digits = "1" + "0" * 10_000
    found = outcome(
        recorded,
        f"UPDATE llm_run SET config = config || '{{\"seed\": {digits}}}'",
        "SELECT llm_replay(run_id) FROM llm_run",
    )
    assert isinstance(found, psycopg.errors.DataException)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="extra cannot be read"):
        recorded.execute(f"SELECT llm_op('scale', ARRAY[1], '{{\"factor\": {digits}}}')")


@pytest.mark.parametrize("op", ["matmul", "add", "mul"])
def test_a_result_that_no_value_can_hold_is_refused_before_it_is_made(recorded, op):
    with pytest.raises(psycopg.errors.OutOfMemory, match="1600000000 values"):
        recorded.execute(
            "SELECT llm_op(%s, ARRAY[llm_variable(b, '{40000,1}', true), llm_variable(b, '{1,40000}', true)])"
            " FROM decode(repeat('00', 160000), 'hex') AS b",
            [op],
        )


# ---- every column of every table

WEIGHTS = [
    "SELECT llm_logits('{1,2}', 'm')",
    "SELECT llm_train_step('m')",
    "SELECT llm_checkpoint_save('m')",
    "SELECT count(*) FROM llm_checkpoint_diff(1)",
    "SELECT count(*) FROM llm_param_history('m', 'ln_f.bias')",
    "SELECT count(*) FROM llm_export_safetensors('m')",
    "SELECT llm_materialize_params('m')",
    "SELECT llm_token_embedding(1, 'm')",
    "SELECT llm_copy_model('m', 'q')",
    "SELECT count(*) FROM llm_doctor()",
]
VERSIONS = [
    "SELECT llm_checkpoint_load('m', 1)",
    "SELECT llm_checkpoint_load('m', 2)",
    "SELECT llm_copy_model('m', 'q', 1)",
    "SELECT count(*) FROM llm_checkpoint_diff(1)",
    "SELECT count(*) FROM llm_checkpoint_diff(2, 1)",
    "SELECT count(*) FROM llm_param_history('m', 'ln_f.bias')",
    "SELECT llm_checkpoint_prune('m', 0)",
    "SELECT llm_checkpoint_drop(2)",
    "SELECT llm_replay(min(run_id), 2) FROM llm_run",
]
RUNS = [
    "SELECT llm_replay(min(run_id)) FROM llm_run",
    "SELECT llm_train_step('m')",
    "SELECT llm_train('m', 1, batch_size => 2, log_every => 0)",
    "SELECT count(*) FROM llm_param_history('m', 'ln_f.bias')",
    "SELECT llm_log_prune('m')",
]
TAPES = [
    "SELECT llm_backprop()",
    "SELECT count(*) FROM llm_replay_tape()",
    "SELECT llm_tape_dot()",
    "SELECT llm_value(max(output)), llm_grad(max(output)) FROM llm_tape",
    "SELECT llm_op('gelu', ARRAY[max(output)]) FROM llm_tape",
]
ADAPTERS = [
    "SELECT llm_logits('{1}', 'fit')",
    "SELECT llm_train_step('fit')",
    "SELECT llm_checkpoint_save('fit')",
    "SELECT llm_copy_model('fit', 'another')",
    "SELECT llm_adapter_merge('fit', 'another')",
    "SELECT count(*) FROM llm_doctor()",
]
READERS = {
    "llm_adapter": ADAPTERS,
    "llm_param": WEIGHTS,
    "llm_dataset": [*RUNS, "SELECT llm_evaluate('m', 'train')"],
    "llm_bpe_vocab": [
        "SELECT llm_decode('{65}', 'b')",
        "SELECT llm_encode('low', 'b')",
        "SELECT count(*) FROM llm_doctor()",
    ],
    "llm_checkpoint": VERSIONS,
    "llm_checkpoint_part": VERSIONS,
    "llm_checkpoint_blob": VERSIONS,
    "llm_run": RUNS,
    "llm_train_log": RUNS,
    "llm_tape": TAPES,
    "llm_tensor_rt": TAPES,
}
STRUCTURED = ("bytea", "jsonb")


@pytest.fixture(scope="module")
def filled(recorded, server_files):
    """The same session, with rows in every table: a vocabulary, and checkpoints 1 in the database and 2 in a file."""
    path = server_files / "tampered.npz"
    recorded.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest'$$, 260, 'b')")
    recorded.execute("ALTER TABLE llm_checkpoint ALTER id RESTART WITH 1")
    recorded.execute("SELECT llm_copy_model('m', 'base'), llm_adapter_create('fit', 'base', r => 2)")
    recorded.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('fit', '{1,2,3}', '{2,3,4}')")
    recorded.execute("SELECT llm_checkpoint_save('m')")
    recorded.execute("SELECT llm_train_step('m')")
    recorded.execute("SELECT llm_checkpoint_save('m', '', %s)", [str(path)])
    yield recorded
    recorded.execute("DELETE FROM llm_checkpoint; DELETE FROM llm_checkpoint_part")
    path.unlink()


def columns(conn: psycopg.Connection) -> list[tuple[str, str, str]]:
    found = conn.execute(COLUMNS).fetchall()
    return [row for row in found if row[2] in STRUCTURED or row[2].endswith("[]")]  # type: ignore[misc]


def test_every_table_with_such_a_column_has_its_readers(filled):
    assert {table for table, _, _ in columns(filled)} == set(READERS)


@pytest.mark.parametrize("table", READERS)
def test_every_changed_column_is_answered_or_explained(filled, table):
    """Cut, doubled, empty, NULL, of other dimensions, of another type: whatever the table takes."""
    found = []
    for _, column, kind in (row for row in columns(filled) if row[0] == table):
        for change in changes(column, kind):
            for statement in READERS[table]:
                try:
                    with filled.transaction(force_rollback=True):
                        filled.execute(f'UPDATE {table} SET "{column}" = {change}')
                        filled.execute(statement)
                except psycopg.Error as error:
                    ours = str(error).startswith("pg_gpt2: ")
                    if (error.sqlstate or "XX000").startswith("XX") or (ours and not error.diag.message_hint):
                        found.append(f"{column} = {change}: {statement}: {error.sqlstate} {error}"[:700])
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_llm_autograd_map_param('m', 'ln_f.bias', 0, '\\x00000000', array_fill(2147483647, ARRAY[300000]))",
        "SELECT llm_variable('\\x00000000', array_fill(1, ARRAY[65]), true)",
        "SELECT llm_op('matmul', ARRAY[v, v]) FROM llm_variable('\\x00000000', array_fill(1, ARRAY[64]), true) AS v",
        *(
            f"SELECT llm_op('embedding', ARRAY[v], '{{\"ids\": {'[' * n}0{']' * n}}}')"
            " FROM llm_variable('\\x00000000', '{1,1}', true) AS v"
            for n in (17, 60, 900)
        ),
        *(
            f"SELECT llm_op('scale', ARRAY[v], '{{\"factor\": {'9' * n}}}') FROM llm_variable('\\x00000000', '{{1}}', true) AS v"
            for n in (400, 4299, 4300)
        ),
        "SELECT llm_op('reshape', ARRAY[v], jsonb_build_object('shape', array_fill(1, ARRAY[50])))"
        " FROM llm_variable('\\x00000000', '{1}', true) AS v",
    ],
)
def test_more_than_a_tensor_can_have_is_refused_at_once(recorded, statement):
    recorded.execute("SET statement_timeout = '2s'")
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        recorded.execute(statement)
    assert caught.value.diag.message_hint
    recorded.execute("RESET statement_timeout")


@pytest.mark.parametrize("change", ["shape = '{NULL}'", "shape = '{{8}}'", "shape = '{0}'", "data = ''"])
def test_a_mapped_parameter_that_was_changed_by_hand(recorded, change):
    with recorded.transaction(force_rollback=True):
        recorded.execute("SELECT llm_materialize_params('m'); SET LOCAL pg_gpt2.autograd = on")
        found = outcome(recorded, f"UPDATE llm_tensor_rt SET {change}", "SELECT llm_loss('m', '{1}', '{2}')")
        assert isinstance(found, psycopg.Error)
