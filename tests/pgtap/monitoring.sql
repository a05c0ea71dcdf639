-- Monitoring and retention: llm_sparkline, llm_run_sparkline, llm_log_prune, llm_metrics.
BEGIN;
SELECT plan(40);

SELECT volatility_is('llm_log_prune', '{text,interval,integer}'::name[], 'volatile');
SELECT is(has_function_privilege('public', 'llm_log_prune(text, interval, integer)', 'EXECUTE'), false, 'PUBLIC may not prune the log');

SELECT llm_init_model('a', 1, 2, 8, 16, 50);
-- Not by llm_init_model, which holds the model's lock until the end of this transaction, as training does.
INSERT INTO llm_model_config VALUES ('b', 1, 2, 8, 16, 50);
INSERT INTO llm_param (model, name, shape, data) SELECT 'b', name, shape, data FROM llm_param WHERE model = 'a';
INSERT INTO llm_run (model, config, seed, status, first_step, environment)
VALUES ('a', '{}', 0, 'finished', 0, '{}'), ('a', '{}', 0, 'running', 250, '{}'), ('b', '{}', 0, 'finished', 0, '{}');
INSERT INTO llm_train_log (run_id, step, model, lr, loss, grad_norm, tokens, seconds, batch, val_loss, weights_digest, at)
SELECT r.run_id, step, r.model, 0.1, step, 1, 100, 0.5, '{}', CASE WHEN step = 205 THEN 3.5 END, CASE WHEN step = 206 THEN 'x' END,
    clock_timestamp() - CASE WHEN step < 240 THEN interval '40 days' ELSE interval '1 hour' END
FROM llm_run AS r, generate_series(3, 250) AS step;

SELECT volatility_is('llm_sparkline', '{"double precision[]",integer}'::name[], 'immutable');
SELECT volatility_is('llm_run_sparkline', '{bigint,integer}'::name[], 'stable');
SELECT is(llm_sparkline('{0,1,2,3,4,5,6,7}'), '▁▂▃▄▅▆▇█', 'a bar a value, from the lowest to the highest');
SELECT is(llm_sparkline('{-5,5}'), '▁█', 'negative ones, too');
SELECT is(llm_sparkline('{4,4,4}'), '▁▁▁', 'equal ones are low');
SELECT is(llm_sparkline('{}'), '', 'nothing of nothing');
SELECT is(llm_sparkline(NULL), NULL, 'null of null');
SELECT is(llm_sparkline('{1,NULL,NaN,Infinity,2}'), '▁   █', 'a gap where there is no number');
SELECT is(llm_sparkline('{1,3,5,7,NULL,8}', 3), '▁▆█', 'more than width values: means of neighbours that are numbers');
SELECT is(llm_sparkline('{NULL,NULL,1,2}', 2), ' ▁', 'a gap where a mean has none');
SELECT is(llm_sparkline('{-1.7e308,0,1.7e308}'), '▁▅█', 'as large as numbers get');
SELECT is(length(llm_sparkline(array_agg(i))), 60, '60 bars when nothing is said') FROM generate_series(1, 1000) AS i;
SELECT is((SELECT string_agg(DISTINCT length(llm_sparkline(array_fill(1, ARRAY[n]), 7))::text, ' ') FROM generate_series(7, 50) AS n), '7', 'width bars of whatever is more');
SELECT is(llm_sparkline_sent(array_send('{1,NULL,NaN,2}'::float8[]), 60), llm_sparkline('{1,NULL,NaN,2}'), 'llm_sparkline_sent takes the binary form of an array');
SELECT throws_ok($$SELECT llm_sparkline('{1}', 0)$$, '22023', NULL, 'width 0');
SELECT throws_ok($$SELECT llm_sparkline('{1}', NULL)$$, '22004', NULL, 'width null');
SELECT is(llm_run_sparkline(max(run_id), 8), '▁▂▃▄▅▆▇█', 'llm_run_sparkline: the losses of a run') FROM llm_run;
SELECT is(llm_run_sparkline(max(run_id), 1000), (SELECT llm_sparkline(array_agg(loss ORDER BY step), 1000) FROM llm_train_log WHERE run_id = max(r.run_id)), 'as llm_sparkline draws them') FROM llm_run AS r;
SELECT is(llm_run_sparkline(max(run_id)), (SELECT llm_sparkline(array_agg(loss ORDER BY step)) FROM llm_train_log WHERE run_id = max(r.run_id)), 'in as many bars') FROM llm_run AS r;
SELECT throws_ok($$SELECT llm_run_sparkline(-1)$$, '42704', NULL, 'an unknown run');
SELECT throws_ok($$SELECT llm_run_sparkline(NULL)$$, '22004', NULL, 'run null');
SELECT throws_ok($$SELECT llm_run_sparkline(1, 0)$$, '22023', NULL, 'no width');

