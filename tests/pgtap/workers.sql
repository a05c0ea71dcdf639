-- llm_worker_begin, llm_worker_weights, llm_worker_shard, llm_worker_gradients. tests/server/test_workers.py holds whole runs.
BEGIN;
SELECT plan(48);

SELECT volatility_is(name::name, arguments::name[], 'volatile') FROM (VALUES
    ('llm_worker_begin', '{jsonb}'), ('llm_worker_weights', '{bigint,text}'), ('llm_worker_shard', '{jsonb}'),
    ('llm_worker_gradients', '{bigint,integer}')) AS f (name, arguments);
SELECT is(has_function_privilege('public', f::regprocedure, 'EXECUTE'), false, f || ' is not for all') FROM unnest(ARRAY[
    'llm_worker_begin(jsonb)', 'llm_worker_weights(bigint,text)', 'llm_worker_shard(jsonb)', 'llm_worker_gradients(bigint,integer)']) AS f;

CREATE TEMPORARY TABLE said AS SELECT
    '{"config": {"n_layer": 1, "n_head": 1, "d_model": 2, "n_positions": 4, "vocab": 5}, "tied": {}}'::jsonb AS run,
    '{"batches": [{"tokens": [[1, 2]], "targets": [[2, 3]], "weight": null}], "first_part": 0, "chunk": 64, "seed": 1, "step_no": 1, "total": 2, "dropout_p": 0}'::jsonb AS shard;
GRANT SELECT ON said TO PUBLIC;
-- Numbers as text: a character for the low six bits of each byte, and the pairs of bits that are left in base64.
CREATE FUNCTION pg_temp.zeros(n integer) RETURNS text LANGUAGE sql AS $$
    SELECT repeat('0000', n) || replace(encode(decode(repeat('00', n), 'hex'), 'base64'), E'\n', '')
$$;
CREATE FUNCTION pg_temp.ones(n integer) RETURNS text LANGUAGE sql AS $$
    SELECT repeat('000o', n) || replace(encode(decode(repeat('20', n), 'hex'), 'base64'), E'\n', '')
$$;

-- Nothing without what comes before.
SELECT throws_ok($$SELECT llm_worker_weights(0, '0000AA==')$$, '55000', NULL, 'weights without a run');
SELECT throws_ok($$SELECT llm_worker_shard(shard) FROM said$$, '55000', NULL, 'a shard without a run');
SELECT throws_ok($$SELECT llm_worker_gradients(0, 1)$$, '55000', NULL, 'gradients without a run');
SELECT is((llm_worker_begin(run) -> 'weights')::integer, 96, 'it awaits as many weights as the model has') FROM said;
SELECT throws_ok($$SELECT llm_worker_shard(shard) FROM said$$, '55000', NULL, 'a shard without weights');
SELECT is(llm_worker_weights(0, pg_temp.zeros(90)), 90::bigint, 'some weights');
SELECT throws_ok($$SELECT llm_worker_shard(shard) FROM said$$, '55000', NULL, 'a shard without all weights');
SELECT throws_ok($$SELECT llm_worker_weights(80, pg_temp.zeros(2))$$, '22023', NULL, 'not those that are awaited');
SELECT throws_ok($$SELECT llm_worker_weights(90, pg_temp.zeros(7))$$, '22023', NULL, 'more than there are');
SELECT throws_ok($$SELECT llm_worker_weights(90, 'no numbers')$$, '22023', NULL, 'no numbers');
SELECT throws_ok($$SELECT llm_worker_weights(90, '000~AA==')$$, '22023', NULL, 'a character of none');
SELECT is(llm_worker_weights(90, pg_temp.zeros(6)), 96::bigint, 'the others');
SELECT throws_ok($$SELECT llm_worker_gradients(0, 1)$$, '55000', NULL, 'gradients without a shard');

