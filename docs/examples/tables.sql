-- llm_model_config
INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES ('wide', 1, 4, 128, 64, 300);
SELECT llm_init_model('wide');

-- llm_param
SELECT name, shape, (pg_llm_values(data))[1] AS first FROM llm_param WHERE model = 'tiny' AND name LIKE 'ln_f%';

-- llm_dataset
INSERT INTO llm_dataset (model, tokens, target) SELECT 'tiny', ids[:3], ids[2:] FROM llm_encode('Too many') AS ids;

-- llm_bpe_vocab
SELECT token_id, token FROM llm_bpe_vocab WHERE model = 'tiny' AND token_id > 256 ORDER BY token_id LIMIT 3;

-- llm_bpe_merges
SELECT rank, pair FROM llm_bpe_merges WHERE model = 'tiny' ORDER BY rank LIMIT 3;

-- llm_run
SELECT run_id, status, config ->> 'batch_size' AS batch_size FROM llm_run WHERE model = 'tiny' ORDER BY run_id;

-- llm_train_log
SELECT step, lr, loss, grad_norm FROM llm_train_log WHERE run_id = 1 ORDER BY step LIMIT 3;

-- llm_tape
SELECT name, count(*) FROM llm_tape WHERE run_id IS NOT NULL GROUP BY name;

-- llm_tensor_rt
SELECT id, shape, octet_length(data) AS bytes FROM llm_tensor_rt WHERE tape_id = llm_tape_id() LIMIT 3;

-- llm_tensor_map
SELECT name, tensor_id FROM llm_tensor_map WHERE tape_id = llm_tape_id() LIMIT 3;
