"""llm_dataset_load_pairs: what becomes of a pair, what is cut and skipped, and what a model learns from such rows."""

import contextlib
import threading

import psycopg
import pytest

PAIRS = [
    ("low lower", " newest"),
    ("low", " lowest"),
    ("newest newest newest", " low"),
    ("low", ""),
    ("", " lower low"),
]
LOAD = "SELECT llm_dataset_load_pairs('SELECT prompt, completion FROM pairs ORDER BY id', 'm'{})"
ROWS = "SELECT tokens, target FROM llm_dataset WHERE model = 'm' ORDER BY id"
COUNTED = "(SELECT count(*) FROM llm_dataset, unnest(target) AS t WHERE t <> -100)"


@pytest.fixture(scope="module", autouse=True)
def _model(module_conn):
    module_conn.execute("CREATE TABLE pairs (id integer GENERATED ALWAYS AS IDENTITY, prompt text, completion text)")
    for prompt, completion in PAIRS:
        module_conn.execute("INSERT INTO pairs (prompt, completion) VALUES (%s, %s)", [prompt, completion])
    module_conn.execute(
        "SELECT llm_train_bpe($$VALUES ('low lower newest')$$, 262, 'm'), llm_init_model('m', 1, 1, 4, 16)"
    )


@pytest.fixture(autouse=True)
def said(conn) -> list[str]:
    """NOTICEs of this test's session."""
    conn.execute("DELETE FROM llm_dataset")
    notices: list[str] = []
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    return notices


def load(conn: psycopg.Connection, arguments: str = "") -> int:
    return conn.execute(LOAD.format(arguments)).fetchone()[0]


def test_loss_is_on_completion_and_end_of_text_only(conn, said):
    end = conn.execute("SELECT eos_token_id FROM llm_model_config WHERE model = 'm'").fetchone()[0]
    assert load(conn) == len(PAIRS)
    expected = []
    for prompt, completion in PAIRS:
        (first,), (ids,) = (
            conn.execute("SELECT llm_encode(%s, 'm')", [text]).fetchone() for text in (prompt, prompt + completion)
        )
        targets = [*ids[1:], end]
        hidden = max(0, len(first) - 1)
        expected.append((ids, [-100] * hidden + targets[hidden:]))
    assert conn.execute(ROWS).fetchall() == expected
    assert said == []


def test_special_tokens_in_pairs_are_found_unless_said_otherwise(conn, said):
    source = "'VALUES (''a<|endoftext|>'', '' b'')'"
    end = conn.execute("SELECT eos_token_id FROM llm_model_config WHERE model = 'm'").fetchone()[0]
    for special in ("", ", special => true", ", special => false"):
        conn.execute("DELETE FROM llm_dataset")
        conn.execute(f"SELECT llm_dataset_load_pairs({source}, 'm'{special})")
        found = conn.execute("SELECT array_position(tokens, %s) FROM llm_dataset", [end]).fetchone()[0]
        assert found == (None if "false" in special else 2)


def test_prompts_lose_their_beginnings_and_completions_nothing(conn, said):
    whole, counted = load(conn), conn.execute(f"SELECT {COUNTED}").fetchone()[0]
    rows = conn.execute(ROWS).fetchall()
    longest = max(len(tokens) for tokens, _ in rows)
    most = max(sum(target != -100 for target in targets) for _, targets in rows)
    assert most < longest
    assert load(conn, f", max_length => {most}, replace => true") == whole
    assert conn.execute(f"SELECT {COUNTED}").fetchone()[0] == counted
    for (tokens, targets), (short, few) in zip(rows, conn.execute(ROWS).fetchall(), strict=True):
        assert (short, few) == (tokens[-most:], targets[-most:])
    cut = sum(len(tokens) > most for tokens, _ in rows)
    assert said[0] == f"the prompts of {cut} pairs lost their beginnings, to fit into {most} tokens"


