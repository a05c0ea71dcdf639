-- Choosing: llm_choose, llm_classify, llm_choose_from, llm_choose_rows, llm_evaluate_choices.
BEGIN;
SELECT plan(68);
SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider naïve')$$, 270, 't');
SELECT llm_init_model('t', 2, 2, 8, 16, seed => 3);
SELECT llm_init_model('ids', 2, 2, 8, 16, 50);
SET LOCAL pg_gpt2.model = 't';
CREATE TEMP TABLE label (name text, team text);
INSERT INTO label VALUES (' low', 'a'), (' lower', 'a'), (NULL, 'a'), (' wider', 'b');

-- llm_choose.
SELECT volatility_is('llm_choose', '{text,llm_texts,text,text}'::name[], 'stable');
SELECT is((SELECT array_agg(rank) FROM llm_choose('low', '{" low"," wider"," xyz"}')), '{1,2,3}', 'a row for each choice, best first');
SELECT is((SELECT array_agg(logprob ORDER BY rank) FROM llm_choose('low', '{" low"," wider"," xyz"}')), (SELECT array_agg(logprob ORDER BY logprob DESC) FROM llm_choose('low', '{" low"," wider"," xyz"}')), 'by log-probability');
SELECT is((SELECT round(logprob::numeric, 4) FROM llm_choose('low', '{" lower wider"}')),
          (SELECT round(sum(logprob)::numeric, 4) FROM llm_logprobs('low lower wider') WHERE "position" > 0), 'the sum over the choice''s tokens');
SELECT is((SELECT tokens FROM llm_choose('low', '{" lower wider"}')), llm_token_count(' lower wider'), 'whose number is told');
SELECT is((SELECT round(logprob::numeric, 4) FROM llm_choose('low ', '{lower}')), (SELECT round(logprob::numeric, 4) FROM llm_choose('low', '{" lower"}')), 'blanks at the end belong to the choice');
SELECT is((SELECT round(logprob::numeric, 4) FROM llm_choose('', '{lower}')), (SELECT round(sum(logprob)::numeric, 4) FROM llm_logprobs('lower', from_start => true)), 'an empty prompt is the end-of-text token');
SELECT is((SELECT round(sum(probability)::numeric, 6) FROM llm_choose('low', '{" low"," wider"," xyz"}')), 1.0, 'probabilities add up to 1');
SELECT is((SELECT round(probability::numeric, 6) FROM llm_choose('low', '{" low"," wider"}') LIMIT 1),
          (SELECT round((exp(max(logprob)) / sum(exp(logprob)))::numeric, 6) FROM llm_choose('low', '{" low"," wider"}')), 'they are the softmax');
SELECT is((SELECT array_agg(choice ORDER BY rank) FROM llm_choose('low', '{" low"," wider",b}', 'tokens')),
          (SELECT array_agg(choice ORDER BY logprob / tokens DESC) FROM llm_choose('low', '{" low"," wider",b}')), 'tokens: the mean');
SELECT is((SELECT array_agg(choice ORDER BY rank) FROM llm_choose('low', '{" low"," wider","ï"}', 'bytes')),
          (SELECT array_agg(choice ORDER BY logprob / octet_length(choice) DESC) FROM llm_choose('low', '{" low"," wider","ï"}')), 'bytes: a byte');
SELECT is((SELECT array_agg(choice ORDER BY rank) FROM llm_choose('low', '{" low"," wider",b}', 'prior')),
          (SELECT array_agg(a.choice ORDER BY a.logprob - b.logprob DESC) FROM llm_choose('low', '{" low"," wider",b}') a JOIN llm_choose('', '{" low"," wider",b}') b USING (choice)), 'prior: against the beginning of a text');
SELECT is((SELECT array_agg(logprob) FROM llm_choose('low', '{b," low"}', 'prior') WHERE choice = 'b'), (SELECT array_agg(logprob) FROM llm_choose('low', '{b}')), 'logprob is not normalized');
SELECT results_eq($$SELECT rank, choice FROM llm_choose('low', '{b,b}')$$, $$VALUES (1, 'b'), (2, 'b')$$, 'equal choices');
SELECT is((SELECT count(*) FROM llm_choose(repeat('low ', 50), '{" low"," lower wider"}')), 2::bigint, 'past the window the prompt loses its beginning');
SELECT is((SELECT round(logprob::numeric, 4) FROM llm_choose(repeat('low ', 50), '{lower}')),
          (SELECT round(logprob::numeric, 4) FROM llm_choose(repeat('low ', 60), '{lower}')), 'and the rest decides');
