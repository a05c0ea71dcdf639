-- Learning: llm_dataset_load, llm_loss, llm_evaluate, llm_train_step, llm_train, llm_train_stop. tests/server holds what needs commits.
BEGIN;
SELECT plan(209);
SET LOCAL client_min_messages = warning;
CREATE TEMPORARY TABLE documents (id integer, body text);
INSERT INTO documents SELECT i, repeat('low lower lowest newer wider ', i) FROM generate_series(1, 12) AS i;
SELECT llm_train_bpe('SELECT body FROM documents ORDER BY id', 270, 't');
SELECT llm_init_model('t', 1, 2, 8, 16, seed => 3);
SELECT llm_init_model('bare', 1, 2, 8, 16, 50);

-- llm_dataset_load.
SELECT volatility_is('llm_dataset_load', '{text,text,integer,text,"double precision",text,boolean,boolean}'::name[], 'volatile');
CREATE TEMPORARY TABLE loaded AS SELECT llm_dataset_load('SELECT body FROM documents ORDER BY id', 't', 8) AS rows;
SELECT is((SELECT count(*) FROM llm_dataset WHERE model = 't' AND split = 'train'), (SELECT rows::bigint FROM loaded), 'llm_dataset_load returns the number of rows');
SELECT is((SELECT count(*) FROM llm_dataset WHERE cardinality(tokens) <> 8 OR cardinality(target) <> 8), 0::bigint, 'each has block_size tokens and targets');
SELECT is((SELECT count(*) FROM llm_dataset WHERE tokens[2:] <> target[:7]), 0::bigint, 'targets are the tokens shifted by one');
SELECT is((SELECT array_agg(t ORDER BY d.id, n) FROM llm_dataset d, unnest(tokens) WITH ORDINALITY AS u (t, n)),
          (SELECT (array_agg(t ORDER BY d.id, n))[:8 * (SELECT rows FROM loaded)] FROM documents d, unnest(llm_encode(body, 't') || 269) WITH ORDINALITY AS u (t, n)),
          'the rows are the texts, an end-of-text token after each, without seams');
