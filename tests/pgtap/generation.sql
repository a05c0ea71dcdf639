-- Generation: llm_generate, llm_generate_stream, llm_generate_tokens, llm_generate_batch, llm_beam_search, llm_next_token.
BEGIN;
SELECT plan(206);
SET LOCAL client_min_messages = warning;
SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider naïve')$$, 270, 't');
SELECT llm_init_model('t', 2, 2, 8, 16, seed => 3);
SELECT llm_init_model('ids', 2, 2, 8, 16, 50, seed => 3);
SET LOCAL pg_gpt2.model = 't';

-- Token ids as arrays.
SELECT throws_ok(format('SELECT %s', call), '22023', NULL, 'more ids than an array takes: ' || call)
FROM (VALUES ('llm_generate_tokens(%1$s)'), ('llm_beam_search(prompt_ids => %1$s)')) AS v (template), format(template, $$array_fill(1, '{1048577}')$$) AS call;
SELECT is(llm_generate_tokens('[0:1]={1,2}', 3, 0), llm_generate_tokens_sent(array_send('{1,2}'::integer[]), 3, 0, 50, 1, NULL, NULL, 1, NULL, 1, 0, NULL), 'lower bounds do not matter');
SELECT results_eq($$SELECT * FROM llm_beam_search(prompt_ids => '{1,2}', max_tokens => 3)$$,
    $$SELECT * FROM llm_beam_search_sent(NULL, array_send('{1,2}'::integer[]), 4, 3, 1, false, NULL, NULL, NULL)$$, 'llm_beam_search_sent, too');

