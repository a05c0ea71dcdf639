"""Whatever takes long can be cancelled: the statement ends soon after its timeout, and the session goes on."""

import threading
import time

import psycopg
import pytest

SOON = 1.5  # seconds; a cancel takes effect within 0.5, the rest is for a busy machine
TIMEOUT = 0.3
# 10 MB, and the same in letters only: translate() cannot be cancelled, and is not what is tested.
WORDS = """
    CREATE TABLE words AS SELECT body, translate(body, ' 0123456789', 'ghijklmnopq') AS letters
    FROM (SELECT string_agg(md5(i::text), ' ') AS body FROM generate_series(1, 300000) AS i) AS t
"""


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider'$$, 265, 'slow')")
    module_conn.execute("SELECT llm_init_model('slow', 12, 8, 512, 1024, seed => 1)")
    module_conn.execute(
        "SELECT llm_dataset_load($$SELECT repeat('low lower ', 20000)$$, 'slow', 256, val_fraction => 0.5)"
    )
    module_conn.execute(WORDS)


MD5S = "SELECT md5(i::text) FROM generate_series(1,"
PROMPTS = "'SELECT i, repeat($$low $$, 200) || i FROM generate_series(1, 9999) i'"
LONG = {
    "generation": "SELECT llm_generate('low', 100000, eos_token => -1, model_name => 'slow')",
    "a stream": "SELECT count(*) FROM llm_generate_stream('low', 100000, eos_token => -1, model_name => 'slow')",
    "a stream, row by row": "SELECT (llm_generate_stream('low', 100000, eos_token => -1, model_name => 'slow')).step",
    "a draft model": "SELECT llm_generate('low', 100000, eos_token => -1, model_name => 'slow',"
    """ options => '{"draft_model": "slow"}')""",
    "generation by ids": "SELECT llm_generate_tokens('{1}', 100000, eos_token => -1, model_name => 'slow')",
    "a batch": "SELECT * FROM llm_generate_batch(array_fill('low'::text, '{8}'), 100000, eos_token => -1, model_name => 'slow')",
    "a batch of many": "SELECT count(*) FROM llm_generate_batch(array_fill('low'::text, '{100000}'), 99, model_name => 'slow')",
    "generation of rows": "SELECT count(*) FROM llm_generate_rows($$SELECT i, 'low' FROM generate_series(1, 100000) i$$, 99,"
    " model_name => 'slow')",
    "samples": "SELECT count(*) FROM llm_generate_rows($$SELECT 1, 'low'$$, 99, model_name => 'slow',"
    " options => '{\"n\": 1000}')",
    "perplexity of rows": "SELECT count(*) FROM llm_perplexity_rows($$SELECT i, 'low lower' FROM generate_series(1, 1000000) i$$,"
    " 'slow')",
    "embedding of rows": "SELECT (llm_embedding_rows('SELECT 1, letters FROM words', model_name => 'slow')).key",
    "a source that takes long": "SELECT count(*) FROM llm_perplexity_rows('SELECT i, i::text FROM generate_series(1, 1e9) i"
    " WHERE i < 0', 'slow')",
    "a pattern of a megabyte": "SELECT llm_generate('low', 9, model_name => 'slow',"
    " options => jsonb_build_object('regex', repeat('[ab]c?', 170000)))",
    "many choices": "SELECT llm_generate('low', 9, model_name => 'slow',"
    " options => (SELECT jsonb_build_object('choices', jsonb_agg((i * 7919)::text)) FROM generate_series(1, 80000) AS i))"
    " FROM generate_series(1, 99)",
    "states without end": "SELECT llm_generate('low', 1000, model_name => 'slow',"
    " options => jsonb_build_object('regex', '((x{1,1000}y?){1,1000}z?){1,1000}' || repeat('q?', 90)))"
    " FROM generate_series(1, 99)",
    "JSON under a large schema": "SELECT llm_generate_json('low', (SELECT jsonb_build_object('properties',"
    """ jsonb_object_agg('p' || i, '{"type": "integer"}'::jsonb)) FROM generate_series(1, 9000) AS i), 100000,"""
    " model_name => 'slow')",
    "JSON": """SELECT llm_generate_json('low', '{"type": "string", "minLength": 9999}', 100000, model_name => 'slow')""",
    "beam search": "SELECT * FROM llm_beam_search('low', 16, 1000, eos_token => -1, model_name => 'slow')",
    "logits": "SELECT llm_logits(array_fill(i, '{1024}'), 'slow') FROM generate_series(1, 100) AS i",
    "tokenizing": "SELECT llm_token_count(body, 'slow') FROM words",
    "tokenizing one long word": "SELECT llm_token_count(repeat('lower', 2000000), 'slow')",
    "tokenizing unlike letters": "SELECT llm_token_count(letters, 'slow') FROM words",
    "decoding": "SELECT sum(length(llm_decode(array_fill(70, '{1000000}'), 'slow'))) FROM generate_series(1, 99)",
    "encoding": "SELECT count(llm_encode(substr(body, 1, 1000000), 'slow')) FROM words, generate_series(1, 99)",
    "rows of tokens": "SELECT count(*) FROM words, llm_tokenize(body, 'slow')",
    "tracing merges": "SELECT count(*) FROM words, generate_series(1, 9999) i, llm_bpe_trace(substr(letters, i, 2000), 'slow')",
    "training a vocabulary": "SELECT llm_train_bpe('SELECT body FROM words', 50000, 'x')",
    "loading data": "SELECT llm_dataset_load('SELECT body FROM words', 'slow', 64)",
    "loading pairs": "SELECT llm_dataset_load_pairs('SELECT substr(body, i, 3000), '' low'' FROM words,"
    " generate_series(1, 99999) AS i', 'slow')",
    "training": "SELECT llm_train('slow', 100)",
    "a training step": "SELECT llm_train_step('slow', batch => ARRAY(SELECT id::integer FROM llm_dataset ORDER BY id LIMIT 64))",
    "evaluation": "SELECT * FROM llm_evaluate('slow', 'train')",
    "log-probabilities": "SELECT * FROM llm_logprobs(repeat('low lower ', 20000), 'slow')",
    "choosing among many": f"SELECT * FROM llm_choose('low', ARRAY({MD5S} 10000) i), model_name => 'slow')",
    "choosing by what is likely anywhere": f"SELECT * FROM llm_choose('low', ARRAY({MD5S} 10000) i), 'prior', 'slow')",
    "encoding choices": f"SELECT llm_classify('low', ARRAY({MD5S} 500000) i), model_name => 'slow')",
    "choosing from a query": f"SELECT * FROM llm_choose_from('low', '{MD5S} 900000) i', model_name => 'slow')",
    "choosing from a slow source": "SELECT * FROM llm_choose_from('low', 'SELECT pg_sleep(60)::text', model_name => 'slow')",
    "choosing for rows": f"SELECT count(*) FROM llm_choose_rows({PROMPTS}, '{{low,er}}', model_name => 'slow')",
    "choosing for rows, row by row": f"SELECT llm_choose_rows({PROMPTS}, '{{low,er}}', model_name => 'slow')",
    "evaluating choices": f"SELECT * FROM llm_evaluate_choices('SELECT body, ''low'' FROM ({PROMPTS[1:-1]}) AS p (id, body)',"
    " '{low,er}', model_name => 'slow')",
    "evaluating rows without an answer": "SELECT * FROM llm_evaluate_choices('SELECT ''low'', NULL::text FROM"
    " generate_series(1, 100000000)', '{low}', model_name => 'slow')",
    "making adapters": "SELECT llm_adapter_create('x' || i, 'slow', r => 64,"
    " targets => '{attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj}') FROM generate_series(1, 500) AS i",
    "making an adapter of a high rank": "SELECT llm_adapter_create('x', 'slow', r => 20000,"
    " targets => '{attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj}')",
    "merging adapters": "SELECT llm_adapter_merge('light', 'x' || i) FROM generate_series(1, 60) AS i",
    "making a model": "SELECT llm_init_model('x', 12, 16, 1024, 1024, 50000)",
    "exporting": "SELECT count(*) FROM generate_series(1, 30), llm_export_safetensors('slow')",
    "importing": "SELECT llm_import_safetensors(data, 'x' || i) FROM file, generate_series(1, 60) AS i",
    "importing a file": "SELECT pg_llm_import_safetensors('{folder}/slow.safetensors', 'x' || i) FROM generate_series(1, 60) i",
    "importing a .npz file": "SELECT pg_llm_import_npz('{folder}/slow.npz', 'x' || i) FROM generate_series(1, 60) AS i",
    "exporting a file": "SELECT pg_llm_export_safetensors('{folder}/x', 'slow') FROM generate_series(1, 60)",
    "exporting a .npz file": "SELECT pg_llm_export_npz('{folder}/x', 'slow') FROM generate_series(1, 60)",
    "a checkpoint": "SELECT llm_checkpoint_save('slow') FROM generate_series(1, 100)",
    "a checkpoint in a file": "SELECT llm_checkpoint_save('slow', '', '{folder}/x' || i || '.npz')"
    " FROM generate_series(1, 60) AS i",
    "loading a checkpoint": "SELECT llm_checkpoint_load('slow', id) FROM llm_checkpoint, generate_series(1, 60)",
    "comparing checkpoints": "SELECT count(*) FROM llm_checkpoint, generate_series(1, 999) i,"
    " llm_checkpoint_diff(id, id + i * 0)",
    "copying a model": "SELECT llm_copy_model('slow', 'x' || i) FROM generate_series(1, 60) AS i",
    "a trace": "SELECT count(*) FROM generate_series(1, 60), llm_trace(array_fill(1, '{500}'), 'slow')",
    "attention weights": "SELECT count(*) FROM generate_series(1, 60), llm_attention_weights(repeat('low ', 500), 0, 0, 'slow')",
    "a recorded loss": "SELECT set_config('pg_gpt2.autograd', 'on', true), llm_loss('slow', array_fill(1, '{256}'),"
    " array_fill(2, '{256}')), llm_backprop(NULL, 'slow') FROM generate_series(1, 30)",
    "a product": "SELECT pg_llm_matmul(a, a, 1500, 1500, 1500)"
    " FROM decode(repeat('00', 9000000), 'hex') AS a, generate_series(1, 60)",
    "a slow source": "SELECT llm_train_bpe('SELECT pg_sleep(60)::text', 300, 'x')",
}


