"""A tape is its recorder's, under the policies of docs/how-to/hide-models.md and tenants.md: nobody else sees or changes its
rows, whatever number a session gives its own tape, and whatever rows it writes by hand.
"""

from contextlib import suppress

import psycopg
import pytest

from tests.server.tenants.victim import POLICIES as OF_TENANTS
from tests.server.test_hidden_models import POLICIES as OF_HIDDEN_MODELS
from tests.server.test_hidden_models import outcome

LEVELS = ("read", "train", "admin")
ROLES = ("victim", *(f"attacker_{level}" for level in LEVELS))
TAPE_TABLES = ("llm_tape", "llm_tensor_rt", "llm_tensor_map")
RECORD = """
    SELECT llm_train('{role}/poet', 1, batch_size => 1, audit => 'full');
    BEGIN;
    SELECT llm_op('gelu', ARRAY[llm_variable(pg_llm_tensor('{{1,2}}'), '{{2}}', true)]);
    SELECT llm_backprop();
    COMMIT;
"""
# Of the victim's two tapes, and of a handle on each.
READING = [
    *(f"SELECT * FROM {table} WHERE tape_id = {{tape}}" for table in (*TAPE_TABLES, "llm_tensor")),
    "SELECT * FROM llm_tape WHERE output = {handle}",
    "SELECT * FROM llm_tensor_rt WHERE id = {handle}",
    "SELECT llm_value({handle})",
    "SELECT llm_grad({handle})",
    "SELECT llm_op('gelu', ARRAY[{handle}])",
    "SELECT llm_backprop({handle})",
    "SELECT * FROM llm_gradcheck({handle})",
    "SELECT llm_tape_dot()",
    "SELECT llm_tape_dot({tape})",
    "SELECT * FROM llm_replay_tape({tape})",
]
CHANGING = [
    "UPDATE llm_tensor_rt SET grad = NULL WHERE tape_id = {tape} RETURNING 1",
    "UPDATE llm_tensor_rt SET recorded_by = current_user WHERE id = {handle} RETURNING 1",
    "DELETE FROM llm_tensor_rt WHERE tape_id = {tape} RETURNING 1",
    "UPDATE llm_tape SET recorded_by = current_user WHERE tape_id = {tape} RETURNING 1",
    "DELETE FROM llm_tape WHERE tape_id = {tape} RETURNING 1",
    "SELECT llm_prune_autograd_state()",
]
WRITE = """
    INSERT INTO llm_tape (tape_id, run_id, name, inputs, output)
    VALUES ({tape}, (SELECT max(run_id) FROM llm_run WHERE starts_with(model, current_user || '/')), 'x', '{{}}', 1)
"""


@pytest.fixture(scope="module", params=[OF_HIDDEN_MODELS, OF_TENANTS], ids=["hide-models", "tenants"])
def policies(request) -> str:
    """The statements of one of the pages."""
    return request.param


@pytest.fixture(scope="module")
def owner(new_database, policies):
    """In a database of its own, with the policies of a page; each role has a model, and the victim has recorded."""
    with psycopg.connect(new_database(), autocommit=True) as conn:
        for role in ROLES:
            conn.execute(f"CREATE ROLE {role}")
            conn.execute("SELECT llm_init_model(%s, 1, 2, 8, 16, 50)", [f"{role}/poet"])
            conn.execute(
                "INSERT INTO llm_dataset (model, split, tokens, target) VALUES (%s, 'train', '{1,2}', '{2,3}')",
                [f"{role}/poet"],
            )
            conn.execute(
                "SELECT llm_grant_usage(%s, %s)", [role, role.removeprefix("attacker_").replace("victim", "train")]
            )
        conn.execute(policies)
        # Numbers that nothing else has.
        conn.execute("SELECT setval('llm_tape_tape_id_seq', 73001), setval('llm_handle_seq', 840001)")
        conn.execute("SET ROLE victim")
        conn.execute(RECORD.format(role="victim"))
        conn.execute("RESET ROLE")
        for role in ROLES[2:]:
            conn.execute("INSERT INTO llm_run (model, config, seed, status, first_step, environment)"
                         " VALUES (%s, '{}', 1, 'abandoned', 0, '{}')", [f"{role}/poet"])  # fmt: skip
        yield conn
        for role in ROLES:
            conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture(scope="module")
def recorded(owner) -> list[dict[str, int]]:
    """The victim's tapes: of a training step, and of a transaction that it committed."""
    return [
        {"tape": tape, "handle": handle}
        for tape, handle in owner.execute("SELECT tape_id, max(output) FROM llm_tape GROUP BY 1 ORDER BY 1").fetchall()
    ]


@pytest.fixture
def attacker(owner, request):
    """A session of the role with this level."""
    with psycopg.connect(owner.info.dsn, autocommit=True) as conn:
        conn.execute(f"SET ROLE attacker_{request.param}")
        yield conn


def contents(conn: psycopg.Connection) -> list[str]:
    """What the victim recorded, as who sees everything reads it."""
    query = "SELECT md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {} AS t WHERE NOT t::text ~ 'attacker'"
    return [conn.execute(query.format(table)).fetchone()[0] for table in TAPE_TABLES]


def contents_after(conn: psycopg.Connection, *statements: str) -> list[str]:
    """What they leave of it, as far as the role may execute them; they are undone."""
    with conn.transaction(force_rollback=True):
        for statement in statements:
            with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject), conn.transaction():
                conn.execute(statement)
        conn.execute("RESET ROLE")
        return contents(conn)


