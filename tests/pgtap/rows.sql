-- Rows: llm_generate_rows, llm_perplexity_rows, llm_embedding_rows.
BEGIN;
SELECT plan(46);
SET LOCAL client_min_messages = warning;
SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider naïve')$$, 270, 't');
SELECT llm_init_model('t', 2, 2, 8, 16, seed => 3);
SELECT llm_init_model('ids', 2, 2, 8, 16, 50, seed => 3);
SET LOCAL pg_gpt2.model = 't';
CREATE TEMPORARY TABLE doc (n integer, id integer, body text);
INSERT INTO doc VALUES (1, 3, 'lower wider'), (2, 1, NULL), (3, 2, ''), (4, NULL, 'l'), (5, 5, repeat('low ', 40)), (6, 4, 'newer naïve low');
CREATE TEMPORARY TABLE two AS SELECT 1 AS id, 'lower' AS body;

-- llm_perplexity_rows.
SELECT volatility_is('llm_perplexity_rows', '{text,text,boolean,text}'::name[], 'volatile');
SELECT results_eq('SELECT key, round(perplexity::numeric, 4), tokens FROM llm_perplexity_rows($$SELECT id, body FROM doc ORDER BY n$$)',
    'SELECT id::text, round(llm_perplexity(body)::numeric, 4), CASE WHEN body IS NOT NULL THEN greatest(0, llm_token_count(body) - 1) END FROM doc ORDER BY n', 'the source''s rows in its order, with llm_perplexity''s numbers');
SELECT results_eq('SELECT key, round(perplexity::numeric, 4), tokens FROM llm_perplexity_rows($$SELECT id, body FROM doc ORDER BY n$$, from_start => true)',
    'SELECT id::text, round(llm_perplexity(body, from_start => true)::numeric, 4), llm_token_count(body) FROM doc ORDER BY n', 'from_start, too');
SELECT results_eq('SELECT key FROM llm_perplexity_rows($$SELECT id, body FROM doc ORDER BY id DESC$$)', 'SELECT id::text FROM doc ORDER BY id DESC', 'ORDER BY is heeded');
SELECT is_empty('SELECT * FROM llm_perplexity_rows($$SELECT id, body FROM doc WHERE false$$)', 'no rows of none');
SELECT is((SELECT key FROM llm_perplexity_rows(source)), key, 'a key is a text: ' || source) FROM (VALUES
    ('VALUES (true, ''low'')', 'true'), ('VALUES (1.50, ''low'')', '1.50'), ('VALUES (1e0::real, ''low'')', '1'), ('SELECT DATE ''2026-01-02'', ''low''', '2026-01-02'),
    ('SELECT ARRAY[1,2], ''low''', '{1,2}'), ('SELECT two, body FROM two', '(1,lower)'), ('SELECT NULL, ''low''', NULL)) AS v (source, key);
SELECT is((SELECT tokens FROM llm_perplexity_rows(source)), llm_token_count('lower') - 1, 'a source: ' || source) FROM (VALUES
    ('SELECT 1, ''lower''::varchar(20)'), ('SELECT 1, ''lower''::name'), ('SELECT 1, ''lower''::char(9)'), ('TABLE pg_temp.two; '), ('WITH a AS (TABLE two) SELECT * FROM a -- all'),
    ('SELECT id, body FROM pg_temp.two FOR UPDATE'), ('SELECT id, body AS id FROM two')) AS v (source);
SELECT throws_ok(format('SELECT * FROM llm_perplexity_rows(%L)', source), state, NULL, 'no source: ' || coalesce(source, 'null')) FROM (VALUES
    (NULL, '22004'), ('SELECT body FROM doc', '22023'), ('SELECT id, body, 1 FROM doc', '22023'), ('SELECT body, id FROM doc', '22023'), ('SELECT 1, ''a''; SELECT 2, ''b''', '22023'),
    ('UPDATE doc SET id = 1 RETURNING id, body', '22023'), ('WITH a AS (DELETE FROM doc RETURNING id, body) TABLE a', '22023'), ('SELECT id, body FROM nope', '42P01'), ('nonsense', '42601'), ('', '22023')) AS v (source, state);
SELECT throws_ok($$SELECT * FROM llm_perplexity_rows('TABLE two', 'nope')$$, '42704', NULL, 'unknown model');
SELECT throws_ok($$SELECT * FROM llm_perplexity_rows('TABLE two', 'ids')$$, '55000', NULL, 'no vocabulary');
SELECT throws_ok($$SELECT * FROM llm_perplexity_rows('TABLE two', from_start => NULL)$$, '22004', NULL, 'from_start null');
SELECT throws_ok($$SELECT * FROM llm_perplexity_rows('TABLE two', source_path => 'a b')$$, '22023', NULL, 'no path');

-- llm_embedding_rows.
SELECT volatility_is('llm_embedding_rows', '{text,integer,text,text,text}'::name[], 'volatile');
SELECT is((SELECT max(1 - llm_cosine(r.embedding, llm_text_embedding(d.body, layer, pooling))) < 1e-6 AND count(*) = 4
    FROM llm_embedding_rows('SELECT n, body FROM doc', layer, pooling) AS r JOIN doc AS d ON r.key = d.n::text AND d.body <> ''), true, format('those of llm_text_embedding: %s, %s', layer, pooling))
FROM (VALUES (NULL::integer, 'mean'), (0, 'last'), (-2, 'mean')) AS v (layer, pooling);
SELECT is((SELECT array_agg(key) FROM llm_embedding_rows('SELECT id, body FROM doc ORDER BY n') WHERE embedding IS NULL), '{1,2}', 'null of null and of an empty text');
SELECT throws_ok(format('SELECT * FROM llm_embedding_rows(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'TABLE two', 3$$, '22023'), ($$'TABLE two', pooling => 'max'$$, '22023'), ($$'TABLE two', pooling => NULL$$, '22004'), ($$NULL$$, '22004')) AS v (arguments, state);

-- llm_generate_rows.
SELECT results_eq('SELECT key, text, sample FROM llm_generate_rows($$SELECT id, body FROM doc ORDER BY n$$, 4, seed => 5)',
    'SELECT id::text, llm_generate(body, 4, seed => 5 + n - 1), 1 FROM doc ORDER BY n', 'row n is llm_generate''s with seed + n - 1');
SELECT results_eq($$SELECT key, text, sample FROM llm_generate_rows('SELECT id, body FROM doc ORDER BY n', 4, seed => 5, echo => false, stop => '{e}', options => '{"n": 2}')$$,
    $$SELECT id::text, llm_generate(body, 4, seed => 5 + 2 * (n - 1) + i - 1, echo => false, stop => '{e}'), i FROM doc, generate_series(1, 2) AS i ORDER BY n, i$$,
    'sample i of row p with seed + (p - 1) n + i - 1');
SELECT throws_ok($$SELECT * FROM llm_generate_rows('TABLE two', 4, -1)$$, '22023', NULL, 'options are checked');
SELECT throws_ok($$SELECT * FROM llm_generate_rows('TABLE two', 4, options => '{"m": 1}')$$, '22023', NULL, 'keys, too');

SELECT * FROM finish();
ROLLBACK;
