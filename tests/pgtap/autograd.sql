-- Handles: a transformer block written in SQL and differentiated, against torch (tests/golden/block.json); errors; the mode.
-- pg_prove runs this from the root of the checkout.
BEGIN;
SELECT plan(70);
\set golden `cat tests/golden/block.json`
CREATE TEMPORARY TABLE golden AS SELECT :'golden'::jsonb AS j;
CREATE FUNCTION pg_temp.numbers(list jsonb) RETURNS double precision[] LANGUAGE sql AS
    $$ SELECT array_agg(x::double precision ORDER BY n) FROM jsonb_array_elements_text(list) WITH ORDINALITY AS t (x, n) $$;
CREATE FUNCTION pg_temp.relative_error(got bytea, wanted jsonb) RETURNS double precision LANGUAGE sql AS $$
    SELECT sqrt(sum((a - b) ^ 2)) / sqrt(sum(b ^ 2)) FROM unnest(pg_llm_values(got)::double precision[], pg_temp.numbers(wanted)) AS v (a, b) $$;
CREATE FUNCTION pg_temp.op(name text, a bigint, b bigint DEFAULT NULL, extra jsonb DEFAULT '{}') RETURNS bigint LANGUAGE sql AS
    $$ SELECT llm_op(name, array_remove(ARRAY[a, b], NULL), extra) $$;

-- The leaves.
CREATE TEMPORARY TABLE p AS
SELECT key AS name, llm_variable(pg_llm_tensor(pg_temp.numbers(value)),
                                 (SELECT array_agg(d::int) FROM jsonb_array_elements_text(j -> 'shapes' -> key) AS d), true) AS id
FROM golden, jsonb_each(j -> 'inputs');
SELECT is(count(*), 13::bigint, 'thirteen variables') FROM p;
SELECT id AS x FROM p WHERE name = 'x' \gset
SELECT id AS ln_1_w FROM p WHERE name = 'ln_1.weight' \gset
SELECT id AS ln_1_b FROM p WHERE name = 'ln_1.bias' \gset
SELECT id AS c_attn_w FROM p WHERE name = 'attn.c_attn.weight' \gset
SELECT id AS c_attn_b FROM p WHERE name = 'attn.c_attn.bias' \gset
SELECT id AS c_proj_w FROM p WHERE name = 'attn.c_proj.weight' \gset
SELECT id AS c_proj_b FROM p WHERE name = 'attn.c_proj.bias' \gset
SELECT id AS ln_2_w FROM p WHERE name = 'ln_2.weight' \gset
SELECT id AS ln_2_b FROM p WHERE name = 'ln_2.bias' \gset
SELECT id AS fc_w FROM p WHERE name = 'mlp.c_fc.weight' \gset
SELECT id AS fc_b FROM p WHERE name = 'mlp.c_fc.bias' \gset
SELECT id AS proj_w FROM p WHERE name = 'mlp.c_proj.weight' \gset
SELECT id AS proj_b FROM p WHERE name = 'mlp.c_proj.bias' \gset
SELECT llm_variable(pg_llm_tensor(pg_temp.numbers(j -> 'g')), '{4,8}') AS g FROM golden \gset
SELECT is((SELECT requires_grad FROM llm_tensor WHERE id = :g), false, 'a gradient is asked for');

-- Attention from primitive ops: [T,3D] -> 3 x [H,T,d], scores, mask, softmax, mix.
SELECT llm_op('layernorm', ARRAY[:x, :ln_1_w, :ln_1_b], '{"eps": 1e-5}') AS h \gset
SELECT pg_temp.op('add', pg_temp.op('matmul', :h, :c_attn_w), :c_attn_b) AS qkv \gset
SELECT pg_temp.op('transpose', pg_temp.op('reshape', :qkv, NULL, '{"shape": [4, 3, 2, 4]}'), NULL, '{"axes": [1, 2, 0, 3]}') AS parts \gset
SELECT pg_temp.op('reshape', pg_temp.op('slice', :parts, NULL, '{"axis": 0, "start": 0, "stop": 1}'), NULL, '{"shape": [2, 4, 4]}') AS q \gset
SELECT pg_temp.op('reshape', pg_temp.op('slice', :parts, NULL, '{"axis": 0, "start": 1, "stop": 2}'), NULL, '{"shape": [2, 4, 4]}') AS k \gset
SELECT pg_temp.op('reshape', pg_temp.op('slice', :parts, NULL, '{"axis": 0, "start": 2, "stop": 3}'), NULL, '{"shape": [2, 4, 4]}') AS v \gset
SELECT pg_temp.op('scale', pg_temp.op('matmul', :q, pg_temp.op('transpose', :k)), NULL, '{"factor": 0.5}') AS scores \gset
SELECT llm_variable(pg_llm_tensor(ARRAY(SELECT CASE WHEN k > q THEN '-infinity'::double precision ELSE 0 END
                                        FROM generate_series(1, 4) AS q, generate_series(1, 4) AS k ORDER BY q, k)), '{4,4}', false) AS mask \gset
