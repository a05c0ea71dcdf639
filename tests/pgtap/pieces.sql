-- The model in pieces: llm_embed, llm_block_forward, llm_forward_gpt2, llm_logits.
BEGIN;
SELECT plan(30);
SET LOCAL client_min_messages = warning;

-- llm_embed, llm_block_forward, llm_forward_gpt2.
SELECT llm_init_model('t', 2, 2, 8, 16, 30);
SELECT llm_embed('{1,2,3}', 't') AS embedded \gset
SELECT is(pg_llm_values(:'embedded'), ARRAY(
    SELECT a + b FROM generate_series(0, 2) AS i,
        unnest(llm_token_embedding(i + 1, 't'), (SELECT (pg_llm_values(data))[i * 8 + 1:i * 8 + 8] FROM llm_param WHERE model = 't' AND name = 'wpe'))
        WITH ORDINALITY AS v (a, b, n) ORDER BY i, n), 'llm_embed is token plus position');
CREATE FUNCTION pg_temp.w(layer int, name text) RETURNS bytea LANGUAGE sql AS
    $$ SELECT data FROM llm_param AS p WHERE p.model = 't' AND p.name = format('h.%s.%s', w.layer, w.name) $$;
CREATE FUNCTION pg_temp.block(x bytea, i int) RETURNS bytea LANGUAGE sql AS $$
    SELECT llm_block_forward(x, pg_temp.w(i, 'attn.c_attn.weight'), pg_temp.w(i, 'attn.c_attn.bias'), pg_temp.w(i, 'attn.c_proj.weight'),
        pg_temp.w(i, 'attn.c_proj.bias'), pg_temp.w(i, 'mlp.c_fc.weight'), pg_temp.w(i, 'mlp.c_fc.bias'), pg_temp.w(i, 'mlp.c_proj.weight'),
        pg_temp.w(i, 'mlp.c_proj.bias'), pg_temp.w(i, 'ln_1.weight'), pg_temp.w(i, 'ln_1.bias'), pg_temp.w(i, 'ln_2.weight'), pg_temp.w(i, 'ln_2.bias'), 2, 3, 8) $$;
SELECT is(pg_llm_layernorm(pg_temp.block(pg_temp.block(:'embedded', 0), 1), pg_llm_tensor(array_fill(1, ARRAY[8])), pg_llm_tensor(array_fill(0, ARRAY[8])), 1e-5),
          llm_forward_gpt2(:'embedded', 't', 2, 2, 3, 8), 'llm_forward_gpt2 is the blocks and the final norm');
SELECT is(llm_embed(NULL, 't'), NULL, 'null of null');
SELECT is(llm_embed_sent(array_send('{1,2,3}'::integer[]), 't', 8), :'embedded', 'llm_embed_sent');
SELECT throws_ok($$SELECT llm_embed('{30}', 't')$$, '22023', NULL, 'an id out of range');
SELECT throws_ok(format($$SELECT llm_forward_gpt2(%L, 't', 2, 2, 4, 8)$$, :'embedded'), '22023', NULL, 'bytes that are not [t,d]');
SELECT throws_ok(format($$SELECT llm_forward_gpt2(%L, 't', 3, 2, 3, 8)$$, :'embedded'), '22023', NULL, 'a shape that the model does not have');
SELECT throws_ok($$SELECT llm_block_forward('', '', '', '', '', '', '', '', '', '', '', '', '', 2, 3, 7)$$, '22023', NULL, 'd not divisible by n_head');

-- llm_logits.
SELECT llm_init_model('ids', 2, 2, 8, 16, 50, seed => 3);
SET LOCAL pg_gpt2.model = 't';
SELECT volatility_is('llm_logits', '{integer[],text,integer,integer,integer,integer}'::name[], 'volatile');
SELECT is(octet_length(llm_logits('{1,2,3}')), 3 * 30 * 4, 'llm_logits gives positions x vocab numbers of 4 bytes; model null is the setting');
SELECT is(llm_logits('{1,2,3}', 't', 2, 2, 8, 30), llm_logits('{1,2,3}'), 'the shape may be repeated');
SELECT is(octet_length(llm_logits(array_fill(1, '{16}'), 'ids')), 16 * 50 * 4, 'up to n_positions, and without a vocabulary');
SELECT throws_ok(format('SELECT llm_logits(%L, %L, %s)', '{1}', 't', wrong), '22023', NULL, 'another shape: ' || wrong)
FROM (VALUES ('n_layer => 3'), ('n_head => 4'), ('d_model => 16'), ('vocab_size => 50257')) AS v (wrong);
SELECT throws_ok(format('SELECT llm_logits(%L)', ids), state, NULL, 'ids ' || coalesce(ids, 'null'))
FROM (VALUES ('{30}', '22023'), ('{-1}', '22023'), ('{1,NULL}', '22023'), ('{{1},{2}}', '22023'), ('{1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}', '22023'), ('{}', '22023')) AS v (ids, state);
SELECT is(llm_logits(NULL, 't'), NULL, 'null of null');
SELECT is(llm_logits_sent(array_send('{1,2}'::integer[]), 't', NULL, NULL, NULL, NULL), llm_logits('{1,2}', 't'), 'llm_logits_sent takes the binary form of an array');
SELECT throws_ok($$SELECT llm_logits(array_fill(1, '{1048577}'))$$, '22023', NULL, 'more ids than an array takes');
SELECT throws_ok($$SELECT llm_logits_sent(array_send('{1,2}'::bigint[]), 't', NULL, NULL, NULL, NULL)$$, '22P02', NULL, 'of integers');
SELECT throws_matching($$SELECT llm_logits('{}')$$, 'empty', 'no ids');
SELECT throws_ok($$SELECT llm_logits('{1}', 'nope')$$, '42704', NULL, 'unknown model');
SELECT throws_ok($$SELECT llm_logits('{1}', 'gpt2-small')$$, '55000', NULL, 'no weights');
SELECT throws_ok($$SELECT llm_logits('{1}', '')$$, '42704', NULL, 'an empty name is not the default');

SELECT * FROM finish();
ROLLBACK;
