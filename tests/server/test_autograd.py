"""Values and ops as rows: isolation of sessions, rollback, recording, and a training step spelled out by hand."""

import threading
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from psycopg import conninfo, errors

SHAPE = "n_layer => 2, n_head => 2, d_model => 16, n_positions => 16, vocab => 61"
TOKENS = [(7 * i) % 61 for i in range(16)]
TARGETS = [(7 * i + 3) % 61 for i in range(16)]
ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "wd": 0.1}


@pytest.fixture(scope="module")
def dsn(dsn: str) -> str:
    """Sessions whose tapes last: these tests use handles in statements of their own."""
    return conninfo.make_conninfo(dsn, options="-c pg_gpt2.tape=session")


def value(conn: psycopg.Connection, query: str, *args: object) -> object:
    """The one value of a query."""
    row = conn.execute(query, args).fetchone()
    assert row is not None
    return row[0]


def tensor(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 values."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def variable(conn: psycopg.Connection, array: np.ndarray, requires_grad: bool = True) -> int:
    """A handle for an array."""
    return value(conn, "SELECT llm_variable(%s, %s, %s)", array.tobytes(), list(array.shape), requires_grad)  # type: ignore[return-value]


def counts(conn: psycopg.Connection) -> tuple:
    """Rows of the three tables."""
    return conn.execute(
        "SELECT (SELECT count(*) FROM llm_tape), (SELECT count(*) FROM llm_tensor_rt), (SELECT count(*) FROM llm_tensor_map)"
    ).fetchone()


@pytest.fixture
def model(conn: psycopg.Connection) -> Iterator[str]:
    """A small model, dropped with its rows afterwards."""
    conn.execute(f"SELECT llm_init_model('m', {SHAPE}, seed => 3)")
    yield "m"
    conn.execute("RESET pg_gpt2.autograd")
    conn.execute("SELECT llm_prune_autograd_state()")
    conn.execute("SELECT llm_drop_model('m')")


BY_HAND = """
    UPDATE llm_param AS p SET data = s.weight, m = s.m, v = s.v, step = p.step + 1, grad = NULL
    FROM (SELECT name, token_id, (a).* FROM (
              SELECT name, token_id, pg_llm_adamw_step(data, grad, m, v, %(lr)s, %(beta1)s, %(beta2)s, %(eps)s,
                  CASE WHEN cardinality(shape) = 2 THEN %(wd)s ELSE 0 END, (step + 1)::int) AS a
              FROM llm_param WHERE model = 'm' AND grad IS NOT NULL OFFSET 0) AS q) AS s
    WHERE p.model = 'm' AND p.name = s.name AND p.token_id = s.token_id
"""


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_a_step_by_hand_is_llm_train_step_bit_for_bit(conn, model, dropout_p):
    conn.execute("SELECT llm_copy_model('m', 'engine')")
    row = value(
        conn, "INSERT INTO llm_dataset (model, tokens, target) VALUES ('engine', %s, %s) RETURNING id", TOKENS, TARGETS
    )
    try:
        for _ in range(3):
            expected = value(
                conn,
                "SELECT llm_train_step('engine', %s::int, dropout_p => %s,"
                " lr_max => %s, beta1 => %s, beta2 => %s, eps => %s, wd => %s)",
                row,
                dropout_p,
                *ADAMW.values(),
            )
            conn.execute("UPDATE llm_autograd_mode SET flag = true")
            conn.execute("SELECT llm_materialize_params('m')")
            loss = value(conn, "SELECT llm_loss('m', %s, %s, dropout_p => %s, seed => 0)", TOKENS, TARGETS, dropout_p)
            conn.execute("SELECT llm_backprop(NULL, 'm')")
            assert value(conn, "SELECT llm_accumulate_grads('m')") == value(
                conn, "SELECT count(*) FROM llm_param WHERE model = 'm'"
            )
            conn.execute(BY_HAND, ADAMW)
            conn.execute("SELECT llm_prune_autograd_state()")
            assert loss == expected
            different = conn.execute("""
                SELECT name FROM llm_param AS a JOIN llm_param AS b USING (name, token_id)
                WHERE a.model = 'm' AND b.model = 'engine'
                  AND (a.data, a.m, a.v, a.step) IS DISTINCT FROM (b.data, b.m, b.v, b.step)
            """).fetchall()
            assert different == []
    finally:
        conn.execute("SELECT llm_drop_model('engine')")


def test_the_last_step_says_which_op_had_the_largest_gradient(conn, model):
    """One statement joins tape and values."""
    conn.execute("UPDATE llm_autograd_mode SET flag = true")
    value(conn, "SELECT llm_loss('m', %s, %s, dropout_p => 0)", TOKENS, TARGETS)
    conn.execute("SELECT llm_backprop()")
    name, norm = conn.execute("""
        SELECT t.name, sqrt(sum(g::double precision ^ 2)) AS norm
        FROM llm_tape AS t JOIN llm_tensor_rt AS r ON r.id = t.output, unnest(pg_llm_values(r.grad)) AS g
        WHERE t.tape_id = llm_tape_id() AND t.name <> 'lm_head_loss'
        GROUP BY t.id, t.name ORDER BY norm DESC LIMIT 1
    """).fetchone()
    assert name in ("layernorm", "add", "linear", "gelu", "causal_attention", "embedding")
    assert norm > 0


@pytest.mark.parametrize(
    ("op", "attributes", "shape"),
    [("dropout", '{"p": 0.5}', (8, 12)), ("causal_attention", '{"p": 0.5, "n_head": 1}', (8, 12))],
)
def test_dropout_without_a_seed_draws_one_that_the_tape_keeps(conn, op, attributes, shape):
    """By random(), so that setseed() fixes it; the gradient drops what the value did."""
    handle = variable(conn, tensor(*shape))
    call = "SELECT llm_value(llm_op(%s, ARRAY[%s]::bigint[], %s))"
    conn.execute("SELECT setseed(0.25)")
    first, second = (value(conn, call, op, handle, attributes) for _ in range(2))
    conn.execute("SELECT setseed(0.25)")
    assert value(conn, call, op, handle, attributes) == first != second
    assert value(conn, "SELECT bool_and(extra ? 'seed') FROM llm_tape WHERE tape_id = llm_tape_id()") is True
    assert conn.execute("SELECT * FROM llm_replay_tape()").fetchall() == []
    conn.execute("SELECT llm_prune_autograd_state()")


def test_nothing_is_written_while_recording_is_off(conn, model):
    before = counts(conn)
    embedded = value(conn, "SELECT llm_embed(%s, 'm')", TOKENS)
    value(conn, "SELECT llm_forward_gpt2(%s, 'm', 2, 2, 16, 16)", embedded)
    value(conn, "SELECT llm_logits(%s, 'm')", TOKENS)
    value(conn, "SELECT llm_loss('m', %s, %s)", TOKENS, TARGETS)
    assert counts(conn) == before
    conn.execute("BEGIN READ ONLY")
    value(conn, "SELECT llm_logits(%s, 'm')", TOKENS)
    value(conn, "SELECT llm_loss('m', %s, %s, dropout_p => 0)", TOKENS, TARGETS)
    conn.execute("COMMIT")


def test_recording_changes_no_result(conn, model):
    embedded = value(conn, "SELECT llm_embed(%s, 'm')", TOKENS)
    queries = [
        ("SELECT llm_embed(%s, 'm')", [TOKENS]),
        ("SELECT llm_forward_gpt2(%s, 'm', 2, 2, 16, 16)", [embedded]),
        ("SELECT llm_logits(%s, 'm')", [TOKENS]),
        ("SELECT llm_loss('m', %s, %s, seed => 5)", [TOKENS, TARGETS]),
    ]
    plain = [value(conn, query, *args) for query, args in queries]
    conn.execute("SET pg_gpt2.autograd = on")
    assert [value(conn, query, *args) for query, args in queries] == plain
    assert counts(conn)[0] > 0


def test_blocks_given_as_bytes_are_joined_to_one_graph(conn, model):
    """llm_block_forward finds what it is given among the session's values, also where biases of all layers are zeros."""
    conn.execute("SET pg_gpt2.autograd = on")
    conn.execute("SELECT llm_materialize_params('m')")
    params = dict(conn.execute("SELECT name, data FROM llm_param WHERE model = 'm'").fetchall())
    linears = "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj ln_1 ln_2"
    names = [f"{linear}.{part}" for linear in linears.split() for part in ("weight", "bias")]
    x = value(conn, "SELECT llm_embed(%s, 'm')", TOKENS)
    for layer in range(2):
        args = [params[f"h.{layer}.{name}"] for name in names]
        x = value(conn, f"SELECT llm_block_forward(%s, {', '.join(['%s'] * 12)}, 2, 16, 16)", x, *args)
    conn.execute("SELECT llm_backprop(NULL, 'm')")
    by_bytes = dict(conn.execute("SELECT name, grad FROM llm_tensor WHERE model = 'm' AND grad IS NOT NULL").fetchall())
    assert set(by_bytes) == set(params) - {"ln_f.weight", "ln_f.bias"}
    conn.execute("SELECT llm_prune_autograd_state()")

    x = value(conn, "SELECT llm_embed(%s, 'm')", TOKENS)
    value(conn, "SELECT llm_forward_gpt2(%s, 'm', 2, 2, 16, 16)", x)
    last = value(conn, "SELECT max(inputs[1]) FROM llm_tape WHERE tape_id = llm_tape_id() AND name = 'layernorm'")
    conn.execute("SELECT llm_backprop(%s, 'm')", (last,))
    by_name = dict(conn.execute("SELECT name, grad FROM llm_tensor WHERE model = 'm' AND grad IS NOT NULL").fetchall())
    assert by_bytes == by_name


def test_a_rollback_removes_what_it_recorded_and_the_mode(conn, model):
    before = counts(conn)
    conn.execute("BEGIN")
    conn.execute("UPDATE llm_autograd_mode SET flag = true")
    value(conn, "SELECT llm_loss('m', %s, %s)", TOKENS, TARGETS)
    assert counts(conn) != before
    conn.execute("ROLLBACK")
    assert counts(conn) == before
    assert value(conn, "SELECT flag FROM llm_autograd_mode") is False
    kept = variable(conn, tensor(2))
    conn.execute("BEGIN")
    variable(conn, tensor(3))
    conn.execute("SELECT llm_prune_autograd_state()")
    conn.execute("ROLLBACK")
    assert value(conn, "SELECT llm_value(%s)", kept) == tensor(2).tobytes()


@pytest.fixture
def plain(connect) -> psycopg.Connection:
    """A session as it is without a setting."""
    conn = connect(options="")
    assert value(conn, "SELECT setting FROM llm_settings WHERE name = 'pg_gpt2.tape'") == "transaction"
    return conn


def test_a_tape_ends_with_its_transaction(plain):
    with plain.transaction():
        first, x = value(plain, "SELECT llm_tape_id()"), variable(plain, tensor(2))
        with plain.transaction():  # a savepoint changes nothing
            assert value(plain, "SELECT llm_tape_id()") == first
        y = value(plain, "SELECT llm_op('gelu', ARRAY[%s]::bigint[])", x)
        plain.execute("SELECT llm_backprop()")
        assert value(plain, "SELECT llm_grad(%s)", x) is not None
    assert value(plain, "SELECT llm_tape_id()") > first
    for call in ("llm_value(%s)", "llm_grad(%s)", "llm_backprop(%s)", "llm_op('gelu', ARRAY[%s]::bigint[])"):
        with pytest.raises(errors.UndefinedObject) as caught:
            plain.execute(f"SELECT {call}", (y,))
        assert "pooler" in caught.value.diag.message_hint
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="nothing is recorded in this transaction"):
        plain.execute("SELECT llm_backprop()")
    assert plain.execute("SELECT name FROM llm_tape WHERE tape_id = %s", (first,)).fetchall() == [("gelu",)]


