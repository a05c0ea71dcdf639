"""A model that row-level security hides does not exist: no function and no view tells it from one that was never made.

The policies are those of docs/how-to/hide-models.md. Every function and relation of the catalogue is here, so that a new one is
looked at: as one that takes no model, or with a statement whose outcome for a hidden model must be that for an absent one.
"""

import re
from itertools import combinations
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "hide-models.md"
POLICIES = re.search(r"```sql\n(DO .*?)```", PAGE.read_text(), re.DOTALL)[1]

NO_MODEL = set(
    re.findall(
        r"\w+",
        """
    llm_boot llm_compile
    llm_cache_clear llm_sparkline llm_sparkline_sent llm_variable llm_variable_sent llm_op llm_op_sent llm_tape_id
    llm_grant_usage llm_publish llm_prune_autograd_state llm_generation_options_declared llm_training_options_declared
    llm_texts_sent llm_bytes_sent llm_cosine llm_cosine_sent llm_json_schema
    llm_bpe_changed llm_model_config_changed llm_autograd_mode_update llm_block_forward
    pg_llm_autograd_enabled pg_llm_autograd_track_tensor pg_llm_adamw_step pg_llm_add pg_llm_attention pg_llm_attention_backward
    pg_llm_cross_entropy pg_llm_cross_entropy_backward pg_llm_dropout pg_llm_dropout_backward pg_llm_gelu pg_llm_gelu_backward
    pg_llm_grad_clip pg_llm_layernorm pg_llm_layernorm_backward pg_llm_lr_schedule pg_llm_matmul pg_llm_mlp_backward
    pg_llm_ones_like pg_llm_sample pg_llm_softmax pg_llm_softmax_backward pg_llm_tensor pg_llm_transpose pg_llm_values
    pg_llm_tensor_sent pg_llm_zeros_like
    llm_worker_begin llm_worker_weights llm_worker_shard llm_worker_gradients
""",
    )
)

