-- Names of an earlier attempt: parameters as handles; those that read or end the mode are in autograd.sql.
BEGIN;
SELECT plan(10);
SELECT llm_init_model('t', 2, 2, 8, 16, 30);
SELECT is(llm_value(pg_llm_autograd_track_tensor(pg_llm_tensor('{5}'), '{1}', false)), pg_llm_tensor('{5}'), 'track_tensor is llm_variable');
SELECT is(llm_materialize_params('t'), 28, 'a handle a tensor');
SELECT is(count(*), 28::bigint, 'remembered in llm_tensor_map') FROM llm_tensor_map WHERE tape_id = llm_tape_id();
SELECT ok(pg_llm_autograd_map_param_sent('t', 'ln_f.weight', 0, pg_llm_tensor(array_fill(2, ARRAY[8])), array_send('{8}'::integer[])) > 0, 'pg_llm_autograd_map_param_sent takes the binary form of an array');
SELECT pg_llm_autograd_map_param('t', 'ln_f.weight', 0, pg_llm_tensor(array_fill(2, ARRAY[8]))) AS mapped \gset
SELECT is(shape, '{8}', 'a mapped parameter has the stored shape') FROM llm_tensor WHERE id = :mapped AND model = 't' AND name = 'ln_f.weight' AND requires_grad;
SELECT throws_ok($$SELECT pg_llm_autograd_map_param('t', 'ln_g', 0, '\x00000000')$$, '42704', NULL, 'no such parameter');
SELECT throws_ok($$SELECT pg_llm_autograd_map_param('t', 'ln_f.bias', 0, '\x00000000')$$, '22023', NULL, 'too few bytes');
SELECT llm_loss('t', '{1,2,3}', '{2,3,4}', dropout_p => 0) AS plain \gset
SET LOCAL pg_gpt2.autograd = 'on';
SELECT isnt(llm_loss('t', '{1,2,3}', '{2,3,4}', dropout_p => 0), :plain::double precision, 'while recording, a mapped parameter is used');
SELECT llm_backprop(NULL, 't');
SELECT is(llm_accumulate_grads('t'), 28, 'gradients of all parameters');
SELECT is(p.grad, llm_grad(:mapped), 'come back to llm_param') FROM llm_param AS p WHERE model = 't' AND name = 'ln_f.weight';

SELECT * FROM finish();
ROLLBACK;