def test_a_tape_drawn_under_a_savepoint_that_is_undone_is_not_used_again(plain):
    with plain.transaction():
        with plain.transaction(force_rollback=True):
            undone = value(plain, "SELECT llm_tape_id()")
        assert value(plain, "SELECT llm_tape_id()") > undone


@pytest.mark.parametrize("owner", ["transaction", "session"])
def test_each_role_of_a_session_finds_its_own_tape_again(plain, owner):
    """As after a SECURITY DEFINER function that records, or SET ROLE; what a role has is no other's."""
    with plain.transaction(force_rollback=True):
        plain.execute('CREATE ROLE "An other"; GRANT ALL ON SCHEMA public TO "An other"')
        plain.execute("SELECT llm_grant_usage('An other', 'train')")
        plain.execute(f"SET LOCAL pg_gpt2.tape = '{owner}'")
        plain.execute(
            "CREATE FUNCTION recorded() RETURNS bigint LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC;"
            " SELECT llm_op('gelu', ARRAY[llm_variable(pg_llm_tensor('{1,2}'), '{2}', true)]); END;"
            ' ALTER FUNCTION recorded() OWNER TO "An other"'
        )
        own = variable(plain, tensor(2))
        tape = value(plain, "SELECT llm_tape_id()")
        first, second = (value(plain, "SELECT recorded()") for _ in range(2))
        assert value(plain, "SELECT llm_value(%s)", own) == tensor(2).tobytes()
        assert value(plain, "SELECT llm_tape_id()") == tape
        with pytest.raises(errors.UndefinedObject), plain.transaction():
            plain.execute("SELECT llm_value(%s)", (first,))
        plain.execute('SET LOCAL ROLE "An other"')
        assert value(plain, "SELECT count(DISTINCT tape_id) FROM llm_tape WHERE output IN (%s, %s)", first, second) == 1
        assert value(plain, "SELECT octet_length(llm_value(%s))", first) == 8
        plain.execute("RESET ROLE")
        assert value(plain, "SELECT llm_value(%s)", own) == tensor(2).tobytes()


