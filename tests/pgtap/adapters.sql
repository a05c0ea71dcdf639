-- Adapters: llm_adapter_create, llm_adapter_merge, llm_adapter, and what llm_models says of them.
BEGIN;
SELECT plan(34);

SELECT volatility_is('llm_adapter_create', '{text,text,integer,double precision,text[],double precision,bigint}'::name[], 'volatile');
SELECT volatility_is('llm_adapter_merge', '{text,text}'::name[], 'volatile');
SELECT ok(NOT has_function_privilege('public', p.oid, 'EXECUTE'), 'PUBLIC may not call ' || p.proname)
FROM pg_proc AS p WHERE p.proname ~ '^llm_adapter_' ORDER BY p.proname;

SELECT llm_init_model('base', 2, 2, 8, 16, 50, seed => 1);
CREATE TEMPORARY TABLE original AS SELECT *, ctid AS place, xmin AS written FROM llm_param;

SELECT lives_ok($$SELECT llm_adapter_create('a', 'base', r => 2, alpha => 4, targets => '{attn.c_attn,mlp.c_proj}', seed => 7)$$, 'an adapter');
SELECT results_eq(
    $$SELECT model, base, r, alpha, targets, dropout_p, seed FROM llm_adapter$$,
    $$VALUES ('a', 'base', 2, 4::double precision, '{attn.c_attn,mlp.c_proj}'::text[], 0::double precision, 7::bigint)$$,
    'what it was asked for'
);
SELECT results_eq(
    $$SELECT name, shape FROM llm_param WHERE model = 'a' ORDER BY name COLLATE "C"$$,
    $$VALUES ('h.0.attn.c_attn.lora_A', '{8,2}'::integer[]), ('h.0.attn.c_attn.lora_B', '{2,24}'), ('h.0.mlp.c_proj.lora_A', '{32,2}'),
             ('h.0.mlp.c_proj.lora_B', '{2,8}'), ('h.1.attn.c_attn.lora_A', '{8,2}'), ('h.1.attn.c_attn.lora_B', '{2,24}'),
             ('h.1.mlp.c_proj.lora_A', '{32,2}'), ('h.1.mlp.c_proj.lora_B', '{2,8}')$$,
    'its own tensors'
);
SELECT is((SELECT count(*) FROM llm_param_share WHERE target_model = 'a' AND source_model = 'base'), (SELECT count(*) FROM original), 'and those of its base');
SELECT results_eq(
    $$SELECT base, n_params::bigint, bytes::bigint FROM llm_models WHERE model = 'a'$$,
    $$SELECT 'base', (SELECT sum(octet_length(data)) / 4 FROM original)::bigint + 288, 288 * 4::bigint$$,
    'llm_models: the base, weights of both, bytes of its own'
);
SELECT is((SELECT base FROM llm_models WHERE model = 'base'), NULL, 'a model that is no adapter has no base');
SELECT is(llm_logits('{1,2}', 'a'), llm_logits('{1,2}', 'base'), 'at first it is its base');
SELECT lives_ok($$SELECT llm_adapter_create('again', 'base', r => 2, alpha => 4, targets => '{attn.c_attn,mlp.c_proj}', seed => 7)$$, 'another one');
SELECT is(
    (SELECT count(*) FROM llm_param AS x JOIN llm_param AS y USING (name, token_id, data) WHERE x.model = 'a' AND y.model = 'again'),
    8::bigint, 'the same seed makes the same weights'
);
SELECT results_eq(
    $$SELECT r, alpha, targets, dropout_p, seed FROM llm_adapter WHERE model = 'again'$$,
    $$VALUES (2, 4::double precision, '{attn.c_attn,mlp.c_proj}'::text[], 0::double precision, 7::bigint)$$,
    'as asked for'
);

UPDATE llm_param SET data = pg_llm_tensor(array_fill(0.5, shape)) WHERE model = 'a' AND name LIKE '%lora_B';
SELECT isnt(llm_logits('{1,2}', 'a'), llm_logits('{1,2}', 'base'), 'with other weights it is another model');
SELECT lives_ok($$SELECT llm_adapter_merge('a', 'merged')$$, 'llm_adapter_merge');
SELECT is((SELECT base FROM llm_models WHERE model = 'merged'), NULL, 'which makes an ordinary model');
SELECT ok(
    (SELECT max(abs(x - y)) < 1e-5 FROM unnest(pg_llm_values(llm_logits('{1,2}', 'a')), pg_llm_values(llm_logits('{1,2}', 'merged'))) AS l (x, y)),
    'of the same results'
);
SELECT is((SELECT count(*) FROM llm_adapter WHERE model = 'a'), 1::bigint, 'the adapter stays');
SELECT is((SELECT count(*) FROM llm_param AS p JOIN original AS o USING (model, name, token_id) WHERE p.ctid = o.place AND p.xmin = o.written), (SELECT count(*) FROM original), 'and no row of the base was touched');

SELECT throws_ok($$SELECT llm_adapter_create('a', 'base')$$, '42710', NULL, 'a name with weights');
SELECT throws_ok($$SELECT llm_adapter_create('gpt2-small', 'base')$$, '42710', NULL, 'a name with a configuration');
SELECT throws_ok($$SELECT llm_adapter_create('x', 'nope')$$, '42704', NULL, 'an unknown base');
SELECT throws_ok($$SELECT llm_adapter_create('x', 'gpt2-small')$$, '55000', NULL, 'a base without weights');
SELECT throws_ok($$SELECT llm_adapter_create('x', 'a')$$, '0A000', NULL, 'an adapter of an adapter');
SELECT throws_ok($$SELECT llm_adapter_create('', 'base')$$, '22023', NULL, 'an empty name');
SELECT throws_ok($$SELECT llm_adapter_create(NULL, 'base')$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT llm_adapter_create('x', 'base', targets => NULL)$$, '22004', NULL, 'targets null');
SELECT throws_ok($$SELECT llm_adapter_create('x', 'base', targets => '{attn.c_attn,attn.c_attn}')$$, '22023', NULL, 'a target twice');
SELECT throws_ok($$SELECT llm_adapter_create('x', 'base', r => 0)$$, '22023', NULL, 'no rank');
SELECT throws_ok($$SELECT llm_adapter_merge('base', 'x')$$, '55000', NULL, 'what is no adapter');
SELECT throws_ok($$SELECT llm_adapter_merge('a', 'base')$$, '42710', NULL, 'a target that has weights');
SELECT throws_ok($$SELECT llm_drop_model('base')$$, '2BP01', NULL, 'a base is not dropped');
SELECT lives_ok($$SELECT llm_drop_model(model) FROM llm_adapter ORDER BY model$$, 'its adapters are');

SELECT * FROM finish();
ROLLBACK;
