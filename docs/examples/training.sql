-- llm_dataset_load
SELECT llm_dataset_load('SELECT body FROM proverb ORDER BY id', 'copy', block_size => 32, val_fraction => 0.2);
--> 6

-- llm_dataset_load_pairs
SELECT llm_dataset_load_pairs('SELECT ''Proverb '' || id || '':'', '' '' || body FROM proverb ORDER BY id', 'copy', replace => true);

-- llm_loss
SELECT llm_loss('tiny', ids[:3], ids[2:], training => false) > 0 FROM llm_encode('Too many') AS ids;
--> t

-- llm_evaluate
SELECT loss, perplexity, tokens FROM llm_evaluate('copy', 'val');

-- llm_train_step
SELECT llm_train_step('copy', lr_max => 1e-4, audit => 'none') AS loss;

-- llm_train
SELECT llm_train('copy', 5, batch_size => 2, lr_max => 1e-4, grad_clip => 1, log_every => 5) AS run_id;

-- llm_train_run
CALL llm_train_run('copy', 10, batch_size => 2, lr_max => 1e-4, commit_every => 5);

-- llm_training_options
SELECT llm_train('copy', 1, options => '{"learning_rate": 1e-4, "per_device_train_batch_size": 2, "logging_steps": 0}') > 0 AS trained;
SELECT type, default_value, domain FROM llm_training_options WHERE name = 'adam_beta1';
--> t
--> number|0.9|0 or more, and below 1

-- llm_train_stop
SELECT llm_train_stop('copy') AS one_was_running;
--> f

-- llm_train_progress
SELECT status, step, n_steps FROM llm_train_progress WHERE model = 'copy' ORDER BY run_id;
--> finished|5|5
--> finished|10|10
--> finished|1|1
