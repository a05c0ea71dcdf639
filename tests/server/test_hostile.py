"""Whatever a function is given, it answers or says what is wrong: a SQLSTATE of its own, a HINT, and the session goes on.

Every parameter of every function in turn takes values that nobody should pass, while the others have good ones.
"""

import os
import random
import re

import psycopg
import pytest

COMBINATIONS = int(os.environ.get("PG_GPT2_COMBINATIONS", "12"))  # of hostile arguments, for each function

HOSTILE = {
    "text": ["''", "'nosuch'", "E'\\x01'", "'🎉é'", "'%s %d {0} $1'", "'''; DROP TABLE t; --'", "repeat('a', 3000)"],
    "integer": ["0", "-1", "1000", "2147483647", "-2147483648"],
    "bigint": ["0", "-1", "9223372036854775807", "-9223372036854775808"],
    "double precision": ["0", "-1", "'NaN'", "'Infinity'", "'-Infinity'", "1e308", "5e-324"],
    "boolean": ["true", "false"],
    "integer[]": ["'{}'", "'{{1,2},{3,4}}'", "'{1,NULL}'", "'{-1}'", "'{2147483647}'", "'[5:6]={1,2}'", "'{{{1}}}'"],
    "bigint[]": ["'{}'", "'{{1,2},{3,4}}'", "'{NULL}'", "'{-1}'", "'{9223372036854775807}'"],
    "double precision[]": ["'{}'", "'{{1,2},{3,4}}'", "'{NULL}'", "'{NaN}'", "'{1e308}'"],
    "real[]": ["'{}'", "'{{1,2}}'", "'{{1,2},{3,4}}'", "'{NULL,1}'", "'{NaN,1}'", "'{Infinity,1e38}'"],
    "text[]": ["'{}'", "'{{a,b},{c,d}}'", "'{NULL}'", "ARRAY['']", "ARRAY[repeat('x', 3000)]"],
    "bytea": ["''", r"'\x00'", r"'\x0000807f'", "decode(repeat('ff', 64), 'hex')", "decode(repeat('00', 4096), 'hex')"],
    "jsonb": ["'{}'", "'[]'", "'null'", "'1e400'", """'{"eps": "x"}'""", """'{"axis": 1e300}'"""],
    "regclass": ["0", "4294967295", "'pg_class'", "'pg_class_oid_index'", "'pg_statistic'"],
    "interval": ["'-1 day'", "'1000 years'", "'170000000 years'"],
}


def vector(n: int) -> str:
    return f"pg_llm_tensor(array_fill(0.5, ARRAY[{n}]))"


SAMPLING = "model_name => 'm', max_tokens => 5, seed => 1"
ATTENTION = f"{vector(8)}, {vector(48)}, {vector(12)}, {vector(16)}, {vector(4)}"  # T 2, D 4
MLP = f"{vector(8)}, {vector(64)}, {vector(16)}, {vector(64)}, {vector(4)}"
BLOCK = f"{ATTENTION}, {vector(64)}, {vector(16)}, {vector(64)}, {vector(4)}" + f", {vector(4)}" * 4
NEW = "model => 'q'"
RUN = '{"config": {"n_layer": 1, "n_head": 1, "d_model": 2, "n_positions": 4, "vocab": 5}, "tied": {}}'
SHARD = (
    '{"batches": [{"tokens": [[1, 2]], "targets": [[2, 3]], "weight": null}], "first_part": 0, "chunk": 64, "seed": 1,'
    ' "step_no": 1, "total": 2, "dropout_p": 0}'
)
ZEROS = "repeat('0000', 96) || repeat('AAAA', 32)"
BEGUN = f"llm_worker_begin('{RUN}') IS NOT NULL"
SENT = f"llm_worker_weights(0, {ZEROS}) = 96"

