-- Vocabularies: llm_train_bpe, and loading from files.
BEGIN;
SELECT plan(31);

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

-- Files of the server; tests/server/test_files.py loads real ones.
SELECT throws_ok($$SELECT pg_llm_load_bpe_vocab('/no/such/vocab.json', 'x')$$, '58P01', NULL, 'no such file');
SELECT throws_ok($$SELECT pg_llm_load_bpe_merges('/no/such/merges.txt', 'x')$$, '58P01', NULL, 'no such file');
SELECT throws_ok($$SELECT pg_llm_load_bpe_vocab('vocab.json', 'x')$$, '22023', NULL, 'a relative path');
SELECT throws_ok($$SELECT pg_llm_load_bpe_merges(NULL, 'x')$$, '22004', NULL, 'path null');

SELECT * FROM finish();
ROLLBACK;