-- llm_generate.
SELECT volatility_is('llm_generate', '{text,integer,"double precision",integer,"double precision",text,integer,bigint,llm_texts,"double precision","double precision",boolean,jsonb}'::name[], 'volatile');
SELECT is(llm_generate('low', 5, seed => 1), llm_generate('low', 5, 1.0, 50, 0.95, 't', NULL, 1, NULL, 1.0, 0, true, NULL), 'the defaults are 1.0, 50, 0.95, the setting, the model''s end, none, 1.0, 0, true, none');
SELECT is(llm_generate('low', seed => 1), llm_generate('low', 64, seed => 1), 'and 64 tokens');
SELECT is(llm_generate('low', 0), 'low', '0 tokens give the prompt');
SELECT is(llm_generate('low', 0, echo => false), '', 'or nothing');
SELECT is(llm_generate('low', 5, seed => 1), 'low' || llm_generate('low', 5, seed => 1, echo => false), 'echo is the prompt before the completion');
SELECT is(llm_generate('low', 5, seed => 7), llm_generate('low', 5, seed => 7), 'the same seed gives the same text');
SELECT isnt(llm_generate('low', 20, seed => 7), llm_generate('low', 20, seed => 8), 'another seed another');
SELECT is(llm_generate('low', 8, 0, seed => 1), llm_generate('low', 8, 0, seed => 2), 'temperature 0 does not draw');
SELECT is(llm_generate('low', 8, 0), llm_generate('low', 8, 1, topk => 1), 'it is the most probable token');
SELECT is(llm_generate('low', 8, 0), llm_generate('low', 8, 1e-300), 'and so is next to 0');
SELECT is(llm_generate('low', 8, 0), llm_generate('low', 8, topp => 0), 'and so is topp 0');
SELECT is(llm_generate('low', 8, 0), llm_generate('low', 8, min_p => 1), 'and so is min_p 1');
SELECT is(llm_generate('low', 9, topk => 0, topp => 1, seed => 5), llm_generate('low', 9, topk => 270, topp => 1, seed => 5), 'topk 0 and the whole vocabulary are the same');
SELECT lives_ok($$SELECT llm_generate('low', 3, 1e300)$$, 'any finite temperature');
SELECT isnt(llm_generate('', 3, seed => 1, echo => false), NULL, 'an empty prompt starts from the end-of-text token');
SELECT is(llm_generate('', 3, seed => 1), llm_decode(llm_generate_tokens('{269}', 3, seed => 1)), 'which is the vocabulary''s');
SELECT setseed(0.25);
CREATE TEMPORARY TABLE drawn AS SELECT llm_generate('low', 20) AS text;
SELECT setseed(0.25);
SELECT is(llm_generate('low', 20), (SELECT text FROM drawn), 'without a seed, setseed() decides');
SELECT isnt(llm_generate('low', 20), (SELECT text FROM drawn), 'and the next call draws anew');
SELECT throws_ok(format('SELECT llm_generate(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'low', NULL$$, '22004'), ($$'low', -1$$, '22023'),
    ($$'low', temperature => NULL$$, '22004'), ($$'low', temperature => -0.1$$, '22023'), ($$'low', temperature => 'NaN'$$, '22023'), ($$'low', temperature => 'Infinity'$$, '22023'),
    ($$'low', topk => NULL$$, '22004'), ($$'low', topk => -1$$, '22023'),
    ($$'low', topp => NULL$$, '22004'), ($$'low', topp => 2$$, '22023'), ($$'low', topp => -0.1$$, '22023'), ($$'low', topp => 'NaN'$$, '22023'),
    ($$'low', min_p => NULL$$, '22004'), ($$'low', min_p => 1.1$$, '22023'), ($$'low', min_p => -0.1$$, '22023'),
    ($$'low', repetition_penalty => NULL$$, '22004'), ($$'low', repetition_penalty => 0$$, '22023'),
    ($$'low', eos_token => 270$$, '22023'), ($$'low', eos_token => -2$$, '22023'),
    ($$'low', stop => '{""}'$$, '22023'), ($$'low', stop => '{NULL}'$$, '22023'), ($$'low', stop => '{{a},{b}}'$$, '22023'),
    ($$'low', echo => NULL$$, '22004'),
    ($$'low', model_name => 'nope'$$, '42704'), ($$'low', model_name => ''$$, '42704'),
    ($$'low', model_name => 'gpt2-small'$$, '55000'), ($$'low', model_name => 'ids'$$, '55000')) AS v (arguments, state);

-- llm_generate_stream.
SELECT volatility_is('llm_generate_stream', '{text,integer,"double precision",integer,"double precision",text,integer,bigint,llm_texts,"double precision","double precision",boolean,jsonb}'::name[], 'volatile');
CREATE TEMPORARY TABLE streamed AS SELECT (llm_generate_stream('low', 6, seed => 1, eos_token => -1)).*;
SELECT is((SELECT array_agg(step ORDER BY step) FROM streamed), '{1,2,3,4,5,6}', 'steps count from 1');
SELECT is((SELECT text FROM streamed WHERE step = 6), llm_generate('low', 6, seed => 1, eos_token => -1), 'the last text is llm_generate''s');
SELECT is((SELECT array_agg(token_id ORDER BY step) FROM streamed), llm_generate_tokens(llm_encode('low'), 6, seed => 1, eos_token => -1), 'the ids are llm_generate_tokens''');
SELECT is((SELECT array_agg(step) FROM streamed WHERE is_complete), '{6}', 'the last row is complete');
SELECT results_eq('SELECT finish_reason FROM streamed ORDER BY step', $$VALUES (NULL), (NULL), (NULL), (NULL), (NULL), ('length')$$, 'for its length');
SELECT ok((SELECT bool_and(logprob < 0) FROM streamed), 'logprob is a log-probability');
SELECT is((SELECT token FROM streamed WHERE step = 1), (SELECT llm_decode(ARRAY[token_id]) FROM streamed WHERE step = 1), 'token is the token''s text');
SELECT is_empty($$SELECT llm_generate_stream('low', 0)$$, '0 tokens give no row');
SELECT is((SELECT text FROM llm_generate_stream('low', 6, seed => 1, eos_token => -1, echo => false) WHERE is_complete), substr((SELECT text FROM streamed WHERE step = 6), 4), 'echo => false leaves the prompt out');
SELECT results_eq(
    format('SELECT step, is_complete, finish_reason FROM llm_generate_stream(%L, 6, seed => 1, eos_token => %s)', 'low', (SELECT token_id FROM streamed WHERE step = 3)),
    CASE WHEN (SELECT count(DISTINCT token_id) FROM streamed WHERE step <= 3) = 3 THEN $$VALUES (1, false, NULL), (2, false, NULL), (3, true, 'stop')$$ END,
    'the end-of-text token stops');
SELECT is_empty('SELECT llm_generate_stream(NULL)', 'no rows of null');
SELECT throws_ok($$SELECT * FROM llm_generate_stream('low', topp => 2)$$, '22023', NULL, 'topp 2');
SELECT throws_ok($$SELECT llm_generate_stream('low', model_name => 'nope')$$, '42704', NULL, 'unknown model');

-- llm_generate_tokens.
SELECT volatility_is('llm_generate_tokens', '{integer[],integer,"double precision",integer,"double precision",text,integer,bigint,text[],"double precision","double precision",jsonb}'::name[], 'volatile');
SELECT is(cardinality(llm_generate_tokens('{1,2}', 5, model_name => 'ids')), 5, 'new ids only, and without a vocabulary');
SELECT is(llm_generate_tokens('{1,2}', 0, model_name => 'ids'), '{}', 'none');
SELECT is(llm_generate_tokens('{1,2}', 5, 0, model_name => 'ids'), llm_generate_tokens('{1,2}', 5, topk => 1, model_name => 'ids'), 'temperature 0 is the most probable');
SELECT is(llm_generate_tokens(array_fill(1, '{10}') || '{2}', 5, 0, model_name => 'ids'), llm_generate_tokens(array_fill(1, '{10}') || '{2}', 5, 0, model_name => 'ids', eos_token => 3), 'deterministic');
SELECT is(cardinality(llm_generate_tokens('{1}', 60, model_name => 'ids', seed => 1)), 60, 'past the window it goes on');
SELECT throws_ok(format('SELECT llm_generate_tokens(%s, model_name => %L)', ids, 'ids'), state, NULL, 'ids ' || ids)
FROM (VALUES ($$'{50}'$$, '22023'), ($$'{-1}'$$, '22023'), ($$'{1,NULL}'$$, '22023'), ($$'{{1},{2}}'$$, '22023'), ($$'{}'$$, '22023')) AS v (ids, state);
SELECT is(llm_generate_tokens(NULL), NULL, 'null of null');
SELECT throws_matching($$SELECT llm_generate_tokens('{}')$$, 'empty', 'no ids');
SELECT throws_ok($$SELECT llm_generate_tokens('{1}', model_name => 'ids', stop => '{x}')$$, '55000', NULL, 'stop strings need a vocabulary');

-- llm_generate_batch.
SELECT volatility_is('llm_generate_batch', '{llm_texts,integer,"double precision",integer,"double precision",text,integer,bigint,llm_texts,"double precision","double precision",boolean,jsonb}'::name[], 'volatile');
SELECT results_eq($$SELECT n, text FROM llm_generate_batch('{low,newer wider,low}', 12, seed => 5)$$,
    $$VALUES (1, llm_generate('low', 12, seed => 5)), (2, llm_generate('newer wider', 12, seed => 6)), (3, llm_generate('low', 12, seed => 7))$$, 'prompt n is llm_generate''s with seed + n - 1');
SELECT is_empty($$SELECT * FROM llm_generate_batch('{}')$$, 'no prompts, no rows');
SELECT is_empty('SELECT * FROM llm_generate_batch(NULL)', 'no rows of null');
SELECT is_empty($$SELECT * FROM llm_generate_batch('{}')$$, 'nor of no prompts');
SELECT results_eq($$SELECT n, text, sample FROM llm_generate_batch('{low,NULL,new}', 3, seed => 7)$$,
    $$VALUES (1, llm_generate('low', 3, seed => 7), 1), (2, NULL, 1), (3, llm_generate('new', 3, seed => 9), 1)$$, 'of a null prompt a row with a null text, in its place');
SELECT results_eq($$SELECT * FROM llm_generate_batch('{NULL}')$$, $$VALUES (1, NULL::text, 1, NULL::text, NULL::integer, NULL::float8)$$, 'also of nothing else');
SELECT results_eq($$SELECT n, text, sample FROM llm_generate_batch('{low,NULL,new}', 3, seed => 7, echo => false, options => '{"n": 2}')$$,
    $$VALUES (1, llm_generate('low', 3, seed => 7, echo => false), 1), (1, llm_generate('low', 3, seed => 8, echo => false), 2), (2, NULL, 1), (2, NULL, 2),
             (3, llm_generate('new', 3, seed => 11, echo => false), 1), (3, llm_generate('new', 3, seed => 12, echo => false), 2)$$, 'n samples, each with a seed of its own');
SELECT results_eq($$SELECT text, finish_reason, n_tokens FROM llm_generate_batch('{low,new}', 12, seed => 5)$$,
    $$SELECT s.text, s.finish_reason, s.step FROM generate_series(1, 2) AS n, llm_generate_stream(('{low,new}'::text[])[n], 12, seed => 4 + n) AS s WHERE s.is_complete ORDER BY n$$, 'it ends as a stream does');
SELECT results_eq($$SELECT finish_reason, n_tokens, logprob FROM llm_generate_batch('{low}', 12, options => '{"choices": ["wider"]}')$$,
    $$VALUES ('stop', cardinality(llm_encode('wider')), NULL::float8)$$, 'a constraint that is satisfied is an end; log-probabilities are not told unless asked for');
SELECT results_eq($$SELECT text, finish_reason, n_tokens, logprob FROM llm_generate_batch('{low}', 0, options => '{"logprobs": true}')$$,
    $$VALUES ('low', 'length', 0, 0::float8)$$, 'of no tokens');
SELECT ok(abs(logprob - (SELECT sum(s.logprob) FROM llm_generate_stream('low', 12, seed => 5) AS s)) < 1e-4, 'its log-probability is that of all its tokens')
FROM llm_generate_batch('{low,new}', 12, seed => 5, options => '{"logprobs": true}') WHERE n = 1;
SELECT throws_ok($$SELECT llm_generate('low', options => '{"logprobs": true}')$$, '22023', NULL, 'logprobs is not for one text');
SELECT is((SELECT count(DISTINCT (n, sample)) FROM llm_generate_batch('{low,new}', 1, options => '{"n": 100}')), 200::bigint, 'more than go on together, too');
SELECT throws_ok(format($$SELECT * FROM llm_generate_batch('{low}', options => '{"n": %s}')$$, n), state, NULL, 'n ' || n)
FROM (VALUES ('0', '22023'), ('1025', '22023')) AS v (n, state);
SELECT throws_ok($$SELECT llm_generate('low', options => '{"n": 2}')$$, '22023', NULL, 'n is not for one text');
SELECT throws_ok($$SELECT * FROM llm_generate_batch('{{low},{low}}')$$, '22023', NULL, 'a matrix of prompts');
SELECT throws_ok($$SELECT * FROM llm_generate_batch('{low}', model_name => 'nope')$$, '42704', NULL, 'unknown model');
SELECT is(llm_generate(NULL, 3, seed => 1, options => '{"prompt_ids": [1, 2]}'), llm_generate(llm_decode('{1,2}'), 3, seed => 1), 'ids in the place of a prompt');
SELECT throws_ok(format($$SELECT llm_generate(NULL, options => '{"prompt_ids": %s}')$$, ids), '22023', NULL, 'not ids: ' || ids) FROM (VALUES ('[-1]')) AS v (ids);

-- llm_beam_search.
SELECT volatility_is('llm_beam_search', '{text,integer,integer,"double precision",boolean,integer,text,integer[],jsonb}'::name[], 'stable');
SELECT results_eq($$SELECT rank FROM llm_beam_search('low', 3, 5)$$, $$VALUES (1), (2), (3)$$, 'one row a beam, best first');
SELECT is((SELECT array_agg(rank ORDER BY score DESC) FROM llm_beam_search('low', 3, 5)), '{1,2,3}', 'by score');
SELECT is((SELECT token_ids FROM llm_beam_search('low', 1, 5, eos_token => -1)), llm_generate_tokens(llm_encode('low'), 5, 0, eos_token => -1), 'one beam is greedy');
SELECT is((SELECT token_ids FROM llm_beam_search(prompt_ids => '{1,2}', model_name => 'ids', beam_width => 1, max_tokens => 5)), llm_generate_tokens('{1,2}', 5, 0, model_name => 'ids'), 'and works by ids');
SELECT is((SELECT text FROM llm_beam_search(prompt_ids => '{1,2}', model_name => 'ids', max_tokens => 5) WHERE rank = 1), NULL, 'then without a text when there is no vocabulary');
SELECT is_empty('SELECT * FROM llm_beam_search(NULL)', 'no rows of null');
SELECT throws_ok(format('SELECT * FROM llm_beam_search(%s)', arguments), state, NULL, 'beam search: ' || arguments) FROM (VALUES
    ($$'low', prompt_ids => '{1}'$$, '22023'), ($$'low', 0$$, '22023'), ($$'low', NULL$$, '22004'), ($$'low', 4, -1$$, '22023'), ($$'low', 4, 1000$$, '22023'), ($$'low', 2000000000$$, '22023'),
    ($$'low', length_penalty => 'NaN'$$, '22023'), ($$'low', model_name => 'nope'$$, '42704'), ($$'low', eos_token => 999$$, '22023')) AS v (arguments, state);

-- Options.
SELECT volatility_is('llm_generation_options_declared', '{}'::name[], 'volatile');
SELECT columns_are('llm_generation_options', '{name,type,default_value,domain,meaning}');
SELECT set_has('SELECT name, type, default_value FROM llm_generation_options', $$VALUES
    ('temperature', 'number', '1.0'), ('top_k', 'integer', '50'), ('top_p', 'number', '0.95'), ('max_new_tokens', 'integer', '64'), ('typical_p', 'number', '1.0'),
    ('epsilon_cutoff', 'number', '0.0'), ('eta_cutoff', 'number', '0.0'), ('no_repeat_ngram_size', 'integer', '0'), ('min_new_tokens', 'integer', '0'),
    ('suppress_tokens', 'list of token ids', NULL), ('bad_words', 'list of texts', NULL), ('sequence_bias', 'object of a number for each text', NULL),
    ('logit_bias', 'object of a number for each token id', NULL), ('presence_penalty', 'number', '0.0'), ('frequency_penalty', 'number', '0.0')$$, 'the manual');
SELECT is((SELECT count(*) FROM llm_generation_options WHERE meaning = '' OR domain = ''), 0::bigint, 'with a meaning and a domain each');
SELECT is(llm_generate('low', 9, 0.7, 5, 0.9, seed => 3, repetition_penalty => 1.2, min_p => 0.01, stop => '{er}', echo => false, eos_token => -1),
    llm_generate('low', options => '{"max_new_tokens": 9, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.2, "min_p": 0.01, "stop_strings": ["er"], "echo": false, "eos_token_id": -1, "model_name": "t"}'),
    'a key that is also a parameter sets it');
SELECT is(llm_generate('low', 9, seed => 3, options => given::jsonb), llm_generate('low', 9, seed => 3), 'nothing else: ' || given)
FROM (VALUES ('{}'), ('{"typical_p": 1, "epsilon_cutoff": 0, "min_new_tokens": 0, "bad_words": null, "logit_bias": {}}'), ('{"top_k": 50, "topk": 50}')) AS v (given);
CREATE TEMPORARY TABLE greedy AS SELECT llm_generate_tokens('{1,2}', 9, 0, eos_token => -1) AS ids;
SELECT is(ids, llm_generate_tokens('{1,2}', 9, options => '{"temperature": 0, "eos_token": -1}'), 'temperature 0 is greedy') FROM greedy;
SELECT is(ids[1] = ANY (llm_generate_tokens('{1,2}', 9, 0, eos_token => -1, options => jsonb_build_object(key, value))), false, key || ' excludes a token')
FROM greedy, LATERAL (VALUES ('suppress_tokens', jsonb_build_array(ids[1])), ('logit_bias', jsonb_build_object(ids[1], -100))) AS v (key, value);
SELECT is(llm_generate_tokens('{1,2}', 4, 0, options => '{"logit_bias": {"7": 100}, "suppress_tokens": [8]}'), '{7,7,7,7}', 'a bias may decide');
SELECT is(llm_generate_tokens('{1,2}', 4, 0, options => '{"logit_bias": {"7": 99, "8": 98}, "presence_penalty": 2}'), '{7,8,7,7}', 'presence counts once');
SELECT is(llm_generate_tokens('{1,7}', 4, 0, options => '{"logit_bias": {"7": 99, "8": 98}, "frequency_penalty": 1.6}'), '{7,8,7,8}', 'frequency each time, and the prompt not');
SELECT is(llm_generate_tokens('{1,2}', 4, 0, options => '{"logit_bias": {"7": 99, "8": 90}, "no_repeat_ngram_size": 2}'), '{7,7,8,7}', 'no two tokens follow each other twice');
SELECT is(llm_generate_tokens('{1,2}', 3, 0, eos_token => 7, options => '{"logit_bias": {"7": 99, "8": 90}, "min_new_tokens": 2}'), '{8,8,7}', 'the end comes after so many');
SELECT is(llm_generate('low', 2, 0, options => '{"sequence_bias": {"er": 1000}, "bad_words": ["low"], "echo": false}'), 'erer', 'a text may be favoured');
SELECT is(llm_generate('low', 3, 0, options => '{"sequence_bias": {"er": 1000}, "bad_words": ["erer"], "echo": false}') LIKE 'erer%', false, 'or excluded');
SELECT results_eq($$SELECT text FROM llm_generate_batch('{low,new}', 6, 0, options => '{"no_repeat_ngram_size": 1}')$$,
    $$VALUES (llm_generate('low', 6, 0, options => '{"no_repeat_ngram_size": 1}')), (llm_generate('new', 6, 0, options => '{"no_repeat_ngram_size": 1}'))$$, 'batches and single prompts are the same');
SELECT is((SELECT text FROM llm_generate_stream('low', 6, seed => 1, options => '{"typical_p": 0.4}') WHERE is_complete), llm_generate('low', 6, seed => 1, options => '{"typical_p": 0.4}'), 'so are streams');
SELECT is((SELECT token_ids FROM llm_beam_search('low', 1, 6, eos_token => -1, options => '{"no_repeat_ngram_size": 1, "suppress_tokens": [3]}')),
    llm_generate_tokens(llm_encode('low'), 6, 0, eos_token => -1, options => '{"no_repeat_ngram_size": 1, "suppress_tokens": [3]}'), 'and one beam');
SELECT is((SELECT count(*) FROM llm_beam_search('low', options => '{"num_beams": 2, "max_new_tokens": 3, "length_penalty": 0, "early_stopping": true}')), 2::bigint, 'beam search has its own');
SELECT throws_ok(format('SELECT llm_generate(%L, options => %L)', 'low', given), state, NULL, 'options: ' || left(given, 60)) FROM (VALUES
    ('[]', '22023'), ('1', '22023'), ('{"top": 1}', '22023'), ('{"n": 1}', '22023'), ('{"num_beams": 2}', '22023'), ('{"prompt": "a"}', '22023'),
    ('{"top_k": 1.5}', '22023'), ('{"top_k": "1"}', '22023'), ('{"top_k": true}', '22023'), ('{"top_k": -1}', '22023'), ('{"top_k": null}', '22004'), ('{"top_k": 1, "topk": 2}', '22023'),
    ('{"temperature": 1e400}', '22023'), ('{"temperature": -1}', '22023'), ('{"typical_p": 0}', '22023'), ('{"epsilon_cutoff": 1}', '22023'), ('{"eta_cutoff": 1}', '22023'),
    ('{"no_repeat_ngram_size": -1}', '22023'), ('{"min_new_tokens": -1}', '22023'), ('{"presence_penalty": 3}', '22023'), ('{"frequency_penalty": -3}', '22023'),
    ('{"suppress_tokens": 1}', '22023'), ('{"suppress_tokens": [270]}', '22023'), ('{"suppress_tokens": [-1]}', '22023'), ('{"suppress_tokens": ["a"]}', '22023'),
    ('{"bad_words": "a"}', '22023'), ('{"bad_words": [""]}', '22023'), ('{"bad_words": [null]}', '22023'), ('{"sequence_bias": {"": 1}}', '22023'), ('{"sequence_bias": {"a": "b"}}', '22023'),
    ('{"logit_bias": {"270": 1}}', '22023'), ('{"logit_bias": {"a": 1}}', '22023'), ('{"logit_bias": {"1": 101}}', '22023'), ('{"eos_token": 270}', '22023'), ('{"stop": [""]}', '22023'),
    ('{"model_name": "nope"}', '42704'), ('{"max_tokens": -1}', '22023')) AS v (given, state);
SELECT throws_ok($$SELECT llm_generate('low', topk => 5, options => '{"top_k": 3}')$$, '22023', NULL, 'a parameter and a key that differ');
SELECT throws_ok($$SELECT llm_generate('low', options => '{"suppress_tokens": [1], "no_repeat_ngram_size": 1, "bad_words": ["low"]}', model_name => 'ids')$$, '55000', NULL, 'texts need a vocabulary');
SELECT throws_ok($$SELECT llm_generate_tokens('{1}', model_name => 'ids', options => '{"bad_words": ["low"]}')$$, '55000', NULL, 'also beside ids');
SELECT throws_ok($$SELECT llm_generate_tokens('{1}', model_name => 'ids', options => '{"echo": false}')$$, '22023', NULL, 'ids have no echo');
SELECT throws_ok($$SELECT llm_generate_tokens('{1}', 60, model_name => 'ids', options => '{"no_repeat_ngram_size": 1}')$$, '22023', NULL, 'no token is left');
SELECT throws_ok(format('SELECT llm_beam_search(%L, options => %L)', 'low', format('{"%s": 1}', key)), '22023', NULL, 'beam search draws nothing: ' || key)
FROM (VALUES ('temperature'), ('top_k'), ('topk'), ('top_p'), ('min_p'), ('typical_p'), ('epsilon_cutoff'), ('eta_cutoff'), ('seed'), ('echo')) AS v (key);

-- llm_next_token.
SELECT volatility_is('llm_next_token', '{text,integer,"double precision",text}'::name[], 'stable');
SELECT is((SELECT array_agg(rank) FROM llm_next_token('low')), '{1,2,3,4,5,6,7,8,9,10}', '10 tokens by default');
SELECT is((SELECT array_agg(token_id ORDER BY logit DESC) FROM llm_next_token('low')), (SELECT array_agg(token_id ORDER BY rank) FROM llm_next_token('low')), 'by logit');
SELECT is((SELECT token_id FROM llm_next_token('low', 1)), (llm_generate_tokens(llm_encode('low'), 1, 0))[1], 'the first is what greedy takes');
SELECT is((SELECT count(*) FROM llm_next_token('low', 1000)), 270::bigint, 'at most the vocabulary');
SELECT is((SELECT round(sum(probability)::numeric, 6) FROM llm_next_token('low', 270)), 1.0, 'probabilities add up to 1');
SELECT is((SELECT round(sum(probability)::numeric, 6) FROM llm_next_token('low', 270, 5)), 1.0, 'at another temperature, too');
SELECT is((SELECT round(probability::numeric, 6) FROM llm_next_token('low', 1, 1e-300)), 1.0, 'next to 0 the best has all');
SELECT is((SELECT count(*) FROM llm_next_token('', 3)), 3::bigint, 'after an empty prompt, too');
SELECT is_empty('SELECT * FROM llm_next_token(NULL)', 'no rows of null');
SELECT throws_ok(format('SELECT * FROM llm_next_token(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'low', NULL$$, '22004'), ($$'low', 0$$, '22023'), ($$'low', 1, NULL$$, '22004'), ($$'low', 1, 0$$, '22023'), ($$'low', 1, 'NaN'$$, '22023'),
    ($$'low', model_name => 'nope'$$, '42704'), ($$'low', model_name => 'ids'$$, '55000')) AS v (arguments, state);

SELECT * FROM finish();
ROLLBACK;