-- What it computes: with weights of 0, all five tokens are as likely, and only wte and ln_f.bias could learn; these are 0, too.
SELECT is(round((llm_worker_shard(shard))[1]::numeric, 6), round(ln(5.0), 6), 'the loss of a model that knows nothing') FROM said;
SELECT is(round((llm_worker_shard(shard || '{"total": 4}'))[1]::numeric, 6), round(ln(5.0) / 2, 6), 'its part of a step of which it is a half') FROM said;
SELECT is(llm_worker_gradients(90, 6), pg_temp.zeros(6), 'gradients');
SELECT throws_ok($$SELECT llm_worker_gradients(90, 7)$$, '22023', NULL, 'not more than there are');
SELECT throws_ok($$SELECT llm_worker_gradients(-1, 1)$$, '22023', NULL, 'nor others');
SELECT is(llm_worker_weights(0, pg_temp.zeros(96)), 96::bigint, 'weights of the next step');
SELECT throws_ok($$SELECT llm_worker_gradients(0, 1)$$, '55000', NULL, 'which has no gradients yet');

-- Wrong values.
SELECT throws_ok(format($$SELECT llm_worker_shard(shard || %L) FROM said$$, wrong), '22023', NULL, wrong) FROM unnest(ARRAY[
    '{"batches": [{"tokens": [[1, 5]], "targets": [[2, 3]], "weight": null}]}', '{"batches": []}', '{"total": 0}',
    '{"batches": [{"tokens": [[1, 2]], "targets": [[2]], "weight": null}]}', '{"chunk": 0}', '{"step_no": 0}',
    '{"batches": [{"tokens": [[1, 2]], "targets": [[2, 3]], "weight": [-1]}]}']) AS wrong;
SELECT throws_ok($$SELECT llm_worker_begin('{"config": {"n_layer": 1}, "tied": {}}')$$, '22023', NULL, 'half a shape');
SELECT throws_ok($$SELECT llm_worker_begin(run || '{"tied": {"wte": "wpe"}}') FROM said$$, '22023', NULL, 'tensors of another shape');
SELECT throws_ok($$SELECT llm_worker_begin('{"config": {"n_layer": 96, "n_head": 1, "d_model": 1000000, "n_positions": 4, "vocab": 5}, "tied": {}}')$$,
    '53200', NULL, 'more than there is memory for');

-- With sync_every: weights and both moments, and steps of AdamW.
CREATE TEMPORARY TABLE local AS SELECT shard || '{"begins": true, "update": {"lr": 0.5, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8,
    "weight_decay": 0, "grad_clip": null, "counts": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]}}' AS step FROM said;
GRANT SELECT ON local TO PUBLIC;
SELECT throws_ok($$SELECT llm_worker_begin(run || '{"learns": 1}') FROM said$$, '22023', NULL, 'learns is true or false');
SELECT is((llm_worker_begin(run || '{"learns": true}') -> 'weights')::integer, 288, 'it awaits moments, too') FROM said;
SELECT is(llm_worker_weights(0, pg_temp.ones(288)), 288::bigint, 'weights and moments');
SELECT throws_ok($$SELECT llm_worker_shard(step || '{"begins": false}') FROM local$$, '55000', NULL, 'a replica that has not begun');
SELECT throws_ok($$SELECT llm_worker_shard(step - 'update') FROM local$$, '22023', NULL, 'a step without AdamW');
SELECT throws_ok($$SELECT llm_worker_shard(jsonb_set(step, '{update,counts,0}', '-1')) FROM local$$, '22023', NULL, 'no count');
SELECT throws_ok($$SELECT llm_worker_shard(jsonb_set(step, '{update,beta1}', '1')) FROM local$$, '22023', NULL, 'no decay');
SELECT is(cardinality(llm_worker_shard(step)), 2, 'loss and norm of a step') FROM local;
SELECT isnt(llm_worker_gradients(0, 96), pg_temp.ones(96), 'weights that have learned');
SELECT isnt(llm_worker_gradients(192, 96), pg_temp.ones(96), 'and second moments');

SELECT * FROM finish();
ROLLBACK;