# Procedures commit; what they had committed stays.
COMMITTING = "CALL llm_train_run('slow', 1000, batch_size => 4, commit_every => 1)"

ROWS = (
    "SELECT (SELECT count(*) FROM llm_bpe_vocab), (SELECT count(*) FROM llm_param),"
    " (SELECT count(*) FROM llm_dataset), (SELECT count(*) FROM llm_run),"
    " (SELECT count(*) FROM llm_adapter), (SELECT count(*) FROM llm_param_share)"
)


@pytest.fixture(autouse=True, scope="module")
def files(models, module_conn, server_files):
    """What is imported: bytes, and files of the server."""
    module_conn.execute(
        "CREATE TABLE file AS SELECT string_agg(c, '') AS data FROM llm_export_safetensors('slow') AS c"
    )
    module_conn.execute("SELECT llm_checkpoint_save('slow')")
    module_conn.execute("SELECT llm_adapter_create('light', 'slow')")
    for kind in ("safetensors", "npz"):
        module_conn.execute(f"SELECT pg_llm_export_{kind}(%s, 'slow')", [f"{server_files}/slow.{kind}"])
    yield
    for path in [*server_files.glob("slow.*"), *server_files.glob("x*")]:
        path.unlink()


@pytest.mark.parametrize("statement", LONG.values(), ids=LONG)
def test_a_timeout_ends_it_and_the_session_goes_on(module_conn, server_files, statement):
    conn, statement = module_conn, statement.replace("{folder}", str(server_files))
    rows = conn.execute(ROWS).fetchone()
    conn.execute("SELECT llm_generate('low', 1, model_name => 'slow')")  # loads the model
    (alive,) = conn.execute("SELECT pg_backend_pid()").fetchone()
    conn.execute("SELECT set_config('statement_timeout', %s, false)", [f"{TIMEOUT}s"])
    started = time.monotonic()
    try:
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            conn.execute(statement)
        took = time.monotonic() - started
    finally:
        conn.execute("RESET statement_timeout")
    assert took < TIMEOUT + SOON
    assert conn.execute("SELECT pg_backend_pid()").fetchone() == (alive,)
    assert conn.execute("SELECT llm_generate('low', 2, 0, model_name => 'slow') LIKE 'low%'").fetchone() == (True,)
    assert conn.execute(ROWS).fetchone() == rows
    assert not list(server_files.glob(".pg_gpt2-*"))