# Function -> statements. {m}: the model; {run}, {saved}, {infile}, {tape}, {handle}: ids of what is its; {folder}: of the server.
VECTOR = "pg_llm_tensor(array_fill(1, '{{8}}'))"
IDS = "array_send('{{1}}'::integer[])"
STATEMENTS = {
    "llm_generate": [
        "SELECT llm_generate('low', 3, model_name => '{m}', seed => 1)",
        "SELECT llm_generate_tokens('{{1}}', 3, model_name => 'north/poet', options => '{{\"draft_model\": \"{m}\"}}')",
    ],
    "llm_generate_stream": ["SELECT (llm_generate_stream('low', 3, model_name => '{m}', seed => 1)).text"],
    "llm_generate_tokens": ["SELECT llm_generate_tokens('{{1}}', 3, model_name => '{m}', seed => 1)"],
    "llm_generate_tokens_sent": [
        f"SELECT llm_generate_tokens_sent({IDS}, 3, 1, 5, 1, '{{m}}', NULL, 1, NULL, 1, 0, NULL)",
    ],
    "llm_generate_batch": ["SELECT * FROM llm_generate_batch('{{low}}', 3, model_name => '{m}', seed => 1)"],
    "llm_generate_rows": ["SELECT * FROM llm_generate_rows($$SELECT 1, 'low'$$, 3, model_name => '{m}', seed => 1)"],
    "llm_perplexity_rows": ["SELECT * FROM llm_perplexity_rows($$SELECT 1, 'low lower'$$, '{m}')"],
    "llm_embedding_rows": ["SELECT * FROM llm_embedding_rows($$SELECT 1, 'low'$$, model_name => '{m}')"],
    "llm_beam_search": ["SELECT * FROM llm_beam_search('low', 2, 2, model_name => '{m}')"],
    "llm_beam_search_sent": [f"SELECT * FROM llm_beam_search_sent(NULL, {IDS}, 2, 2, 1, false, NULL, '{{m}}', NULL)"],
    "llm_generate_json": [
        "SELECT llm_generate_json('low', '{{\"type\": \"boolean\"}}', model_name => '{m}', seed => 1)",
    ],
    "llm_next_token": ["SELECT * FROM llm_next_token('low', model_name => '{m}')"],
    "llm_logits": ["SELECT llm_logits('{{1}}', '{m}')"],
    "llm_logits_sent": [f"SELECT llm_logits_sent({IDS}, '{{m}}', NULL, NULL, NULL, NULL)"],
    "llm_logprobs": ["SELECT * FROM llm_logprobs('low lower', '{m}')"],
    "llm_perplexity": ["SELECT llm_perplexity('low lower', '{m}')"],
    "llm_text_embedding": ["SELECT llm_text_embedding('low', model_name => '{m}')"],
    "llm_token_embedding": ["SELECT llm_token_embedding(1, '{m}')"],
    "llm_trace": ["SELECT * FROM llm_trace('low', '{m}')", "SELECT * FROM llm_trace('{{1}}'::integer[], '{m}')"],
    "llm_trace_sent": [f"SELECT * FROM llm_trace_sent({IDS}, '{{m}}')"],
    "llm_attention_weights": ["SELECT * FROM llm_attention_weights('low', 0, 0, '{m}')"],
    "llm_logit_lens": ["SELECT * FROM llm_logit_lens('low', '{m}')"],
    "llm_choose": ["SELECT * FROM llm_choose('low', '{{x,the}}', model_name => '{m}')"],
    "llm_classify": ["SELECT llm_classify('low', '{{x,the}}', model_name => '{m}')"],
    "llm_choose_from": ["SELECT * FROM llm_choose_from('low', 'VALUES ($$ low$$)', model_name => '{m}')"],
    "llm_evaluate_choices": [
        "SELECT * FROM llm_evaluate_choices('SELECT $$low$$::text, $$x$$::text', '{{x,the}}', model_name => '{m}')"
    ],
    "llm_choose_rows": ["SELECT * FROM llm_choose_rows('SELECT 1, $$low$$', '{{x,the}}', model_name => '{m}')"],
    "llm_encode": ["SELECT llm_encode('low lower', '{m}')"],
    "llm_encode_sent": ["SELECT llm_encode_sent('low lower', '{m}', false)"],
    "llm_decode": ["SELECT llm_decode('{{1,2}}', '{m}')"],
    "llm_decode_bytes": ["SELECT llm_decode_bytes('{{1,2}}', '{m}')"],
    "llm_decode_sent": [f"SELECT llm_decode_sent({IDS}, '{{m}}', true)"],
    "llm_tokenize": ["SELECT * FROM llm_tokenize('low', '{m}')"],
    "llm_token_count": ["SELECT llm_token_count('low', '{m}')"],
    "llm_bpe_trace": ["SELECT * FROM llm_bpe_trace('low', '{m}')"],
    "llm_get_model_config": ["SELECT llm_get_model_config('{m}')"],
    "llm_loss": ["SELECT llm_loss('{m}', '{{1,2}}', '{{2,3}}', seed => 1)"],
    "llm_loss_sent": [
        f"SELECT llm_loss_sent('{{m}}', {IDS}, {IDS}, NULL, NULL, NULL, NULL, 0.1, true, 1, NULL)",
    ],
    "llm_evaluate": ["SELECT * FROM llm_evaluate('{m}', 'train')"],
    "llm_embed": ["SELECT llm_embed('{{1}}', '{m}', 8)"],
    "llm_embed_sent": [f"SELECT llm_embed_sent({IDS}, '{{m}}', 8)"],
    "llm_forward_gpt2": [
        f"SELECT llm_forward_gpt2({VECTOR}, '{{m}}', 1, 2, 1, 8, {VECTOR}, {VECTOR}, 1e-5, false)",
    ],
    "llm_materialize_params": ["SELECT llm_materialize_params('{m}')"],
    "llm_accumulate_grads": ["SELECT llm_accumulate_grads('{m}')"],
    "llm_backprop": ["SELECT llm_backprop(NULL, '{m}')", "SELECT llm_backprop({handle})"],
    "pg_llm_autograd_map_param": [f"SELECT pg_llm_autograd_map_param('{{m}}', 'ln_f.bias', 0, {VECTOR}) > 0"],
    "pg_llm_autograd_map_param_sent": [
        f"SELECT pg_llm_autograd_map_param_sent('{{m}}', 'ln_f.bias', 0, {VECTOR}, NULL) > 0",
    ],
    "llm_value": ["SELECT llm_value({handle})"],
    "llm_grad": ["SELECT llm_grad({handle})"],
    "llm_gradcheck": ["SELECT * FROM llm_gradcheck({handle})"],
    "llm_tape_dot": ["SELECT llm_tape_dot({tape})", "SELECT llm_tape_dot()"],
    "llm_replay_tape": ["SELECT * FROM llm_replay_tape({tape})"],
    "llm_export_safetensors": ["SELECT llm_export_safetensors('{m}')"],
    "pg_llm_export_safetensors": ["SELECT pg_llm_export_safetensors('{folder}/stolen.safetensors', '{m}')"],
    "pg_llm_export_npz": ["SELECT pg_llm_export_npz('{folder}/stolen.npz', '{m}')"],
    "llm_import_safetensors": [
        "SELECT llm_import_safetensors(string_agg(c, ''), '{m}', true) FROM llm_export_safetensors('north/poet') AS c"
    ],
    "llm_import_safetensors_sent": [
        "SELECT llm_import_safetensors_sent(string_agg(c, ''), '{m}', true) FROM llm_export_safetensors('north/poet') AS c"
    ],
    "llm_import_begin": [
        'SELECT * FROM llm_import_begin(\'{m}\', \'{{"n_layer": 1, "n_head": 2, "d_model": 8, "n_positions": 16,'
        ' "vocab": 265, "eos_token_id": 264}}\', false)',
        """SELECT * FROM llm_import_begin('{m}-adapter', '{{"base": "{m}"}}', true)""",
    ],
    "pg_llm_import_safetensors": ["SELECT pg_llm_import_safetensors('{folder}/shown.safetensors', '{m}', true)"],
    "pg_llm_import_npz": ["SELECT pg_llm_import_npz('{folder}/shown.npz', '{m}', true)"],
    "pg_llm_load_bpe_vocab": ["SELECT pg_llm_load_bpe_vocab('{folder}/vocab.json', '{m}')"],
    "pg_llm_load_bpe_merges": ["SELECT pg_llm_load_bpe_merges('{folder}/merges.txt', '{m}')"],
    "llm_train_bpe": ["SELECT llm_train_bpe($$SELECT 'low lower'$$, 260, '{m}')"],
    "llm_init_model": ["SELECT llm_init_model('{m}', 1, 2, 8, 16, 50)"],
    "llm_copy_model": [
        "SELECT llm_copy_model('{m}', 'north/copy')",
        "SELECT llm_copy_model('{m}', 'north/copy', {saved})",
        "SELECT llm_copy_model('north/poet', '{m}')",
    ],
    "llm_drop_model": ["SELECT llm_drop_model('{m}')"],
    "llm_adapter_create": [
        "SELECT llm_adapter_create('north/adapter', '{m}')",
        "SELECT llm_adapter_create('{m}', 'north/poet')",
        "SELECT llm_adapter_create('north/adapter', '{m}-adapter')",
    ],
    "llm_adapter_merge": [
        "SELECT llm_adapter_merge('{m}-adapter', 'north/merged')",
        "SELECT llm_adapter_merge('{m}', 'north/merged')",
    ],
    "llm_share_param": [
        "SELECT llm_share_param('{m}', 'wte', NULL, 'north/poet')",
        "SELECT llm_share_param('north/poet', 'wte', NULL, '{m}')",
    ],
    "llm_unshare_param": ["SELECT llm_unshare_param('{m}', 'wpe')"],
    "llm_dataset_load": ["SELECT llm_dataset_load($$SELECT repeat('low ', 40)$$, '{m}', 8)"],
    "llm_dataset_load_pairs": ["SELECT llm_dataset_load_pairs($$SELECT 'low'::text, ' lower'::text$$, '{m}')"],
    "llm_train_step": ["SELECT llm_train_step('{m}')"],
    "llm_train_step_sent": [
        "SELECT llm_train_step_sent('{m}', NULL, NULL, NULL, NULL, NULL, 0.1, 0.9, 0.999, 1e-8, 0.01, 1e-4, 0, NULL, NULL, 1, 1,"
        " NULL, 0, 0, 'tape')",
    ],
    "llm_train": ["SELECT llm_train('{m}', 1, batch_size => 1)"],
    "llm_train_run": ["CALL llm_train_run('{m}', 1, batch_size => 1)"],
    "llm_train_stop": ["SELECT llm_train_stop('{m}')"],
    "llm_log_prune": ["SELECT llm_log_prune('{m}', '0 s', NULL)", "SELECT llm_log_prune(NULL, '0 s', NULL)"],
    "llm_run_sparkline": ["SELECT llm_run_sparkline({run})"],
    "llm_replay": ["SELECT * FROM llm_replay({run})", "SELECT * FROM llm_replay({run}, {saved})"],
    "llm_checkpoint_save": [
        "SELECT llm_checkpoint_save('{m}')",
        "SELECT llm_checkpoint_save('{m}', file_path => '{folder}/stolen.npz')",
    ],
    "llm_checkpoint_attach": ["SELECT llm_checkpoint_attach('{folder}/elsewhere.npz', '{m}')"],
    "llm_checkpoint_load": [
        "SELECT llm_checkpoint_load('{m}', {saved})",
        "SELECT llm_checkpoint_load('north/poet', {saved})",
        "SELECT llm_checkpoint_load('{m}', {infile})",
    ],
    "llm_checkpoint_drop": ["SELECT llm_checkpoint_drop({saved})", "SELECT llm_checkpoint_drop({infile})"],
    "llm_checkpoint_prune": ["SELECT llm_checkpoint_prune('{m}', 0)"],
    "llm_checkpoint_list": ["SELECT id FROM llm_checkpoint_list('{m}')", "SELECT * FROM llm_checkpoint_list()"],
    "llm_checkpoint_diff": [
        "SELECT * FROM llm_checkpoint_diff({saved})",
        "SELECT * FROM llm_checkpoint_diff({saved}, {infile})",
        "SELECT * FROM llm_checkpoint_diff({infile})",
    ],
    "llm_param_history": ["SELECT * FROM llm_param_history('{m}', 'wte')"],
    "llm_doctor": ["SELECT item, value FROM llm_doctor() WHERE item = 'model {m}'"],
    "llm_model_sessions": ["SELECT pid FROM llm_model_sessions() WHERE model = '{m}'"],
    "llm_cache_status": ["SELECT kind FROM llm_cache_status() WHERE model = '{m}'"],
}
# Nobody's outcome depends on whether the model is there; or it does only where one's own tape has values of it.
SAME_FOR_ALL = {
    *("llm_checkpoint_attach", "llm_init_model", "pg_llm_load_bpe_vocab", "pg_llm_load_bpe_merges"),
    "llm_model_sessions",  # models of 8 MB; test_weight_file.py has one
}
OWN_TAPE = {"llm_accumulate_grads", "llm_backprop", "llm_value", "llm_grad", "llm_gradcheck"}