def claim(conn: psycopg.Connection, tape: int) -> None:
    """Let the session say that this tape is its own."""
    conn.execute("SET pg_gpt2.tape = 'session'")
    conn.execute(
        "SELECT set_config('pg_gpt2.session_tape',"
        " concat_ws('/', 'llm_tape_tape_id_seq'::regclass::oid, current_user::regrole::oid, %s::text), false)",
        [tape],
    )


@pytest.mark.parametrize("attacker", LEVELS, indirect=True)
def test_a_session_that_claims_a_tape_has_none_of_it(owner, recorded, attacker):
    """The number is kept in a setting, which anybody may SET: it is as that of a tape that was never there."""
    absent, before = {"tape": 900_000_001, "handle": 900_000_002}, contents(owner)
    for statement in READING + CHANGING:
        claim(attacker, absent["tape"])
        expected = outcome(attacker, statement, absent)
        for place in recorded:
            claim(attacker, place["tape"])
            assert outcome(attacker, statement, place) == expected, statement
            assert contents_after(attacker, statement.format(**place)) == before, statement


@pytest.mark.parametrize("attacker", LEVELS, indirect=True)
def test_a_row_written_on_a_tape_opens_none_of_it(owner, recorded, attacker):
    """What a role writes there, with a run of its own, is its own, and all that it sees there."""
    before = contents(owner)
    for place in recorded:
        op = WRITE.format(**place)
        for statement in CHANGING:
            assert contents_after(attacker, op, statement.format(**place)) == before, statement
        with attacker.transaction(force_rollback=True):
            with suppress(psycopg.errors.InsufficientPrivilege), attacker.transaction():
                attacker.execute(op)
            for table in TAPE_TABLES:
                found = attacker.execute(f"SELECT * FROM {table} WHERE tape_id = %s", [place["tape"]]).fetchall()
                assert [row for row in found if "attacker" not in str(row)] == [], table


@pytest.mark.parametrize("attacker", LEVELS, indirect=True)
def test_nothing_is_recorded_in_another_s_name(attacker):
    for statement in (
        "INSERT INTO llm_tape (tape_id, name, inputs, output, recorded_by) VALUES (1, 'x', '{}', 1, 'victim')",
        "INSERT INTO llm_tensor_rt (tape_id, shape, requires_grad, recorded_by) VALUES (1, '{}', false, 'victim')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            attacker.execute(statement)


@pytest.mark.parametrize("attacker", LEVELS, indirect=True)
def test_tapes_can_be_read_without_drawing_one(owner, attacker):
    """As a role that may not record, and in a transaction that may not write."""
    (drawn,) = owner.execute("SELECT last_value FROM llm_tape_tape_id_seq").fetchone()
    for relation in (*TAPE_TABLES, "llm_tensor"):
        attacker.execute(f"BEGIN READ ONLY; SELECT count(*) FROM {relation}; COMMIT")
    assert owner.execute("SELECT last_value FROM llm_tape_tape_id_seq").fetchone() == (drawn,)


@pytest.mark.parametrize("attacker", LEVELS[1:], indirect=True)
def test_a_role_has_its_own_tapes(attacker):
    """It audits, replays, differentiates, draws and prunes, and older steps make room."""
    (role,) = attacker.execute("SELECT current_user").fetchone()
    for _ in range(2):
        attacker.execute(RECORD.format(role=role))
    steps = "SELECT DISTINCT tape_id FROM llm_tape WHERE run_id IS NOT NULL"
    ((tape,),) = attacker.execute(steps).fetchall()
    values = "SELECT count(*), count(data), count(grad) FROM llm_tensor_rt WHERE tape_id = %s"
    assert min(attacker.execute(values, [tape]).fetchone()) > 0
    assert "digraph" in attacker.execute("SELECT llm_tape_dot(%s)", [tape]).fetchone()[0]
    assert attacker.execute("SELECT * FROM llm_replay_tape(%s)", [tape]).fetchall() == []
    with attacker.transaction():
        attacker.execute("SET LOCAL pg_gpt2.autograd = on")
        attacker.execute("SELECT llm_materialize_params(%s)", [f"{role}/poet"])
        attacker.execute("SELECT llm_loss(%s, '{1,2}', '{2,3}')", [f"{role}/poet"])
        attacker.execute("SELECT llm_backprop(model => %s)", [f"{role}/poet"])
        own = "FROM llm_tape WHERE tape_id = llm_tape_id()"
        checked = f"SELECT count(*) FROM llm_gradcheck((SELECT max(output) {own}), max_elements => 1)"
        assert attacker.execute(checked).fetchone()[0] > 0
        attacker.execute("SELECT llm_accumulate_grads(%s)", [f"{role}/poet"])
        assert attacker.execute(f"SELECT count(*) {own}").fetchone()[0] > 10
        attacker.execute("SELECT llm_prune_autograd_state()")
        assert attacker.execute(f"SELECT count(*) {own}").fetchone() == (0,)
    (run,) = attacker.execute("SELECT min(run_id) FROM llm_run WHERE status = 'finished'").fetchone()
    assert attacker.execute("SELECT count(*) > 0 FROM llm_replay(%s)", [run]).fetchone() == (True,)
    if role == "attacker_admin":
        attacker.execute("SELECT llm_drop_model(%s)", [f"{role}/poet"])
        assert attacker.execute(steps).fetchall() == []
