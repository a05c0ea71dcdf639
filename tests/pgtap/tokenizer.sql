-- Tokenizer: llm_encode, llm_decode, llm_decode_bytes, llm_tokenize, llm_token_count, llm_bpe_trace.
BEGIN;
SELECT plan(59);

SET LOCAL client_min_messages = warning;
SELECT llm_train_bpe($$VALUES ('low lower lowest'), ('newer wider naïve')$$, 264, 't');

-- llm_encode and llm_token_count.
SELECT volatility_is('llm_encode', '{text,text,boolean}'::name[], 'stable');
SELECT volatility_is('llm_token_count', '{text,text,boolean}'::name[], 'stable');
SELECT is(llm_encode('', 't'), '{}', 'an empty text has no tokens');
SELECT is(llm_encode(NULL, 't'), NULL, 'null of null');
SELECT is(llm_encode_sent('ab', 't', false), '{64,65}', 'llm_encode_sent gives the text form of an array');
SELECT is(llm_encode('a', 't'), '{64}', 'ids of bytes are GPT-2''s');
SELECT is(cardinality(llm_encode('<|endoftext|>', 't')) > 1, true, '<|endoftext|> is ordinary text');
SELECT is(llm_encode('a<|endoftext|>b', 't', special => true), '{64,263,65}', 'unless special is true');
SELECT is(llm_encode('<|endoftext|>', 't', special => NULL), llm_encode('<|endoftext|>', 't'), 'special null is false');
SELECT is(llm_token_count('a<|endoftext|>b', 't', special => true), 3, 'llm_token_count counts the same');
SELECT is(llm_token_count('', 't'), 0, 'none in an empty text');
SELECT is(llm_token_count(NULL, 't'), NULL, 'null of null');
SELECT is(llm_token_count(t, 't'), cardinality(llm_encode(t, 't')), 'as many as llm_encode gives: ' || to_json(t)) FROM (VALUES ('lower'), ('日本 naïve'), (E'  \n\t x')) AS v (t);
SELECT is(llm_decode(llm_encode(t, 't'), 't'), t, 'decoding gives back: ' || to_json(t)) FROM (VALUES ('lower'), ('日本 naïve 🙂'), (E'  \n\t x'), (E'don''t 1234 <|endoftext|>'), (U&'\FFFD\0085\00A0')) AS v (t);
SELECT throws_ok($$SELECT llm_encode('x', 'nope')$$, '42704', NULL, 'no model');
SELECT throws_ok($$SELECT llm_encode('x', 'gpt2-xl')$$, '55000', NULL, 'no vocabulary');
SELECT throws_ok($$SELECT llm_encode('x', '')$$, '42704', NULL, 'an empty name is not the default');
SET LOCAL pg_gpt2.model = 'gpt2-small';
SELECT throws_matching($$SELECT llm_encode('x')$$, 'gpt2-small', 'model null is what pg_gpt2.model says');
SET LOCAL pg_gpt2.model = 't';
SELECT is(llm_encode('lower'), llm_encode('lower', 't'), 'also that one');
SELECT is(llm_decode('{64}'), 'a', 'for decoding, too');
RESET pg_gpt2.model;

