-- Weights in and out without files: llm_export_safetensors, llm_import_safetensors; the file functions' arguments.
BEGIN;
SELECT plan(87);
SELECT llm_init_model('a', 2, 2, 8, 16, 50, seed => 3);
CREATE FUNCTION pg_temp.file(model text) RETURNS bytea LANGUAGE sql AS $$ SELECT string_agg(chunk, '') FROM llm_export_safetensors(model) AS chunk $$;
CREATE FUNCTION pg_temp.header(file bytea) RETURNS jsonb LANGUAGE sql AS $$
    SELECT convert_from(substr(file, 9, get_byte(file, 0) + 256 * get_byte(file, 1)), 'UTF8')::jsonb $$;

-- llm_export_safetensors.
SELECT volatility_is('llm_export_safetensors', '{text}'::name[], 'stable');
SELECT is(pg_temp.header(pg_temp.file('a')) -> 'transformer.wte.weight' ->> 'shape', '[50, 8]', 'the names are those of transformers');
SELECT is(pg_temp.header(pg_temp.file('a')) -> 'transformer.h.1.attn.c_attn.weight' ->> 'dtype', 'F32', 'the numbers are float32');
SELECT is((SELECT count(*) FROM jsonb_object_keys(pg_temp.header(pg_temp.file('a'))) AS k WHERE k <> '__metadata__'), 28::bigint, 'all tensors are there');
SELECT throws_ok($$SELECT pg_temp.file('nope')$$, '42704', NULL, 'unknown model');
SELECT throws_ok($$SELECT pg_temp.file('gpt2-small')$$, '55000', NULL, 'no weights');
SELECT throws_ok($$SELECT pg_temp.file(NULL)$$, '22004', NULL, 'model null');

-- llm_import_safetensors.
SELECT volatility_is('llm_import_safetensors', '{bytea,text,boolean}'::name[], 'volatile');
SELECT volatility_is('llm_import_safetensors_sent', '{llm_bytes,text,boolean}'::name[], 'volatile');
SELECT has_domain('llm_bytes', 'the bytes have a type that asks for memory');
SELECT ok(llm_bytes_sent(1), 'llm_bytes_sent: there is room for a byte');
SELECT throws_ok($$SELECT llm_bytes_sent(NULL)$$, '22004', NULL, 'size null');
SELECT throws_ok($$SET LOCAL pg_gpt2.max_memory = '1MB'; SELECT llm_bytes_sent(2000000)$$, '53200', NULL, 'and no room for more than there is');
RESET pg_gpt2.max_memory;
SELECT has_domain('llm_texts', 'texts have a type that counts them');
SELECT ok(llm_texts_sent(1048576), 'llm_texts_sent: so many may be');
SELECT throws_ok($$SELECT llm_texts_sent(1048577)$$, '22023', NULL, 'and no more');
SELECT throws_ok($$SELECT llm_texts_sent(NULL)$$, '22004', NULL, 'count null');
SELECT is(llm_import_safetensors(pg_temp.file('a'), 'b'), 28, 'llm_import_safetensors returns the number of tensors');
SELECT ok(NOT EXISTS (SELECT name, token_id, shape, data FROM llm_param WHERE model = 'a' EXCEPT SELECT name, token_id, shape, data FROM llm_param WHERE model = 'b'), 'the same weights');
SELECT is((SELECT to_jsonb(c) - 'model' - 'init_seed' FROM llm_model_config c WHERE model = 'b'), (SELECT to_jsonb(c) - 'model' - 'init_seed' FROM llm_model_config c WHERE model = 'a'), 'our files bring the configuration');
SELECT throws_ok($$SELECT llm_import_safetensors(pg_temp.file('a'), 'b')$$, '42710', NULL, 'a model that has weights keeps them');
SELECT throws_ok($$SELECT llm_import_safetensors(pg_temp.file('a'), 'b', NULL)$$, '42710', NULL, 'replace null is false');
SELECT llm_init_model('c', 2, 2, 8, 16, 50, seed => 4);
SELECT is(llm_import_safetensors(pg_temp.file('c'), 'b', replace => true), 28, 'unless replace is true');
SELECT is(llm_logits('{1}', 'b'), llm_logits('{1}', 'c'), 'then the weights are the new ones');
INSERT INTO llm_model_config VALUES ('other', 2, 2, 8, 17, 50), ('heads', 2, 4, 8, 16, 50);
SELECT throws_matching($$SELECT llm_import_safetensors(pg_temp.file('a'), 'other')$$, 'wpe', 'a shape that is not the configuration''s is an error that names the tensor');
SELECT throws_ok($$SELECT llm_import_safetensors(pg_temp.file('a'), 'gpt2-small')$$, '22000', NULL, 'also that of a preset');
SELECT throws_matching($$SELECT llm_import_safetensors(pg_temp.file('a'), 'heads')$$, 'n_head = 2', 'another number of heads is an error that names it');
INSERT INTO llm_model_config VALUES ('fits', 2, 2, 8, 16, 50, 49);
SELECT is(llm_import_safetensors(pg_temp.file('a'), 'fits'), 28, 'a configuration that fits is kept');
SELECT is((SELECT eos_token_id FROM llm_model_config WHERE model = 'fits'), 49, 'with its end-of-text token');
SELECT throws_ok($$SELECT llm_import_safetensors('', 'x')$$, '22P02', NULL, 'no bytes');
SELECT throws_ok($$SELECT llm_import_safetensors('PK', 'x')$$, '22P02', NULL, 'no safetensors');
SELECT throws_ok($$SELECT llm_import_safetensors('\xffffffffffffffff00', 'x')$$, '22P02', NULL, 'an impossible header');
SELECT throws_ok($$SELECT llm_import_safetensors(substr(pg_temp.file('a'), 1, 5000), 'x')$$, '22P02', NULL, 'truncated');
SELECT throws_ok($$SELECT llm_import_safetensors(NULL, 'x')$$, '22004', NULL, 'data null');
SELECT throws_ok($$SELECT llm_import_safetensors('', NULL)$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT llm_import_safetensors(pg_temp.file('a'), '')$$, '22023', NULL, 'model empty');
SELECT is((SELECT count(*) FROM llm_models WHERE model IN ('x', '') OR model IN ('other', 'gpt2-small') AND n_params > 0), 0::bigint, 'what failed left nothing');