# Relation -> which rows are those of the hidden model, as who sees all rows can tell.
TAPES = "tape_id IN (SELECT tape_id FROM llm_tape JOIN llm_run USING (run_id) WHERE model = 'south/poet')"
HIDDEN = "(SELECT id FROM llm_checkpoint WHERE model = 'south/poet')"
ROWS = {
    **dict.fromkeys(
        (
            *(
                "llm_model_config",
                "llm_param",
                "llm_bpe_vocab",
                "llm_bpe_merges",
                "llm_dataset",
                "llm_run",
                "llm_train_log",
            ),
            *(
                "llm_checkpoint",
                "llm_checkpoint_blob",
                "llm_checkpoint_restore",
                "llm_tensor_map",
                "llm_models",
                "llm_metrics",
                "llm_param_resolved",
            ),
            *("llm_train_progress", "llm_tensor"),
        ),
        "model = 'south/poet'",
    ),
    "llm_param_share": "'south/poet' IN (source_model, target_model)",
    "llm_adapter": "base = 'south/poet'",
    "llm_checkpoint_part": f"checkpoint_id IN {HIDDEN}",
    "llm_tape": TAPES,
    "llm_tensor_rt": TAPES,
}
NO_ROWS_OF_MODELS = {
    *("llm_module", "llm_limit", "llm_settings", "llm_autograd_mode", "llm_bpe_version"),
    *("llm_generation_options", "llm_training_options"),
}

