-- Models on other servers: llm_publish.
BEGIN;
SELECT current_setting('server_version_num')::integer >= 150000 AS has_lists \gset
SELECT plan(CASE WHEN :'has_lists' THEN 16 ELSE 8 END);

SELECT volatility_is('llm_publish', '{text,llm_texts}'::name[], 'volatile');
SELECT ok(NOT has_function_privilege('public', 'llm_publish(text, llm_texts)', 'EXECUTE'), 'PUBLIC may not call it');

SELECT llm_init_model('a', 1, 2, 8, 16, 50);
SELECT llm_init_model('b', 1, 2, 8, 16, 50);
SELECT llm_adapter_create('fit', 'a', r => 2);

SELECT lives_ok($$SELECT llm_publish('p')$$, 'all models');
SELECT is(
    (SELECT string_agg(tablename::text, ' ' ORDER BY tablename::text COLLATE "C") FROM pg_publication_tables WHERE pubname = 'p'),
    'llm_adapter llm_bpe_merges llm_bpe_vocab llm_model_config llm_param llm_param_share',
    'has the tables that a reader needs'
);
SELECT results_eq(
    $$SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = 'p'$$,
    $$VALUES (true, true, true, false)$$,
    'and what happens to rows, but not TRUNCATE, which would take those of the subscriber'
);
SELECT throws_ok($$SELECT llm_publish(NULL)$$, '22004', NULL, 'publication null');
SELECT throws_ok($$SELECT llm_publish('')$$, '22023', NULL, 'an empty name');

\if :has_lists
ALTER PUBLICATION p SET (publish = 'insert, truncate');
SELECT lives_ok($$SELECT llm_publish('p', '{a,fit}')$$, 'two of them');
SELECT results_eq($$SELECT count(*) FROM pg_publication_rel WHERE prqual IS NOT NULL$$, $$VALUES (6::bigint)$$, 'by row filters');
SELECT results_eq($$SELECT pubdelete, pubtruncate FROM pg_publication$$, $$VALUES (true, false)$$, 'what is published is set again');
SELECT lives_ok($$SELECT llm_publish('p', NULL)$$, 'and all again');
SELECT results_eq($$SELECT count(*) FROM pg_publication_rel WHERE prqual IS NOT NULL$$, $$VALUES (0::bigint)$$, 'without filters');

SELECT throws_ok($$SELECT llm_publish('p', '{}')$$, '22023', NULL, 'no models');
SELECT throws_ok($$SELECT llm_publish('p', '{a,NULL}')$$, '22004', NULL, 'a null among them');
SELECT throws_ok($$SELECT llm_publish('p', '{a,nope}')$$, '42704', NULL, 'an unknown model');
SELECT throws_ok($$SELECT llm_publish('p', '{b,fit}')$$, '22023', NULL, 'an adapter without its base');
\else
SELECT throws_ok($$SELECT llm_publish('p', '{a,fit}')$$, '0A000', NULL, 'some of them, on PostgreSQL 14');
\endif

SELECT * FROM finish();
ROLLBACK;