# Good arguments; a parameter that is not here keeps its default.
EXAMPLES = {
    "llm_generate": f"prompt => 'low', {SAMPLING}",
    "llm_generate_stream": f"prompt => 'low', {SAMPLING}",
    "llm_generate_tokens": f"ids => '{{1,2}}', {SAMPLING}",
    "llm_generate_tokens_sent": "sent => array_send('{1,2}'::int[]), max_tokens => 3, temperature => 1, topk => 5, topp => 1,"
    " model_name => 'm', eos_token => NULL, seed => 1, stop => NULL, repetition_penalty => 1, min_p => 0, options => NULL",
    "llm_generate_batch": f"prompts => '{{low,the}}', {SAMPLING}",
    "llm_generate_rows": f"source => 'VALUES (1, ''low the'')', {SAMPLING}",
    "llm_perplexity_rows": "source => 'VALUES (1, ''low the'')', model_name => 'm'",
    "llm_embedding_rows": "source => 'VALUES (1, ''low the'')', model_name => 'm'",
    "llm_cosine": "a => '{1,2}', b => '{3,4}'",
    "llm_cosine_sent": "count_a => 1, count_b => 2, ndims => 1",
    "llm_beam_search": "prompt => 'low', model_name => 'm', max_tokens => 5",
    "llm_beam_search_sent": "prompt => 'low', beam_width => 2, max_tokens => 5, length_penalty => 1, early_stopping => false,"
    " eos_token => NULL, model_name => 'm', sent => NULL, options => NULL",
    "llm_generate_json": f"prompt => 'low', schema => '{{\"enum\": [1, null]}}', {SAMPLING}",
    "llm_json_schema": "relation => 't'",
    "llm_next_token": "prompt => 'low', model_name => 'm'",
    "llm_logits": "token_ids => '{1,2}', model_name => 'm'",
    "llm_logits_sent": "sent => array_send('{1,2}'::int[]), model_name => 'm', n_layer => NULL, n_head => NULL, d_model => NULL,"
    " vocab_size => NULL",
    "llm_logprobs": "text_in => 'low the', model_name => 'm'",
    "llm_perplexity": "text_in => 'low the', model_name => 'm'",
    "llm_text_embedding": "text_in => 'low the', model_name => 'm'",
    "llm_choose": "prompt => 'low ', choices => '{low,the cat}', model_name => 'm'",
    "llm_classify": "prompt => 'low ', choices => '{low,the cat}', model_name => 'm'",
    "llm_choose_from": "prompt => 'low ', source => 'SELECT x FROM public.t', model_name => 'm'",
    "llm_choose_rows": "source => 'VALUES (1, ''low '')', choices => '{low,the cat}', model_name => 'm'",
    "llm_evaluate_choices": "source => 'VALUES (''low '', ''low'')', choices => '{low,the cat}', model_name => 'm'",
    "llm_encode": "text_in => 'low', model => 'm'",
    "llm_encode_sent": "text_in => 'low', model => 'm', special => false",
    "llm_decode": "ids => '{1,2}', model => 'm'",
    "llm_decode_bytes": "ids => '{1,2}', model => 'm'",
    "llm_decode_sent": "sent => array_send('{1,2}'::int[]), model => 'm', as_text => true",
    "llm_tokenize": "text_in => 'low', model => 'm'",
    "llm_token_count": "text_in => 'low', model => 'm'",
    "llm_bpe_trace": "word => 'low', model => 'm'",
    "llm_train_bpe": f"source => 'SELECT x FROM public.t', vocab_size => 260, {NEW}",
    "llm_init_model": f"{NEW}, n_layer => 1, n_head => 1, d_model => 8, n_positions => 8, vocab => 20",
    "llm_copy_model": "source => 'm', target => 'q'",
    "llm_drop_model": "model => 'm'",
    "llm_adapter_create": "model => 'q', base => 'm', r => 2, targets => '{attn.c_attn,mlp.c_proj}'",
    "llm_adapter_merge": "model => 'fit', target => 'q'",
    "llm_texts_sent": "count => 1",
    "llm_bytes_sent": "size => 1",
    "llm_import_safetensors": f"data => (SELECT string_agg(c, '') FROM llm_export_safetensors('m') AS c), {NEW}",
    "llm_import_safetensors_sent": "data => (SELECT string_agg(c, '') FROM llm_export_safetensors('m') AS c), replace => false,"
    f" {NEW}",
    "llm_import_begin": f'{NEW}, config => \'{{"n_layer": 1, "n_head": 1, "d_model": 8, "n_positions": 8, "vocab": 20}}\'',
    "llm_export_safetensors": "model => 'm'",
    "pg_llm_import_safetensors": f"path => '/etc/passwd', {NEW}",
    "pg_llm_import_npz": f"path => '/etc/passwd', {NEW}",
    "pg_llm_export_safetensors": "path => '/no/such', model => 'm'",
    "pg_llm_export_npz": "path => '/no/such', model => 'm'",
    "pg_llm_load_bpe_vocab": f"path => '/etc/passwd', {NEW}",
    "pg_llm_load_bpe_merges": f"path => '/etc/passwd', {NEW}",
    "llm_dataset_load": "source => 'SELECT repeat(x, 50) FROM public.t', model => 'm', block_size => 16",
    "llm_dataset_load_pairs": "source => 'SELECT * FROM public.t AS a CROSS JOIN public.t AS b', model => 'm'",
    "llm_loss": "model => 'm', tokens => '{1,2}', targets => '{2,3}'",
    "llm_loss_sent": "model => 'm', tokens => array_send('{1,2}'::int[]), targets => array_send('{2,3}'::int[]), n_layer => NULL,"
    " n_head => NULL, d => NULL, vocab => NULL, dropout_p => 0.1, training => true, seed => 1, audit => NULL",
    "llm_evaluate": "model => 'm'",
    "llm_train_step": "model => 'm'",
    "llm_train_step_sent": "model => 'm', batch_id => NULL, n_layer => NULL, n_head => NULL, d => NULL, vocab => NULL,"
    " dropout_p => 0.1, beta1 => 0.9, beta2 => 0.999, eps => 1e-8, wd => 0.01, lr_max => 1e-4, warmup => 0,"
    " total_steps => NULL, grad_clip => NULL, grad_workers => 1, prune_workers => 1, batch => array_send('{1,2}'::int[]),"
    " min_lr => 0, seed => 0, audit => 'tape'",
    "llm_train": "model => 'm', n_steps => 1, batch_size => 2, options => '{\"learning_rate\": 0.001}'",
    "llm_train_run": "model => 'm', n_steps => 1, batch_size => 2, options => '{\"learning_rate\": 0.001}'",
    "llm_train_stop": "model => 'm'",
    "llm_token_embedding": "token_id => 1, model => 'm'",
    "llm_get_model_config": "model => 'm'",
    "llm_grant_usage": "role => 'public'",
    "llm_publish": "publication => 'p', models => '{m}'",
    "llm_embed": "tokens => '{1,2}', model => 'm'",
    "llm_embed_sent": "tokens => array_send('{1,2}'::int[]), model => 'm', d => NULL",
    "llm_forward_gpt2": f"{vector(32)}, 'm', 2, 2, 2, 16",
    "llm_block_forward": f"{BLOCK}, 2, 2, 4",
    "pg_llm_sample": "logits => pg_llm_tensor('{1,2,3}')",
    "pg_llm_add": f"{vector(4)}, {vector(4)}",
    "pg_llm_matmul": f"{vector(6)}, {vector(6)}, 2, 3, 2",
    "pg_llm_gelu": vector(4),
    "pg_llm_gelu_backward": f"{vector(4)}, {vector(4)}",
    "pg_llm_softmax": vector(4),
    "pg_llm_softmax_backward": f"{vector(4)}, {vector(4)}",
    "pg_llm_layernorm": f"{vector(4)}, {vector(4)}, {vector(4)}, 1e-5",
    "pg_llm_layernorm_backward": f"{vector(4)}, {vector(4)}, {vector(4)}, 1e-5",
    "pg_llm_cross_entropy": f"{vector(4)}, 1",
    "pg_llm_cross_entropy_backward": f"{vector(4)}, 1",
    "pg_llm_dropout": f"{vector(4)}, 0.5, true",
    "pg_llm_dropout_backward": f"{vector(4)}, {vector(4)}, {vector(4)}, 0.5, true",
    "pg_llm_transpose": f"{vector(6)}, 2, 3",
    "pg_llm_ones_like": vector(4),
    "pg_llm_zeros_like": vector(4),
    "pg_llm_attention": f"{ATTENTION}, 2, 2, 4",
    "pg_llm_attention_backward": f"{ATTENTION}, {vector(8)}, 2, 2, 4",
    "pg_llm_mlp_backward": f"{MLP}, {vector(8)}, 2, 4",
    "pg_llm_adamw_step": f"{vector(4)}, {vector(4)}, NULL, NULL, 0.1, 0.9, 0.99, 1e-8, 0.01, 1",
    "pg_llm_grad_clip": f"{vector(4)}, 1.0",
    "pg_llm_lr_schedule": "1, 2, 10, 0.1",
    "pg_llm_tensor": "'{1,2}'",
    "pg_llm_tensor_sent": "array_send('{1,2}'::float8[]), 2",
    "pg_llm_values": vector(4),
    "llm_variable": f"{vector(4)}, '{{2,2}}', true",
    "llm_op": "'mul', ARRAY[1,1]",
    "llm_variable_sent": f"{vector(4)}, array_send('{{2,2}}'::int[]), true",
    "llm_op_sent": "'mul', array_send('{1,1}'::bigint[]), '{}'",
    "llm_value": "1",
    "llm_grad": "1",
    "llm_backprop": "start_id => 2",
    "llm_gradcheck": "2",
    "llm_replay_tape": "",
    "llm_tape_dot": "",
    "pg_llm_autograd_track_tensor": f"{vector(4)}, '{{2,2}}', true",
    "pg_llm_autograd_map_param": f"'m', 'ln_f.bias', 0, {vector(16)}",
    "pg_llm_autograd_map_param_sent": f"'m', 'ln_f.bias', 0, {vector(16)}, NULL",
    "llm_materialize_params": "'m'",
    "llm_accumulate_grads": "'m'",
    "llm_prune_autograd_state": "",
    "llm_attention_weights": "'low the', 0, 0, 'm'",
    "llm_logit_lens": "'low the', 'm'",
    "llm_trace": "'low the', 'm'",
    "llm_trace_sent": "array_send('{1,2}'::int[]), 'm'",
    "llm_replay": "(SELECT min(run_id) FROM llm_run)",
    "llm_checkpoint_save": "'m'",
    "llm_checkpoint_attach": "'/no/such.npz', 'new'",
    "llm_checkpoint_load": "'m', 1",
    "llm_checkpoint_list": "",
    "llm_checkpoint_diff": "1, 1",
    "llm_checkpoint_drop": "1",
    "llm_checkpoint_prune": "'m', 1",
    "llm_param_history": "'m', 'wte'",
    "llm_log_prune": "'m'",
    "llm_sparkline": "'{3,2,1}', 3",
    "llm_sparkline_sent": "array_send('{3,2,1}'::float8[]), 3",
    "llm_run_sparkline": "(SELECT min(run_id) FROM llm_run)",
    "llm_share_param": "'y', 'wpe', 0, 'x'",
    "llm_unshare_param": "'x', 'wte'",
    "llm_worker_begin": f"'{RUN}'",
    "llm_worker_weights": f"CASE WHEN {BEGUN} THEN 0 END, {ZEROS}",
    "llm_worker_shard": f"CASE WHEN {BEGUN} AND {SENT} THEN '{SHARD}'::jsonb END",
    "llm_worker_gradients": f"CASE WHEN {BEGUN} AND {SENT} AND (llm_worker_shard('{SHARD}'))[1] > 0 THEN 0 END, 96",
}
PARAMETERS = """
    SELECT proargnames[:pronargs],
        ARRAY(SELECT format_type(coalesce(nullif((SELECT typbasetype FROM pg_type WHERE oid = t), 0), t), NULL)
               FROM unnest(proargtypes) AS t), prokind = 'p'
    FROM pg_proc WHERE proname = %s ORDER BY oid
"""
REFUSED = {
    *("pg_llm_import_safetensors", "pg_llm_import_npz", "pg_llm_export_safetensors", "pg_llm_export_npz"),
    "llm_checkpoint_attach",
    "llm_cosine_sent",
}
REFUSED |= {"pg_llm_load_bpe_vocab", "pg_llm_load_bpe_merges"}  # /etc/passwd is none, and /no/such not there