def test_discard_all_ends_the_tape_and_the_mode_of_a_session(conn):
    conn.execute("UPDATE llm_autograd_mode SET flag = true")
    handle = variable(conn, tensor(2))
    assert value(conn, "SELECT llm_value(%s)", handle) == tensor(2).tobytes()
    conn.execute("SET pg_gpt2.tape = 'transaction'")
    with pytest.raises(errors.UndefinedObject):
        conn.execute("SELECT llm_value(%s)", (handle,))
    conn.execute("SET pg_gpt2.tape = 'session'")
    assert value(conn, "SELECT llm_value(%s)", handle) == tensor(2).tobytes()
    conn.execute("DISCARD ALL")
    assert value(conn, "SELECT flag FROM llm_autograd_mode") is False
    with pytest.raises(errors.UndefinedObject, match="in this session"):
        conn.execute("SELECT llm_value(%s)", (handle,))


def test_the_mode_lasts_as_long_as_the_tape_and_says_so(plain):
    notices: list[str] = []
    plain.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    plain.execute("UPDATE llm_autograd_mode SET flag = true")
    assert value(plain, "SELECT flag FROM llm_autograd_mode") is False
    assert len(notices) == 1
    assert "until this transaction ends" in notices[0]
    with plain.transaction():
        plain.execute("UPDATE llm_autograd_mode SET flag = true")
        assert value(plain, "SELECT flag FROM llm_autograd_mode") is True
    assert value(plain, "SELECT flag FROM llm_autograd_mode") is False
    assert len(notices) == 1
    plain.execute("SET pg_gpt2.tape = 'session'; UPDATE llm_autograd_mode SET flag = true")
    assert value(plain, "SELECT flag FROM llm_autograd_mode") is True