PREPARE = """
    SET client_min_messages = warning;
    SELECT setval('llm_run_run_id_seq', 51001), setval('llm_checkpoint_id_seq', 62001); -- ids that nothing else has
    SELECT setval('llm_tape_tape_id_seq', 73001), setval('llm_handle_seq', 840001);
    SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 265, 'south/poet');
    SELECT llm_init_model('south/poet', 1, 2, 8, 16, seed => 1);
    SELECT llm_dataset_load($$SELECT repeat('low lower ', 40)$$, 'south/poet', 8);
    SELECT llm_train('south/poet', 2, batch_size => 2, audit => 'full');
    SELECT llm_checkpoint_save('south/poet');
    SELECT llm_checkpoint_save('south/poet', file_path => '{folder}/hidden.npz');
    SELECT llm_checkpoint_load('south/poet', (SELECT min(id) FROM llm_checkpoint));
    SELECT llm_train('south/poet', 1, batch_size => 2, audit => 'full');
    SELECT llm_copy_model('south/poet', 'south/twin');
    SELECT llm_share_param('south/twin', 'wpe', NULL, 'south/poet');
    SELECT llm_adapter_create('south/poet-adapter', 'south/poet', r => 2);
    SELECT llm_init_model('north/poet', 1, 2, 8, 16, 50, seed => 2);
    SELECT llm_checkpoint_save('north/poet', file_path => '{folder}/elsewhere.npz');
    SELECT pg_llm_export_safetensors('{folder}/shown.safetensors', 'north/poet');
    SELECT pg_llm_export_npz('{folder}/shown.npz', 'north/poet');
    DELETE FROM llm_checkpoint WHERE model = 'north/poet';
    SELECT llm_grant_usage('north', 'admin');
    GRANT pg_read_server_files, pg_write_server_files TO north;
    REVOKE TRUNCATE ON ALL TABLES IN SCHEMA public FROM north;
"""
FILES = ("hidden.npz", "elsewhere.npz", "shown.safetensors", "shown.npz", "vocab.json", "merges.txt")