@pytest.fixture(autouse=True, scope="module")
def model(module_conn):
    module_conn.execute("SET pg_gpt2.tape = 'session'")
    module_conn.execute("CREATE TABLE t AS SELECT 'low lower lowest the cat sat on the mat ' AS x")
    module_conn.execute("SELECT llm_train_bpe('SELECT x FROM t', 270, 'm')")
    module_conn.execute("SELECT llm_init_model('m', 2, 2, 16, 32)")
    module_conn.execute(
        "SELECT llm_copy_model('m', 'x'), llm_copy_model('m', 'y'), llm_share_param('y', 'wte', 0, 'x')"
    )
    module_conn.execute("SELECT llm_copy_model('m', 'base'), llm_adapter_create('fit', 'base', r => 2)")
    module_conn.execute("SELECT llm_dataset_load('SELECT repeat(x, 50) FROM t', 'm', 16, val_fraction => 0.2)")
    module_conn.execute(
        "SELECT llm_checkpoint_save('m'), llm_op('mul', ARRAY[h, h]) FROM llm_variable('\\x0000803f', '{1}', true) AS h"
    )
    module_conn.execute("SET client_min_messages = warning")
    module_conn.execute("SELECT llm_train('m', 2, batch_size => 2)")
    module_conn.execute("SET statement_timeout = '300ms'")  # 2147483647 steps are no error


