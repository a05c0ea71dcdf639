-- Kernels against verified values (tests/golden/kernels.json, whose file states the tolerance), their errors and volatility.
-- pg_prove runs this from the root of the checkout.
BEGIN;
SELECT plan(72);
\set cases `cat tests/golden/kernels.json`
CREATE TEMPORARY TABLE cases AS SELECT key AS name, value -> 'inputs' AS i, value -> 'expected' AS e FROM jsonb_each(:'cases') WHERE key <> '_about';

CREATE FUNCTION pg_temp.numbers(list jsonb) RETURNS double precision[] LANGUAGE sql AS
    $$ SELECT array_agg(x::double precision ORDER BY n) FROM jsonb_array_elements_text(list) WITH ORDINALITY AS t (x, n) $$;
CREATE FUNCTION pg_temp.t(list jsonb) RETURNS bytea LANGUAGE sql AS $$ SELECT pg_llm_tensor(pg_temp.numbers(list)) $$;
CREATE FUNCTION pg_temp.close(got bytea, wanted jsonb, what text) RETURNS text LANGUAGE sql AS $$
    SELECT ok(octet_length(got) = 4 * jsonb_array_length(wanted)
              AND (SELECT bool_and(abs(a - b) <= 1e-6 + 1e-5 * abs(b))
                   FROM unnest(pg_llm_values(got)::double precision[], pg_temp.numbers(wanted)) AS v (a, b)), what) $$;

-- Conversions.
SELECT is(pg_llm_tensor(ARRAY[1, -2, 0.5]), '\x0000803f000000c00000003f', 'a tensor is little-endian float32');
SELECT is(pg_llm_values('\x0000803f000000c00000003f'), '{1,-2,0.5}'::real[], 'and its values come back');
SELECT is(pg_llm_tensor_sent(array_send('{1,-2}'::double precision[]), 2), pg_llm_tensor('{1,-2}'), 'a tensor of an array that was sent');
SELECT is(pg_llm_tensor(ARRAY[[1, 2], [3, 4]]), pg_llm_tensor(ARRAY[1, 2, 3, 4]), 'rows of an array follow each other');
SELECT is(pg_llm_values(''), '{}'::real[], 'no bytes are no values');

-- Values.
SELECT pg_temp.close(pg_llm_matmul(pg_temp.t(i -> 'a'), pg_temp.t(i -> 'b'), 2, 3, 2), e -> 'y', name) FROM cases WHERE name LIKE 'matmul%';
SELECT pg_temp.close(pg_llm_add(pg_temp.t(i -> 'a'), pg_temp.t(i -> 'b')), e -> 'y', name) FROM cases WHERE name = 'add';
SELECT is(pg_llm_values(pg_llm_add(pg_llm_tensor('{1,2,3,4}'), pg_llm_tensor('{10,20}'))), '{11,22,13,24}', 'add repeats a row');
SELECT pg_temp.close(pg_llm_gelu(pg_temp.t(i -> 'x')), e -> 'y', name) FROM cases WHERE name LIKE 'gelu%';
SELECT pg_temp.close(pg_llm_gelu_backward(pg_temp.t(i -> 'x'), pg_temp.t(i -> 'dy')), e -> 'dx', name || ' backward') FROM cases WHERE name LIKE 'gelu%';
SELECT pg_temp.close(pg_llm_softmax(pg_temp.t(i -> 'x')), e -> 'y', name) FROM cases WHERE name LIKE 'softmax%';
SELECT pg_temp.close(pg_llm_softmax_backward(pg_temp.t(e -> 'y'), pg_temp.t(i -> 'dy')), e -> 'dx', name || ' backward') FROM cases WHERE name LIKE 'softmax%';
SELECT is(pg_llm_softmax(pg_llm_tensor('{1,2,5,1}'), 2), pg_llm_softmax(pg_llm_tensor('{1,2}')) || pg_llm_softmax(pg_llm_tensor('{5,1}')), 'softmax by rows');
SELECT is(pg_llm_softmax_backward(pg_llm_tensor('{.5,.5,1,0}'), pg_llm_tensor('{1,0,3,2}'), 2),
          pg_llm_softmax_backward(pg_llm_tensor('{.5,.5}'), pg_llm_tensor('{1,0}')) || pg_llm_softmax_backward(pg_llm_tensor('{1,0}'), pg_llm_tensor('{3,2}')),
          'softmax backward by rows');