-- llm_decode and llm_decode_bytes.
SELECT volatility_is('llm_decode', '{integer[],text}'::name[], 'stable');
SELECT volatility_is('llm_decode_bytes', '{integer[],text}'::name[], 'stable');
SELECT is(llm_decode('{}', 't'), '', 'no ids are an empty text');
SELECT is(llm_decode_bytes('{}', 't'), '', 'and no bytes');
SELECT is(llm_decode(NULL, 't'), NULL, 'null of null');
SELECT is(llm_decode_bytes(NULL, 't'), NULL, 'null of null');
SELECT is(llm_decode('{263}', 't'), '<|endoftext|>', 'end-of-text has a text');
SELECT is(llm_decode_bytes(ARRAY(SELECT token_id FROM llm_bpe_vocab WHERE model = 't' AND bytes IN ('\x00', '\xff') ORDER BY bytes), 't'), '\x00ff', 'llm_decode_bytes gives any byte');
SELECT is(llm_decode(ARRAY(SELECT token_id FROM llm_bpe_vocab WHERE model = 't' AND bytes IN ('\x00', '\xff') ORDER BY bytes) || '{64}', 't'), U&'\FFFD\FFFDa', 'in llm_decode NUL and invalid bytes are U+FFFD, and the rest follows');
SELECT throws_ok($$SELECT llm_decode('{64,264}', 't')$$, '22023', NULL, 'id too large');
SELECT throws_ok($$SELECT llm_decode('{-1}', 't')$$, '22023', NULL, 'id negative');
SELECT throws_ok($$SELECT llm_decode('{64,NULL}', 't')$$, '22004', NULL, 'id null');
SELECT throws_ok($$SELECT llm_decode('{{64},{65}}', 't')$$, '22023', NULL, 'a matrix of ids');
SELECT throws_ok($$SELECT llm_decode_bytes('{264}', 't')$$, '22023', NULL, 'id too large, bytes');
SELECT throws_ok($$SELECT llm_decode('{1}', 'nope')$$, '42704', NULL, 'no model');
SELECT throws_ok($$SELECT llm_decode(array_fill(64, '{1048577}'), 't')$$, '22023', NULL, 'more ids than an array takes');
SELECT is(llm_token_count(llm_decode(array_fill(64, '{1048576}'), 't'), 't') > 0, true, 'and as many');
SELECT throws_ok($$SELECT llm_encode(repeat('q', 1048577), 't')$$, '22023', NULL, 'a text with more tokens');
SELECT is(llm_decode('[0:1]={64,65}', 't'), 'ab', 'lower bounds do not matter');
SELECT is(llm_decode_sent(array_send('{64,65}'::integer[]), 't', false), 'ab', 'llm_decode_sent takes the binary form of an array');
SELECT throws_ok($$SELECT llm_decode_sent(array_send('{64,65}'::bigint[]), 't', false)$$, '22P02', NULL, 'of integers');

-- llm_tokenize and llm_bpe_trace.
SELECT volatility_is('llm_tokenize', '{text,text,boolean}'::name[], 'stable');
SELECT volatility_is('llm_bpe_trace', '{text,text}'::name[], 'stable');
SELECT results_eq($$SELECT "position", token_id, token, bytes FROM llm_tokenize('a é', 't')$$,
    $$VALUES (0, 64, 'a', '\x61'::bytea), (1, 220, 'Ġ', '\x20'), (2, 127, 'Ã', '\xc3'), (3, 102, '©', '\xa9')$$, 'one row a token');
SELECT is(ARRAY(SELECT token_id FROM llm_tokenize('lower x<|endoftext|>', 't', true) ORDER BY "position"), llm_encode('lower x<|endoftext|>', 't', true), 'with the ids of llm_encode');
SELECT is((SELECT string_agg(bytes, '' ORDER BY "position") FROM llm_tokenize('日本', 't')), convert_to('日本', 'UTF8'), 'the bytes are the text');
SELECT is_empty($$SELECT * FROM llm_tokenize(NULL, 't')$$, 'no rows of null');
SELECT is_empty($$SELECT * FROM llm_tokenize('', 't')$$, 'no rows of an empty text');
SELECT results_eq($$SELECT step, merged, pieces FROM llm_bpe_trace('lower', 't')$$,
    $$VALUES (1, 'er', '{l,o,w,er}'::text[]), (2, 'lo', '{lo,w,er}'), (3, 'low', '{low,er}')$$, 'one row a merge');
SELECT is((SELECT array_agg(token_id ORDER BY step) FROM llm_bpe_trace('lower', 't')),
    ARRAY(SELECT token_id FROM llm_bpe_vocab JOIN (VALUES (1, 'er'), (2, 'lo'), (3, 'low')) AS m (n, token) USING (token) WHERE model = 't' ORDER BY n), 'with the token that it makes');
SELECT is_empty($$SELECT * FROM llm_bpe_trace(NULL, 't')$$, 'no rows of null');
SELECT is_empty($$SELECT * FROM llm_bpe_trace('q', 't')$$, 'no rows without a merge');
SELECT throws_ok($$SELECT * FROM llm_bpe_trace('q', 'nope')$$, '42704', NULL, 'no model');

SELECT * FROM finish();
ROLLBACK;