SELECT is(llm_log_prune('a'), 232::bigint, 'llm_log_prune returns how many it removed');
SELECT results_eq(
    $$SELECT array_agg(l.step ORDER BY l.step) FROM llm_train_log l JOIN llm_run r USING (run_id, model) WHERE r.model = 'a' AND r.status = 'finished'$$,
    $$VALUES (ARRAY[3, 100, 200, 205, 206]::bigint[] || ARRAY(SELECT generate_series(240, 250)::bigint))$$,
    'ends, each 100th, measured and young steps stay'
);
SELECT is((SELECT count(*) FROM llm_train_log JOIN llm_run USING (run_id) WHERE status = 'running'), 248::bigint, 'a run that may be resumed is left alone');
SELECT is((SELECT count(*) FROM llm_train_log WHERE model = 'b'), 248::bigint, 'so is another model');
SELECT is(llm_log_prune(older_than => '0', keep_every => NULL), 12 + 244::bigint, 'all models, all ages');
SELECT is(llm_log_prune(older_than => '0', keep_every => NULL), 0::bigint, 'once');
SELECT is((SELECT array_agg(step ORDER BY step) FROM llm_train_log WHERE model = 'b'), ARRAY[3, 205, 206, 250]::bigint[], 'the ends stay');
SELECT is(llm_log_prune(older_than => '170000000 years'), 0::bigint, 'nothing is older than time');
SELECT throws_ok($$SELECT llm_log_prune('nope')$$, '42704', NULL, 'an unknown model');
SELECT throws_ok($$SELECT llm_log_prune(NULL, NULL)$$, '22004', NULL, 'older_than null');
SELECT throws_ok($$SELECT llm_log_prune(NULL, '-1 day')$$, '22023', NULL, 'older_than negative');
SELECT throws_ok($$SELECT llm_log_prune(NULL, '1 day', 0)$$, '22023', NULL, 'keep_every 0');

SELECT results_eq(
    $$SELECT metric, value FROM llm_metrics WHERE model = 'b' AND metric !~ 'timestamp' ORDER BY metric COLLATE "C"$$,
    $$VALUES ('pg_gpt2_bytes', 5664::double precision), ('pg_gpt2_checkpoints', 0), ('pg_gpt2_gradient_norm', 1), ('pg_gpt2_learning_rate', 0.1),
        ('pg_gpt2_loss', 250), ('pg_gpt2_parameters', 1416), ('pg_gpt2_step', 0), ('pg_gpt2_tokens_per_second', 200),
        ('pg_gpt2_training', 0), ('pg_gpt2_validation_loss', 3.5)$$,
    'llm_metrics'
);
SELECT llm_checkpoint_save('b');
SELECT is((SELECT value FROM llm_metrics WHERE model = 'b' AND metric = 'pg_gpt2_checkpoints'), 1::double precision, 'a checkpoint counts');
SELECT llm_checkpoint_load('b', (SELECT max(id) FROM llm_checkpoint));
SELECT is((SELECT value FROM llm_metrics WHERE model = 'b' AND metric = 'pg_gpt2_training'), 1::double precision, 'a model that is being changed shows');
SELECT is((SELECT count(DISTINCT model) FROM llm_metrics), 2::bigint, 'models without weights have no metrics');

SELECT * FROM finish();
ROLLBACK;