SELECT pg_temp.close(pg_llm_layernorm(pg_temp.t(i -> 'x'), pg_temp.t(i -> 'gamma'), pg_temp.t(i -> 'beta'), (i ->> 'eps')::double precision), e -> 'y', name)
FROM cases WHERE name LIKE 'layernorm%';
SELECT collect_tap(pg_temp.close(g.dx, e -> 'dx', name || ' dx'), pg_temp.close(g.dgamma, e -> 'dgamma', name || ' dgamma'), pg_temp.close(g.dbeta, e -> 'dbeta', name || ' dbeta'))
FROM cases, LATERAL pg_llm_layernorm_backward(pg_temp.t(i -> 'x'), pg_temp.t(i -> 'dy'), pg_temp.t(i -> 'gamma'), (i ->> 'eps')::double precision) AS g
WHERE name LIKE 'layernorm%';
SELECT ok(abs(pg_llm_cross_entropy(pg_temp.t(i -> 'logits'), 2) - (e -> 'loss' ->> 0)::double precision) < 1e-6, 'cross_entropy') FROM cases WHERE name LIKE 'cross%';
SELECT pg_temp.close(pg_llm_cross_entropy_backward(pg_temp.t(i -> 'logits'), 2), e -> 'dlogits', 'cross_entropy backward') FROM cases WHERE name LIKE 'cross%';
SELECT collect_tap(pg_temp.close(g.dx, e -> 'dx', 'mlp dx'), pg_temp.close(g.dw_fc, e -> 'dw_fc', 'mlp dw_fc'), pg_temp.close(g.db_fc, e -> 'db_fc', 'mlp db_fc'),
                   pg_temp.close(g.dw_proj, e -> 'dw_proj', 'mlp dw_proj'), pg_temp.close(g.db_proj, e -> 'db_proj', 'mlp db_proj'))
FROM cases, LATERAL pg_llm_mlp_backward(pg_temp.t(i -> 'x'), pg_temp.t(i -> 'w_fc'), pg_temp.t(i -> 'b_fc'), pg_temp.t(i -> 'w_proj'), pg_temp.t(i -> 'b_proj'), pg_temp.t(i -> 'dy'), 2, 4) AS g
WHERE name LIKE 'mlp%';
SELECT pg_temp.close(pg_llm_attention(pg_temp.t(i -> 'x'), pg_temp.t(i -> 'w_qkv'), pg_temp.t(i -> 'b_qkv'), pg_temp.t(i -> 'w_o'), pg_temp.t(i -> 'b_o'),
                                      (i ->> 'n_head')::int, (i ->> 'T')::int, (i ->> 'D')::int), e -> 'y', name)
FROM cases WHERE name LIKE 'attention forward%';
SELECT collect_tap(pg_temp.close(g.dx, e -> 'dx', name || ' dx'), pg_temp.close(g.dw_qkv, e -> 'dw_qkv', name || ' dw_qkv'), pg_temp.close(g.db_qkv, e -> 'db_qkv', name || ' db_qkv'),
                   pg_temp.close(g.dw_o, e -> 'dw_o', name || ' dw_o'), pg_temp.close(g.db_o, e -> 'db_o', name || ' db_o'))
FROM cases, LATERAL pg_llm_attention_backward(pg_temp.t(i -> 'x'), pg_temp.t(i -> 'w_qkv'), pg_temp.t(i -> 'b_qkv'), pg_temp.t(i -> 'w_o'), pg_temp.t(i -> 'b_o'),
                                              pg_temp.t(i -> 'dy'), (i ->> 'n_head')::int, (i ->> 'T')::int, (i ->> 'D')::int) AS g
WHERE name LIKE 'attention backward%';
SELECT collect_tap(pg_temp.close(s.weight, e -> 'w', 'adamw weight'), pg_temp.close(s.m, e -> 'm', 'adamw m'), pg_temp.close(s.v, e -> 'v', 'adamw v'))
FROM cases, LATERAL pg_llm_adamw_step(pg_temp.t(i -> 'w'), pg_temp.t(i -> 'g'), pg_temp.t(i -> 'm'), pg_temp.t(i -> 'v'), 0.001, 0.9, 0.999, 1e-8, 0.01, 5) AS s
WHERE name = 'adamw';
SELECT is(pg_llm_adamw_step('\x0000803f', '\x0000003f', NULL, '', 0.1, 0.9, 0.999, 1e-8, 0, 1), pg_llm_adamw_step('\x0000803f', '\x0000003f', '\x00000000', '\x00000000', 0.1, 0.9, 0.999, 1e-8, 0, 1), 'missing moments are zeros');

