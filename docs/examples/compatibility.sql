-- llm_get_model_config
SELECT (llm_get_model_config('tiny')).n_layer;
--> 2

-- pg_llm_autograd_enabled
SELECT pg_llm_autograd_enabled();
--> f

-- pg_llm_autograd_track_tensor
SELECT pg_llm_autograd_track_tensor(pg_llm_tensor(ARRAY[1, 2]), ARRAY[2], true) > 0;
--> t

-- pg_llm_autograd_map_param
SELECT pg_llm_autograd_map_param(model, name, token_id, data) > 0 FROM llm_param WHERE model = 'tiny' AND name = 'ln_f.bias';
--> t

-- llm_materialize_params
SELECT llm_materialize_params('tiny');
--> 28

-- llm_accumulate_grads
UPDATE llm_autograd_mode SET flag = true;
SELECT llm_loss('tiny', ids[:3], ids[2:], dropout_p => 0) > 0 FROM llm_encode('Too many') AS ids;
SELECT llm_backprop();
SELECT llm_accumulate_grads('tiny');
UPDATE llm_autograd_mode SET flag = false;

-- llm_prune_autograd_state
SELECT llm_prune_autograd_state() > 0;
--> t
