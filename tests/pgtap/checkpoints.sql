-- Checkpoints: llm_checkpoint_save, _load, _list, _drop, _prune, _diff, llm_param_history, llm_copy_model from a checkpoint.
BEGIN;
SELECT plan(63);

SELECT llm_init_model('a', 1, 2, 8, 16, 50, seed => 1);
SELECT llm_init_model('b', 1, 2, 8, 16, 50, seed => 2);
CREATE TEMPORARY TABLE original AS SELECT * FROM llm_param;

SELECT volatility_is('llm_checkpoint_save', '{text,text,text}'::name[], 'volatile');
SELECT volatility_is('llm_checkpoint_load', '{text,integer}'::name[], 'volatile');
SELECT volatility_is('llm_checkpoint_list', '{text}'::name[], 'stable');
SELECT volatility_is('llm_checkpoint_diff', '{integer,integer}'::name[], 'stable');
SELECT volatility_is('llm_param_history', '{text,text}'::name[], 'stable');
SELECT is(has_function_privilege('public', p.oid, 'EXECUTE'), p.proname ~ '(list|diff|history)$', 'PUBLIC and ' || p.proname)
FROM pg_proc AS p WHERE p.proname ~ '^llm_(checkpoint_|param_history|copy_model)' ORDER BY p.proname;

-- Saving and listing. Ids are of a sequence, which a rollback does not turn back.
CREATE TEMPORARY TABLE made AS SELECT llm_checkpoint_save('a') AS one;
SELECT results_eq(
    $$SELECT id, model, step, run_id, note, n_params, bytes, file_path FROM llm_checkpoint_list()$$,
    $$SELECT one, 'a', 0::bigint, NULL::bigint, '', 1416::bigint, 5664::bigint, NULL::text FROM made$$,
    'a checkpoint of a new model'
);
SELECT is((SELECT count(*) FROM llm_checkpoint_part), 16::bigint, 'a part for each row of llm_param');
SELECT ok((SELECT bool_and(sha256(data) = digest) FROM llm_checkpoint_blob), 'blobs are kept under their SHA-256');
SELECT is((SELECT config FROM llm_checkpoint), '{"n_layer": 1, "n_head": 2, "d_model": 8, "n_positions": 16, "vocab": 50, "eos_token_id": null, "stop_token_ids": null}'::jsonb, 'with the configuration');
ALTER TABLE made ADD two integer;
UPDATE llm_param SET m = data, v = data, step = 5, data = overlay(data PLACING '\x00000041' FROM 1) WHERE model = 'a' AND name = 'wpe';
UPDATE made SET two = llm_checkpoint_save('a', note => 'wpe touched');
SELECT is((SELECT ROW(step, note, bytes)::text FROM llm_checkpoint_list('a') OFFSET 1), '(5,"wpe touched",6688)', 'moments count');
SELECT is((SELECT count(*) FROM llm_checkpoint_list('b')), 0::bigint, 'none of another model');
SELECT throws_ok($$SELECT * FROM llm_checkpoint_list('nosuch')$$, '42704', NULL, 'a name of no model is not one without checkpoints');
SELECT is((SELECT count(*) FROM llm_checkpoint_blob), (SELECT count(DISTINCT b) FROM original, unnest(ARRAY[data]) AS b WHERE model = 'a') + 1, 'what both have is stored once');

-- Loading.
SELECT is(llm_checkpoint_load('a', one), 0::bigint, 'llm_checkpoint_load returns the step') FROM made;
SELECT set_eq($$SELECT * FROM llm_param$$, $$SELECT * FROM original$$, 'everything is as it was');
SELECT is(llm_checkpoint_load('a', two), 5::bigint, 'and forward again') FROM made;
SELECT is((SELECT count(*) FROM llm_param WHERE m IS NOT NULL OR v IS NOT NULL), 1::bigint, 'moments that were null are null');
SELECT is((SELECT m FROM llm_param WHERE model = 'a' AND name = 'wpe'), (SELECT data FROM original WHERE model = 'a' AND name = 'wpe'), 'the others are as they were');
SELECT results_eq(
    $$SELECT model, checkpoint_id, source, step, run_id, after_run FROM llm_checkpoint_restore ORDER BY id$$,
    $$SELECT 'a', one, 'a', 0::bigint, NULL::bigint, 0::bigint FROM made UNION ALL SELECT 'a', two, 'a', 5, NULL, 0 FROM made$$,
    'loads are logged'
);
SELECT throws_ok($$SELECT llm_checkpoint_load('b', one) FROM made$$, '22023', NULL, 'a checkpoint of another model');
SELECT throws_ok($$SELECT llm_checkpoint_load('a', -1)$$, '42704', 'pg_gpt2: checkpoint -1 does not exist', 'an unknown checkpoint');
SELECT throws_ok($$SELECT llm_checkpoint_load('a', NULL)$$, '22004', NULL, 'checkpoint_id null');
SELECT throws_ok($$SELECT llm_checkpoint_load(NULL, one) FROM made$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT llm_checkpoint_save('nope')$$, '42704', NULL, 'an unknown model');
SELECT throws_ok($$SELECT llm_checkpoint_save('gpt2-small')$$, '55000', NULL, 'a model without weights');
SELECT throws_ok($$SELECT llm_checkpoint_save(NULL)$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT llm_checkpoint_save('a', NULL)$$, '22004', NULL, 'note null');
SELECT throws_ok($$SELECT llm_checkpoint_save('a', '', '/x.pt')$$, '22023', NULL, 'a file of unknown format');
SELECT throws_ok($$SELECT llm_checkpoint_save('a', '', 'x.npz')$$, '22023', NULL, 'a relative path');
SELECT throws_ok($$SELECT llm_checkpoint_save('a', '', '/nowhere/x.npz')$$, '58P01', NULL, 'a directory that is not there');
SELECT throws_ok($$SELECT llm_checkpoint_attach('/nowhere/x.npz')$$, '58P01', NULL, 'a file that is not there');
SELECT throws_ok($$SELECT llm_checkpoint_attach(NULL)$$, '22004', NULL, 'no file');