@pytest.fixture(scope="module")
def places(module_conn, server_files):
    """What stands for the hidden model and what is its, and for a model that there is not."""
    module_conn.execute("CREATE ROLE north")
    yield prepared(module_conn, server_files, PREPARE, POLICIES)
    module_conn.execute("RESET ROLE; DROP OWNED BY north; DROP ROLE north")
    remove_files(server_files)


def prepared(conn: psycopg.Connection, folder: Path, prepare: str, policies: str) -> tuple[dict, dict]:
    """What stands for the model south/poet, made by `prepare` and hidden by `policies`, and for one that there is not,
    with what is theirs; their files are in `folder`. Both are as much like north/poet, which a hint may name."""
    (folder / "vocab.json").write_text('{"a": 0}')
    (folder / "merges.txt").write_text("a b\n")
    conn.execute(prepare.replace("{folder}", str(folder)))
    conn.execute(policies)
    run, tape, handle, saved, infile = conn.execute(
        "SELECT max(run_id), (SELECT max(tape_id) FROM llm_tape), (SELECT max(output) FROM llm_tape),"
        " (SELECT min(id) FROM llm_checkpoint), (SELECT max(id) FROM llm_checkpoint) FROM llm_run"
    ).fetchone()
    ids = {"run": run, "tape": tape, "handle": handle, "saved": saved, "infile": infile}
    return (
        {"m": "south/poet", "folder": folder, **ids},
        {"m": "south/poet2", "folder": folder, **{name: 900_000_000 + n for n, name in enumerate(ids)}},
    )


def remove_files(folder: Path) -> None:
    """Those that were made there."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def outcome(conn: psycopg.Connection, statement: str, place: dict) -> tuple:
    """Rows, or the error, without what stands for the model and its ids; the statement is undone."""
    begin = [] if statement.startswith("CALL") else ["BEGIN"]
    try:
        for command in begin:
            conn.execute(command)
        cursor = conn.execute(statement.format(**place))
        told: tuple = ("rows", str(cursor.fetchall() if cursor.description else []))
    except psycopg.Error as error:
        # The tape is the role's own.
        message = re.sub(r"tape \d+ has no ops", "tape <new> has no ops", error.diag.message_primary or "")
        told = (error.sqlstate, message, error.diag.message_hint, error.diag.message_detail)
    finally:
        if begin:
            conn.execute("ROLLBACK")
    for name, value in place.items():
        told = tuple(part and re.sub(rf"\b{re.escape(str(value))}\b", f"<{name}>", part) for part in told)
    return told


CASES = [(name, statement) for name, statements in STATEMENTS.items() for statement in statements]


@pytest.fixture(scope="module")
def session(dsn, places):
    """One session for all: superuser and role by turns."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.mark.parametrize(("function", "statement"), CASES)
