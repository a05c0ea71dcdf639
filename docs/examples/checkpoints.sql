-- llm_checkpoint_save
SELECT llm_checkpoint_save('copy', 'before an experiment') AS checkpoint_id;
SELECT llm_checkpoint_save('copy', file_path => '/srv/gpt2/copy.safetensors') AS checkpoint_id;
--> 2
--> 3

-- llm_checkpoint_attach
-- A database that has forgotten the file, or never knew it.
SELECT llm_checkpoint_drop(3) \gset
SELECT llm_checkpoint_attach('/srv/gpt2/copy.safetensors') AS checkpoint_id;
--> 4

-- llm_checkpoint_load
SELECT llm_checkpoint_load('copy', 2) AS step;

-- llm_checkpoint_list
SELECT id, note, file_path IS NOT NULL AS in_a_file FROM llm_checkpoint_list('copy');
--> 2|before an experiment|f
--> 4|attached, saved of model "copy"|t

-- llm_checkpoint_drop
SELECT llm_checkpoint_drop(4);

-- llm_checkpoint_prune
SELECT llm_checkpoint_prune('copy', keep_last => 1, keep_every => 100);
--> 0

-- llm_checkpoint_diff
SELECT count(*) FILTER (WHERE changed) AS changed, count(*) AS tensors FROM llm_checkpoint_diff(2);
--> 0|28

-- llm_param_history
SELECT event, run_id, first_step, last_step FROM llm_param_history('copy', 'wte');