-- The rest.
SELECT is(pg_llm_ones_like(pg_llm_tensor('{3,4}')), pg_llm_tensor('{1,1}'), 'ones_like');
SELECT is(pg_llm_zeros_like(pg_llm_tensor('{3,4}')), pg_llm_tensor('{0,0}'), 'zeros_like');
SELECT is(pg_llm_values(pg_llm_transpose(pg_llm_tensor('{1,2,3,4,5,6}'), 2, 3)), '{1,4,2,5,3,6}', 'transpose');
SELECT is(pg_llm_dropout('\x0000803f', 0.5), '\x0000803f', 'dropout without training is the input');
SELECT is(pg_llm_dropout(pg_llm_tensor(array_fill(1, ARRAY[64])), 0.5, true, 3), pg_llm_dropout(pg_llm_tensor(array_fill(1, ARRAY[64])), 0.5, true, 3), 'a seed fixes the mask');
SELECT is(pg_llm_values(pg_llm_dropout_backward(pg_llm_tensor('{1,2,0}'), pg_llm_tensor('{2,0,0}'), pg_llm_tensor('{1,1,1}'), 0.5, true)), '{2,0,2}', 'the mask is read off the output');
SELECT is(pg_llm_values(pg_llm_grad_clip(pg_llm_tensor('{3,4}'), 10)), '{3,4}', 'a short gradient stays');
SELECT ok(abs((pg_llm_values(pg_llm_grad_clip(pg_llm_tensor('{3,4}'), 1)))[2] - 0.8) < 1e-6, 'a long one is scaled to the clip');
SELECT results_eq('SELECT round(pg_llm_lr_schedule(s, 10, 110, 0.2)::numeric, 6) FROM unnest(ARRAY[5, 10, 60, 110, 200]) AS s', 'VALUES (0.1), (0.2), (0.1), (0.0), (0.0::numeric)', 'lr_schedule');
SELECT is(pg_llm_sample(pg_llm_tensor('{0,5,1}'), 0), 1, 'temperature 0 is greedy');
SELECT is(pg_llm_sample(pg_llm_tensor('{0,5,1}'), 100, 0, 1, 7), pg_llm_sample(pg_llm_tensor('{0,5,1}'), 100, 0, 1, 7), 'a seed fixes the draw');

-- Errors name what is wrong.
SELECT throws_like($$SELECT pg_llm_matmul('\x00', '\x00000000', 1, 1, 1)$$, '%a has 1 bytes%', 'bytes that are not float32');
SELECT throws_ok($$SELECT pg_llm_matmul('\x00000000', '\x00000000', 1, 0, 1)$$, '22023', NULL, 'a dimension of 0');
SELECT throws_ok($$SELECT pg_llm_add('\x0000000000000000', '\x000000000000000000000000')$$, '22023', NULL, 'b does not repeat over a');
SELECT throws_ok($$SELECT pg_llm_cross_entropy('\x00000000', 1)$$, '22023', NULL, 'a target out of range');
SELECT throws_ok($$SELECT pg_llm_dropout('\x00000000', 1.0, true)$$, '22023', NULL, 'p of 1');
SELECT throws_ok($$SELECT pg_llm_attention('\x', '\x', '\x', '\x', '\x', 2, 1, 3)$$, '22023', NULL, 'd not divisible by n_head');
SELECT throws_ok($$SELECT pg_llm_adamw_step('\x00000000', '\x00000000', NULL, NULL, 0.1, 0.9, 0.999, 1e-8, 0, 0)$$, '22023', NULL, 'step 0');
SELECT throws_ok($$SELECT pg_llm_tensor(ARRAY[1, NULL])$$, '22004', NULL, 'a null element');
SELECT throws_ok($$SELECT pg_llm_tensor(ARRAY[1e300])$$, '22023', NULL, 'beyond float32');
SELECT is(pg_llm_gelu(NULL), NULL, 'null of null');

-- Honest volatility.
SELECT set_eq($$SELECT proname FROM pg_proc WHERE proname LIKE 'pg\_llm\_%' AND provolatile = 'v' AND proname !~ '_(import|export|load|autograd)_'$$,
              ARRAY['pg_llm_dropout', 'pg_llm_sample'], 'what may draw without a seed is VOLATILE');
SELECT set_eq($$SELECT proname FROM pg_proc WHERE proname LIKE 'pg\_llm\_%' AND provolatile = 's' AND proname !~ '_autograd_'$$, ARRAY['pg_llm_attention', 'pg_llm_attention_backward'], 'what reads a setting is STABLE');
SELECT * FROM finish();
ROLLBACK;