SELECT llm_drop_model('bare'); SELECT llm_init_model('bare', 1, 2, 8, 16, 50);
DELETE FROM llm_dataset;
SELECT is(llm_dataset_load('SELECT body FROM documents ORDER BY id', 't', 8, val_fraction => 0.25), (SELECT rows FROM loaded), 'val_fraction does not change the number');
SELECT is((SELECT count(*) FROM llm_dataset WHERE split = 'val'), (SELECT round(rows * 0.25)::bigint FROM loaded), 'of which that fraction');
SELECT ok((SELECT min(id) FROM llm_dataset WHERE split = 'val') > (SELECT max(id) FROM llm_dataset WHERE split = 'train'), 'the last rows, are for validation');
SELECT lives_ok($$SELECT llm_dataset_load('SELECT body FROM documents', 't', 8, 'val')$$, 'or all of them');
SELECT is(llm_dataset_load('SELECT body FROM documents ORDER BY id', 't', 8, replace => true), (SELECT rows FROM loaded), 'replace loads as many rows');
SELECT is((SELECT count(*) FROM llm_dataset WHERE model = 't' AND split = 'train'), (SELECT rows::bigint FROM loaded), 'instead of those that were there');
SELECT ok((SELECT count(*) FROM llm_dataset WHERE model = 't' AND split = 'val') > 0, 'in the split that is written');
SELECT is(llm_dataset_load('SELECT body FROM documents WHERE id = 1', 't', 16, replace => true, pack => false), 1, 'without packing, a text is a row');
SELECT is((SELECT target FROM llm_dataset WHERE model = 't' AND split = 'train'), (SELECT (llm_encode(body, 't') || 269)[2:] FROM documents WHERE id = 1), 'that ends in an end-of-text');
SELECT is(llm_dataset_load('SELECT body FROM documents ORDER BY id', 't', 8, replace => true), (SELECT rows FROM loaded), 'and back');
SELECT throws_ok(format('SELECT llm_dataset_load(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$NULL, 't', 8$$, '22004'), ($$'SELECT body FROM documents', NULL, 8$$, '22004'), ($$'SELECT body FROM documents', 't', NULL$$, '22004'),
    ($$'SELECT body FROM documents', 't', 0$$, '22023'), ($$'SELECT body FROM documents', 't', -1$$, '22023'), ($$'SELECT body FROM documents', 't', 1000000$$, '22023'),
    ($$'SELECT body FROM documents', 't', 8, 'test'$$, '22023'), ($$'SELECT body FROM documents', 't', 8, NULL$$, '22004'),
    ($$'SELECT body FROM documents', 't', 8, 'train', 1$$, '22023'), ($$'SELECT body FROM documents', 't', 8, 'train', -0.1$$, '22023'), ($$'SELECT body FROM documents', 't', 8, 'train', 'NaN'$$, '22023'), ($$'SELECT body FROM documents', 't', 8, 'train', NULL$$, '22004'),
    ($$'SELECT body FROM documents', 't', 17$$, '22023'), ($$'SELECT body FROM documents', 't', 8, replace => NULL$$, '22004'), ($$'SELECT body FROM documents', 't', 8, pack => NULL$$, '22004'),
    ($$'SELECT body FROM documents', 'bare', 8$$, '55000'), ($$'SELECT id FROM documents', 't', 8$$, '22023'),
    ($$'SELECT body FROM nope', 't', 8$$, '42P01'), ($$'SELECT body FROM documents WHERE false', 't', 8$$, '22023')) AS v (arguments, state);
SELECT throws_ok($$INSERT INTO llm_dataset (tokens, target) VALUES ('{1,2}', '{1}')$$, '23514', NULL, 'tokens and target have the same length');
SELECT throws_ok($$INSERT INTO llm_dataset (split, tokens, target) VALUES ('x', '{1}', '{1}')$$, '23514', NULL, 'a split is train or val');
SELECT throws_ok($$INSERT INTO llm_dataset (tokens, target) VALUES ('{}', '{}')$$, '23514', NULL, 'a row has tokens');

-- llm_dataset_load_pairs. What is cut and skipped, tests/server/test_pairs.py.
CREATE TEMPORARY TABLE was AS SELECT * FROM llm_dataset;
DELETE FROM llm_dataset;
CREATE TEMPORARY TABLE asked AS SELECT i AS id, repeat('low ', i) || 'low' AS prompt, ' newer' AS completion, 0.5 * i AS weight FROM generate_series(1, 4) AS i;
SELECT volatility_is('llm_dataset_load_pairs', '{text,text,integer,text,"double precision",boolean,text,boolean}'::name[], 'volatile');
SELECT is(llm_dataset_load_pairs('SELECT prompt, completion FROM asked ORDER BY id', 't'), 4, 'a row a pair');
SELECT is((SELECT array_agg(tokens::text ORDER BY id) FROM llm_dataset), (SELECT array_agg(llm_encode(prompt || completion, 't')::text ORDER BY id) FROM asked), 'of the tokens of both');
SELECT is((SELECT array_agg(target[cardinality(target)] ORDER BY id) FROM llm_dataset), '{269,269,269,269}', 'an end-of-text after them');
SELECT is((SELECT array_agg(array_remove(target, -100)::text ORDER BY id) FROM llm_dataset), (SELECT array_agg((llm_encode(completion, 't') || 269)::text ORDER BY id) FROM asked), 'loss is on completion and end-of-text');
SELECT is((SELECT array_agg(array_position(target, -100) ORDER BY id) FROM llm_dataset), '{1,1,1,1}', 'and not on the prompt');
SELECT is((SELECT count(*) FROM llm_dataset WHERE weight = 1), 4::bigint, 'weights are 1');
SELECT is(llm_dataset_load_pairs('SELECT prompt, completion, weight FROM asked ORDER BY id', 't', replace => true), 4, 'or a third column');
SELECT is((SELECT array_agg(weight ORDER BY id) FROM llm_dataset), '{0.5,1,1.5,2}', 'says them');
SELECT is((SELECT tokens FROM llm_evaluate('t', 'train')), (SELECT 4 * (1 + cardinality(llm_encode(' newer', 't')))::bigint), 'what carries no loss is not counted');
SELECT is(llm_dataset_load_pairs('SELECT prompt, completion FROM asked ORDER BY id', 't', (SELECT 1 + cardinality(llm_encode(' newer', 't'))), 'val', 0, true), 4, 'however short rows must be');
SELECT is((SELECT count(DISTINCT (tokens, target)) FROM llm_dataset WHERE split = 'val'), 1::bigint, 'completions stay whole');
SELECT throws_ok(format('SELECT llm_dataset_load_pairs(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$NULL, 't'$$, '22004'), ($$'SELECT prompt, completion FROM asked', NULL$$, '22004'), ($$'SELECT prompt, completion FROM asked', 't', 0$$, '22023'), ($$'SELECT prompt, completion FROM asked', 't', 17$$, '22023'),
    ($$'SELECT prompt, completion FROM asked', 't', split => 'x'$$, '22023'), ($$'SELECT prompt, completion FROM asked', 't', split => NULL$$, '22004'), ($$'SELECT prompt, completion FROM asked', 't', val_fraction => 1$$, '22023'),
    ($$'SELECT prompt, completion FROM asked', 't', replace => NULL$$, '22004'), ($$'SELECT prompt FROM asked', 't'$$, '22023'), ($$'SELECT id, prompt FROM asked', 't'$$, '22023'), ($$'SELECT prompt, completion FROM asked WHERE false', 't'$$, '22023'),
    ($$'SELECT prompt, completion FROM nope', 't'$$, '42P01'), ($$'SELECT prompt, completion FROM asked', 'bare'$$, '55000'), ($$'SELECT prompt, completion FROM asked', 'nope'$$, '42704')) AS v (arguments, state);
SELECT throws_ok($$INSERT INTO llm_dataset (tokens, target, weight) VALUES ('{1}', '{2}', 0)$$, '23514', NULL, 'a weight is above 0');
DELETE FROM llm_dataset;
INSERT INTO llm_dataset OVERRIDING SYSTEM VALUE SELECT * FROM was;

-- llm_loss.
SELECT volatility_is('llm_loss', '{text,integer[],integer[],integer,integer,integer,integer,"double precision",boolean,bigint,text}'::name[], 'volatile');
SELECT ok(abs(llm_loss('t', '{1,2,3}', '{2,3,4}', training => false) - ln(270)) < 0.2, 'an untrained model knows nothing: ln(vocab)');
SELECT ok(abs(llm_loss('t', '{1,2,3}', '{2,3,4}', training => false)
          - (SELECT avg(pg_llm_cross_entropy(substr(llm_logits('{1,2,3}', 't'), 1 + 1080 * i, 1080), i + 2)) FROM generate_series(0, 2) AS i)) < 1e-5, 'the mean cross entropy of the logits');
SELECT is(llm_loss('t', '{1,2,3}', '{2,3,4}', dropout_p => 0), llm_loss('t', '{1,2,3}', '{2,3,4}', training => false), 'without dropout, training is the same');
SELECT is(llm_loss('t', '{1,2,3}', '{2,3,4}', seed => 5), llm_loss('t', '{1,2,3}', '{2,3,4}', seed => 5), 'a seed draws the same dropout');
SELECT isnt(llm_loss('t', '{1,2,3}', '{2,3,4}', seed => 5), llm_loss('t', '{1,2,3}', '{2,3,4}', seed => 6), 'another another');
SELECT is(llm_loss('t', '{1,2,3}', '{2,3,4}', 1, 2, 8, 270, training => false), llm_loss('t', '{1,2,3}', '{2,3,4}', training => false), 'the shape may be repeated');
SELECT is(llm_loss_sent('t', array_send('{1,2,3}'::integer[]), array_send('{2,3,4}'::integer[]), NULL, NULL, NULL, NULL, 0, false, NULL, NULL), llm_loss('t', '{1,2,3}', '{2,3,4}', training => false), 'llm_loss_sent takes the binary form of an array');
SELECT is(llm_loss('t', NULL, '{1}'), NULL, 'null of null');
SELECT ok(abs(llm_loss('t', '{1,2,3}', '{2,-100,4}', training => false) - (llm_loss('t', '{1}', '{2}', training => false) + llm_loss('t', '{1,2,3}', '{-100,-100,4}', training => false)) / 2) < 1e-6, 'a target of -100 carries no loss');
SELECT is(pg_llm_cross_entropy(pg_llm_tensor('{1,2}'), -100), 0::double precision, 'nor in the kernel');
SELECT is(pg_llm_values(pg_llm_cross_entropy_backward(pg_llm_tensor('{1,2}'), -100)), '{0,0}'::real[], 'whose gradient is 0');
SELECT is(llm_loss('t', '{1}', NULL), NULL, 'and of null targets');
SELECT throws_ok(format('SELECT llm_loss(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'t', '{}', '{}'$$, '22023'), ($$'t', '{1,2}', '{1}'$$, '22023'),
    ($$'t', '{270}', '{1}'$$, '22023'), ($$'t', '{1}', '{270}'$$, '22023'), ($$'t', '{1}', '{-1}'$$, '22023'), ($$'t', '{NULL}', '{1}'$$, '22023'), ($$'t', '{{1},{2}}', '{{1},{2}}'$$, '22023'),
    ($$'t', array_fill(1, '{17}'), array_fill(1, '{17}')$$, '22023'),
    ($$'t', '{1}', '{1}', n_layer => 3$$, '22023'), ($$'t', '{1}', '{1}', d => 3$$, '22023'), ($$'t', '{1}', '{1}', dropout_p => 1$$, '22023'), ($$'t', '{1}', '{1}', dropout_p => -0.1$$, '22023'),
    ($$'t', '{1}', '{1}', dropout_p => 'NaN'$$, '22023'), ($$'t', '{1}', '{1}', dropout_p => NULL$$, '22004'), ($$'t', '{1}', '{1}', training => NULL$$, '22004'),
    ($$'nope', '{1}', '{1}'$$, '42704'), ($$'gpt2-small', '{1}', '{1}'$$, '55000')) AS v (arguments, state);

-- llm_evaluate.
SELECT volatility_is('llm_evaluate', '{text,text,integer,integer}'::name[], 'stable');
SELECT is((SELECT tokens FROM llm_evaluate('t')), (SELECT sum(cardinality(target)) FROM llm_dataset WHERE split = 'val'), 'the split val by default');
SELECT is((SELECT tokens FROM llm_evaluate('t', 'train')), (SELECT sum(cardinality(target)) FROM llm_dataset WHERE split = 'train'), 'or train');
INSERT INTO llm_dataset (tokens, target) VALUES ('{0,49}', '{49,0}'), ('{50,1}', '{1,2}'), ('{1,2}', '{2,50}'), ('{-1,2}', '{2,3}'), ('{1,2}', '{2,-1}');
SELECT is((SELECT tokens FROM llm_evaluate('bare', 'train')), 2::bigint, 'rows of no model are used where all ids are the model''s');
INSERT INTO llm_dataset (tokens, target) VALUES ('{NULL,1}', '{1,2}');
SELECT throws_ok($$SELECT * FROM llm_evaluate('bare', 'train')$$, '22000', NULL, 'a null among the ids is not passed over');
DELETE FROM llm_dataset WHERE model IS NULL;
SELECT is((SELECT tokens FROM llm_evaluate('t', max_rows => 2)), 16::bigint, 'or its first rows');
SELECT is((SELECT round(loss::numeric, 5) FROM llm_evaluate('t')), (SELECT round(avg(llm_loss('t', tokens, target, training => false))::numeric, 5) FROM llm_dataset WHERE split = 'val'), 'the mean of llm_loss');
SELECT is((SELECT round(perplexity::numeric, 4) FROM llm_evaluate('t')), (SELECT round(exp(loss)::numeric, 4) FROM llm_evaluate('t')), 'perplexity is its exp');
SELECT is((SELECT round(loss::numeric, 5) FROM llm_evaluate('t', batch_size => 3)), (SELECT round(loss::numeric, 5) FROM llm_evaluate('t')), 'batches do not matter');
SELECT throws_ok(format('SELECT * FROM llm_evaluate(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'t', NULL$$, '22004'), ($$'t', 'nope'$$, '22023'), ($$'t', max_rows => 0$$, '22023'), ($$'t', batch_size => 0$$, '22023'), ($$'t', batch_size => NULL$$, '22004'),
    ($$'bare'$$, '55000'), ($$'nope'$$, '42704'), ($$'gpt2-small'$$, '55000')) AS v (arguments, state);

-- llm_train_step.
SELECT volatility_is('llm_train_step', '{text,integer,integer,integer,integer,integer,"double precision","double precision","double precision","double precision","double precision","double precision",integer,integer,"double precision",integer,integer,integer[],"double precision",bigint,text}'::name[], 'volatile');
CREATE TEMPORARY TABLE one AS SELECT min(id)::integer AS id FROM llm_dataset WHERE split = 'train';
CREATE TEMPORARY TABLE before AS SELECT llm_loss('t', tokens, target, training => false) AS loss FROM llm_dataset d JOIN one USING (id);
SELECT is(llm_train_step('t', (SELECT id FROM one), dropout_p => 0, lr_max => 0.01)::real, (SELECT loss::real FROM before), 'the loss before the update');
SELECT ok((SELECT llm_loss('t', tokens, target, training => false) FROM llm_dataset d JOIN one USING (id)) < (SELECT loss FROM before), 'which lowers it');
SELECT is((SELECT step FROM llm_models WHERE model = 't'), 1::bigint, 'the model has had one step');
SELECT is((SELECT count(*) FROM llm_param WHERE model = 't' AND (m IS NULL OR v IS NULL OR step <> 1)), 0::bigint, 'with optimizer state for every tensor');
SELECT results_eq($$SELECT l.step, l.batch, r.status FROM llm_train_log l JOIN llm_run r USING (run_id) WHERE l.model = 't'$$,
    $$SELECT 1::bigint, ARRAY[id::bigint], 'manual' FROM one$$, 'it is logged under the manual run');
SELECT lives_ok($$SELECT llm_train_step('t', batch => ARRAY(SELECT id::integer FROM llm_dataset WHERE split = 'train' ORDER BY id LIMIT 3))$$, 'several rows as one batch');
SELECT lives_ok($$SELECT llm_train_step('t')$$, 'or the next row');
SELECT throws_ok($$SELECT llm_train_step_sent('t', NULL, NULL, NULL, NULL, NULL, 0.1, 0.9, 0.999, 1e-8, 0.01, 1e-4, 0, NULL, NULL, 1, 1, array_send('{1}'::bigint[]), 0, 0, 'none')$$, '22P02', NULL, 'llm_train_step_sent takes the binary form of an array of integers');
SELECT is((SELECT array_agg(step ORDER BY step) FROM llm_train_log WHERE model = 't'), '{1,2,3}', 'steps count on');
SELECT throws_ok(format('SELECT llm_train_step(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ('NULL', '22004'), ($$'nope'$$, '42704'), ($$'gpt2-small'$$, '55000'), ($$'bare'$$, '55000'), ($$'t', -1$$, '42704'), ($$'t', batch => '{}'$$, '22023'), ($$'t', batch => '{NULL}'$$, '22023'),
    ($$'t', 1, batch => '{1}'$$, '22023'), ($$'t', dropout_p => 1$$, '22023'), ($$'t', beta1 => 1$$, '22023'), ($$'t', beta2 => -1$$, '22023'), ($$'t', eps => -1$$, '22023'), ($$'t', wd => -1$$, '22023'),
    ($$'t', lr_max => -1$$, '22023'), ($$'t', lr_max => 'NaN'$$, '22023'), ($$'t', lr_max => NULL$$, '22004'), ($$'t', warmup => -1$$, '22023'), ($$'t', total_steps => 0$$, '22023'), ($$'t', grad_clip => 0$$, '22023'),
    ($$'t', grad_workers => 0$$, '22023'), ($$'t', prune_workers => NULL$$, '22004'), ($$'t', n_layer => 2$$, '22023'), ($$'t', seed => NULL$$, '22004'), ($$'t', min_lr => 'Infinity'$$, '22023')) AS v (arguments, state);
SELECT throws_ok($$SELECT llm_train_step('t', lr_max => 1e300)$$, '22003', NULL, 'an update that makes weights infinite is refused');
SELECT is((SELECT step FROM llm_models WHERE model = 't'), 3::bigint, 'what failed changed nothing');

-- llm_train.
SELECT volatility_is('llm_train', '{text,integer,integer,integer,integer,integer,"double precision","double precision","double precision","double precision","double precision","double precision",integer,"double precision",integer,integer,integer,integer,"double precision",bigint,integer,integer,text,jsonb}'::name[], 'volatile');
CREATE TEMPORARY TABLE run AS SELECT llm_train('t', 12, batch_size => 2, lr_max => 0.01, eval_every => 6) AS id;
SELECT results_eq($$SELECT model, status, seed, n_steps, first_step FROM llm_run JOIN run ON id = run_id$$, $$VALUES ('t', 'finished', 0::bigint, 12, 3::bigint)$$, 'llm_train returns the run, which llm_run describes');
SELECT is((SELECT array_agg(step ORDER BY step) FROM llm_train_log JOIN run ON id = run_id), ARRAY(SELECT generate_series(1, 12)::bigint), 'one row a step');
SELECT is((SELECT array_agg(step ORDER BY step) FROM llm_train_log JOIN run ON id = run_id WHERE val_loss IS NOT NULL), '{6,12}', 'validation every eval_every steps');
SELECT is((SELECT bool_and(cardinality(batch) = 2 AND tokens = 16) FROM llm_train_log JOIN run ON id = run_id), true, 'batch_size rows a step');
SELECT ok((SELECT max(loss) FILTER (WHERE step > 9) < min(loss) FILTER (WHERE step < 3) FROM llm_train_log JOIN run ON id = run_id), 'the loss falls');
SELECT is((SELECT lr FROM llm_train_log JOIN run ON id = run_id WHERE step = 1), 0.01::double precision, 'a warmup longer than a tenth of the run is cut');
SELECT ok(abs((SELECT lr FROM llm_train_log JOIN run ON id = run_id WHERE step = 12)) < 1e-12, 'and the cosine ends at min_lr');
SELECT is((SELECT step FROM llm_models WHERE model = 't'), 15::bigint, 'the model''s steps count on');
SELECT is((SELECT count(*) FROM llm_train_progress JOIN run ON id = run_id WHERE status = 'finished' AND step = 12 AND eta IS NULL), 1::bigint, 'llm_train_progress has it');
SELECT throws_ok(format('SELECT llm_train(%s)', arguments), state, NULL, 'train: ' || arguments) FROM (VALUES
    ($$NULL, 1$$, '22004'), ($$'t', NULL$$, '22004'), ($$'t', 0$$, '22023'), ($$'t', -1$$, '22023'), ($$'nope', 1$$, '42704'), ($$'gpt2-small', 1$$, '55000'), ($$'bare', 1$$, '55000'),
    ($$'t', 1, batch_size => 0$$, '22023'), ($$'t', 1, grad_accum => 0$$, '22023'), ($$'t', 1, eval_every => -1$$, '22023'), ($$'t', 1, n_head => 4$$, '22023'), ($$'t', 1, vocab => 4$$, '22023'),
    ($$'t', 1, batch_size => 2000000000$$, '22023'), ($$'t', 1, grad_accum => NULL$$, '22004'), ($$'t', 1, lr_max => 'NaN'$$, '22023'), ($$'t', 1, dropout_p => 'NaN'$$, '22023'),
    ($$'t', 1, beta1 => 'NaN'$$, '22023'), ($$'t', 1, beta2 => 'Infinity'$$, '22023'), ($$'t', 1, eps => '-Infinity'$$, '22023'), ($$'t', 1, wd => 'Infinity'$$, '22023')) AS v (arguments, state);
INSERT INTO llm_dataset (model, tokens, target) VALUES ('bare', array_fill(1, '{17}'), array_fill(1, '{17}'));
SELECT throws_matching($$SELECT llm_train('bare', 1)$$, 'n_positions|positions', 'a row longer than the window');
SELECT is((SELECT max(run_id) FROM llm_run), (SELECT id FROM run), 'what failed left no run');

-- Options.
SELECT volatility_is('llm_training_options_declared', '{}'::name[], 'volatile');
SELECT columns_are('llm_training_options', '{name,type,default_value,domain,meaning}');
SELECT set_has('SELECT name, type, default_value FROM llm_training_options', $$VALUES
    ('dropout_p', 'number', '0.1'), ('adam_beta1', 'number', '0.9'), ('weight_decay', 'number', '0.01'), ('learning_rate', 'number', '0.00025'), ('warmup_steps', 'integer', '2000'),
    ('max_grad_norm', 'number', NULL), ('gradient_accumulation_steps', 'integer', '1'), ('eval_steps', 'integer', NULL), ('audit', 'text', '"tape"'),
    ('lr_schedule', 'text', '"cosine"'), ('patience', 'integer', NULL), ('min_delta', 'number', '0.0'), ('keep_best', 'true or false', 'false')$$, 'the manual of training');
SELECT is((SELECT count(*) FROM llm_training_options WHERE meaning = '' OR domain = ''), 0::bigint, 'with a meaning and a domain each');
CREATE TEMPORARY TABLE optional AS SELECT llm_train('t', 2, min_lr => 0.001, options => '{"learning_rate": 0.01, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-7, "weight_decay": 0.1,
    "warmup_steps": 1, "max_grad_norm": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "dropout_p": 0, "seed": 7, "audit": "none", "logging_steps": 0, "eval_steps": 1}') AS id;
SELECT is((SELECT config - '{n_steps,data,attention_chunk,tied}'::text[] FROM llm_run JOIN optional ON id = run_id), '{"lr_max": 0.01, "beta1": 0.8, "beta2": 0.9, "eps": 1e-7, "weight_decay": 0.1,
    "warmup": 1, "grad_clip": 1.0, "batch_size": 2, "grad_accum": 2, "dropout_p": 0.0, "seed": 7, "min_lr": 0.001, "lr_schedule": "cosine", "patience": null, "min_delta": 0.0,
    "keep_best": false, "shards": 1, "sync_every": 1, "outer_lr": 0.7, "outer_momentum": 0.9, "eval_every": 1}'::jsonb, 'options set parameters, under the names of Hugging Face');
SELECT is((SELECT count(val_loss) FROM llm_train_log JOIN optional ON id = run_id), 2::bigint, 'those of the log, too');
SELECT throws_ok(format('SELECT llm_train(''t'', 1, %s)', arguments), state, NULL, 'options: ' || arguments) FROM (VALUES
    ($$options => '{"adam_beta3": 1}'$$, '22023'), ($$options => '[]'$$, '22023'), ($$options => '{"learning_rate": "1"}'$$, '22023'), ($$options => '{"learning_rate": -1}'$$, '22023'),
    ($$options => '{"learning_rate": null}'$$, '22004'), ($$lr_max => 0.1, options => '{"learning_rate": 0.2}'$$, '22023'), ($$options => '{"wd": 0.2, "weight_decay": 0.1}'$$, '22023')) AS v (arguments, state);

-- The end of a run.
SELECT has_column('llm_run', 'best_checkpoint', 'llm_run says where best weights are');
CREATE TEMPORARY TABLE ended AS SELECT llm_train('t', 40, eval_every => 1, options => '{"patience": 2, "min_delta": 1000, "keep_best": true, "lr_schedule": "linear"}') AS id;
SELECT results_eq($$SELECT status, n_steps, best_checkpoint FROM llm_run JOIN ended ON id = run_id$$, $$VALUES ('early', 40, NULL::integer)$$, 'patience ends a run early');
SELECT is((SELECT max(step) FROM llm_train_log JOIN ended ON id = run_id), 3::bigint, 'after so many evaluations without gain');
SELECT is((SELECT step FROM llm_models WHERE model = 't'), (SELECT first_step + (SELECT step FROM llm_train_log l WHERE l.run_id = r.run_id ORDER BY val_loss, step LIMIT 1) FROM llm_run r JOIN ended ON id = run_id), 'keep_best leaves the best evaluation');
SELECT is((SELECT config - '{n_steps,data}'::text[] @> '{"patience": 2, "min_delta": 1000, "keep_best": true, "lr_schedule": "linear", "eval_every": 1}' FROM llm_run JOIN ended ON id = run_id), true, 'llm_run records what decided');
SELECT is((SELECT status FROM llm_train_progress JOIN ended ON id = run_id), 'early', 'llm_train_progress says early');
SELECT throws_ok(format('SELECT llm_train(''t'', 1, %s)', arguments), '22023', message, 'refused: ' || message) FROM (VALUES
    ($$options => '{"patience": 1}'$$, 'pg_gpt2: patience needs evaluations, and eval_every is null'),
    ($$options => '{"keep_best": true, "eval_steps": 0}'$$, 'pg_gpt2: keep_best needs evaluations, and eval_every is 0'),
    ($$options => '{"min_delta": 0.5}'$$, 'pg_gpt2: min_delta 0.5 has no effect without patience'),
    ($$min_lr => 0.5, options => '{"lr_schedule": "constant"}'$$, 'pg_gpt2: min_lr 0.5 has no effect with lr_schedule constant')) AS v (arguments, message);

-- llm_train_run and llm_train_stop.
SELECT throws_ok($$CALL llm_train_run('t', 1)$$, '2D000', NULL, 'llm_train_run commits, so not in a transaction');
SELECT volatility_is('llm_train_stop', '{text}'::name[], 'volatile');
SELECT is(llm_train_stop('t'), false, 'nothing to stop');
SELECT throws_ok($$SELECT llm_train_stop(NULL)$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT llm_train_stop('nope')$$, '42704', NULL, 'a misspelt name is not a model without a run');

SELECT throws_ok('SELECT llm_train_step(''t'', ' || arguments || ')', state, message, 'an error says wd, as the call does') FROM (VALUES
    ('wd => -1', '22023', 'pg_gpt2: wd must be 0 or more, not -1.0'), ('wd => NULL', '22004', 'pg_gpt2: wd must not be null')) AS v (arguments, state, message);

SELECT * FROM finish();
ROLLBACK;
