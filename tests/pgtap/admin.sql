-- For whoever runs the server: llm_doctor, llm_cache_status, llm_model_sessions, llm_cache_clear, llm_grant_usage and the caps of llm_limit.
BEGIN;
SELECT plan(71);
SET LOCAL client_min_messages = warning;
SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 270, 't');
SELECT llm_init_model('t', 1, 2, 8, 16);
SELECT llm_dataset_load($$VALUES (repeat('low lower ', 20))$$, 't', 8);
SELECT llm_init_model('bare', 1, 2, 8, 16, 50);

-- llm_doctor.
SELECT volatility_is('llm_doctor', '{}'::name[], 'volatile');
SELECT is_empty($$SELECT * FROM llm_doctor() WHERE item IS NULL OR value IS NULL OR status NOT IN ('ok', 'warn', 'error')$$, 'every finding is ok, warn or error');
SELECT is_empty($$SELECT * FROM llm_doctor() WHERE (status = 'ok') <> (hint IS NULL)$$, 'with a hint where it is not ok');
SELECT is_empty(format($$SELECT %L::text EXCEPT SELECT item FROM llm_doctor()$$, item), 'it looks at ' || item)
FROM unnest('{pg_gpt2,PostgreSQL,Python,"compiled modules",NumPy,BLAS,client_connection_check_interval,"matrix product",threads,max_memory,encoding,"model t",llm_param,pg_gpt2.model}'::text[]) AS item;
SELECT is((SELECT status FROM llm_doctor() WHERE item = 'encoding'), 'ok', 'the encoding is UTF8');
SELECT is((SELECT status FROM llm_doctor() WHERE item = 'model bare'), 'warn', 'a model without a vocabulary is told of');
SELECT is((SELECT status FROM llm_doctor() WHERE item = 'pg_gpt2.model'), 'warn', 'and a default model that has no weights');
SET LOCAL pg_gpt2.model = 't';
SELECT is((SELECT (value, status)::text FROM llm_doctor() WHERE item = 'pg_gpt2.model'), '(t,ok)', 'but not one that has');
SET LOCAL pg_gpt2.threads = 1;
SELECT matches((SELECT value FROM llm_doctor() WHERE item = 'threads'), '^1 of ', 'threads are those of the setting');
RESET pg_gpt2.threads;

SET LOCAL client_connection_check_interval = '10s';
SELECT is((SELECT (value, status)::text FROM llm_doctor() WHERE item = 'client_connection_check_interval'), '(10s,ok)', 'that vanished clients are looked for');
SET LOCAL client_connection_check_interval = 0;
SELECT is((SELECT status FROM llm_doctor() WHERE item = 'client_connection_check_interval'), 'warn', 'or are not');

-- llm_compile.
SELECT is(llm_compile(), (SELECT count(*)::integer FROM llm_module), 'llm_compile compiles every module');
SELECT is((SELECT (value, status)::text FROM llm_doctor() WHERE item = 'compiled modules'), (SELECT format('("%s of %s",ok)', count(*), count(*)) FROM llm_module), 'which llm_doctor says');

-- llm_cache_status and llm_cache_clear.
SELECT volatility_is('llm_cache_status', '{}'::name[], 'volatile');
SELECT volatility_is('llm_cache_clear', '{}'::name[], 'volatile');
SELECT volatility_is('llm_model_sessions', '{}'::name[], 'volatile');
SELECT is_empty($$SELECT * FROM llm_model_sessions()$$, 'small models are not shared');
SELECT llm_cache_clear();
SELECT is_empty($$SELECT * FROM llm_cache_status()$$, 'nothing is kept after llm_cache_clear');
SELECT is(llm_cache_clear(), 0::bigint, 'which then frees nothing');
CREATE TEMPORARY TABLE said AS SELECT llm_generate('low', 5, seed => 1) AS text;
CREATE TEMPORARY TABLE kept AS SELECT * FROM llm_cache_status();
SELECT results_eq($$SELECT kind, model, bytes >= CASE kind WHEN 'weights' THEN (SELECT bytes FROM llm_models WHERE model = 't') ELSE 1 END FROM kept ORDER BY kind$$,
    $$VALUES ('tokenizer', 't', true), ('weights', 't', true)$$, 'generation keeps weights, in panels that narrow matrices do not fill, and tokenizer');
CREATE ROLE nobody_here;
SET LOCAL ROLE nobody_here;
SELECT is_empty($$SELECT * FROM llm_cache_status()$$, 'a role that may see no model is told of none in memory');
SELECT is((SELECT array_agg(item::text) FROM llm_doctor() WHERE item LIKE 'model%'), '{models}', 'nor by llm_doctor');
RESET ROLE;
GRANT SELECT ON llm_model_config, llm_adapter, llm_param, llm_param_share TO nobody_here;
ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY;
SET LOCAL ROLE nobody_here;
SELECT is_empty($$SELECT * FROM llm_cache_status()$$, 'or one from which policies hide its weights');
SELECT is_empty($$SELECT * FROM llm_model_sessions()$$, 'nor who has it in memory');
RESET ROLE;
ALTER TABLE llm_param DISABLE ROW LEVEL SECURITY;
SET LOCAL ROLE nobody_here;
SELECT results_eq($$SELECT kind, model FROM llm_cache_status()$$, $$VALUES ('weights', 't')$$, 'and another one of what it may see');
RESET ROLE;
SELECT is(llm_cache_clear(), (SELECT bytes FROM kept WHERE kind = 'weights'), 'llm_cache_clear returns the bytes of the weights');
SELECT is(llm_generate('low', 5, seed => 1), (SELECT text FROM said), 'and changes no answer');

