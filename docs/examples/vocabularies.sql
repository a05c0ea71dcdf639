-- llm_train_bpe
SELECT llm_train_bpe('SELECT body FROM proverb ORDER BY id', vocab_size => 280, model => 'smaller');
--> 280

-- pg_llm_load_bpe_vocab
SELECT pg_llm_load_bpe_vocab('/srv/gpt2/vocab.json', 'learned');
--> 600

-- pg_llm_load_bpe_merges
SELECT pg_llm_load_bpe_merges('/srv/gpt2/merges.txt', 'learned');
--> 343