def test_a_pair_that_cannot_be_a_row_is_skipped_and_told_of(conn, said):
    source = """VALUES ('low', ' newest', 1.0), ('l', 'ow', 2), ('low', NULL, 1), (NULL, ' low', 1), ('low', ' low', NULL),
        ('', '', 1), ('low', ' low', 0), ('low', ' low', -1), ('low', ' low', 1e400), ('low', ' low', 'NaN'),
        ('low', ' low', 'Infinity'), ('low', repeat(' low', 20), 1)"""
    assert conn.execute("SELECT llm_dataset_load_pairs(%s, 'm')", [source]).fetchone()[0] == 2
    assert said == [
        "skipped 3 pairs with a NULL",
        "skipped 5 pairs with a weight that is not above 0 and at most 1,000,000,000",
        "skipped 1 pair without any text",
        "skipped 1 pair whose completion alone takes more than 16 tokens",
        "in 1 pair a token spans the boundary between prompt and completion: begin completions with a space,"
        " and end no prompt with one",
    ]
    assert conn.execute("SELECT array_agg(weight ORDER BY id) FROM llm_dataset").fetchone()[0] == [1, 2]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no pair to learn from"):
        conn.execute("SELECT llm_dataset_load_pairs('SELECT NULL::text, NULL::text', 'm', replace => true)")
    assert conn.execute("SELECT count(*) FROM llm_dataset").fetchone()[0] == 2


def test_weights_have_all_their_digits(conn):
    """Whatever the session does to floats that become text."""
    with conn.transaction():
        conn.execute("SET LOCAL extra_float_digits = -15")
        weights = "VALUES ('low', ' low', 0.12345678901234566::float8), ('low', ' low', 1.25), ('low', ' low', 2)"
        conn.execute("SELECT llm_dataset_load_pairs(%s, 'm')", [weights])
    found = conn.execute("SELECT array_agg(weight ORDER BY id) FROM llm_dataset").fetchone()[0]
    assert found == [0.12345678901234566, 1.25, 2]


def test_columns_go_by_their_places_and_order_and_comments_stay(conn):
    source = (
        """SELECT prompt || '', completion || '', id / 2.0::numeric FROM pairs ORDER BY id DESC; -- the last first"""
    )
    assert conn.execute("SELECT llm_dataset_load_pairs(%s, 'm')", [source[: source.index(";")]]).fetchone()[0] == 5
    backwards = conn.execute("SELECT tokens, weight FROM llm_dataset ORDER BY id DESC").fetchall()
    assert [weight for _, weight in backwards] == [0.5, 1, 1.5, 2, 2.5]
    conn.execute("DELETE FROM llm_dataset")
    load(conn)
    assert [tokens for tokens, _ in conn.execute(ROWS)] == [tokens for tokens, _ in backwards]
    with_comment = "SELECT 'low'::text AS x, ' low'::text AS x -- twice the same name"
    assert conn.execute("SELECT llm_dataset_load_pairs(%s, 'm')", [with_comment]).fetchone()[0] == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("SELECT 'low'", "must return two columns"),
        ("SELECT 'low', 'low', 1, 1", "must return two columns"),
        ("SELECT 1, 'low'", "must be a text, not of type integer"),
        ("SELECT 'low', 'low', 'low'", "must be a number, not of type text"),
        ("SELECT 'low', 'low', 1::money", "is not a number"),
        ("SELECT 'low', 'low'; SELECT 'low', 'low'", "must be one query"),
        ("SELECT 'low', 'low') AS s (a, b), (SELECT 1, 2", "source"),
        ("DELETE FROM pairs RETURNING prompt, completion", "must be a query that only reads"),
        ("nonsense", "source"),
    ],
)
def test_what_is_no_query_of_pairs_is_refused(conn, source, message):
    with pytest.raises(psycopg.Error, match=message) as error:
        conn.execute("SELECT llm_dataset_load_pairs(%s, 'm')", [source])
    assert error.value.diag.message_hint
    assert conn.execute("SELECT count(*) FROM pairs").fetchone()[0] == len(PAIRS)