SELECT is_empty($$SELECT * FROM llm_choose(NULL, '{a}')$$, 'no rows of null');
SELECT is_empty($$SELECT * FROM llm_choose('low', NULL)$$, 'of null choices');
SELECT is_empty($$SELECT * FROM llm_choose('low', '{}')$$, 'and of none');
SELECT throws_ok(format('SELECT * FROM llm_choose(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'low', '{a,NULL}'$$, '22004'), ($$'low', ARRAY['']$$, '22023'), ($$'low', '{a}', 'sum'$$, '22023'), ($$'low', '{a}', NULL$$, '22004'),
    ($$'low', ARRAY[repeat('low ', 20)]$$, '22023'), ($$'lo', '{w}'$$, '22023'), ($$'low', '{{a},{b}}'$$, '22023'),
    ($$'low', '{a}', model_name => 'nope'$$, '42704'), ($$'low', '{a}', model_name => 'ids'$$, '55000')) AS v (arguments, state);

-- llm_classify.
SELECT volatility_is('llm_classify', '{text,llm_texts,text,text}'::name[], 'stable');
SELECT is(llm_classify('low', '{" low"," wider"," xyz"}'), (SELECT choice FROM llm_choose('low', '{" low"," wider"," xyz"}') WHERE rank = 1), 'the first of llm_choose');
SELECT is(llm_classify('low', '{" low"," wider"," xyz"}', 'bytes', 't'), (SELECT choice FROM llm_choose('low', '{" low"," wider"," xyz"}', 'bytes') WHERE rank = 1), 'normalized, too');
SELECT is(llm_classify(NULL, '{a}'), NULL, 'null of null');
SELECT is(llm_classify('low', '{}'), NULL, 'and of no choices');

-- llm_choose_from.
SELECT results_eq($$SELECT * FROM llm_choose_from('low', 'SELECT name FROM label')$$, $$SELECT * FROM llm_choose('low', '{" low"," lower"," wider"}')$$, 'the rows of a query, without nulls');
SELECT results_eq($$SELECT choice FROM llm_choose_from('low', 'SELECT name FROM label WHERE team = $x$b$x$', 'tokens')$$, $$VALUES (' wider')$$, 'as it selects them');
SELECT is_empty($$SELECT * FROM llm_choose_from('low', 'SELECT name FROM label WHERE false')$$, 'no rows of no choices');
SELECT is_empty($$SELECT * FROM llm_choose_from(NULL, 'SELECT name FROM label')$$, 'no rows of null');
SELECT throws_ok($$SELECT * FROM llm_choose_from('low', 'SELECT name, team FROM label')$$, '22023', NULL, 'two columns');
SELECT throws_ok($$SELECT * FROM llm_choose_from('low', NULL)$$, '22004', NULL, 'source null');

-- llm_choose_rows.
SELECT results_eq($$SELECT * FROM llm_choose_rows('SELECT name, name FROM label', '{" low"," wider"}', 'tokens')$$,
                  $$SELECT name, best.choice, best.probability FROM label LEFT JOIN LATERAL (SELECT * FROM llm_choose(name, '{" low"," wider"}', 'tokens') WHERE rank = 1) AS best ON true$$, 'as one by one, and null for null');
SELECT results_eq($$SELECT * FROM llm_choose_rows('SELECT 7, $x$low$x$', '{}')$$, $$VALUES ('7', NULL, NULL::double precision)$$, 'null without choices');
SELECT results_eq($$SELECT choice FROM llm_choose_rows('VALUES (1, $x$lo$x$), (2, $x$l$x$)', '{w}')$$, $$VALUES (NULL), ('w')$$, 'a prompt that cannot be answered does not end the statement');
SELECT throws_ok($$SELECT * FROM llm_choose_rows('SELECT name FROM label', '{a}')$$, '22023', NULL, 'one column');
SELECT throws_ok($$SELECT * FROM llm_choose_rows('SELECT 1, name FROM label', '{a}', 'sum')$$, '22023', NULL, 'no such normalization');
SELECT throws_ok(call, '22023', NULL, 'a model''s name in its place is no error about the model that is meant: ' || call) FROM (VALUES
    ($$SELECT llm_choose('low', '{a}', 't', 'gpt2-xl')$$), ($$SELECT llm_classify('low', '{a}', 't', 'gpt2-xl')$$),
    ($$SELECT llm_choose_from('low', 'SELECT name FROM label', 't', 'gpt2-xl')$$),
    ($$SELECT llm_evaluate_choices('SELECT name, name FROM label', '{a}', 't', 'gpt2-xl')$$)) AS v (call);
SELECT throws_ok($$SELECT * FROM llm_choose_rows('SELECT 1, name FROM label', '{a,NULL}')$$, '22004', NULL, 'a null choice');

-- llm_evaluate_choices. What is skipped, and what counts as wrong, tests/server/test_evaluate_choices.py.
CREATE TEMP TABLE quiz AS SELECT n AS id, 'low ' || n AS prompt, own[1 + n % 3] AS answer, own[n % 2 :] AS own
FROM generate_series(1, 12) AS n, CAST('{low,wider,n}' AS text[]) AS own;
SELECT volatility_is('llm_evaluate_choices', '{text,llm_texts,text,text,text}'::name[], 'volatile');
SELECT results_eq($$SELECT accuracy, n FROM llm_evaluate_choices('SELECT prompt, answer FROM quiz', '{low,wider,n}')$$,
                  $$SELECT avg((choice = answer)::integer)::float8, count(*) FROM llm_choose_rows('SELECT id, prompt FROM quiz', '{low,wider,n}') JOIN quiz ON id = key::integer$$, 'accuracy is how often llm_choose_rows is right');
SELECT results_eq($$SELECT c.* FROM llm_evaluate_choices('SELECT prompt, answer FROM quiz', '{low,wider,n}', 'tokens'), unnest(confusion) AS c$$,
                  $$SELECT answer, choice, count(*) FROM llm_choose_rows('SELECT id, prompt FROM quiz', '{low,wider,n}', 'tokens') JOIN quiz ON id = key::integer GROUP BY 1, 2 ORDER BY answer COLLATE "C", choice COLLATE "C"$$, 'confusion, what it takes for what');
SELECT results_eq($$SELECT accuracy_norm FROM llm_evaluate_choices('SELECT prompt, answer FROM quiz', '{low,wider,n}', 'prior')$$,
                  $$SELECT avg((best.choice = answer)::integer)::float8 FROM quiz, LATERAL (SELECT choice FROM llm_choose(prompt, '{low,wider,n}') ORDER BY logprob / length(choice) DESC LIMIT 1) AS best$$, 'accuracy_norm goes by characters, whatever is asked for');
SELECT results_eq($$SELECT accuracy FROM llm_evaluate_choices('SELECT prompt, answer, own FROM quiz')$$,
                  $$SELECT avg((llm_classify(prompt, own) = answer)::integer)::float8 FROM quiz$$, 'rows with choices of their own');
SELECT results_eq($$SELECT * FROM llm_evaluate_choices('SELECT prompt, answer FROM quiz WHERE false', '{low}')$$, $$VALUES (NULL::float8, NULL::float8, 0::bigint, '{}'::llm_confusion[])$$, 'of no rows');
SELECT results_eq($$SELECT n, confusion FROM llm_evaluate_choices('VALUES ($x$low$x$, NULL), (NULL, $x$low$x$), ($x$low$x$, $x$ low$x$)', '{" low"}')$$, $$VALUES (1::bigint, ARRAY[(' low', ' low', 1)::llm_confusion])$$, 'a null is not counted');
SELECT results_eq($$SELECT accuracy, confusion FROM llm_evaluate_choices('VALUES ($x$low$x$, $x$low$x$)', '{" low"}')$$, $$VALUES (0::float8, ARRAY[('low', ' low', 1)::llm_confusion])$$, 'no choice is the answer');
SELECT results_eq($$SELECT accuracy, confusion FROM llm_evaluate_choices('VALUES ($x$lo$x$, $x$w$x$)', '{w}')$$, $$VALUES (0::float8, ARRAY[('w', NULL, 1)::llm_confusion])$$, 'no result is not right');
SELECT results_eq($$SELECT n FROM llm_evaluate_choices('VALUES ($x$low$x$, 7, ARRAY[7, 8])')$$, 'VALUES (1::bigint)', 'answers and choices of other types');
SELECT throws_ok(format('SELECT * FROM llm_evaluate_choices(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$NULL, '{a}'$$, '22004'), ($$'SELECT prompt, answer FROM quiz'$$, '22023'), ($$'SELECT prompt, answer FROM quiz', '{}'$$, '22023'),
    ($$'SELECT prompt FROM quiz', '{a}'$$, '22023'), ($$'SELECT prompt, answer, id FROM quiz'$$, '22023'),
    ($$'SELECT prompt, answer FROM quiz', '{a}', 'sum'$$, '22023'), ($$'SELECT prompt, answer FROM quiz', '{a,NULL}'$$, '22004'),
    ($$'SELECT prompt, answer FROM quiz', '{a}', model_name => 'nope'$$, '42704'), ($$'SELECT prompt, answer FROM quiz; SELECT 1', '{a}'$$, '22023')) AS v (arguments, state);
SELECT * FROM finish();
ROLLBACK;