-- pg_gpt2.max_memory and llm_limit.
SELECT llm_cache_clear();
SET LOCAL pg_gpt2.max_memory = '1kB';
SELECT throws_ok($$SELECT llm_logits('{1}')$$, '53200', NULL, 'a model larger than pg_gpt2.max_memory is refused');
SET LOCAL pg_gpt2.max_memory = 'much';
SELECT throws_ok($$SELECT llm_logits('{1}')$$, '22023', NULL, 'which must be a size');
RESET pg_gpt2.max_memory;
INSERT INTO llm_limit VALUES ('max_memory', '1kB');
SELECT throws_ok($$SELECT llm_logits('{1}')$$, '53200', NULL, 'or larger than the owner''s cap');
SET LOCAL pg_gpt2.max_memory = '1GB';
SELECT throws_ok($$SELECT llm_logits('{1}')$$, '53200', NULL, 'which the setting cannot lift');
DELETE FROM llm_limit;
SELECT lives_ok($$SELECT llm_logits('{1}')$$, 'until the owner does');
SELECT throws_ok($$INSERT INTO llm_limit VALUES ('speed', '1')$$, '23514', NULL, 'there is no cap of another name');
RESET pg_gpt2.max_memory;

-- llm_grant_usage.
SELECT volatility_is('llm_grant_usage', '{text,text}'::name[], 'volatile');
CREATE ROLE "A reader"; CREATE ROLE trainer; CREATE ROLE administrator;
SELECT is(llm_grant_usage('A reader')::text, '', 'llm_grant_usage returns nothing; the level is read');
SELECT llm_grant_usage('trainer', 'train');
SELECT llm_grant_usage('administrator', level => 'admin');
CREATE FUNCTION pg_temp.as_role(name text, statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', name);
    EXECUTE statement;
    RESET ROLE;
    RETURN '00000';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END $$;
SELECT is(pg_temp.as_role('A reader', statement), state, 'a reader: ' || statement) FROM (VALUES
    ($$SELECT llm_generate('low', 3, model_name => 't')$$, '00000'), ($$SELECT * FROM llm_models$$, '00000'), ($$SELECT llm_perplexity('low lower', 't')$$, '00000'),
    ($$SELECT llm_train('t', 1)$$, '42501'), ($$DELETE FROM llm_param$$, '42501'), ($$SELECT llm_drop_model('t')$$, '42501')) AS v (statement, state);
SELECT is(pg_temp.as_role('trainer', statement), state, 'a trainer: ' || statement) FROM (VALUES
    ($$SELECT llm_train_bpe('VALUES (''low'')', 258, 'new')$$, '00000'), ($$SELECT llm_dataset_load('VALUES (''low lower lowest low lower'')', 't', 4)$$, '00000'),
    ($$SELECT llm_train('t', 1)$$, '00000'), ($$SELECT llm_train_step('t')$$, '00000'), ($$SELECT llm_generate('low', 3, model_name => 't')$$, '00000'),
    ($$SELECT llm_drop_model('t')$$, '42501')) AS v (statement, state);
SELECT is(pg_temp.as_role('administrator', statement), state, 'an administrator: ' || statement) FROM (VALUES
    ($$SELECT llm_init_model('new', 1, 1, 8, 8, 258)$$, '00000'), ($$SELECT llm_drop_model('new')$$, '00000'), ($$SELECT llm_train('t', 1)$$, '00000'),
    ($$UPDATE llm_module SET source = ''$$, '42501'), ($$INSERT INTO llm_limit VALUES ('max_memory', '1GB')$$, '42501')) AS v (statement, state);
SELECT throws_ok($$SELECT llm_grant_usage('nobody of this name')$$, '42704', NULL, 'unknown role');
SELECT throws_ok($$SELECT llm_grant_usage('trainer', 'everything')$$, '22023', NULL, 'unknown level');
SELECT throws_ok($$SELECT llm_grant_usage(NULL)$$, '22004', NULL, 'role null');
SELECT throws_ok($$SELECT llm_grant_usage('trainer', NULL)$$, '22004', NULL, 'level null');

SET pg_gpt2.audit_keep = 3;
SELECT is((SELECT setting || ', ' || boot_val FROM llm_settings WHERE name = 'pg_gpt2.audit_keep'), '3, 1', 'a setting of the session, and its default');
SELECT is((SELECT count(*)::integer FROM llm_settings), 10, 'all settings');

SELECT * FROM finish();
ROLLBACK;