SELECT pg_temp.op('softmax', pg_temp.op('add', :scores, :mask)) AS weights \gset
SELECT pg_temp.op('reshape', pg_temp.op('transpose', pg_temp.op('matmul', :weights, :v), NULL, '{"axes": [1, 0, 2]}'), NULL, '{"shape": [4, 8]}') AS mixed \gset
SELECT pg_temp.op('add', :x, pg_temp.op('add', pg_temp.op('matmul', :mixed, :c_proj_w), :c_proj_b)) AS mid \gset
-- Feed-forward.
SELECT llm_op('layernorm', ARRAY[:mid, :ln_2_w, :ln_2_b], '{"eps": 1e-5}') AS h \gset
SELECT pg_temp.op('gelu', pg_temp.op('add', pg_temp.op('matmul', :h, :fc_w), :fc_b)) AS active \gset
SELECT pg_temp.op('add', :mid, pg_temp.op('add', pg_temp.op('matmul', :active, :proj_w), :proj_b)) AS y \gset
SELECT pg_temp.op('sum', pg_temp.op('mul', :y, :g)) AS loss \gset

SELECT cmp_ok(pg_temp.relative_error(llm_value(:y), j -> 'y'), '<', 1e-5::double precision, 'the block is torch''s') FROM golden;
SELECT lives_ok('SELECT llm_backprop()', 'backward from the last value');
SELECT cmp_ok(pg_temp.relative_error(llm_grad(p.id), j -> 'grads' -> p.name), '<', 1e-5::double precision, 'gradient of ' || p.name)
FROM p, golden ORDER BY p.name;
SELECT is(llm_grad(:g), NULL, 'no gradient where none is required');
SELECT is(llm_grad(:loss), pg_llm_tensor('{1}'), 'the start has gradient 1');
SELECT ok(bool_and(ok), 'gradcheck of the block') FROM llm_gradcheck(:loss, max_elements => 3);
SELECT is_empty('SELECT * FROM llm_replay_tape()', 'the tape replays exactly');
-- The same block with the attention op.
SELECT llm_op('attention', ARRAY[llm_op('layernorm', ARRAY[:x, :ln_1_w, :ln_1_b], '{"eps": 1e-5}'), :c_attn_w, :c_attn_b, :c_proj_w, :c_proj_b], '{"n_head": 2}') AS attended \gset
SELECT cmp_ok(pg_temp.relative_error(llm_value(:attended), (SELECT jsonb_agg(a - b ORDER BY n) FROM unnest(pg_llm_values(llm_value(:mid)), pg_llm_values(llm_value(:x))) WITH ORDINALITY AS v (a, b, n))),
              '<', 1e-5::double precision, 'attention as one op');
SELECT lives_ok(format('SELECT llm_backprop(%s)', :loss), 'backward from a value of choice');
SELECT cmp_ok(pg_temp.relative_error(llm_grad(:c_attn_w), j -> 'grads' -> 'attn.c_attn.weight'), '<', 1e-5::double precision, 'gradients of an earlier call are replaced') FROM golden;

-- The graph is rows.
SELECT is((SELECT count(*) FROM llm_tape WHERE tape_id = llm_tape_id()), 33::bigint, 'one row an op');
SELECT bag_eq($$SELECT DISTINCT name FROM llm_tape WHERE tape_id = llm_tape_id()$$,
              ARRAY['layernorm', 'matmul', 'add', 'reshape', 'transpose', 'slice', 'scale', 'softmax', 'gelu', 'mul', 'sum', 'attention'], 'by name');
SELECT is(extra, '{"eps": 0.00001}', 'attributes are JSON') FROM llm_tape WHERE name = 'layernorm' AND tape_id = llm_tape_id() LIMIT 1;
SELECT is(shape, '{2,4,4}', 'shapes stand beside values') FROM llm_tensor WHERE id = :weights;
SELECT is(name, 'softmax', 'the view llm_tensor names a value by its op') FROM llm_tensor WHERE id = :weights;

-- The other ops.
SELECT llm_variable(pg_llm_tensor('{1,2,3,4,5,6}'), '{2,3}', true) AS a \gset
SELECT is(pg_llm_values(llm_value(pg_temp.op('concat', :a, :a, '{"axis": 0}'))), '{1,2,3,4,5,6,1,2,3,4,5,6}', 'concat');
SELECT is(pg_llm_values(llm_value(pg_temp.op('mean', :a, NULL, '{"axis": 1}'))), '{2,5}', 'mean over an axis');
SELECT is(pg_llm_values(llm_value(pg_temp.op('sum', :a))), '{21}', 'sum of all');
SELECT is(pg_llm_values(llm_value(pg_temp.op('embedding', :a, NULL, '{"ids": [1, 1, 0]}'))), '{4,5,6,4,5,6,1,2,3}', 'embedding');
SELECT is(pg_llm_values(llm_value(pg_temp.op('ones_like', :a))), '{1,1,1,1,1,1}', 'ones_like');
SELECT is(pg_llm_values(llm_value(pg_temp.op('zeros_like', :a))), '{0,0,0,0,0,0}', 'zeros_like');
SELECT is(llm_value(pg_temp.op('dropout', :a, NULL, '{"p": 0.5, "seed": 3}')), pg_llm_dropout(llm_value(:a), 0.5, true, 3), 'dropout is the kernel''s');
SELECT ok(abs((pg_llm_values(llm_value(pg_temp.op('cross_entropy', :a, NULL, '{"target": [2, 0]}'))))[1]
              - (pg_llm_cross_entropy(pg_llm_tensor('{1,2,3}'), 2) + pg_llm_cross_entropy(pg_llm_tensor('{4,5,6}'), 0)) / 2) < 1e-6, 'cross_entropy is the mean');