def test_a_hidden_model_is_as_one_that_was_never_made(session, places, function, statement):
    """In a session in which a superuser has just done the same, whose caches are warm and whose tape has the model's values."""
    hidden, absent = places
    warm(session)
    (handle,) = session.execute("SELECT max(id) FROM llm_tensor_rt").fetchone()
    hidden = hidden | {"handle": handle}
    if statement.format(**hidden) != statement.format(**absent) and function not in SAME_FOR_ALL | OWN_TAPE:
        seen = outcome(session, statement, hidden)
        assert seen != outcome(session, statement, absent), "the statement tells a superuser something of the model"
        warm(session)
    session.execute("SET ROLE north")
    assert outcome(session, statement, hidden) == outcome(session, statement, absent)


def warm(conn: psycopg.Connection) -> None:
    """As a superuser: weights, tokenizer, training state and the session's tape are those of the hidden model."""
    conn.execute("RESET ROLE")
    conn.execute("SELECT llm_generate('low', 2, model_name => 'south/poet')")
    conn.execute("BEGIN; SELECT llm_train_step('south/poet'); ROLLBACK")
    conn.execute("SET pg_gpt2.autograd = on; SELECT llm_loss('south/poet', '{1,2}', '{2,3}'); RESET pg_gpt2.autograd")


def visible_models(conn: psycopg.Connection) -> list[str]:
    """As llm_models has them, which is empty on PostgreSQL 14 where policies are active, as every view of ours."""
    relation = "llm_models" if conn.info.server_version >= 150000 else "llm_param"
    return conn.execute(f"SELECT array_agg(DISTINCT model ORDER BY model) FROM {relation}").fetchone()[0]


def test_the_role_can_use_what_is_its_own(connect, places):
    """The policies leave room for work: make, teach, save, go back, compare, record, drop."""
    conn = connect(options="-c role=north -c client_min_messages=warning")
    conn.execute("SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 265, 'north/new')")
    conn.execute("SELECT llm_init_model('north/new', 1, 2, 8, 16)")
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 40)$$, 'north/new', 8)")
    conn.execute("SELECT llm_train('north/new', 2, batch_size => 2, audit => 'full')")
    conn.execute("CALL llm_train_run('north/new', 1, batch_size => 2, audit => 'tape')")
    saved = conn.execute("SELECT llm_checkpoint_save('north/new')").fetchone()[0]
    conn.execute("SELECT llm_train_step('north/new')")
    assert conn.execute("SELECT bool_or(changed) FROM llm_checkpoint_diff(%s)", [saved]).fetchone() == (True,)
    conn.execute("SELECT llm_checkpoint_load('north/new', %s)", [saved])
    assert conn.execute("SELECT bool_or(changed) FROM llm_checkpoint_diff(%s)", [saved]).fetchone() == (False,)
    assert conn.execute("SELECT count(*) > 0 FROM llm_tape").fetchone() == (True,)
    with conn.transaction():
        conn.execute("SET LOCAL pg_gpt2.autograd = on")
        conn.execute("SELECT llm_loss('north/new', '{1,2}', '{2,3}')")
        conn.execute("SELECT llm_backprop(model => 'north/new')")
    assert visible_models(conn) == ["north/new", "north/poet"]
    conn.execute("SELECT llm_checkpoint_drop(%s)", [saved])
    assert connect().execute("SELECT FROM llm_checkpoint_blob WHERE model = 'north/new'").fetchall() == []
    assert connect().execute("SELECT FROM llm_checkpoint_part WHERE checkpoint_id = %s", [saved]).fetchall() == []
    conn.execute("SELECT llm_drop_model('north/new')")


def test_dropping_a_checkpoint_leaves_those_that_are_hidden(connect, places):
    """Nor where a policy is on one of the tables only: who does not see all checkpoints cannot tell what none needs."""
    count = "SELECT (SELECT count(*) FROM llm_checkpoint_part), (SELECT count(*) FROM llm_checkpoint_blob)"
    conn, owner = connect(), connect()
    before = owner.execute(count).fetchone()
    off_in_turn = (), *combinations(("llm_checkpoint", "llm_checkpoint_part", "llm_checkpoint_blob"), 1)
    for off in (*off_in_turn, *combinations(("llm_checkpoint", "llm_checkpoint_part", "llm_checkpoint_blob"), 2)):
        with conn.transaction(force_rollback=True):
            for table in off:
                conn.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
            conn.execute("SET LOCAL ROLE north")
            saved = conn.execute("SELECT llm_checkpoint_save('north/poet')").fetchone()[0]
            conn.execute("SELECT llm_checkpoint_drop(%s)", [saved])
            conn.execute("RESET ROLE")
            after = conn.execute(count).fetchone()
            assert all(x >= y for x, y in zip(after, before)), off