def test_splits_and_rows_that_were_there(conn, said):
    assert load(conn, ", val_fraction => 0.4") == 5
    counts = conn.execute("SELECT split, count(*) FROM llm_dataset GROUP BY split ORDER BY split").fetchall()
    assert counts == [("train", 3), ("val", 2)]
    load(conn, ", split => 'val', replace => true")
    assert said == ['replaced the 2 rows that model "m" had in split val']
    for wrong in ("max_length => 17", "max_length => 0", "split => 'test'", "val_fraction => 1"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            load(conn, f", {wrong}")


WEIGHTED = """
    SELECT llm_dataset_load_pairs('SELECT prompt, completion, CASE id % 3 WHEN 0 THEN 2.5 ELSE 1 END FROM pairs ORDER BY id',
                                  '{0}');
    INSERT INTO llm_dataset (model, tokens, target) SELECT '{0}', '{{1,2,3}}', '{{2,3,4}}'
"""
MEAN = """
    SELECT sum(llm_loss('m', tokens, target, training => false) * weight * n) / sum(weight * n), sum(n)
    FROM llm_dataset, LATERAL (SELECT count(*) FILTER (WHERE t <> -100) AS n FROM unnest(target) AS t) AS counted
"""


@pytest.mark.parametrize("fast", ["on", "off"])
def test_the_loss_is_the_weighted_mean_over_what_counts_however_rows_are_batched(conn, fast):
    conn.execute(f"SET pg_gpt2.fast = {fast}")
    conn.execute(WEIGHTED.format("m"))
    mean, counted = conn.execute(MEAN).fetchone()
    for size in (1, 2, 8):
        found = conn.execute("SELECT loss, tokens FROM llm_evaluate('m', 'train', batch_size => %s)", [size]).fetchone()
        assert found == (pytest.approx(mean, rel=1e-6), counted)
    for size, accumulated in ((6, 1), (2, 3), (1, 6)):
        conn.execute("BEGIN")
        run = "SELECT llm_train('m', 1, batch_size => %s, grad_accum => %s, dropout_p => 0, log_every => 0)"
        run_id = conn.execute(run, [size, accumulated]).fetchone()[0]
        row = conn.execute("SELECT loss, tokens FROM llm_train_log WHERE run_id = %s", [run_id]).fetchone()
        assert row == (pytest.approx(mean, rel=1e-6), counted)
        conn.execute("ROLLBACK")


def test_nothing_to_learn_from_is_said(conn):
    conn.execute("INSERT INTO llm_dataset (model, tokens, target) VALUES ('m', '{1,2}', '{-100,-100}')")
    (row,) = conn.execute("SELECT id FROM llm_dataset WHERE model = 'm'").fetchone()
    for call, rows in (
        ("llm_train_step('m')", f"row {row} of llm_dataset"),
        ("llm_evaluate('m', 'train')", "these rows"),
        ("llm_loss('m', '{1,2}', '{-100,-100}')", "these rows"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"no target of {rows} carries loss"):
            conn.execute(f"SELECT {call}")


def test_rows_of_nobody_may_ignore_targets(conn):
    load(conn)
    conn.execute("UPDATE llm_dataset SET model = NULL")
    conn.execute("INSERT INTO llm_dataset (tokens, target) VALUES ('{1,-100}', '{1,2}'), ('{1,2}', '{-1,2}')")
    assert conn.execute("SELECT llm_train('m', 1, batch_size => 8, log_every => 0)").fetchone() is not None
    batch = "SELECT DISTINCT unnest(batch) FROM llm_train_log WHERE run_id = (SELECT max(run_id) FROM llm_run)"
    assert len(conn.execute(batch).fetchall()) == len(PAIRS)


def test_a_weight_is_a_number_above_zero(conn):
    for weight in ("0", "-1", "'NaN'", "'Infinity'", "1e10"):
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(f"INSERT INTO llm_dataset (tokens, target, weight) VALUES ('{{1}}', '{{2}}', {weight})")


def test_a_run_on_pairs_is_replayed_and_notices_another_weight(conn):
    conn.execute("SELECT llm_copy_model('m', 'r')")
    conn.execute(WEIGHTED.format("r"))
    train = "SELECT llm_train('r', 6, batch_size => 2, grad_accum => 2, log_every => 0, audit => 'full')"
    conn.execute("SELECT llm_checkpoint_save('r')")
    run = conn.execute(train).fetchone()[0]
    replay = f"SELECT * FROM llm_replay({run})"
    found = conn.execute(replay).fetchone()
    assert found[2:6] == (None, None, None, None), found
    conn.execute("UPDATE llm_dataset SET weight = 3 WHERE model = 'r' AND weight = 2.5")
    assert conn.execute(replay).fetchone()[3].startswith("llm_dataset row")


CALL = (
    "CALL llm_train_run(%s, 40, batch_size => 3, lr_max => 1e-3, commit_every => 4, flush_seconds => 0, log_every => 0,"
    " eval_every => 10)"
)
LOG = (
    "SELECT step, lr, loss, grad_norm, tokens, val_loss, batch_digest FROM llm_train_log WHERE model = %s ORDER BY step"
)


def test_a_killed_run_on_pairs_ends_as_an_uninterrupted_one(conn, connect):
    logs = {}
    for model in ("whole", "killed"):
        conn.execute(f"SELECT llm_copy_model('m', '{model}')")
        conn.execute(WEIGHTED.format(model))
        conn.execute(
            f"SELECT llm_dataset_load_pairs($$VALUES ('low', ' newest', 3.5), ('newest', '', 1)$$, '{model}', split => 'val')"
        )
    conn.execute(CALL, ["whole"])
    session = connect()
    thread = threading.Thread(target=_call, args=[session])
    thread.start()
    while (
        not (done := conn.execute("SELECT max(step) FROM llm_train_log WHERE model = 'killed'").fetchone()[0])
        or done < 8
    ):
        pass
    conn.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
    thread.join()
    connect().execute(CALL, ["killed"])
    assert conn.execute("SELECT count(*) FROM llm_run WHERE model = 'killed'").fetchone()[0] == 1
    for model in ("whole", "killed"):
        state = conn.execute("SELECT array_agg(data ORDER BY name) FROM llm_param WHERE model = %s", [model]).fetchone()
        logs[model] = (state, conn.execute(LOG, [model]).fetchall())
    assert logs["whole"] == logs["killed"]


def _call(session: psycopg.Connection) -> None:
    with contextlib.suppress(psycopg.Error):
        session.execute(CALL, ["killed"])


def test_a_tape_of_ignored_targets_is_that_of_the_step_and_runs_again(conn):
    load(conn)
    conn.execute("UPDATE llm_dataset SET weight = 2 WHERE id = (SELECT min(id) FROM llm_dataset)")
    batch = "ARRAY(SELECT id::integer FROM llm_dataset ORDER BY id)"
    conn.execute("BEGIN")
    conn.execute(f"SELECT llm_train_step('m', batch => {batch}, dropout_p => 0, audit => 'full')")
    tape, extra = conn.execute(
        "SELECT tape_id, extra FROM llm_tape WHERE name = 'lm_head_loss' ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert extra["weight"] == [2, 1, 1, 1, 1]
    assert -100 in extra["target"][0]
    assert conn.execute("SELECT count(*) FROM llm_replay_tape(%s) WHERE max_difference > 0", [tape]).fetchone()[0] == 0
    conn.execute("ROLLBACK")


def test_gradients_by_hand_of_ignored_targets_agree_with_finite_differences(conn):
    conn.execute("BEGIN")
    conn.execute("UPDATE llm_autograd_mode SET flag = true")
    conn.execute("SELECT llm_loss('m', '{1,2,3,4}', '{-100,3,-100,5}', training => false)")
    handle = "(SELECT output FROM llm_tape WHERE tape_id = llm_tape_id() ORDER BY id DESC LIMIT 1)"
    checked = conn.execute(f"SELECT bool_and(ok), max(max_gradient) FROM llm_gradcheck({handle})").fetchone()
    assert checked[0]
    assert checked[1] > 0
    conn.execute("ROLLBACK")


def test_it_reads_with_the_rights_and_the_path_of_the_caller(conn, connect):
    conn.execute("CREATE SCHEMA elsewhere")
    conn.execute("CREATE TABLE elsewhere.faq AS SELECT 'low'::text AS question, ' newest'::text AS answer, 1 AS n")
    conn.execute("CREATE ROLE pairs_reader")
    try:
        conn.execute("SELECT llm_grant_usage('pairs_reader', 'train')")
        conn.execute("SET ROLE pairs_reader")
        call = "SELECT llm_dataset_load_pairs('SELECT * FROM faq', 'm')"
        with pytest.raises(psycopg.errors.UndefinedTable, match="faq"):
            conn.execute(call)
        conn.execute("SET search_path = elsewhere, public")
        with pytest.raises(psycopg.Error) as error:
            conn.execute(call)
        assert error.value.sqlstate in ("42501", "42P01")
        conn.execute("RESET ROLE")
        conn.execute("GRANT USAGE ON SCHEMA elsewhere TO pairs_reader; GRANT SELECT ON elsewhere.faq TO pairs_reader")
        conn.execute("SET ROLE pairs_reader")
        assert conn.execute(call).fetchone()[0] == 1
    finally:
        conn.execute("RESET ROLE; RESET search_path; DROP SCHEMA elsewhere CASCADE")
        conn.execute("DROP OWNED BY pairs_reader; DROP ROLE pairs_reader")
