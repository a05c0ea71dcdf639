"""What provokes each error of docs/errors.md: statements, the files that some read, and calls of the engine where SQL cannot.

A statement runs in a transaction of its own, which its error undoes, on the models that PREPARE makes: t has a vocabulary, data,
a run and checkpoints, bare has none of that, `e` is a configuration without weights.
"""

import errno
import gzip
import io
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable

import numpy as np
from pg_gpt2 import errors
from pg_gpt2.core import config, gpt2
from pg_gpt2.fast import tape
from pg_gpt2.fast.ops import lookup
from pg_gpt2.formats import checkpoint, hub_config, npz, source
from pg_gpt2.generation.constraints import json_schema
from pg_gpt2.tokenizer.added import AddedToken
from pg_gpt2.tokenizer.bpe import Tokenizer
from pg_gpt2.training import batches, optim, trainer

PREPARE = """
    SET client_min_messages = warning;
    CREATE EXTENSION IF NOT EXISTS plpython3u;
    CREATE TABLE words AS SELECT 'low lower lowest newer wider' AS body, 1 AS n;
    SELECT llm_train_bpe('SELECT body FROM words', 265, 't');
    SELECT llm_init_model('t', 2, 2, 8, 16);
    SELECT llm_dataset_load($$SELECT repeat('low lower ', 50)$$, 't', 8);
    SELECT llm_init_model('bare', 1, 2, 8, 16, 50);
    INSERT INTO llm_dataset (model, tokens, target) SELECT 'bare', '{1,2,3}', '{2,3,4}' FROM generate_series(1, 4);
    SELECT llm_train('t', 3, batch_size => 2, log_every => 0, audit => 'full');
    SELECT llm_checkpoint_save('t');
    SELECT llm_checkpoint_save('t', file_path => '{folder}/c.safetensors');
    INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES ('e', 1, 1, 2, 2, 3);
    SELECT llm_init_model('small', 1, 1, 2, 2, 3);
    SELECT llm_copy_model('bare', 'base'), llm_adapter_create('fit', 'base', r => 2);
    SELECT llm_init_model('held', 1, 1, 2, 2, 3);
    SELECT pg_llm_export_safetensors('{folder}/small.safetensors', 'small');
    CREATE EXTENSION dblink;
    DO $$
    DECLARE place text[];
    BEGIN
        FOREACH place SLICE 1 IN ARRAY ARRAY[ARRAY['self', current_setting('unix_socket_directories'), current_database()],
            ARRAY['empty', current_setting('unix_socket_directories'), 'postgres'], ARRAY['closed', '/nowhere', 'postgres']] LOOP
            EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host %L, port %L, dbname %L)',
                place[1], place[2], current_setting('port'), place[3]);
            EXECUTE format('CREATE USER MAPPING FOR PUBLIC SERVER %I OPTIONS (user %L)', place[1], current_user);
        END LOOP;
    END $$;
"""

# --- files ------------------------------------------------------------------------------------------------------------------

SMALL = config.GPT2Config(1, 1, 2, 2, 3)
WEIGHTS = {name: np.full(shape, 0.5, "<f4") for name, shape in SMALL.param_shapes().items()}


def safetensors(tensors: dict[str, np.ndarray], dtype: str = "F32", **metadata: str) -> bytes:
    """A file in which every tensor is said to be of `dtype`."""
    header: dict[str, object] = {"__metadata__": metadata}
    data = b""
    for name, values in tensors.items():
        offsets = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += values.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, values)
    return file.getvalue()


def npy_of(header: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2, "little") + header.encode()


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may stand twice
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def npz_of(tensors: dict[str, np.ndarray]) -> bytes:
    return zipped(*((f"{name}.npy", npy(values)) for name, values in tensors.items()))


def gzipped(*entries: tuple[str, bytes]) -> bytes:
    return gzip.compress(b"".join(struct.pack("<H", len(name)) + name.encode() + data for name, data in entries))


def with_size_of_directory(size: int) -> bytes:
    data = bytearray(npz_of(WEIGHTS))
    end = data.index(b"PK\x05\x06")
    data[end + 12 : end + 16] = size.to_bytes(4, "little")
    return bytes(data)


def with_compressed_size(size: int) -> bytes:
    data = bytearray(npz_of(WEIGHTS))
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = size.to_bytes(4, "little")
    return bytes(data)


HEADER = "{'descr': %s, 'fortran_order': %s, 'shape': %s}"
MANY = source.MAX_TENSORS + 1