def test_a_committing_run_is_cancelled_between_its_commits(connect):
    conn = connect()
    conn.execute(f"SET statement_timeout = '{4 * TIMEOUT}s'")
    started = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute(COMMITTING)
    assert time.monotonic() - started < 4 * TIMEOUT + SOON
    conn.execute("RESET statement_timeout")
    statuses = conn.execute("SELECT status FROM llm_run WHERE status <> 'manual'").fetchall()
    assert set(statuses) <= {("running",)}, "never reported as finished"
    conn.execute("DELETE FROM llm_train_log; DELETE FROM llm_run")


def test_a_row_of_a_stream_that_takes_long_is_cancelled_too(conn):
    """Between rows the executor looks. The second one here needs a pass over half of the window, more than a second."""
    conn.execute(
        "INSERT INTO llm_bpe_vocab SELECT 'wide', token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'slow'"
    )
    conn.execute("SELECT llm_init_model('wide', 6, 8, 512, 4096, seed => 1)")
    conn.execute("BEGIN")
    conn.execute(
        "DECLARE c CURSOR FOR SELECT (llm_generate_stream(repeat('low lower ', 4000), 5, model_name => 'wide')).step"
    )
    conn.execute("FETCH 1 FROM c")
    conn.execute(f"SET LOCAL statement_timeout = '{TIMEOUT}s'")
    started = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("FETCH 1 FROM c")
    assert time.monotonic() - started < TIMEOUT + SOON
    conn.execute("ROLLBACK")
    conn.execute("SELECT llm_drop_model('wide')")


