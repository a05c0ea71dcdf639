-- llm_replay.
BEGIN;
SELECT plan(18);

SELECT volatility_is('llm_replay', '{bigint,integer,bigint}'::name[], 'stable');
SELECT is(has_function_privilege('public', 'llm_replay(bigint, integer, bigint)', 'EXECUTE'), true, 'it reads only');

SELECT llm_init_model('a', 1, 2, 8, 16, 50, seed => 1);
INSERT INTO llm_dataset (model, tokens, target) SELECT 'a', ARRAY[n, 2, 3], ARRAY[2, 3, 4] FROM generate_series(1, 9) AS n;
CREATE TEMPORARY TABLE run AS SELECT llm_train('a', 5, batch_size => 2, lr_max => 0.01, log_every => 0) AS id;
GRANT SELECT ON run TO PUBLIC;

SELECT is((SELECT init_seed FROM llm_model_config WHERE model = 'a'), 1::bigint, 'the seed of the first weights is kept');
SELECT matches((SELECT weights_digest FROM llm_run), '^[0-9a-f]{64}$', 'and the digest of those that a run began with');
SELECT is((SELECT bool_and(cardinality(batch_digest) = 2) FROM llm_train_log), true, 'and of the rows of each batch');
SELECT results_eq('SELECT step FROM llm_train_log WHERE write_seconds > 0', 'VALUES (5::bigint)', 'what writing the weights cost is told where they were written');
SELECT results_eq('SELECT r.* FROM run, llm_replay(id) AS r',
    $$VALUES (1::bigint, 5::bigint, NULL::bigint, NULL, NULL, NULL, true, 'from llm_init_model; llm_param compared')$$, 'no difference');
SELECT results_eq('SELECT r.* FROM run, llm_replay(id, to_step => 2) AS r',
    $$VALUES (1::bigint, 2::bigint, NULL::bigint, NULL, NULL, NULL, true, 'from llm_init_model')$$, 'nor in a part');
SELECT is((SELECT count(*) FROM llm_run) + (SELECT count(*) FROM llm_train_log), 6::bigint, 'nothing is written');

UPDATE llm_train_log SET lr = lr * 2 WHERE step = 3;
SELECT results_eq('SELECT last_step, step, what, recorded > replayed FROM run, llm_replay(id)', $$VALUES (3::bigint, 3::bigint, 'lr', true)$$, 'an altered row of the log');
UPDATE llm_dataset SET tokens[2] = 7 WHERE id = (SELECT batch[2] FROM llm_train_log WHERE step = 1);
SELECT results_eq('SELECT step, what FROM run, llm_replay(id)',
    $$SELECT 1::bigint, 'llm_dataset row ' || batch[2] FROM llm_train_log WHERE step = 1$$, 'an altered row of the data');

CREATE TEMPORARY TABLE saved AS SELECT llm_checkpoint_save('a') AS id;
GRANT SELECT ON saved TO PUBLIC;
SELECT throws_ok(format('SELECT * FROM llm_replay(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ('NULL', '22004'), ('-1', '42704'), ((SELECT id::text FROM run) || ', -1', '42704'), ((SELECT id::text FROM run) || ', NULL, 0', '22023'),
    ((SELECT id::text FROM run) || ', NULL, 6', '22023'), ((SELECT run.id || ', ' || saved.id FROM run, saved), '22023')) AS v (arguments, state);

CREATE ROLE nobody_in_particular;
SET LOCAL ROLE nobody_in_particular;
SELECT throws_ok('SELECT * FROM run, llm_replay(run.id)', '42501', NULL, 'the caller must be allowed to read what it reads');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