-- Forks.
SELECT lives_ok($$SELECT llm_copy_model('a', 'fork', one) FROM made$$, 'a fork');
SELECT set_eq(
    $$SELECT name, token_id, shape, data, m, v, step FROM llm_param WHERE model = 'fork'$$,
    $$SELECT name, token_id, shape, data, m, v, step FROM original WHERE model = 'a'$$,
    'has what the model had'
);
SELECT throws_ok($$SELECT llm_copy_model('b', 'x', one) FROM made$$, '22023', NULL, 'a fork from a checkpoint of another model');
SELECT throws_ok($$SELECT llm_copy_model('a', 'b', one) FROM made$$, '42710', NULL, 'a target that has weights');
SELECT throws_ok($$SELECT llm_copy_model('a', 'x', -1)$$, '42704', NULL, 'a fork from an unknown checkpoint');

-- Differences.
SELECT results_eq(
    $$SELECT name, l2_norm > 0 AND relative > 0 AND max_abs_diff = l2_norm FROM made, llm_checkpoint_diff(one, two) WHERE changed$$,
    $$VALUES ('wpe', true)$$,
    'llm_checkpoint_diff finds the one value that changed'
);
SELECT is((SELECT count(*) FROM made, llm_checkpoint_diff(two)), 16::bigint, 'every tensor has a row');
SELECT is((SELECT count(*) FROM made, llm_checkpoint_diff(two) WHERE changed), 0::bigint, 'without b, with what the model has now');
SELECT throws_ok($$SELECT * FROM llm_checkpoint_diff(-1)$$, '42704', NULL, 'an unknown checkpoint');
SELECT throws_ok($$SELECT * FROM llm_checkpoint_diff(NULL)$$, '22004', NULL, 'a null');
SELECT results_eq(
    $$SELECT event, last_step, changed FROM llm_param_history('a', 'wpe')$$,
    $$VALUES ('checkpoint', 0::bigint, NULL::boolean), ('checkpoint', 5, true), ('load', 0, NULL), ('load', 5, NULL), ('now', 5, false)$$,
    'llm_param_history'
);
SELECT throws_ok($$SELECT * FROM llm_param_history('a', 'nope')$$, '42704', NULL, 'an unknown tensor');
SELECT throws_ok($$SELECT * FROM llm_param_history('nope', 'wpe')$$, '42704', NULL, 'an unknown model');

-- Removing.
SELECT throws_ok($$SELECT llm_checkpoint_drop(-1)$$, '42704', NULL, 'an unknown checkpoint');
SELECT throws_ok($$SELECT llm_checkpoint_drop(NULL)$$, '22004', NULL, 'null');
SELECT lives_ok($$SELECT llm_checkpoint_drop(one) FROM made$$, 'a checkpoint is dropped');
SELECT throws_ok($$SELECT llm_checkpoint_prune('a', -1)$$, '22023', NULL, 'keep_last below 0');
SELECT throws_ok($$SELECT llm_checkpoint_prune('a', 0, 0)$$, '22023', NULL, 'keep_every 0');
SELECT throws_ok($$SELECT llm_checkpoint_prune('nope', 1)$$, '42704', NULL, 'an unknown model');
SELECT is(llm_checkpoint_prune('a', 1), 0, 'the last one stays');
SELECT is(llm_checkpoint_prune('a', 0), 1, 'llm_checkpoint_prune returns how many it removed');
SELECT is((SELECT count(*) FROM llm_checkpoint_blob) + (SELECT count(*) FROM llm_checkpoint_part), 0::bigint, 'and nothing is left');

SELECT * FROM finish();
ROLLBACK;