def arguments(example: str, names: list[str]) -> dict[str, str]:
    """Arguments by name; those without one are named by their places."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(example + ","):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            found.append(example[start:place].strip())
            start = place + 1
    named = [argument.split(" => ", 1) if " => " in argument else [None, argument] for argument in found if argument]
    return {name or names[place]: value for place, (name, value) in enumerate(named)}


def call(conn: psycopg.Connection, function: str, given: dict[str, str], is_procedure: bool) -> None:
    """The call; nothing of it stays, unless it commits."""
    named = ", ".join(f'"{name}" => {value}' for name, value in given.items())
    if is_procedure:
        conn.execute(f"CALL {function}({named})")
    else:
        with conn.transaction(force_rollback=True):
            conn.execute(f"SELECT {function}({named})")


def unexplained(
    conn: psycopg.Connection, function: str, good: dict[str, str], bad: list[dict[str, str]], is_procedure: bool
) -> list[str]:
    """Errors that a call with some of its arguments replaced gave, and that have no SQLSTATE of their own or no hint, or
    in which a null is Python's None."""
    found = []
    for replaced in bad:
        try:
            call(conn, function, {**good, **replaced}, is_procedure)
        except psycopg.errors.QueryCanceled:
            pass
        except psycopg.errors.UndefinedFunction:
            raise  # the test itself is wrong
        except psycopg.Error as error:
            told = f"{error.diag.message_primary} {error.diag.message_detail or ''}"
            if error.sqlstate in (None, "XX000") or not error.diag.message_hint or re.search(r"\bNone\b", told):
                found.append(f"{replaced}: {error.sqlstate} {error.diag.message_primary}")
    return found


