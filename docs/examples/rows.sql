-- llm_generate_rows
SELECT key, text FROM llm_generate_rows($$VALUES ('a', 'All that'), ('b', NULL)$$, temperature => 0);
SELECT count(*), count(DISTINCT sample) FROM llm_generate_rows($$VALUES ('a', 'All that'), ('b', NULL)$$, 5, options => '{"n": 3}');
--> a|All that glitters is not gold.
--> b|
--> 6|3

-- llm_perplexity_rows
SELECT key FROM llm_perplexity_rows($$SELECT id, body FROM proverb UNION ALL SELECT 0, 'Better never than late.'$$) ORDER BY perplexity DESC LIMIT 1;
--> 0

-- llm_embedding_rows
SELECT key, cardinality(embedding) FROM llm_embedding_rows('SELECT id, body FROM proverb ORDER BY id LIMIT 1', pooling => 'last');
--> 1|64