-- llm_import_begin.
SELECT volatility_is('llm_import_begin', '{text,jsonb,boolean}'::name[], 'volatile');
CREATE FUNCTION pg_temp.insert_ones(model text, config jsonb, replace boolean) RETURNS bigint LANGUAGE sql AS $$
    WITH done AS (
        INSERT INTO llm_param (model, name, token_id, shape, data)
        SELECT insert_ones.model, name, token_id, shape, pg_llm_tensor(array_fill(1, ARRAY[shape[1] * coalesce(shape[2], 1)]))
        FROM llm_import_begin(insert_ones.model, config, replace) RETURNING 1
    ) SELECT count(*) FROM done $$;
CREATE FUNCTION pg_temp.config(n_head integer, more jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('n_layer', 2, 'n_head', n_head, 'd_model', 8, 'n_positions', 16, 'vocab', 50) || more $$;
SELECT is(pg_temp.insert_ones('sent', pg_temp.config(2), NULL), 28::bigint, 'llm_import_begin tells what rows a model has');
SELECT ok(NOT EXISTS (SELECT name, token_id, shape FROM llm_param WHERE model = 'a' EXCEPT SELECT name, token_id, shape FROM llm_param WHERE model = 'sent'), 'the same as llm_init_model makes');
SELECT isnt(llm_logits('{1}', 'sent'), NULL, 'with which it works');
SELECT throws_ok($$SELECT llm_import_begin('sent', pg_temp.config(2))$$, '42710', NULL, 'a model that has weights keeps them');
SELECT throws_matching($$SELECT llm_import_begin('sent', pg_temp.config(4), true)$$, 'config says n_head = 4, and model "sent" has 2', 'and its shape');
SELECT throws_ok($$SELECT llm_import_begin('sent', pg_temp.config(4), true)$$, '22000', NULL, 'as with an import');
SELECT is(pg_temp.insert_ones('sent', pg_temp.config(2, '{"eos_token_id": 49}'), true), 28::bigint, 'with replace, others take their place');
SELECT is((SELECT eos_token_id FROM llm_model_config WHERE model = 'sent'), 49, 'and an end of texts is added, where there was none');
SELECT is(pg_temp.insert_ones('gpt2-small', pg_temp.config(2), false), 28::bigint, 'a preset without weights gives way');
SELECT is((SELECT preset FROM llm_model_config WHERE model = 'gpt2-small'), false, 'and is none then');
SELECT llm_drop_model('gpt2-small');
SELECT llm_adapter_create('light', 'sent', r => 2);
SELECT is(pg_temp.insert_ones('light', '{"base": "sent", "r": 3, "targets": ["mlp.c_fc", "attn.c_proj"]}', true), 8::bigint, 'of an adapter, its own');
SELECT is((SELECT (r, alpha, targets, seed) FROM llm_adapter WHERE model = 'light'), (3, 16::float8, '{mlp.c_fc,attn.c_proj}'::text[], NULL::bigint), 'which may be another then');
SELECT isnt(llm_logits('{1}', 'light'), NULL, 'with which it works');
SELECT throws_ok($$SELECT llm_import_begin('light', pg_temp.config(2), true)$$, '55000', NULL, 'an adapter is no other model');
SELECT throws_ok($$SELECT llm_import_begin('light', '{"base": "a"}', true)$$, '55000', NULL, 'nor of another base');
SELECT throws_ok($$SELECT llm_import_begin('sent', '{"base": "a"}', true)$$, '55000', NULL, 'nor is a model an adapter');
SELECT throws_ok($$SELECT llm_import_begin('nope', '{"base": "a"}', true)$$, '42704', NULL, 'nor what is not there');
SELECT throws_ok(format('SELECT llm_import_begin(%L, %L)', 'x', config), '22023', NULL, config || ' is no configuration')
FROM unnest('{"1","\"a\"","[]","{}","{\"n_layer\": 1}","{\"n_embd\": 1}","{\"base\": \"a\", \"targets\": 1}",
    "[[\"n_layer\", 1], [\"n_head\", 1], [\"d_model\", 8], [\"n_positions\", 8], [\"vocab\", 20]]","[[1, 2]]","{\"base\": 1}",
    "{\"base\": \"a\", \"alpha\": true}","{\"base\": \"a\", \"dropout_p\": false}"}'::text[]) AS config;
SELECT throws_ok($$SELECT llm_import_begin('x', pg_temp.config(1, '{"stop_token_ids": 5}'))$$, '22023', NULL, 'a value of another type');
SELECT throws_ok($$SELECT llm_import_begin('x', pg_temp.config(1, jsonb_build_object('stop_token_ids', array_fill(1, '{1025}'))))$$, '22023', NULL, 'more of them than a row takes');
SELECT throws_ok($$SELECT llm_import_begin('x', pg_temp.config(1, '{"vocab": 2147483647, "d_model": 2147483647}'))$$, '53200', NULL, 'more rows than there is room for');
SELECT throws_ok($$SELECT llm_import_begin(NULL, '{}')$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT llm_import_begin('', '{}')$$, '22023', NULL, 'model empty');
SELECT throws_ok($$SELECT llm_import_begin('x', NULL)$$, '22004', NULL, 'config null');
SELECT is((SELECT count(*) FROM llm_models WHERE model = 'x'), 0::bigint, 'what failed left nothing');

-- Files of the server; tests/server/test_files.py reads and writes real ones.
SELECT throws_ok($$SELECT pg_llm_import_safetensors('/no/such', 'x')$$, '58P01', NULL, 'no such file');
SELECT throws_ok($$SELECT pg_llm_import_npz('/no/such', 'x')$$, '58P01', NULL, 'no such file');
SELECT throws_ok($$SELECT pg_llm_export_safetensors('/no/such/file', 'a')$$, '58P01', NULL, 'no such directory');
SELECT throws_ok($$SELECT pg_llm_export_npz('/no/such/file', 'a')$$, '58P01', NULL, 'no such directory');
SELECT throws_ok($$SELECT pg_llm_import_safetensors('x', 'x')$$, '22023', NULL, 'a relative path');
SELECT throws_ok($$SELECT pg_llm_import_npz('', 'x')$$, '22023', NULL, 'an empty path');
SELECT throws_ok($$SELECT pg_llm_export_safetensors('x', 'a')$$, '22023', NULL, 'a relative path');
SELECT throws_ok($$SELECT pg_llm_export_npz(NULL, 'a')$$, '22004', NULL, 'path null');
SELECT throws_ok($$SELECT pg_llm_import_safetensors('/etc/passwd', NULL)$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT pg_llm_import_npz('/etc/passwd', NULL)$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT pg_llm_export_npz('/tmp/x.npz', 'nope')$$, '42704', NULL, 'unknown model');
SELECT throws_ok($$SELECT pg_llm_export_safetensors('/tmp/x.safetensors', 'gpt2-small')$$, '55000', NULL, 'no weights');
SELECT volatility_is(f, a::name[], 'volatile') FROM (VALUES ('pg_llm_import_safetensors'::name, '{text,text,boolean}')) AS v (f, a);

SELECT * FROM finish();
ROLLBACK;
