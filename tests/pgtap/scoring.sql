-- Scoring: llm_logprobs, llm_perplexity, llm_text_embedding, llm_cosine.
BEGIN;
SELECT plan(77);
SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider naïve')$$, 270, 't');
SELECT llm_init_model('t', 2, 2, 8, 16, seed => 3);
SELECT llm_init_model('ids', 2, 2, 8, 16, 50);
SET LOCAL pg_gpt2.model = 't';

-- llm_logprobs.
SELECT volatility_is('llm_logprobs', '{text,text,boolean}'::name[], 'stable');
SELECT is((SELECT array_agg(token_id ORDER BY "position") FROM llm_logprobs('lower wider')), llm_encode('lower wider'), 'one row a token');
SELECT results_eq($$SELECT "position", logprob, rank FROM llm_logprobs('lower wider') WHERE logprob IS NULL OR rank IS NULL$$, $$VALUES (0, NULL::double precision, NULL::integer)$$, 'the first has nothing before it');
SELECT ok((SELECT bool_and(logprob < 0 AND rank BETWEEN 1 AND 270) FROM llm_logprobs('lower wider') WHERE "position" > 0), 'logprob and rank');
SELECT is((SELECT (round(logprob::numeric, 5), rank)::text FROM llm_logprobs('lower' || ' ') WHERE "position" = 2),
          (SELECT (round(ln(probability)::numeric, 5), rank)::text FROM llm_next_token('lower', 270) WHERE token = ' '), 'they agree with llm_next_token');
SELECT is((SELECT count(*) FROM llm_logprobs(repeat('low ', 50))), llm_token_count(repeat('low ', 50))::bigint, 'past the window, too');
SELECT is((SELECT (round(logprob::numeric, 5), rank)::text FROM llm_logprobs('lower', from_start => true) WHERE "position" = 0),
          (SELECT (round(ln(probability)::numeric, 5), rank)::text FROM llm_next_token('', 270) WHERE token_id = (llm_encode('lower'))[1]), 'from_start scores the first token after end-of-text');
SELECT is((SELECT array_agg(token_id ORDER BY "position") FROM llm_logprobs('lower wider', from_start => true)), llm_encode('lower wider'), 'with the same rows');
SELECT is_empty($$SELECT * FROM llm_logprobs('', from_start => true)$$, 'also none of an empty text');
SELECT throws_ok($$SELECT * FROM llm_logprobs('low', from_start => NULL)$$, '22004', NULL, 'from_start null');
SELECT is_empty($$SELECT * FROM llm_logprobs(NULL)$$, 'no rows of null');
SELECT is_empty($$SELECT * FROM llm_logprobs('')$$, 'no rows of an empty text');
SELECT throws_ok($$SELECT * FROM llm_logprobs('low', 'nope')$$, '42704', NULL, 'unknown model');
SELECT throws_ok($$SELECT * FROM llm_logprobs('low', 'ids')$$, '55000', NULL, 'no vocabulary');
SELECT throws_ok($$SELECT * FROM llm_logprobs('low', 'gpt2-small')$$, '55000', NULL, 'no weights');

-- llm_perplexity.
SELECT volatility_is('llm_perplexity', '{text,text,boolean}'::name[], 'stable');
SELECT is(round(llm_perplexity('lower wider')::numeric, 4), (SELECT round(exp(-avg(logprob))::numeric, 4) FROM llm_logprobs('lower wider')), 'exp of the mean negative logprob');
SELECT is(llm_perplexity(NULL), NULL, 'null of null');
SELECT is(llm_perplexity('l'), NULL, 'a single token has nothing that is predicted');
SELECT is(llm_perplexity(''), NULL, 'nor has none');
SELECT is(round(llm_perplexity('lower wider', from_start => true)::numeric, 4), (SELECT round(exp(-avg(logprob))::numeric, 4) FROM llm_logprobs('lower wider', from_start => true)), 'from_start counts the first token, too');
SELECT is(round(llm_perplexity('l', from_start => true)::numeric, 4), (SELECT round((1 / probability)::numeric, 4) FROM llm_next_token('', 270) WHERE token = 'l'), 'so that one is enough');
SELECT is(llm_perplexity('', from_start => true), NULL, 'but not none');
SELECT throws_ok($$SELECT llm_perplexity('low', from_start => NULL)$$, '22004', NULL, 'from_start null');
SELECT throws_ok($$SELECT llm_perplexity('lower', 'nope')$$, '42704', NULL, 'unknown model');

-- llm_text_embedding.
SELECT volatility_is('llm_text_embedding', '{text,integer,text,text}'::name[], 'stable');
SELECT is(cardinality(llm_text_embedding('lower wider')), 8, 'd_model numbers');
SELECT is(llm_text_embedding('lower wider'), llm_text_embedding('lower wider', NULL, 'mean', 't'), 'the mean of the last layer by default');
SELECT isnt(llm_text_embedding('lower wider', pooling => 'last'), llm_text_embedding('lower wider'), 'or the last token');
SELECT is(llm_text_embedding('low', pooling => 'last'), llm_text_embedding('low', pooling => 'mean'), 'the same for one token');
SELECT is(llm_text_embedding('lower wider', -1), llm_text_embedding('lower wider'), 'layer -1 is the last');
SELECT is(llm_text_embedding('lower wider', 0), llm_text_embedding('lower wider', -3), 'layer 0 the embeddings');
SELECT isnt(llm_text_embedding('lower wider', 1), llm_text_embedding('lower wider', 2), 'layers differ');
SELECT is(llm_text_embedding('low', 0, 'last'), ARRAY(
    SELECT (a + b)::real FROM unnest((SELECT pg_llm_values(substr(data, 1 + 32 * (llm_encode('low'))[1], 32)) FROM llm_param WHERE model = 't' AND name = 'wte'),
                                     (SELECT pg_llm_values(substr(data, 1, 32)) FROM llm_param WHERE model = 't' AND name = 'wpe')) AS sum (a, b)), 'which are wte + wpe');
