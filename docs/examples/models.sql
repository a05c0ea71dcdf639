-- llm_init_model
SELECT llm_init_model('random', n_layer => 1, n_head => 2, d_model => 32, n_positions => 64, vocab => 300, seed => 1);

-- llm_copy_model
SELECT llm_copy_model('tiny', 'copy');
SELECT llm_checkpoint_save('tiny') AS checkpoint_id \gset
SELECT llm_copy_model('tiny', 'fork', :checkpoint_id);

-- llm_drop_model
SELECT llm_drop_model('fork');

-- llm_models
SELECT model, n_layer, n_params, tokenizer_tokens FROM llm_models WHERE model IN ('copy', 'gpt2-small') ORDER BY model;
--> copy|2|123392|300
--> gpt2-small|12|0|0