def names_a_hidden_block(owner: psycopg.Connection, thief: psycopg.Connection, model: str, tensor: str) -> None:
    """The checkpoint of `model` that `thief` makes, with the digest of the hidden model's `tensor` put in, shows and loads
    nothing of it: whoever has found out a digest has not the block."""
    digest, data = owner.execute(
        f"SELECT digest, b.data FROM llm_checkpoint_part AS p JOIN llm_checkpoint_blob AS b ON digest = p.data"
        f" WHERE checkpoint_id IN {HIDDEN} AND name = %s ORDER BY checkpoint_id LIMIT 1",
        [tensor],
    ).fetchone()
    with thief.transaction(force_rollback=True):
        saved = thief.execute("SELECT llm_checkpoint_save(%s)", [model]).fetchone()[0]
        changed = "UPDATE llm_checkpoint_part SET data = %s WHERE checkpoint_id = %s AND name = %s"
        assert thief.execute(changed, [digest, saved, tensor]).rowcount == 1
        assert thief.execute("SELECT data FROM llm_checkpoint_blob WHERE digest = %s", [digest]).fetchall() == []
        for statement in (
            "SELECT llm_checkpoint_load(%(model)s, %(saved)s)",
            "SELECT llm_copy_model(%(model)s, %(model)s || ' again', %(saved)s)",
            "SELECT * FROM llm_checkpoint_diff(%(saved)s)",
            "SELECT * FROM llm_param_history(%(model)s, %(tensor)s)",
        ):
            with pytest.raises(psycopg.errors.DataException), thief.transaction():
                thief.execute(statement, {"model": model, "saved": saved, "tensor": tensor})
        found = thief.execute("SELECT data FROM llm_param WHERE model = %s AND name = %s", [model, tensor]).fetchone()
        assert found != (data,)


def test_the_digest_of_a_hidden_block_opens_nothing(connect, places):
    names_a_hidden_block(connect(), connect(options="-c role=north"), "north/poet", "wpe")


@pytest.mark.parametrize("relation", sorted(ROWS))
def test_no_row_of_a_hidden_model_is_seen(session, relation):
    warm(session)
    keys = "ctid" if relation not in VIEWS else sql.Identifier(relation).as_string(None)
    found = session.execute(f"SELECT {keys}::text FROM {relation} WHERE {ROWS[relation]}").fetchall()
    assert found, "there are rows to be hidden"
    session.execute("SET ROLE north")
    assert not set(found) & set(session.execute(f"SELECT {keys}::text FROM {relation}").fetchall())


VIEWS = {"llm_models", "llm_metrics", "llm_param_resolved", "llm_train_progress", "llm_tensor"}


def test_every_function_and_relation_is_looked_at(module_conn):
    """A new one belongs into one of the lists above."""
    members = """
        SELECT objid FROM pg_depend WHERE deptype = 'e' AND classid = %s::regclass
        AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
    """
    functions = module_conn.execute(f"SELECT proname FROM pg_proc WHERE oid IN ({members})", ["pg_proc"]).fetchall()
    assert {name for (name,) in functions} == set(STATEMENTS) | NO_MODEL
    assert not set(STATEMENTS) & NO_MODEL
    relations = module_conn.execute(
        f"SELECT relname FROM pg_class WHERE relkind IN ('r', 'v') AND oid IN ({members})", ["pg_class"]
    ).fetchall()
    assert {name for (name,) in relations} == set(ROWS) | NO_ROWS_OF_MODELS


def test_every_table_with_rows_of_models_has_a_policy_on_the_page():
    assert [name for name in ROWS if name not in VIEWS and not re.search(rf"\b{name}\b", POLICIES)] == []


def test_names_of_hidden_models_are_nowhere(session):
    """In the doctor's words, the caches' status, or any row that the role can read."""
    warm(session)
    session.execute("SET ROLE north")
    for query in (
        "llm_doctor()",
        "llm_cache_status()",
        "llm_model_sessions()",
        "llm_checkpoint_list()",
        *ROWS,
        *NO_ROWS_OF_MODELS - {"llm_module"},
    ):
        assert session.execute(f"SELECT count(*) FROM {query} AS t WHERE t::text ~ 'south'").fetchone() == (0,), query