SELECT is(llm_text_embedding(NULL), NULL, 'null of null');
SELECT is(llm_text_embedding(''), NULL, 'and of an empty text');
SELECT lives_ok($$SELECT llm_text_embedding(repeat('low ', 8))$$, 'as long as the window');
SELECT throws_ok(format('SELECT llm_text_embedding(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'low', 3$$, '22023'), ($$'low', -4$$, '22023'), ($$'low', pooling => 'max'$$, '22023'), ($$'low', pooling => NULL$$, '22004'),
    ($$'low', model_name => 'nope'$$, '42704'), ($$'low', model_name => 'ids'$$, '55000')) AS v (arguments, state);
SELECT throws_ok($$SELECT llm_text_embedding('low', model_name => 'gpt2-small')$$, '55000', NULL, 'no weights');

-- llm_cosine.
SELECT volatility_is('llm_cosine', '{real[],real[]}'::name[], 'immutable');
SELECT is(llm_cosine(a, b), cosine, format('cosine of %s and %s', a, b)) FROM (VALUES
    ('{3,4}'::real[], '{6,8}'::real[], 1::double precision), ('{1,0}', '{0,7}', 0), ('{1,2}', '{-1,-2}', -1), ('{1}', '{0.1}', 1), ('{3e38,3e38}', '{1e38,1e38}', 1),
    ('{1e-45}', '{1e-45}', 1), ('{0,0}', '{1,1}', 'NaN'), ('{0}', '{0}', 'NaN'), ('{NaN,1}', '{1,1}', 'NaN'), ('{Infinity,1}', '{1,1}', 'NaN'),
    ('{}', '{}', NULL), (NULL, '{1}', NULL), ('{1}', NULL, NULL), ('{1,NULL}', '{1,2}', NULL), ('{1,2}', '{NULL,2}', NULL)) AS v (a, b, cosine);
SELECT is(round(llm_cosine('{1,2,3}', '{4,-5,6}')::numeric, 12), round((12 / sqrt(14 * 77))::numeric, 12), 'by the formula');
SELECT throws_matching($$SELECT llm_cosine('{1,2}', '{1,2,3}')$$, 'different numbers of elements, 2 and 3', 'of different lengths');
SELECT throws_ok($$SELECT llm_cosine('{1,2}', '{}')$$, '22023', NULL, 'with its SQLSTATE');
SELECT throws_ok($$SELECT llm_cosine('{{1,2},{3,4}}', '{1,2,3,4}')$$, '22023', 'pg_gpt2: a and b must be arrays of one dimension', 'a matrix');
SELECT throws_ok($$SELECT llm_cosine('{1,NULL}', '{{1,2}}')$$, '22023', 'pg_gpt2: a and b must be arrays of one dimension', 'of one row too');
SELECT throws_ok($$SELECT llm_cosine_sent(1, 2, 1)$$, '22023', NULL, 'which comes from there');
SELECT is(llm_cosine_sent(NULL, 2, 1), NULL, 'and knows no nulls');
SELECT ok(llm_cosine(llm_text_embedding('lower'), llm_text_embedding('lower')) > 0.999999, 'of embeddings');

-- A window of one position: each token is predicted from the one before.
SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider naïve')$$, 270, 'one');
SELECT llm_init_model('one', 2, 2, 8, 1, seed => 3);
SELECT is(round(logprob::numeric, 5), round(ln(n.probability)::numeric, 5), 'one position: ' || l.position)
FROM (SELECT *, lag(token_id) OVER (ORDER BY "position") AS before FROM llm_logprobs('lower', 'one')) AS l,
    LATERAL llm_next_token(llm_decode(ARRAY[before], 'one'), 270, 1, 'one') AS n
WHERE before IS NOT NULL AND n.token_id = l.token_id;
SELECT is(round(llm_perplexity('lower wider', 'one')::numeric, 4), (SELECT round(exp(-avg(logprob))::numeric, 4) FROM llm_logprobs('lower wider', 'one')), 'and perplexity with it');

-- Weights that are not numbers are an error, as in generation.
INSERT INTO llm_dataset (model, split, tokens, target) VALUES ('t', 'val', '{1,2}', '{2,3}');
UPDATE llm_param SET data = pg_llm_tensor(array_fill('NaN'::double precision, ARRAY[8])) WHERE model = 't' AND name = 'ln_f.bias';
SELECT throws_ok(statement, '22000', NULL, statement) FROM (VALUES
    ($$SELECT llm_generate('low')$$), ($$SELECT * FROM llm_next_token('low')$$), ($$SELECT * FROM llm_logprobs('lower')$$),
    ($$SELECT llm_perplexity('lower')$$), ($$SELECT llm_text_embedding('low')$$), ($$SELECT * FROM llm_evaluate('t')$$),
    ($$SELECT * FROM llm_logit_lens('low')$$)) AS v (statement);

SELECT * FROM finish();
ROLLBACK;