SELECT pg_temp.op('embedding', :a, NULL, '{"ids": [1, 1, 0]}') AS e \gset
SELECT lives_ok('SELECT llm_backprop()', 'from an embedding');
SELECT is(pg_llm_values(llm_grad(:a)), '{1,1,1,2,2,2}', 'repeated ids add up');

-- Errors.
SELECT throws_ok(format('SELECT llm_op(%L, ARRAY[%s, %s]::bigint[])', 'matmul', :a, :a), '22023', NULL, 'shapes that do not fit');
SELECT throws_ok(format('SELECT llm_op(%L, ARRAY[%s]::bigint[])', 'no such op', :a), '42704', NULL, 'unknown op');
SELECT throws_ok($$SELECT llm_op('gelu', ARRAY[-1]::bigint[])$$, '42704', NULL, 'unknown handle');
SELECT throws_ok($$SELECT llm_op_sent('gelu', array_send('{1}'::integer[]), '{}')$$, '22P02', NULL, 'of bigint');
SELECT throws_ok($$SELECT llm_op('gelu', '{}')$$, '22023', NULL, 'too few inputs');
SELECT throws_ok($$SELECT llm_op('gelu', '{null}')$$, '22004', NULL, 'a null input');
SELECT throws_ok(format('SELECT llm_op(%L, ARRAY[%s]::bigint[], %L)', op, :a, extra), '22023', NULL, op || ' ' || extra)
FROM (VALUES ('layernorm', '{"eps": "x"}'), ('reshape', '{}'), ('reshape', '{"shape": [4]}'), ('sum', '{"axis": 2}'), ('embedding', '{"ids": [2]}'),
             ('gelu', '{"eps": 1}'), ('dropout', '{"p": 1}'), ('slice', '{"axis": 0, "start": 1, "stop": 1}')) AS v (op, extra);
SELECT throws_ok($$SELECT llm_variable('\x00000000', '{2}', true)$$, '22023', NULL, 'bytes that are not of the shape');
SELECT throws_ok(format('SELECT llm_backprop(%s)', :a), '22023', NULL, 'a variable was not computed');
SELECT throws_ok('SELECT llm_value(-1)', '42704', NULL, 'value of an unknown handle');
SELECT throws_ok($$SELECT llm_backprop(NULL, 'gpt2-small')$$, '55000', NULL, 'a model that the value does not depend on');
SELECT throws_ok($$SELECT llm_backprop(NULL, 'nope')$$, '42704', NULL, 'a model that there is not');

-- The mode.
SELECT is(flag, false, 'off by default') FROM llm_autograd_mode;
UPDATE llm_autograd_mode SET flag = true;
SELECT ok(pg_llm_autograd_enabled(), 'an UPDATE switches it on');
SELECT is(current_setting('pg_gpt2.autograd'), 'on', 'which is the setting');
SET LOCAL pg_gpt2.autograd = 'sometimes';
SELECT throws_ok('SELECT pg_llm_autograd_enabled()', '22023', NULL, 'a word that is neither on nor off');
SET LOCAL pg_gpt2.autograd = 'off';
SELECT is(llm_prune_autograd_state(), (:e - :x + 1)::bigint, 'prune drops the values');
SELECT is((SELECT count(*) FROM llm_tape WHERE tape_id = llm_tape_id()), 0::bigint, 'and the tape');
SELECT throws_ok('SELECT llm_backprop()', '55000', NULL, 'then nothing is recorded');
SELECT llm_variable_sent('\x0000803f', array_send('{1,1}'::integer[]), false) AS one \gset
SELECT is(shape, '{1,1}', 'llm_variable_sent takes the binary form of an array') FROM llm_tensor WHERE id = :one;
SELECT is(pg_llm_values(llm_value(llm_op_sent('add', array_send(ARRAY[:one, :one]::bigint[]), '{}'))), '{2}', 'llm_op_sent, too');
SELECT is(pg_llm_values(llm_value(llm_op('add', ('[5:6]={' || :one || ',' || :one || '}')::bigint[]))), '{2}', 'lower bounds do not matter');
SELECT is(llm_prune_autograd_state(), 3::bigint, 'these values are dropped, too');
SELECT trigger_is('llm_autograd_mode', 'set_mode', 'llm_autograd_mode_update', 'the view is updatable');

SELECT * FROM finish();
ROLLBACK;