NPZ = {
    "neither": b"neither of the two",
    "directory": with_size_of_directory(11 << 20),
    "members": lambda: zipped(*((f"{i}.npy", b"") for i in range(MANY))),
    "hollow": with_compressed_size(1 << 30),
    "no_npy": zipped(("wte.txt", b"x")),
    "twice": zipped(("wte.npy", npy(WEIGHTS["wte"])), ("wte.npy", npy(WEIGHTS["wte"]))),
    "bzip2": zipped(("wte.npy", npy(WEIGHTS["wte"])), method=zipfile.ZIP_BZIP2),
    "declared": zipped(("wte.npy", npy(WEIGHTS["wte"]) + b"more")),
    "huge": npz_of({"wte": np.zeros((1000, 1000), "<f4")}),
    "cut": npz_of(WEIGHTS)[:-100],
    "magic": zipped(("wte.npy", bytes(100))),
    "version": zipped(("wte.npy", npy_of("", 9))),
    "long_header": zipped(("wte.npy", npy_of(" " * 10_001))),
    "syntax": zipped(("wte.npy", npy_of("{'descr': "))),
    "fields": zipped(("wte.npy", npy_of("{'descr': '<f4'}"))),
    "shape": zipped(("wte.npy", npy_of(HEADER % ("'<f4'", "False", "[1]")))),
    "order": zipped(("wte.npy", npy_of(HEADER % ("'<f4'", "1", "(1,)")))),
    "pickled": zipped(("wte.npy", npy_of(HEADER % ("'|O'", "False", "(1,)")))),
    "record": zipped(("wte.npy", npy_of(HEADER % ("[('a', '<f4')]", "False", "(1,)")))),
    "no_dtype": zipped(("wte.npy", npy_of(HEADER % ("'<f64'", "False", "(1,)")))),
    "short": zipped(("wte.npy", b"\x93NUMPY\x01\x00\xff\x00")),
    "unreadable": zipped(("wte.npy", npy_of("\0"))),
    "integers": npz_of(WEIGHTS | {"wte": np.zeros((3, 2), "<i8")}),
    "gz_twice": gzipped(("a", npy(np.zeros(1, "<f4"))), ("a", npy(np.zeros(1, "<f4")))),
    "gz_fortran": gzipped(("a", npy(np.asfortranarray(np.zeros((2, 2), "<f4"))))),
    "gz_name": gzipped(("n" * 1001, b"")),
    "gz_many": lambda: gzipped(*((f"{i}", npy_of(HEADER % ("'<f4'", "False", "(0,)"))) for i in range(MANY))),
}
SAFETENSORS = {
    "not_one": b"nothing of the kind",
    "no_json": (2).to_bytes(8, "little") + b"{'",
    "dtype": safetensors({name: values.astype("<i4") for name, values in WEIGHTS.items()}, "I32"),
    "head": safetensors(WEIGHTS | {"lm_head.weight": np.zeros((3, 2), "<f4")}),
    "nan": safetensors(WEIGHTS | {"wpe": np.full((2, 2), np.nan, "<f4")}),
    "other_shape": safetensors(WEIGHTS | {"wpe": np.zeros((2, 1), "<f4")}),
    "surplus": safetensors(WEIGHTS | {"h.1.ln_1.bias": np.zeros(2, "<f4")}),
    "lacking": safetensors({name: values for name, values in WEIGHTS.items() if name != "ln_f.bias"}),
    "other_heads": safetensors(WEIGHTS, n_head="2"),
    "turned": safetensors(WEIGHTS | {"h.0.attn.c_attn.weight": np.zeros((6, 2), "<f4")}),
    "no_biases": safetensors({name: values for name, values in WEIGHTS.items() if not name.endswith(".bias")}),
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "both": safetensors(WEIGHTS | {"transformer.wte.weight": WEIGHTS["wte"]}),
}
WITHOUT_CONFIGURATION = {
    "one_dimension": safetensors({"wte": np.zeros(3, "<f4")}, n_head="1"),
    "no_wte": safetensors({"wpe": WEIGHTS["wpe"]}, n_head="1"),
    "heads": safetensors(WEIGHTS, n_head="3"),
    "no_count": safetensors(WEIGHTS, n_head="many"),
    "no_value": safetensors(WEIGHTS, n_head="1", n_inner="many"),
    "no_heads": safetensors(WEIGHTS),
}
VOCABULARIES = {
    "large": bytes((8 << 20) + 1),
    "list": b"[]",
    "twice": b'{"a": 1, "a": 2}',
    "latin1": b'{"\xe9": 1}',
    "cut": b'{"a": 1',
    "id": b'{"a": "1"}',
    "empty_token": b'{"": 1}',
    "same_id": b'{"a": 1, "b": 1}',
    "digits": b'{"a": ' + b"9" * 4300 + b"}",
}
MERGES = {"three": b"a b c\n", "empty": b"\n"}
FILES: dict[str, bytes | Callable[[], bytes]] = {
    **{f"{name}.npz": data for name, data in NPZ.items()},
    **{f"{name}.safetensors": data for name, data in (SAFETENSORS | WITHOUT_CONFIGURATION).items()},
    **{f"{name}.json": data for name, data in VOCABULARIES.items()},
    **{f"{name}.txt": data for name, data in MERGES.items()},
}

# --- statements -------------------------------------------------------------------------------------------------------------

SCHEMAS = [
    "[]",
    '{"multipleOf": 3}',
    '{"type": "text"}',
    '{"type": "integer", "minimum": 2, "maximum": 1}',
    '{"type": "string", "minLength": 9999}',
    '{"pattern": "a$b"}',
    '{"pattern": "(a+b+)+", "maxLength": 999}',
    '{"minimum": 1e60}',
    f'{{"enum": [{"[" * 50}{"]" * 50}]}}',
    '{"items": ' * 40 + '{"type": "null"}' + "}" * 40,
]

VARIABLE = "llm_variable(pg_llm_tensor('{1,2}'), '{2}', true)"
RECORD = f"SELECT llm_op('gelu', ARRAY[{VARIABLE}]);"
TAPE = "tape_id = llm_tape_id()"
T_RUN = "(SELECT min(run_id) FROM llm_run WHERE model = 't')"
BARE_RUN = "(SELECT max(run_id) FROM llm_run WHERE model = 'bare')"
STEP = "SELECT llm_train_step('bare');"
FIRST = "(SELECT min(id) FROM llm_checkpoint)"
IN_FILE = "(SELECT max(id) FROM llm_checkpoint)"
ONES = "pg_llm_tensor('{1,1,1,1}')"
T_STEP = "SELECT llm_train_step('t', lr_max => 0.1);"
UNSAFE = "SET LOCAL session_replication_role = replica;"  # without the foreign keys
SHARED = "SELECT llm_share_param('t', 'ln_f.weight', 0, 'bare', 'ln_f.weight');"


def op(name: str, shapes: list[tuple[int, ...]], extra: str = "{}") -> str:
    """A call of an op on ones."""
    handles = ", ".join(
        f"llm_variable(pg_llm_tensor(array_fill(1, ARRAY[{int(np.prod(shape))}])), ARRAY{list(shape)}, true)"
        for shape in shapes
    )
    return f"SELECT llm_op('{name}', ARRAY[{handles}]::bigint[], '{extra}')"


def on_servers(workers: str = '"self"', more: str = "") -> str:
    """A step on several servers."""
    return (
        "SELECT llm_train('bare', 1, batch_size => 2, log_every => 0, options =>"
        f' \'{{"workers": [{workers}], "shards": 2{more}}}\')'
    )


def hooked(what: str, statement: str) -> str:
    """`statement` in a session whose modules were changed, as only a disk or another session can make it happen."""
    return f"""
        SELECT count(*) FROM llm_doctor();
        CREATE FUNCTION hook() RETURNS void LANGUAGE plpython3u AS $hook$
import importlib, sys
package = next(name for name in sys.modules if name.startswith('pg_gpt2_') and '.' not in name)
def module(name):
    return importlib.import_module(package + '.' + name)
{what}
        $hook$;
        SELECT hook();
        {statement}
    """


