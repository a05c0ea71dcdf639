-- Weight sharing: llm_share_param, llm_unshare_param, llm_param_share, llm_param_resolved.
BEGIN;
SELECT plan(31);

SELECT volatility_is('llm_share_param', '{text,text,integer,text,text,integer}'::name[], 'volatile');
SELECT volatility_is('llm_unshare_param', '{text,text,integer,boolean}'::name[], 'volatile');
SELECT ok(NOT has_function_privilege('public', p.oid, 'EXECUTE'), 'PUBLIC may not call ' || p.proname)
FROM pg_proc AS p WHERE p.proname ~ '^llm_(un)?share_param' ORDER BY p.proname;

SELECT llm_init_model('a', 1, 2, 8, 16, 50, seed => 1);
SELECT llm_init_model('b', 2, 2, 8, 16, 50, seed => 2);
SELECT llm_init_model('wide', 1, 2, 16, 16, 50);
SELECT llm_init_model('small', 1, 2, 8, 16, 40);
UPDATE llm_param SET m = data, v = data, step = 7 WHERE model = 'a';
CREATE TEMPORARY TABLE original AS SELECT * FROM llm_param;

SELECT is(llm_share_param('a', 'wte', 0, 'b'), 1, 'llm_share_param returns the number of blocks');
SELECT results_eq(
    $$SELECT source_model, source_name, source_token_id, target_model, target_name, target_token_id FROM llm_param_share$$,
    $$VALUES ('a', 'wte', 0, 'b', 'wte', 0)$$,
    'name and block are those of the source by default'
);
SELECT is((SELECT count(*) FROM llm_param WHERE model = 'b' AND name = 'wte'), 0::bigint, 'the target''s own row is gone');
SELECT results_eq(
    $$SELECT r.source_model, r.data = o.data, r.m = o.m, r.step FROM llm_param_resolved r JOIN original o ON o.model = 'a' AND o.name = 'wte' WHERE r.model = 'b' AND r.name = 'wte'$$,
    $$VALUES ('a', true, true, 7::bigint)$$,
    'llm_param_resolved has the source''s'
);
SELECT is((SELECT count(*) FROM llm_param_resolved WHERE model = 'b'), (SELECT count(*) FROM original WHERE model = 'b'), 'and as many rows as before');
SELECT is((SELECT count(*) FROM llm_param_resolved WHERE model = source_model AND name = source_name AND token_id = source_token_id), (SELECT count(*) FROM llm_param), 'others are their own source');
SELECT lives_ok($$SELECT llm_loss('b', ARRAY[1], ARRAY[2], training => false)$$, 'the target works');
SELECT is(llm_share_param('a', 'h.0.ln_1.weight', 0, 'b', 'h.1.ln_2.weight', 0), 1, 'under another name');
SELECT is(llm_share_param('a', 'h.0.ln_1.bias', 0, 'b', target_name => 'h.1.ln_2.weight'), 1, 'another source in place of the first');
SELECT is((SELECT count(*) FROM llm_param_share WHERE target_name = 'h.1.ln_2.weight'), 1::bigint, 'of which there is one');

SELECT results_eq(
    $$SELECT n_params::bigint, bytes::bigint FROM llm_models WHERE model = 'b'$$,
    $$SELECT (sum(octet_length(data)) / 4)::bigint, (sum(octet_length(data)) - 4 * (50 * 8 + 8))::bigint FROM original WHERE model = 'b'$$,
    'llm_models counts shared weights, but not their bytes'
);
SELECT throws_ok($$SELECT llm_share_param('a', 'nope', 0, 'b')$$, '42704', NULL, 'an unknown tensor');
SELECT throws_ok($$SELECT llm_share_param('a', 'wte', 1, 'b')$$, '42704', NULL, 'an unknown block');
SELECT throws_ok($$SELECT llm_share_param('nope', 'wte', 0, 'b')$$, '42704', NULL, 'an unknown source');
SELECT throws_ok($$SELECT llm_share_param('a', 'wte', 0, 'nope')$$, '42704', NULL, 'an unknown target');
SELECT throws_ok($$SELECT llm_share_param('b', 'h.1.ln_1.bias', 0, 'a')$$, '42704', NULL, 'a tensor that the target cannot have');
SELECT throws_ok($$SELECT llm_share_param('a', 'wte', 0, 'a')$$, '22023', NULL, 'a model with itself');
SELECT throws_ok($$SELECT llm_share_param('a', 'wte', 0, 'wide')$$, '22023', NULL, 'another width');
SELECT throws_ok($$SELECT llm_share_param('a', 'wte', 0, 'small')$$, '22023', NULL, 'more rows than the target''s block has');
SELECT throws_ok($$SELECT llm_share_param('a', 'wte', NULL, 'small')$$, '22023', NULL, 'more rows than the target has');
SELECT throws_ok($$SELECT llm_share_param(NULL, 'wte', 0, 'b')$$, '22004', NULL, 'source_model null');
SELECT throws_ok($$SELECT llm_drop_model('a')$$, '2BP01', NULL, 'a source in use is not dropped');

SELECT is(llm_unshare_param('b', 'wte'), 1, 'llm_unshare_param');
SELECT is((SELECT ROW(data, m, v, step) FROM llm_param WHERE model = 'b' AND name = 'wte'), (SELECT ROW(data, m, v, step) FROM original WHERE model = 'a' AND name = 'wte'), 'copies weights and optimizer state');
SELECT is(llm_unshare_param('b', 'h.1.ln_2.weight', copy_optimizer_state => false), 1, 'or without that');
SELECT ok((SELECT m IS NULL AND v IS NULL AND step = 0 FROM llm_param WHERE model = 'b' AND name = 'h.1.ln_2.weight'), 'which then starts anew');
SELECT throws_ok($$SELECT llm_unshare_param('b', 'wte')$$, '42704', NULL, 'what is not shared');

SELECT * FROM finish();
ROLLBACK;
