-- llm_encode
SELECT llm_encode('Better late'), llm_encode('<|endoftext|>', special => true);

-- llm_decode
SELECT llm_decode(llm_encode('Romans 🐘'));
--> Romans 🐘

-- llm_decode_bytes
SELECT llm_decode_bytes(ARRAY[65, 66]);

-- llm_tokenize
SELECT token_id, token, bytes FROM llm_tokenize('er s');

-- llm_token_count
SELECT llm_token_count('Romans');

-- llm_bpe_trace
SELECT step, merged, pieces FROM llm_bpe_trace('silver');