STATEMENTS = [
    # Generating and scoring
    "SELECT llm_generate('low', NULL, model_name => 't')",
    "SELECT llm_generate('low', echo => NULL, model_name => 't')",
    "SELECT llm_generate('low', temperature => NULL, model_name => 't')",
    "SELECT llm_generate('low', temperature => 'inf', model_name => 't')",
    "SELECT llm_generate('low', topp => 2, model_name => 't')",
    "SELECT llm_generate('low', -1, model_name => 't')",
    "SELECT llm_generate('low', eos_token => 9999, model_name => 't')",
    "SELECT llm_generate('low', stop => ARRAY[''], model_name => 't')",
    "SELECT llm_generate('low', stop => ARRAY[repeat('z', 100000)], model_name => 't')",
    "SELECT llm_generate('low', options => '{\"top\": 1}', model_name => 't')",
    "SELECT llm_generate('low', options => '{\"top_k\": 1.5}', model_name => 't')",
    "SELECT llm_generate('low', topk => 5, options => '{\"top_k\": 1}', model_name => 't')",
    "SELECT llm_generate('low', options => '{\"top_k\": 1, \"topk\": 2}', model_name => 't')",
    "SELECT llm_generate('low', options => '[]', model_name => 't')",
    "SELECT llm_generate('low', options => jsonb_build_object('top_k', 1e5000), model_name => 't')",
    "SELECT llm_generate('low', options => jsonb_build_object('x', repeat('x', 2000000)), model_name => 't')",
    "SELECT llm_generate('low', options => '{\"suppress_tokens\": [9999]}', model_name => 't')",
    "SELECT llm_generate_tokens('{1}', 60, options => '{\"no_repeat_ngram_size\": 1}', model_name => 'bare')",
    "SELECT * FROM llm_beam_search('low', options => '{\"top_k\": 1}', model_name => 't')",
    "SELECT llm_generate('low', 2, options => '{\"regex\": \"[ab]{3}c\"}', model_name => 't')",
    "SELECT llm_generate('low', options => '{\"regex\": \"(a\"}', model_name => 't')",
    "SELECT llm_generate('low', options => '{\"regex\": \"[^\\\\w\\\\W]\"}', model_name => 't')",
    'SELECT llm_generate(\'low\', options => \'{"regex": "a", "choices": ["a"]}\', model_name => \'t\')',
    "SELECT llm_generate('low', stop => '{a}', options => '{\"regex\": \"a\"}', model_name => 't')",
    "SELECT llm_generate('low', options => jsonb_build_object('regex', repeat('a?', 20000)), model_name => 't')",
    "SELECT llm_generate('', options => jsonb_build_object('regex', repeat('(', 300) || repeat('a)*', 300)), model_name => 't')",
    "SELECT llm_generate('low', eos_token => 64, options => '{\"regex\": \"a\"}', model_name => 't')",
    *(f"SELECT llm_generate_json('low', '{schema}', model_name => 't')" for schema in SCHEMAS),
    "SELECT llm_generate_json('low', jsonb_build_object('x', repeat('x', 2000000)), model_name => 't')",
    "SELECT llm_generate('low', options => '{\"json_schema\": 3}', model_name => 't')",
    "SELECT llm_generate_json('low', '{\"type\": \"null\"}', options => '{\"regex\": \"a\"}', model_name => 't')",
    "SELECT llm_generate('low', options => jsonb_build_object('json_schema', (repeat('[', 200) || repeat(']', 200))::jsonb),"
    " model_name => 't')",
    "SELECT llm_json_schema('llm_param_pkey')",
    "SELECT llm_json_schema(4294967295)",
    "CREATE TABLE photo (data bytea NOT NULL); SELECT llm_json_schema('photo')",
    "CREATE TABLE never (n integer NOT NULL CHECK (n = 1.5)); SELECT llm_json_schema('never')",
    "CREATE TABLE nested_0 (a integer); DO $$BEGIN FOR n IN 1..40 LOOP"
    " EXECUTE format('CREATE TABLE nested_%s (a nested_%s)', n, n - 1); END LOOP; END$$; SELECT llm_json_schema('nested_40')",
    "SELECT llm_generate_tokens('{}', model_name => 't')",
    "SELECT llm_generate_tokens('{1,77}', model_name => 'bare')",
    "SELECT llm_generate_tokens(array_fill(1, '{1048577}'), model_name => 'bare')",
    "SELECT llm_logits('{{1},{2}}', 'bare')",
    "SELECT llm_generate('low', stop => '{{a},{b}}', model_name => 't')",
    "SELECT llm_logits_sent('\\x00', 'bare', NULL, NULL, NULL, NULL)",
    "UPDATE llm_model_config SET eos_token_id = NULL; DELETE FROM llm_bpe_vocab WHERE token = '<|endoftext|>';"
    " SELECT llm_perplexity('low', 't', from_start => true)",
    "SELECT llm_generate('low', model_name => 'bare')",
    "SELECT llm_generate('low', model_name => 'gpt2-small')",
    "SELECT llm_generate('low', model_name => 'nosuch')",
    "SELECT * FROM llm_beam_search('low', prompt_ids => '{1}', model_name => 't')",
    "SELECT * FROM llm_beam_search('low', 1000000, model_name => 't')",
    "SELECT * FROM llm_beam_search('low', length_penalty => 'nan', model_name => 't')",
    "SELECT * FROM llm_beam_search('low', max_tokens => 100, model_name => 't')",
    "SELECT * FROM llm_next_token('low', 0, model_name => 't')",
    "SELECT * FROM llm_next_token('low', temperature => 0, model_name => 't')",
    "SELECT * FROM llm_choose('low', '{a,NULL}', model_name => 't')",
    "SELECT * FROM llm_choose('low', ARRAY['a', ''], model_name => 't')",
    "SELECT * FROM llm_choose('low', '{low}', 'mean', model_name => 't')",
    "SELECT * FROM llm_choose('low', ARRAY[repeat('low ', 20)], model_name => 't')",
    "SELECT * FROM llm_choose('lo', '{w}', model_name => 't')",
    "SELECT * FROM llm_choose_from('low', 'SELECT $$w$$ FROM generate_series(1, 1048577)', model_name => 't')",
    "SELECT llm_logits('{}', 'bare')",
    "SELECT llm_logits(array_fill(1, '{17}'), 'bare')",
    "SELECT llm_logits('{1}', 'bare', n_layer => 7)",
    "SELECT llm_logits('{{1,2},{3,4}}', 'bare')",
    "UPDATE llm_param SET data = decode(repeat('0000c07f', 400), 'hex') WHERE model = 'bare' AND name = 'wte';"
    " SELECT llm_generate_tokens('{1}', model_name => 'bare')",
    "SELECT llm_init_model('q', 1, 1, 1, 30000, 10000); SELECT llm_logits(array_fill(1, '{30000}'), 'q')",
    "DELETE FROM llm_param WHERE model = 'bare' AND name = 'ln_f.bias'; SELECT llm_logits('{1}', 'bare')",
    "SELECT llm_text_embedding('low', 9, model_name => 't')",
    "SELECT llm_text_embedding('low', pooling => 'max', model_name => 't')",
    "SELECT * FROM llm_attention_weights('low', 9, 0, 't')",
    # The tokenizer
    "SELECT llm_train_bpe(NULL, 300, 'q')",
    "SELECT llm_train_bpe('SELECT body FROM words', 9, 'q')",
    "SELECT llm_train_bpe('SELECT body FROM words', 300, 't')",
    "SELECT llm_train_bpe('SELECT body FROM words', 300, 'bare')",
    "SELECT llm_train_bpe('SELECT body FROM words; SELECT 1', 300, 'q')",
    "SELECT llm_train_bpe('SELECT n FROM words', 300, 'q')",
    "SELECT llm_train_bpe('SELECT body FROM words', 300, 'q', ',')",
    "SELECT * FROM llm_perplexity_rows('SELECT body FROM words', 't')",
    "SELECT * FROM llm_perplexity_rows('SELECT body, n FROM words', 't')",
    "SELECT * FROM llm_perplexity_rows('SELECT n, body FROM words; SELECT 1', 't')",
    "SELECT * FROM llm_perplexity_rows('UPDATE words SET n = 2 RETURNING n, body', 't')",
    "SELECT * FROM llm_bpe_trace(repeat('l', 2001), 't')",
    "SELECT llm_token_count(repeat('low', 6000000), 't')",
    "SELECT llm_decode('{1,NULL}', 't')",
    "SELECT llm_decode('{{1},{2}}', 't')",
    "SELECT llm_decode(array_fill(1, '{1048577}'), 't')",
    "SELECT llm_decode_sent('\\x00', 't', true)",
    "SELECT llm_encode(repeat('q', 1048577), 't')",
    "UPDATE llm_bpe_vocab SET bytes = decode(repeat('61', 1048576), 'hex') WHERE model = 't' AND token_id = 3;"
    " SELECT llm_decode_bytes(array_fill(3, '{1100}'), 't')",
    "UPDATE llm_bpe_vocab SET bytes = decode(repeat('61', 1048577), 'hex') WHERE model = 't' AND token_id = 3;"
    " SELECT llm_decode('{3}', 't')",
    "SELECT llm_decode('{9999}', 't')",
    "DELETE FROM llm_bpe_vocab WHERE token = 'l'; SELECT llm_encode('l l', 't')",
    "DELETE FROM llm_bpe_vocab WHERE token = '<|endoftext|>'; SELECT llm_encode('<|endoftext|>', 't', special => true)",
    *(f"SELECT pg_llm_load_bpe_vocab('{{folder}}/{name}.json', 'q')" for name in VOCABULARIES),
    *(f"SELECT pg_llm_load_bpe_merges('{{folder}}/{name}.txt', 'q')" for name in MERGES),
    # Models
    "SELECT llm_init_model(NULL)",
    "SELECT llm_init_model('')",
    "SELECT llm_init_model('q')",
    "SELECT llm_init_model('t')",
    "SELECT llm_init_model('q', seed => NULL)",
    "SELECT llm_init_model('q', 0, 1, 8, 8, 8)",
    "SELECT llm_init_model('q', 1000000, 1, 8, 8, 8)",
    "SELECT llm_init_model('q', 1, 3, 8, 8, 8)",
    "SELECT llm_train_bpe('SELECT body FROM words', 262, 'q'); SELECT llm_init_model('q', 1, 1, 8, 8, 8)",
    "SELECT llm_drop_model('nosuch')",
    "SELECT llm_drop_model('smal')",
    "SELECT llm_drop_model('gpt2-small')",
    "UPDATE llm_model_config SET model = 'q' WHERE model = 't'",
    "SET pg_gpt2.max_memory = '1MB'; SELECT llm_init_model('q', 12, 12, 768, 1024, 50257)",
    "SELECT llm_init_model('q', 2, 4, 256, 64, 280), llm_init_model('r', 2, 4, 256, 64, 280); SET pg_gpt2.max_memory = '24MB';"
    """ SELECT llm_generate_tokens('{1}', 1, model_name => 'q', options => '{"draft_model": "r"}')""",
    """SELECT llm_init_model('q', 1, 1, 2, 2, 4); SELECT llm_generate_tokens('{1}', 1, model_name => 'small',
        options => '{"draft_model": "q"}')""",
    """SELECT llm_init_model('q', 1, 1, 2, 2, 3); INSERT INTO llm_bpe_vocab (model, token_id, token, bytes)
        VALUES ('q', 0, 'a', 'a'), ('small', 0, 'b', 'b');
        SELECT llm_generate_tokens('{1}', 1, model_name => 'small', options => '{"draft_model": "q"}')""",
    """SELECT * FROM llm_generate_batch('{a}', 1, options => '{"draft_model": "t"}')""",
    """SELECT * FROM llm_generate_batch('{a}', 1, options => '{"prompt_ids": [1]}')""",
    """SELECT * FROM llm_generate_rows($$SELECT 1, 'a'$$, 1, options => '{"prompt_ids": [1]}')""",
    """SELECT llm_generate('a', 1, options => '{"prompt_ids": [1]}')""",
    "SELECT * FROM llm_token_embedding(-1, 'bare')",
    "UPDATE llm_param SET shape = '{10,8}', data = substr(data, 1, 320) WHERE model = 'bare' AND name = 'wte';"
    " SELECT llm_token_embedding(40, 'bare')",
    "SELECT llm_grant_usage('nosuch')",
    "SELECT llm_publish('')",
    hooked("module('server.api.publishing')._has_filters = lambda: True", "SELECT llm_publish('p', '{}')"),
    hooked("module('server.api.publishing')._has_filters = lambda: True", "SELECT llm_publish('p', '{t,fit}')"),
    "CREATE PUBLICATION theirs FOR TABLE words; SELECT llm_publish('theirs')",
    hooked("module('server.api.publishing')._has_filters = lambda: False", "SELECT llm_publish('p', '{t}')"),
    "CREATE TRIGGER t BEFORE INSERT ON words FOR EACH ROW EXECUTE FUNCTION llm_model_config_changed();"
    " INSERT INTO words VALUES ('lowly', 2)",
    "SELECT llm_grant_usage('public', 'all')",
    "SELECT llm_grant_usage('')",
    # Settings
    "SET pg_gpt2.threads = 'many'; SELECT llm_logits('{1}', 'bare')",
    "SET pg_gpt2.max_memory = 'lots'; SELECT llm_train('bare', 1)",
    "SET pg_gpt2.audit_keep = '-1'; SELECT llm_train('bare', 1)",
    "SET pg_gpt2.autograd = 'maybe'; SELECT llm_loss('bare', '{1}', '{2}')",
    "SET pg_gpt2.tape = 'mine'; SELECT llm_tape_id()",
    # Weights in and out
    *(f"SELECT pg_llm_import_npz('{{folder}}/{name}.npz', 'e')" for name in NPZ),
    *(f"SELECT pg_llm_import_safetensors('{{folder}}/{name}.safetensors', 'e')" for name in SAFETENSORS),
    *(f"SELECT pg_llm_import_safetensors('{{folder}}/{name}.safetensors', 'q')" for name in WITHOUT_CONFIGURATION),
    "SELECT llm_import_begin('q', '{\"n_embd\": 8}')",
    "SELECT llm_import_begin('bare', '{\"base\": \"base\"}', true)",
    "SELECT pg_llm_import_npz(NULL, 'q')",
    "SELECT pg_llm_import_npz('relative.npz', 'q')",
    "SELECT pg_llm_import_npz('/no/such', 'q')",
    "SELECT pg_llm_import_npz('/' || repeat('long/', 1000), 'q')",
    "SELECT pg_llm_import_npz('/dev/null', 'q')",
    "SELECT pg_llm_import_npz('/' || repeat('long', 100), 'q')",
    "CREATE ROLE nobody_here; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO nobody_here; GRANT pg_read_all_data"
    " TO nobody_here; SET ROLE nobody_here; SELECT pg_llm_export_npz('/x', 'bare')",
    "CREATE ROLE fast_only; GRANT SELECT ON ALL TABLES IN SCHEMA public TO fast_only; SET ROLE fast_only;"
    " SET pg_gpt2.fast = off; SELECT llm_logits('{1}', 'bare')",
    "DELETE FROM llm_param WHERE model = 'bare' AND name = 'ln_f.bias'; SELECT count(*) FROM llm_export_safetensors('bare')",
    # Sharing
    "SELECT llm_share_param('t', 'wte', NULL, 't')",
    "SELECT llm_share_param('t', 'nosuch', NULL, 'bare')",
    "SELECT llm_share_param('t', 'wte', NULL, 'bare', 'nosuch')",
    "SELECT llm_share_param('t', 'wte', NULL, 'bare')",
    "SELECT llm_unshare_param('t', 'wte')",
    f"{SHARED} SELECT llm_drop_model('t')",
    f"{SHARED} DELETE FROM llm_param WHERE model = 't'; SELECT llm_unshare_param('bare', 'ln_f.weight', NULL)",
    "SELECT llm_share_param('t', 'ln_f.weight', 0, 'bare', 'ln_f.weight', 3)",
    "UPDATE llm_param SET shape = '{20,8}', data = substr(data, 1, 640) WHERE model = 'bare' AND name = 'wte'; INSERT INTO"
    " llm_param (model, name, token_id, shape, data) VALUES ('bare', 'wte', 20, '{30,8}', decode(repeat('00', 960), 'hex'));"
    " SELECT llm_share_param('bare', 'wte', NULL, 't', 'wte', 3)",
    "SELECT llm_share_param('t', 'ln_f.weight', 0, 'bare', 'ln_f.weight');"
    " SELECT llm_share_param('t', 'ln_f.weight', 0, 'bare', 'ln_f.bias'); SELECT llm_train_step('bare')",
    # Adapters
    "SELECT llm_adapter_create('q', 'bare', r => 0)",
    "SELECT llm_adapter_create('q', 'bare', alpha => 'nan')",
    "SELECT llm_adapter_create('q', 'bare', targets => '{attn}')",
    "SELECT llm_adapter_create('q', 'bare', dropout_p => 1)",
    "SELECT llm_adapter_create('q', 'fit')",
    "SELECT llm_adapter_create('e', 'bare')",
    "SELECT llm_drop_model('base')",
    "SELECT llm_adapter_merge('bare', 'q')",
    "SELECT llm_unshare_param('fit', 'wte', NULL)",
    "SELECT llm_train_bpe('SELECT body FROM words', 265, 'fit')",
    "DELETE FROM llm_param WHERE model = 'base'; SELECT llm_logits('{1}', 'fit')",
    "INSERT INTO llm_checkpoint (model, step, note, n_params, bytes, config, file_path, manifest) SELECT 'fit', step, note,"
    " n_params, bytes, config, '/elsewhere', manifest FROM llm_checkpoint WHERE file_path IS NOT NULL LIMIT 1;"
    " SELECT llm_checkpoint_load('fit', max(id)) FROM llm_checkpoint",
    "SELECT llm_checkpoint_save('fit'); UPDATE llm_checkpoint SET config = config || '{\"n_positions\": 8}' WHERE model = 'fit';"
    " SELECT llm_checkpoint_load('fit', max(id)) FROM llm_checkpoint",
    # Data and training
    "SELECT llm_dataset_load(NULL, 't', 8)",
    "SELECT llm_dataset_load('SELECT body FROM words', 't', 0)",
    "SELECT llm_dataset_load('SELECT body FROM words', 't', 8, 'test')",
    "SELECT llm_dataset_load('SELECT body FROM words', 't', 8, val_fraction => 1)",
    "SELECT llm_dataset_load('SELECT body FROM words', 't', 1000)",
    "SELECT llm_dataset_load('VALUES (''low'')', 't', 16)",
    "SELECT llm_dataset_load('VALUES ('''')', 't', 16, pack => false)",
    "UPDATE llm_model_config SET eos_token_id = NULL; DELETE FROM llm_bpe_vocab WHERE token = '<|endoftext|>';"
    " SELECT llm_dataset_load('SELECT body FROM words', 't', 4)",
    "SELECT llm_dataset_load_pairs('SELECT body, body FROM words', 't', 17)",
    "SELECT llm_dataset_load_pairs('SELECT body FROM words', 't')",
    "SELECT llm_dataset_load_pairs('SELECT n, body FROM words', 't')",
    "SELECT llm_dataset_load_pairs('SELECT body, body, 1::money FROM words', 't')",
    "SELECT llm_dataset_load_pairs('DELETE FROM words RETURNING body, body', 't')",
    "SELECT llm_dataset_load_pairs('SELECT NULL::text, body FROM words', 't')",
    "SELECT llm_evaluate_choices('SELECT body FROM words', '{low}', model_name => 't')",
    "SELECT llm_evaluate_choices('SELECT body, body FROM words', model_name => 't')",
    "SELECT llm_evaluate_choices('SELECT n, body FROM words', '{low}', model_name => 't')",
    "SELECT llm_evaluate_choices('SELECT body, body, n FROM words', model_name => 't')",
    "SELECT llm_evaluate_choices('DELETE FROM words RETURNING body, body', '{low}', model_name => 't')",
    "SELECT llm_loss('t', '{1}', '{-100}')",
    "SELECT count(*) FROM llm_export_safetensors(NULL)",
    "SELECT llm_evaluate('bare')",
    *(
        f"INSERT INTO llm_dataset (model, tokens, target) VALUES ('small', '{row}', '{row}'); SELECT llm_train_step('small')"
        for row in ("{NULL}", "{1,1,1}", "{7}")
    ),
    "SELECT llm_loss('bare', '{1,2}', '{1}')",
    "SELECT llm_loss('bare', '{1}', '{2}', dropout_p => 1)",
    "SELECT llm_train_step('bare', 1, batch => '{1}')",
    "SELECT llm_train_step('bare', batch => '{}')",
    "SELECT llm_train_step('bare', batch => array_fill(1, '{65537}'))",
    "SELECT llm_train_step('bare', -7)",
    "SELECT llm_train_step('bare', lr_max => NULL)",
    "SELECT llm_train_step('bare', lr_max => -1)",
    "SELECT llm_train_step('bare', beta1 => 1)",
    "SELECT llm_train_step('bare', eps => -1)",
    "SELECT llm_train_step('bare', grad_clip => 0)",
    "SELECT llm_train_step('bare', audit => 'some')",
    "SELECT llm_train_step('bare', lr_max => 1e200)",
    "SELECT llm_train('bare', 5, lr_max => 1e20, warmup => 0)",
    "SELECT llm_train('bare', 1, batch_size => 2000000)",
    "SELECT llm_train('bare', 1, batch_size => 2, options => '{\"shards\": 3}')",
    "SELECT llm_train('bare', 1, options => '{\"workers\": [\"self\"]}')",
    "SELECT llm_train('bare', 1, audit => 'none', options => '{\"sync_every\": 2}')",
    "SELECT llm_train('bare', 1, options => '{\"shards\": 2, \"sync_every\": 2}')",
    "SELECT llm_train('bare', 1, options => '{\"outer_lr\": 1}')",
    on_servers('"self", "self"'),
    "DROP EXTENSION dblink CASCADE; " + on_servers(),
    on_servers('"nosuch"'),
    "CREATE ROLE guest; SELECT llm_grant_usage('guest', 'train'); SET ROLE guest; " + on_servers(),
    "CREATE SCHEMA apart; ALTER EXTENSION dblink SET SCHEMA apart; CREATE ROLE guest; SELECT llm_grant_usage('guest', 'train');"
    " SET ROLE guest; " + on_servers(),
    on_servers('"closed"'),
    on_servers('"empty"'),
    on_servers(more=', "worker_timeout": 1e-9'),
    "SET pg_gpt2.fast = off; " + on_servers(),
    "SELECT llm_worker_begin('{}')",
    "SELECT llm_worker_gradients(0, 1)",
    "SELECT llm_train('bare', 1, eval_every => -1)",
    "SELECT llm_train('bare', 1, options => '{\"adam_beta3\": 1}')",
    "SELECT llm_train('bare', 1, wd => 0.5, options => '{\"weight_decay\": 0.1}')",
    "SELECT llm_train('bare', 1, options => '{\"patience\": 3}')",
    "SELECT llm_train('bare', 1, eval_every => 1, options => '{\"min_delta\": 0.1}')",
    "SELECT llm_train('bare', 1, min_lr => 0.1, options => '{\"lr_schedule\": \"constant\"}')",
    "SELECT llm_train('bare', 1, eval_every => 1, options => '{\"keep_best\": true}')",
    "CALL llm_train_run('bare', 1, flush_seconds => -1)",
    "BEGIN; CALL llm_train_run('bare', 1)",
    "UPDATE llm_param SET m = '\\x00000000' WHERE model = 'bare' AND name = 'wte'; SELECT llm_train_step('bare')",
    "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
    " $$BEGIN UPDATE public.llm_param SET step = step + 1; RETURN NEW; END$$;"
    " CREATE TRIGGER meddle BEFORE INSERT ON llm_run FOR EACH ROW EXECUTE FUNCTION meddle();"
    " SELECT llm_train_step('bare')",
    "UPDATE llm_dataset SET model = NULL WHERE model = 'bare';"
    " CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN UPDATE public.llm_param SET data ="
    " overlay(data PLACING '\\x0000003f' FROM 1) WHERE model = 'base' AND name = 'ln_f.bias'; RETURN NEW; END$$;"
    " CREATE TRIGGER meddle BEFORE INSERT ON llm_run FOR EACH ROW EXECUTE FUNCTION meddle();"
    " SELECT llm_train_step('fit')",
    "SELECT llm_log_prune(older_than => '-1 day')",
    "SELECT llm_run_sparkline(-1)",
    # Checkpoints and runs
    "SELECT llm_checkpoint_load('t', -1)",
    f"SELECT llm_checkpoint_load('bare', {FIRST})",
    f"UPDATE llm_checkpoint SET config = '{{}}'; SELECT llm_checkpoint_load('t', {FIRST})",
    f"{T_STEP} UPDATE llm_checkpoint_blob SET data = data || '\\x00'; SELECT llm_checkpoint_load('t', {FIRST})",
    f"UPDATE llm_checkpoint SET file_path = '{{folder}}/small.safetensors' WHERE id = {IN_FILE};"
    f" SELECT llm_checkpoint_load('t', {IN_FILE})",
    f"{UNSAFE} {T_STEP} DELETE FROM llm_checkpoint_blob; SELECT * FROM llm_checkpoint_diff({FIRST})",
    f"UPDATE llm_checkpoint_part SET shape = '{{NULL}}'; SELECT llm_checkpoint_load('t', {FIRST})",
    f"UPDATE llm_checkpoint_part SET token_id = token_id + 1; SELECT llm_checkpoint_load('t', {FIRST})",
    "UPDATE llm_param SET shape = '{20,8}', data = substr(data, 1, 640) WHERE model = 'bare' AND name = 'wte'; INSERT INTO"
    " llm_param (model, name, token_id, shape, data) VALUES ('bare', 'wte', 20, '{30,8}', decode(repeat('00', 960), 'hex'));"
    " SELECT llm_checkpoint_save('bare'); UPDATE llm_checkpoint_part SET shape = '{30,4}' WHERE name = 'wte' AND token_id = 20;"
    f" UPDATE llm_param SET data = overlay(data PLACING '\\x00' FROM 1); SELECT * FROM llm_checkpoint_diff({IN_FILE})",
    "DELETE FROM llm_checkpoint; SELECT llm_checkpoint_load('base', llm_checkpoint_attach('{folder}/c.safetensors', 'base'))",
    "SELECT llm_checkpoint_attach('{folder}/small.safetensors')",
    "SELECT llm_checkpoint_attach('{folder}/altered.safetensors')",
    "SELECT llm_checkpoint_attach('{folder}/c.safetensors')",
    "SELECT llm_checkpoint_save('t', file_path => '/tmp/x.bin')",
    "SELECT llm_checkpoint_save('t', file_path => '{folder}/small.safetensors')",
    "DELETE FROM llm_param WHERE model = 'bare' AND name = 'ln_f.bias'; SELECT llm_checkpoint_save('bare')",
    "SELECT llm_checkpoint_prune('t', -1)",
    "SELECT * FROM llm_param_history('t', 'nosuch')",
    "SELECT llm_replay(-1)",
    f"SELECT llm_replay({T_RUN}, to_step => 9)",
    f"SELECT llm_replay({T_RUN}, {FIRST}, 2)",
    f"SELECT llm_checkpoint_save('bare'); SELECT llm_replay({T_RUN}, {IN_FILE})",
    "SELECT llm_train('bare', 2, batch_size => 2, audit => 'none', options => '{\"shards\": 2, \"sync_every\": 2}');"
    " SELECT llm_checkpoint_save('bare'); UPDATE llm_checkpoint SET step = step - 1 WHERE model = 'bare';"
    f" SELECT llm_replay({BARE_RUN}, {IN_FILE})",
    f"UPDATE llm_run SET config = '[]'; SELECT llm_replay({T_RUN})",
    f"{STEP} UPDATE llm_run SET first_step = 7; SELECT llm_replay({BARE_RUN})",
    f"{STEP} SELECT llm_checkpoint_save('bare'); {STEP} SELECT llm_replay({BARE_RUN}, {IN_FILE}, 1)",
    f"DELETE FROM llm_train_log; SELECT llm_replay({T_RUN})",
    f"DELETE FROM llm_checkpoint; UPDATE llm_model_config SET init_seed = NULL; SELECT llm_replay({T_RUN})",
    f"{STEP} UPDATE llm_train_log SET config = '{{}}' WHERE run_id = {BARE_RUN}; SELECT llm_replay({BARE_RUN})",
    f"{STEP} {STEP} DELETE FROM llm_train_log WHERE run_id = {BARE_RUN} AND step = 1; SELECT llm_replay({BARE_RUN})",
    # Tape and gradients
    "SELECT llm_backprop()",
    "SELECT llm_backprop(-1)",
    "SELECT llm_value(-1)",
    f"{RECORD} SELECT llm_backprop(model => 'bare')",
    "SELECT llm_op('gelu', ARRAY[llm_variable(pg_llm_tensor('{1}'), '{1}', false)]); SELECT llm_backprop()",
    f"{RECORD} UPDATE llm_tensor_rt SET shape = '{{{{2,2}},{{1,1}}}}' WHERE {TAPE}; SELECT llm_backprop()",
    f"{RECORD} UPDATE llm_tensor_rt SET data = '\\x00' WHERE {TAPE}; SELECT llm_backprop()",
    f"{RECORD} UPDATE llm_tensor_rt SET data = NULL WHERE {TAPE}; SELECT llm_backprop()",
    f"{RECORD} UPDATE llm_tensor_rt SET data = NULL WHERE {TAPE}; SELECT llm_value(max(id)) FROM llm_tensor_rt",
    f"{RECORD} UPDATE llm_tape SET inputs = '{{{{1}},{{2}}}}' WHERE {TAPE}; SELECT llm_backprop()",
    f"{RECORD} UPDATE llm_tape SET inputs = '{{-5}}' WHERE {TAPE}; SELECT llm_backprop()",
    f"{op('matmul', [(2, 2), (2, 2)])}; UPDATE llm_tensor_rt SET shape = '{{4}}' WHERE {TAPE} AND id = "
    f"(SELECT max(inputs[1]) FROM llm_tape WHERE {TAPE}); SELECT llm_backprop()",
    "SELECT llm_op('gelu', ARRAY[NULL]::bigint[])",
    "SELECT llm_op('nosuch', '{}')",
    "SELECT llm_op('concat', array_fill(1::bigint, '{4097}'))",
    op("gelu", [(2,), (2,)]),
    op("gelu", [(2,)], '{"x": 1}'),
    op("gelu", [(2,)], "[]"),
    op("sum", [(2,)], '{"axis": "x"}'),
    op("sum", [(2,)], '{"axis": 9}'),
    op("slice", [(2,)], "{}"),
    op("sum", [(2,)], f'{{"axis": 1{"0" * 5000}}}'),
    op("transpose", [(2, 2)], '{"axes": [0, 0]}'),
    op("slice", [(2,)], '{"axis": 0, "start": 1, "stop": 9}'),
    op("matmul", [(2, 2), (3, 3)]),
    op("embedding", [(2, 2)], '{"ids": [7]}'),
    op("embedding", [(2, 2)], '{"ids": []}'),
    op("cross_entropy", [(2, 2)], '{"target": [0]}'),
    op("cross_entropy", [(2, 2)], '{"target": [0, 1], "weight": [1]}'),
    op("cross_entropy", [(2, 2)], '{"target": [0, 1], "weight": [1, 0]}'),
    op("attention", [(2, 2), (2, 2), (2,), (2, 2), (2,)], '{"n_head": 1}'),
    "SELECT llm_op('matmul', ARRAY[llm_variable(b, '{20000,1}', true), llm_variable(b, '{1,20000}', true)])"
    " FROM decode(repeat('00', 80000), 'hex') AS b",
    "SELECT llm_variable('\\x00', '{1}', true)",
    "SELECT llm_variable(pg_llm_tensor('{1,2}'), '{0}', true)",
    "SELECT llm_variable('\\x00000000', array_fill(1, '{17}'), true)",
    op("embedding", [(2, 2)], f'{{"ids": {"[" * 16}1{"]" * 16}}}'),
    op("reshape", [(1,)], f'{{"shape": {[1] * 17}}}'),
    "SELECT llm_variable(pg_llm_tensor('{1,2}'), '{3}', true)",
    "SELECT llm_variable('\\x00000000', array_fill(1, '{17}'), true)",
    op("embedding", [(2, 2)], f'{{"ids": {"[" * 60}0{"]" * 60}}}'),
    f"SELECT pg_llm_autograd_map_param('bare', 'nosuch', 0, {ONES})",
    "SELECT pg_llm_autograd_map_param('bare', 'ln_f.bias', 0, pg_llm_tensor('{1,1,1,1}'), '{4}')",
    "SET pg_gpt2.autograd = on; SELECT pg_llm_autograd_map_param('bare', 'ln_f.bias', 0,"
    " pg_llm_tensor('{1,1,1,1,1,1,1,1}'), '{2,4}'); SELECT llm_loss('bare', '{1}', '{2}')",
    f"{RECORD} SELECT * FROM llm_gradcheck((SELECT max(output) FROM llm_tape WHERE {TAPE}), 7)",
    "SELECT llm_tape_dot(-1)",
    f"{STEP} SELECT * FROM llm_replay_tape((SELECT max(tape_id) FROM llm_tape))",
    "SELECT array_fill('a'::text, '{1048577}')::llm_texts",
    # Kernels
    "SELECT pg_llm_tensor('{NULL}')",
    "SELECT pg_llm_tensor('{}')",
    "SELECT pg_llm_tensor('{1e300}')",
    "SELECT pg_llm_tensor(array_fill(1, '{4194305}'))",
    "SELECT pg_llm_tensor_sent('\\x00', 2)",
    "SELECT pg_llm_values(decode(repeat('00', 4194308), 'hex'))",
    "SELECT pg_llm_softmax(decode(repeat('00', 16777220), 'hex'))",
    "SELECT pg_llm_sample(decode(repeat('00', 4194308), 'hex'))",
    f"SELECT pg_llm_attention({ONES}, {ONES}, {ONES}, {ONES}, {ONES}, 1, 1048577, 1)",
    f"SELECT pg_llm_matmul({ONES}, {ONES}, 0, 1, 1)",
    "SELECT pg_llm_matmul('', '', 100000, 1, 100000)",
    "SELECT pg_llm_gelu('')",
    f"SELECT pg_llm_add({ONES}, pg_llm_tensor('{{1,1,1}}'))",
    f"SELECT pg_llm_gelu_backward({ONES}, pg_llm_tensor('{{1}}'))",
    f"SELECT pg_llm_layernorm({ONES}, {ONES}, {ONES}, -1)",
    f"SELECT pg_llm_softmax({ONES}, 3)",
    f"SELECT pg_llm_attention({ONES}, {ONES}, {ONES}, {ONES}, {ONES}, 3, 1, 4)",
    f"SELECT pg_llm_adamw_step(NULL, {ONES}, NULL, NULL, 1, 0.9, 0.9, 1, 0, 1)",
    f"SELECT pg_llm_adamw_step({ONES}, {ONES}, NULL, NULL, 1, 0.9, 0.9, 1, 0, 0)",
    f"SELECT pg_llm_adamw_step({ONES}, {ONES}, NULL, NULL, 1, 1, 0.9, 1, 0, 1)",
    f"SELECT pg_llm_adamw_step({ONES}, {ONES}, NULL, NULL, 1, 0.9, 0.9, -1, 0, 1)",
    f"SELECT pg_llm_grad_clip({ONES}, 0)",
    "SELECT pg_llm_lr_schedule(1, -1, 1, 1)",
    "SELECT pg_llm_sample(pg_llm_tensor('{NaN}'))",
    "SELECT llm_embed(array_fill(1, '{17}'), 'bare')",
]