def test_a_cancel_from_outside_ends_it_too(connect, module_conn):
    conn = connect()
    conn.execute("SELECT llm_generate('low', 1, model_name => 'slow')")
    threading.Timer(TIMEOUT, conn.cancel).start()
    started = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled, match="user request"):
        conn.execute(LONG["generation"])
    assert time.monotonic() - started < TIMEOUT + SOON
    assert conn.execute("SELECT llm_generate('low', 0, model_name => 'slow')").fetchone() == ("low",)


@pytest.mark.parametrize(
    "what", ["generation", "a batch", "tokenizing", "training a vocabulary", "training", "importing"]
)
def test_termination_is_heeded(connect, module_conn, what):
    conn = connect()
    conn.execute("SELECT llm_generate('low', 1, model_name => 'slow')")
    pid = conn.info.backend_pid
    threading.Timer(TIMEOUT, lambda: module_conn.execute("SELECT pg_terminate_backend(%s)", [pid])).start()
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        conn.execute(LONG[what])
    assert time.monotonic() - started < TIMEOUT + SOON


def test_a_set_that_is_cancelled_between_its_rows_ends_nothing_else(connect, module_conn):
    """A cursor that is open then is closed twice, and one time in two hundred that was the end of the server."""
    module_conn.execute("SELECT llm_init_model('tiny', 2, 2, 32, 32, 270)")
    conn = connect()
    export = "SELECT string_agg(c, '') FROM generate_series(1, 10) AS i, llm_export_safetensors('tiny' || left(i::text, 0)) AS c"
    conn.execute(export)
    began = time.monotonic()
    conn.execute(export)
    usual = time.monotonic() - began
    cancelled = 0
    for n in range(400):
        timer = threading.Timer(usual * (n % 20) / 20, conn.cancel)
        timer.start()
        try:
            conn.execute(export)
        except psycopg.errors.QueryCanceled:
            cancelled += 1
        finally:
            timer.join()
    assert cancelled > 20
    assert conn.execute("SELECT count(*) > 1 FROM llm_export_safetensors('tiny')").fetchone() == (True,)


def test_a_caught_cancel_of_a_subtransaction_leaves_a_usable_session(module_conn):
    """PL/pgSQL may catch a cancel by name; the package must not be left half-way."""
    for _ in range(2):
        module_conn.execute("SET statement_timeout = '300ms'")
        try:
            module_conn.execute(
                "DO $$BEGIN PERFORM llm_generate('low', 100000, eos_token => -1, model_name => 'slow');"
                " EXCEPTION WHEN query_canceled THEN NULL; END$$"
            )
        finally:
            module_conn.execute("RESET statement_timeout")
    assert module_conn.execute("SELECT llm_generate('low', 0, model_name => 'slow')").fetchone() == ("low",)


@pytest.mark.parametrize("milliseconds", [1, 5, 20, 50, 100, 150])
def test_a_cancel_in_the_first_call_of_a_session_is_told_as_any(connect, milliseconds):
    """Wherever in loading the package it comes; and the next call works."""
    conn = connect()
    conn.execute(f"SET statement_timeout = {milliseconds}")
    with pytest.raises(psycopg.errors.QueryCanceled) as caught:
        conn.execute("SELECT llm_generate('low', 1000, eos_token => -1, model_name => 'slow')")
    told = caught.value.diag.message_primary.removeprefix("pg_gpt2: ")
    assert told == "canceling statement due to statement timeout"
    conn.execute("RESET statement_timeout")
    assert conn.execute("SELECT llm_generate('low', 0, model_name => 'slow')").fetchone() == ("low",)


def test_every_body_loads_the_package_in_a_way_that_renames_a_cancel(module_conn):
    bodies = module_conn.execute(
        "SELECT proname, prosrc FROM pg_proc WHERE prosrc LIKE '%execute(''SELECT %.llm_boot()%'"
    )
    found = bodies.fetchall()
    assert len(found) > 90
    assert [name for name, source in found if "raise type('pg_gpt2', (plpy.SPIError,)" not in source] == []
