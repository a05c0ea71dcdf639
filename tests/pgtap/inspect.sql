-- Looking inside: llm_trace, llm_attention_weights, llm_logit_lens, llm_token_embedding, llm_tape_dot, llm_replay_tape, llm_gradcheck.
BEGIN;
SELECT plan(33);
SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider the quick brown fox'$$, 270, 't');
SELECT llm_init_model('t', 2, 2, 8, 16);
SELECT set_config('pg_gpt2.model', 't', true);

SELECT bag_eq($$SELECT name FROM llm_trace('low new') WHERE layer = 1$$,
              ARRAY(SELECT 'h.1.' || n FROM unnest('{ln_1,attn.c_attn,attn.q,attn.k,attn.v,attn.weights,attn.heads,attn.c_proj,attn.residual,ln_2,mlp.c_fc,mlp.gelu,mlp.c_proj,output}'::text[]) AS n),
              'everything of a block');
SELECT results_eq($$SELECT name FROM llm_trace('low new') WHERE layer IS NULL ORDER BY seq$$, ARRAY['wte', 'wpe', 'embeddings', 'ln_f', 'logits', 'probabilities'], 'and around the blocks');
SELECT is((SELECT data FROM llm_trace('{1,2,3}'::int[], 't') WHERE name = 'logits'), llm_logits('{1,2,3}', 't'), 'logits of ids are the model''s');
SELECT is(seq, row_number, 'seq counts from 1') FROM (SELECT seq::bigint, row_number() OVER () FROM llm_trace('low') LIMIT 1) AS s;
SELECT is(shape, ARRAY[2, cardinality(llm_encode('low new')), cardinality(llm_encode('low new'))], 'attention matrix of each head') FROM llm_trace('low new') WHERE name = 'h.0.attn.weights';
SELECT ok(bool_and(octet_length(data) = 4 * (SELECT exp(sum(ln(d)))::int FROM unnest(shape) AS d)), 'shapes are those of the data') FROM llm_trace('low new');
SELECT results_eq($$SELECT * FROM llm_trace_sent(array_send('{1,2,3}'::int[]), 't')$$, $$SELECT * FROM llm_trace('{1,2,3}'::int[], 't')$$, 'llm_trace_sent takes the binary form of an array');
SELECT throws_ok($$SELECT * FROM llm_trace('{}'::int[], 't')$$, '22023', NULL, 'no ids');
SELECT throws_ok($$SELECT * FROM llm_trace('{270}'::int[], 't')$$, '22023', NULL, 'an id out of range');
SELECT throws_ok($$SELECT * FROM llm_trace('low', 'nope')$$, '42704', NULL, 'unknown model');
SELECT is_empty('SELECT * FROM llm_trace(NULL::text)', 'no rows of null');
SELECT is_empty('SELECT * FROM llm_trace(NULL::int[])', 'nor of null ids');
SELECT is_empty('SELECT * FROM llm_attention_weights(NULL, 0, 0)', 'no attention of null');
SELECT is_empty('SELECT * FROM llm_logit_lens(NULL)', 'nor layers');
SELECT is(llm_token_embedding(NULL), NULL, 'and no embedding');

SELECT ok(bool_and(abs(total - 1) < 1e-5), 'weights of a query sum to 1') FROM (SELECT sum(weight) AS total FROM llm_attention_weights('low new', 0, 1) GROUP BY query_position) AS s;
SELECT ok(bool_and(key_position <= query_position), 'no token looks ahead') FROM llm_attention_weights('low new', 0, 1);
SELECT throws_ok($$SELECT * FROM llm_attention_weights('low', 2, 0)$$, '22023', NULL, 'no such layer');
SELECT throws_ok($$SELECT * FROM llm_attention_weights('low', 0, -1)$$, '22023', NULL, 'no such head');

SELECT results_eq($$SELECT layer, count(*) FROM llm_logit_lens('low', n => 4) GROUP BY 1 ORDER BY 1$$, $$VALUES (0, 4::bigint), (1, 4), (2, 4)$$, 'embeddings and each layer');
SELECT results_eq($$SELECT token FROM llm_logit_lens('low', n => 3) WHERE layer = 2 ORDER BY rank$$, $$SELECT token FROM llm_next_token('low', 3) ORDER BY rank$$, 'the last is the model');
SELECT throws_ok($$SELECT * FROM llm_logit_lens('low', n => 0)$$, '22023', NULL, 'n 0');

SELECT is(llm_token_embedding(7), (SELECT (pg_llm_values(data))[7 * 8 + 1:8 * 8] FROM llm_param WHERE model = 't' AND name = 'wte'), 'a row of wte');
SELECT throws_ok('SELECT llm_token_embedding(270)', '22023', NULL, 'no such token');
SELECT throws_ok($$SELECT llm_token_embedding(0, 'gpt2-xl')$$, '55000', NULL, 'a model without weights');

SELECT throws_ok('SELECT * FROM llm_replay_tape()', '42704', NULL, 'nothing recorded');
UPDATE llm_autograd_mode SET flag = true;
SELECT llm_loss('t', '{1,2,3}', '{2,3,4}', dropout_p => 0.1);
SELECT llm_backprop();
SELECT is_empty('SELECT * FROM llm_replay_tape()', 'a recorded loss replays');
UPDATE llm_tensor_rt SET data = pg_llm_ones_like(data) WHERE id = (SELECT min(output) FROM llm_tape WHERE name = 'gelu' AND tape_id = llm_tape_id());
SELECT is((SELECT name FROM llm_replay_tape() ORDER BY tape_row LIMIT 1), 'gelu', 'a changed value is found at its op');
SELECT matches(llm_tape_dot(), '^digraph .*label="h\.0\.attn\.c_attn\.weight\\n8 × 24".*\}\n$', 'a graph in DOT');
SELECT is((SELECT count(*) FROM regexp_matches(llm_tape_dot(), 'shape=box', 'g')), (SELECT count(*) FROM llm_tape WHERE tape_id = llm_tape_id()), 'a box an op');
SELECT llm_variable(pg_llm_tensor('{1,2,3}'), '{3}', true) AS v \gset
SELECT ok(ok, 'gradcheck') FROM llm_gradcheck(llm_op('sum', ARRAY[llm_op('gelu', ARRAY[:v]::bigint[])]));
SELECT throws_ok(format('SELECT * FROM llm_gradcheck(%s, epsilon => 0)', :v), '22023', NULL, 'epsilon 0');
SELECT throws_ok('SELECT * FROM llm_gradcheck(-1)', '42704', NULL, 'unknown handle');
SELECT * FROM finish();
ROLLBACK;