# What only another session, a disk or a machine can make happen: each in a session of its own. Model held is held by another.
HOOKED = [
    hooked(
        "publications = module('server.storage.publications')\npublications._published = lambda: [('p', {'bare'})]",
        "SELECT llm_share_param('t', 'wte', NULL, 'bare')",
    ),
    "CALL llm_train_run('held', 1)",
    hooked(
        "module('server.resources').SMALL = 0; module('server.resources').available_memory = lambda: 0",
        "SELECT llm_train('bare', 1)",
    ),
    hooked(
        "mapped = module('server.storage.mapped'); mapped.PROCESSES = '/nowhere'",
        "SELECT * FROM llm_model_sessions()",
    ),
    hooked(
        "module('server.storage.checkpoint_removal').drop = lambda model, ids: 0",
        f"SELECT llm_checkpoint_drop({FIRST})",
    ),
    hooked(
        "def full(**options): raise OSError(28, 'No space left on device')\n"
        "module('server.storage.server_files').tempfile = type('tempfile', (), {'mkstemp': staticmethod(full)})",
        "SELECT pg_llm_export_npz('{folder}/x.npz', 'bare')",
    ),
    hooked(
        "module('server.storage.checkpoint_files').sha256 = lambda data: b''",
        "SELECT llm_checkpoint_save('bare', file_path => '{folder}/x.npz')",
    ),
    hooked(
        "module('server.api.transfer')._Stored._check = lambda self: None",
        "DELETE FROM llm_param WHERE model = 'bare' AND name = 'ln_f.bias';"
        " SELECT pg_llm_export_safetensors('{folder}/x.safetensors', 'bare')",
    ),
    hooked(  # llm_train_run asks, which no statement in a transaction with a role of its own can call
        "module('server.training.runs').train = lambda *_: module('server.training.best')._require_rights()",
        "CREATE ROLE keeps_nothing; SELECT llm_grant_usage('keeps_nothing', 'train'); SET ROLE keeps_nothing;"
        " SELECT llm_train('bare', 1)",
    ),
    hooked(
        "data = module('server.training.datasets'); data.row_ids = lambda *_: data.np.asarray([-1])",
        "SELECT llm_train('bare', 1)",
    ),
    hooked("module('server.training.worker').HELLO = \"SELECT 1 WHERE false --\"", on_servers()),
    hooked(
        "worker = module('server.training.worker')\nworker.HELLO = worker.HELLO.replace('extversion FROM', \"'0.9' FROM\")",
        on_servers(),
    ),
    *(
        hooked(
            "environment = module('server.training.environment')\nhere = environment.current() | "
            f"{{'{what}': 'another'}}\nenvironment.current = lambda: here",
            on_servers(),
        )
        for what in ("sources", "blas")
    ),
]

