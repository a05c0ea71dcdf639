-- Tokenizer: llm_train_bpe, llm_encode, llm_decode, llm_decode_bytes, llm_tokenize, llm_token_count, llm_bpe_trace and loading from files.
BEGIN;
SELECT plan(90);

-- llm_train_bpe.
SELECT volatility_is('llm_train_bpe', '{text,integer,text,text}'::name[], 'volatile');
CREATE TEMPORARY TABLE documents (body text);
INSERT INTO documents VALUES ('low lower lowest'), (NULL), ('newer wider naïve'), ('');
SELECT is(llm_train_bpe('SELECT body FROM documents', 264, 't'), 264, 'llm_train_bpe returns the size of the vocabulary');
SELECT is((SELECT count(*) FROM llm_bpe_vocab WHERE model = 't'), 264::bigint, 'it is stored');
SELECT is((SELECT token_id FROM llm_bpe_vocab WHERE model = 't' AND token = '<|endoftext|>'), 263, 'the end-of-text token is the last');
SELECT is((SELECT count(*) FROM llm_bpe_merges WHERE model = 't'), 7::bigint, '264 tokens are 256 bytes, 7 merges and end-of-text');
SELECT is((SELECT count(*) FROM llm_bpe_vocab WHERE model = 't' AND octet_length(bytes) = 1), 256::bigint, 'every byte is a token');
SELECT is((SELECT count(*) FROM llm_bpe_merges WHERE model = 't' AND pair IS DISTINCT FROM "left" || ' ' || "right"), 0::bigint, 'pair is both pieces');
SELECT is((SELECT "left" || "right" FROM llm_bpe_merges WHERE model = 't' AND rank = 0), 'er', 'the most frequent pair comes first');
SELECT is(llm_train_bpe($$VALUES ('aa')$$, 1000, 'short'), 258, 'a short text gives fewer tokens');
SELECT is(llm_train_bpe('SELECT body FROM documents WHERE false', 257, 'bytes'), 257, '257 is the least: bytes and end-of-text');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT body FROM documents', 264, 't')$$, '42710', NULL, 'a model that has a vocabulary keeps it');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT body FROM documents', 256, 'x')$$, '22023', NULL, 'vocab_size too small');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT body FROM documents', NULL, 'x')$$, '22004', NULL, 'vocab_size null');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT body FROM documents', 264, NULL)$$, '22004', NULL, 'model null');
SELECT throws_matching($$SELECT llm_train_bpe('SELECT body FROM documents', 264, '')$$, 'model', 'model empty');
SELECT throws_ok($$SELECT llm_train_bpe(NULL, 264, 'x')$$, '22004', NULL, 'source null');
SELECT throws_ok($$SELECT llm_train_bpe('', 264, 'x')$$, '22023', NULL, 'source empty');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT 1', 264, 'x')$$, '22023', NULL, 'source of another type');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT body AS a, body AS b FROM documents', 264, 'x')$$, '22023', NULL, 'source of two columns');
SELECT throws_ok($$SELECT llm_train_bpe('SELEC body', 264, 'x')$$, '42601', NULL, 'source with a syntax error');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT body FROM nope', 264, 'x')$$, '42P01', NULL, 'source of an unknown table');
SELECT throws_ok($$SELECT llm_train_bpe('SELECT (1/0)::text', 264, 'x')$$, '22012', NULL, 'source that fails');
SELECT throws_ok($$SELECT llm_train_bpe('SET work_mem = 64', 264, 'x')$$, '22023', NULL, 'source that is no query');
SELECT llm_init_model('sized', n_layer => 1, n_head => 1, d_model => 8, n_positions => 8, vocab => 264);
SELECT throws_ok($$SELECT llm_train_bpe('SELECT body FROM documents', 265, 'sized')$$, '22023', NULL, 'more tokens than the weights are for');
SELECT is((SELECT count(*) FROM llm_bpe_vocab WHERE model IN ('x', '')), 0::bigint, 'what failed left nothing');
SELECT is(llm_train_bpe('SELECT body FROM documents', 264, 'sized'), 264, 'as many do');
SELECT is(current_setting('search_path'), '"$user", public', 'and the search_path is the caller''s again');

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

-- Files of the server; tests/server/test_files.py loads real ones.
SELECT throws_ok($$SELECT pg_llm_load_bpe_vocab('/no/such/vocab.json', 'x')$$, '58P01', NULL, 'no such file');
SELECT throws_ok($$SELECT pg_llm_load_bpe_merges('/no/such/merges.txt', 'x')$$, '58P01', NULL, 'no such file');
SELECT throws_ok($$SELECT pg_llm_load_bpe_vocab('vocab.json', 'x')$$, '22023', NULL, 'a relative path');
SELECT throws_ok($$SELECT pg_llm_load_bpe_merges(NULL, 'x')$$, '22004', NULL, 'path null');

SELECT * FROM finish();
ROLLBACK;