def test_a_setting_that_names_no_tape_of_ours_is_not_used(plain):
    """The number is kept in a setting, which anybody may SET."""
    for text in ("7", "x/7", "0/7", f"{10**30}/7", "7/" + "9" * 30):
        plain.execute("SELECT set_config('pg_gpt2.transaction_tape', %s, false)", (text,))
        with plain.transaction():
            assert variable(plain, tensor(2)) > 0
            assert value(plain, "SELECT llm_tape_id()") not in (7, 0)


def test_sessions_that_record_at_once_never_mix(connect, conn, model):
    """Each gets the gradients of its own graph, whatever others do in between; foreign handles do not exist."""
    others = [connect(), connect()]
    found: dict[int, object] = {}
    problems: list[BaseException] = []

    def record(number: int, session: psycopg.Connection) -> None:
        try:
            for round_ in range(8):
                w = variable(session, tensor(4, 4, seed=number))
                x = variable(session, tensor(4, 4, seed=10 + round_), False)
                y = value(session, "SELECT llm_op('gelu', ARRAY[llm_op('matmul', ARRAY[%s, %s]::bigint[])])", x, w)
                session.execute("SELECT llm_backprop()")
                grad = value(session, "SELECT llm_grad(%s)", w)
                assert found.setdefault((number, round_), grad) == grad  # type: ignore[call-overload]
            found[number] = (y, w)
        except BaseException as error:
            problems.append(error)

    for _ in range(2):  # the second time against the gradients of the first
        threads = [threading.Thread(target=record, args=item) for item in enumerate(others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert found[0, 0] != found[1, 0]
    foreign = found[1][1]  # type: ignore[index]
    for call in ("llm_value(%s)", "llm_grad(%s)", "llm_backprop(%s)", "llm_op('gelu', ARRAY[%s]::bigint[])"):
        with pytest.raises(errors.UndefinedObject):
            others[0].execute(f"SELECT {call}", (foreign,))
    others[0].execute("SELECT llm_prune_autograd_state()")
    assert value(others[1], "SELECT llm_value(%s)", foreign) == tensor(4, 4, seed=1).tobytes()
    others[1].execute("SELECT llm_prune_autograd_state()")


def test_a_deleted_value_is_an_error_that_names_op_and_row(conn):
    x, w = variable(conn, tensor(2, 3)), variable(conn, tensor(3, 2))
    value(conn, "SELECT llm_op('matmul', ARRAY[%s, %s]::bigint[])", x, w)
    row = value(conn, "SELECT max(id) FROM llm_tape WHERE tape_id = llm_tape_id()")
    conn.execute("DELETE FROM llm_tensor_rt WHERE id = %s", (w,))
    with pytest.raises(errors.UndefinedObject, match=rf"llm_tape row {row} \(matmul\): input handle {w}"):
        conn.execute("SELECT llm_backprop()")
    conn.execute("SELECT llm_prune_autograd_state()")


def test_a_changed_shape_is_an_error_that_names_op_and_row(conn):
    x, w = variable(conn, tensor(2, 3)), variable(conn, tensor(3, 2))
    value(conn, "SELECT llm_op('matmul', ARRAY[%s, %s]::bigint[])", x, w)
    row = value(conn, "SELECT max(id) FROM llm_tape WHERE tape_id = llm_tape_id()")
    conn.execute("UPDATE llm_tensor_rt SET shape = '{2,3}' WHERE id = %s", (w,))
    with pytest.raises(errors.InvalidParameterValue, match=rf"llm_tape row {row} \(matmul\): .*shapes do not fit"):
        conn.execute("SELECT llm_backprop()")
    conn.execute("SELECT llm_prune_autograd_state()")


def test_gradients_accumulate_over_calls_and_blocks(conn, model):
    """A tensor in several rows of llm_param, mapped as a whole; a second accumulation adds."""
    conn.execute(
        "UPDATE llm_param SET data = substring(data FROM 1 FOR 30 * 64), shape = '{30,16}' WHERE model = 'm' AND name = 'wte'"
    )
    conn.execute(
        "INSERT INTO llm_param (model, name, token_id, shape, data) SELECT 'm', 'wte', 30, '{31,16}', %s",
        (tensor(31, 16).tobytes(),),
    )
    conn.execute("SET pg_gpt2.autograd = on")
    value(conn, "SELECT llm_loss('m', %s, %s, dropout_p => 0)", TOKENS, TARGETS)
    conn.execute("SELECT llm_backprop()")
    for _ in range(2):
        conn.execute("SELECT llm_accumulate_grads('m')")
    once = np.frombuffer(value(conn, "SELECT grad FROM llm_tensor WHERE model = 'm' AND name = 'wte'"), "<f4")  # type: ignore[call-overload]
    twice = b"".join(
        g for (g,) in conn.execute("SELECT grad FROM llm_param WHERE model = 'm' AND name = 'wte' ORDER BY token_id")
    )
    np.testing.assert_array_equal(np.frombuffer(twice, "<f4"), 2 * once)


def test_gradients_reach_a_shared_source(conn, model):
    """Two layers that share one row of another model: it gets the sum of what both give."""
    conn.execute("SELECT llm_copy_model('m', 'source')")
    try:
        conn.execute("SET pg_gpt2.autograd = on")
        loss = "SELECT llm_loss('m', %s, %s, dropout_p => 0)"
        value(conn, loss, TOKENS, TARGETS)
        conn.execute("SELECT llm_backprop()")
        conn.execute("SELECT llm_accumulate_grads('m')")
        names = ("h.0.ln_1.weight", "h.1.ln_1.weight")
        grads = dict(conn.execute("SELECT name, grad FROM llm_param WHERE model = 'm'").fetchall())
        expected = sum(np.frombuffer(grads[name], "<f4") for name in names)
        conn.execute("SELECT llm_prune_autograd_state()")
        for name in names:
            conn.execute("SELECT llm_share_param('source', 'h.0.ln_1.weight', 0, 'm', %s)", (name,))
        value(conn, loss, TOKENS, TARGETS)  # the weights are the same ones
        conn.execute("SELECT llm_backprop(NULL, 'm')")
        assert value(conn, "SELECT llm_accumulate_grads('m')") == 28
        got = value(conn, "SELECT grad FROM llm_param WHERE model = 'source' AND name = 'h.0.ln_1.weight'")
        np.testing.assert_allclose(np.frombuffer(got, "<f4"), expected, rtol=1e-6)  # type: ignore[call-overload]
        assert value(conn, "SELECT count(grad) FROM llm_param WHERE model = 'source'") == 1
    finally:
        for name in ("h.0.ln_1.weight", "h.1.ln_1.weight"):
            conn.execute("SELECT llm_unshare_param('m', %s)", (name,))
        conn.execute("SELECT llm_drop_model('source')")


def test_a_role_that_may_train_may_record_and_others_may_not(conn, model):
    conn.execute("CREATE ROLE reader; CREATE ROLE trainer")
    conn.execute("SELECT llm_grant_usage('reader', 'read'), llm_grant_usage('trainer', 'train')")
    conn.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('m', %s, %s)", (TOKENS, TARGETS))
    try:
        conn.execute("SET ROLE trainer")
        conn.execute("SELECT llm_train('m', 1)")
        conn.execute("SET pg_gpt2.autograd = on")
        value(conn, "SELECT llm_loss('m', %s, %s)", TOKENS, TARGETS)
        conn.execute("SELECT llm_backprop(NULL, 'm')")
        assert value(conn, "SELECT llm_accumulate_grads('m')") == 28
        conn.execute("SELECT llm_prune_autograd_state()")
        conn.execute("SET ROLE reader")
        for call in (
            "SELECT llm_variable('\\x00000000', '{1}', true)",
            "SELECT llm_embed('{1}', 'm')",
            "SELECT llm_accumulate_grads('m')",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(call)
        conn.execute("SET pg_gpt2.autograd = off")
        value(conn, "SELECT llm_embed('{1}', 'm')")
        value(conn, "SELECT octet_length(pg_llm_gelu('\\x00000000'))")
    finally:
        conn.execute("RESET ROLE")
        conn.execute("DROP OWNED BY reader, trainer; DROP ROLE reader, trainer")