# --- calls ------------------------------------------------------------------------------------------------------------------


def _gone() -> None:
    """A value that was forgotten, after the backward pass that still could compute it."""
    run = tape.Tape(keep=False)
    x = run.leaf(np.ones(2, np.float32), requires_grad=True)
    y = run.apply("gelu", x)
    y.data = None  # as the tape does with what is spent
    run.backward(run.apply("gelu", y))
    run.apply("gelu", y)


class Broken(io.BytesIO):
    """A file on a disk, or for a memory, that fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        raise self.error


def refused(number: int) -> None:
    """What the operating system refuses."""
    raise errors.of_system(OSError(number, os.strerror(number)), "the file")


HUB = hub_config.fields_of(SMALL)

CALLS: list[Callable[[], object]] = [
    lambda: refused(errno.EMFILE),
    lambda: refused(errno.ENOMEM),
    lambda: hub_config.read_config(b"[]"),
    lambda: hub_config.config_of(HUB | {"model_type": "bert"}),
    lambda: hub_config.config_of(HUB | {"activation_function": "mish"}),
    lambda: hub_config.config_of(HUB | {"n_inner": 0}),
    lambda: hub_config.config_of(HUB | {"layer_norm_epsilon": 0}),
    lambda: hub_config.config_of(HUB | {"tie_word_embeddings": 1}),
    lambda: hub_config.config_of(HUB | {"n_layer": "x"}),
    lambda: hub_config.config_of(HUB | {"hidden_size": 4}),
    lambda: hub_config.config_of(HUB | {"n_head": 3}),
    lambda: checkpoint.agreed("m", SMALL, {"eos_token_id": 9}, "config.json"),
    lambda: config.GPT2Config(1, 1, 2, 2, 3, 7),
    lambda: config.GPT2Config(1, 1, 2, 2, 3, activation_function="mish"),
    lambda: config.GPT2Config(1, 1, 2, 2, 3, n_inner=0),
    lambda: config.GPT2Config(1, 1, 2, 2, 3, layer_norm_epsilon=0),
    lambda: config.GPT2Config(1, 1, 2, 2, 3, tie_word_embeddings=1),
    lambda: config.GPT2Config(1, 1, 2, 2, 3, stop_token_ids=(7,)),
    lambda: config.GPT2Config(1, 1, 2, 2, 3, stop_token_ids=(1,) * 1025),
    lambda: Tokenizer.of({0: b"a"}, [], added={0: AddedToken("a" * 257)}),
    lambda: json_schema.parse('{"minimum": 1e-9999999999999999999}'),
    lambda: Tokenizer.of({}, []),
    lambda: Tokenizer.of({0: b"a"}, []).encode("\ud800"),
    lambda: npz.NpzReader(io.BytesIO(npz_of({"a": np.zeros((0, 2), "<f4")}))).rows("a", 0, 0),
    lambda: npz.NpzReader(io.BytesIO(npz_of({"a": np.zeros(2, "<f4")}))).rows("a", 1, 3),
    lambda: source.read_exactly(Broken(MemoryError()), 1, "the file"),
    lambda: source.read_exactly(Broken(OSError(5, "Input/output error")), 1, "the file"),
    lambda: list(npz.exact_blocks("wte", (2, 2), [np.zeros((1, 2), "<f4")])),
    lambda: lookup("gelu")(np.ones(2), nosuch=1),
    lambda: lookup("embedding")(np.ones((2, 2)), ids=[0.5]),
    lambda: tape.Tape().backward(tape.Tape().leaf(np.ones(2))),
    _gone,
    lambda: gpt2.check_window(0, SMALL),
    lambda: batches.BatchOrder(1, 0),
    lambda: batches.BatchOrder(1, 1).rows(0, 1),
    lambda: trainer.Trainer(SMALL, dict(WEIGHTS)).gradients([]),
    lambda: optim.clip_scale(1.0, 0.0),
]