@pytest.mark.parametrize("function", EXAMPLES)
def test_every_hostile_value_is_answered_or_explained(module_conn, function):
    names, types, is_procedure = module_conn.execute(PARAMETERS, [function]).fetchone()
    good = arguments(EXAMPLES[function], names)
    if function not in REFUSED:
        module_conn.execute("SET statement_timeout = 0")  # it may take its time, on a busy machine
        call(module_conn, function, good, is_procedure)
        module_conn.execute("SET statement_timeout = '300ms'")
    bad = [{name: value} for name, kind in zip(names, types) for value in ["NULL", *HOSTILE[kind]]]
    assert unexplained(module_conn, function, good, bad, is_procedure) == []


@pytest.mark.parametrize("function", sorted(set(EXAMPLES) - {"llm_train_run"}))
def test_hostile_values_in_several_places_at_once_are_answered_or_explained(module_conn, function):
    names, types, _ = module_conn.execute(PARAMETERS, [function]).fetchone()
    good = arguments(EXAMPLES[function], names)
    choice = random.Random(function)
    places = list(zip(names, types))
    bad = [
        {name: choice.choice(["NULL", *HOSTILE[kind]]) for name, kind in places if choice.random() < 0.4}
        for _ in range(COMBINATIONS)
    ]
    assert unexplained(module_conn, function, good, bad, is_procedure=False) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("threads", value) for value in ("x", "0", "-5", "1e9")),
        *(("max_memory", value) for value in ("lots", "-1GB", "1 XB", "NaN")),
        *(("attention_chunk", value) for value in ("huge", "0")),
        ("autograd", "maybe"),
        *(("audit_keep", value) for value in ("x", "-1")),
    ],
)
def test_a_setting_that_is_no_value_is_named(module_conn, setting, value):
    """By what uses it: loss and training use all of them."""
    statement = "SELECT llm_loss('m', '{1}', '{2}'), llm_train_step('m')"
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("SELECT set_config(%s, %s, true)", [f"pg_gpt2.{setting}", value])
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=setting) as caught, module_conn.transaction():
            module_conn.execute(statement)
    assert value in caught.value.diag.message_primary
    assert caught.value.diag.message_hint


@pytest.mark.parametrize(
    ("size", "fits"), [("1kB", False), ("1000", False), ("0.01MB", False), ("64 MB", True), ("1gb", True)]
)
def test_sizes_are_written_as_the_server_writes_them(module_conn, size, fits):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("SELECT llm_cache_clear()")
        module_conn.execute("SELECT set_config('pg_gpt2.max_memory', %s, true)", [size])
        if fits:
            module_conn.execute("SELECT llm_logits('{1}', 'm')")
        else:
            with pytest.raises(psycopg.errors.OutOfMemory):
                module_conn.execute("SELECT llm_logits('{1}', 'm')")


def test_every_function_with_parameters_has_an_example(module_conn):
    missing = module_conn.execute(
        "SELECT DISTINCT proname FROM pg_depend JOIN pg_proc ON classid = 'pg_proc'::regclass AND objid = pg_proc.oid"
        " WHERE refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2') AND deptype = 'e' AND pronargs > 0"
        " AND proname <> ALL (%s)",
        [list(EXAMPLES)],
    ).fetchall()
    assert missing == []
