-- pg_llm_import_safetensors
SELECT pg_llm_export_safetensors('/srv/gpt2/first.safetensors', 'tiny') > 0 AS written;
SELECT pg_llm_import_safetensors('/srv/gpt2/first.safetensors', 'first');
--> t
--> 28

-- pg_llm_import_npz
SELECT pg_llm_export_npz('/srv/gpt2/second.npz', 'tiny') > 0 AS written;
SELECT pg_llm_import_npz('/srv/gpt2/second.npz', 'first', replace => true);
--> t
--> 28

-- llm_import_safetensors
SELECT llm_import_safetensors(string_agg(chunk, ''), 'third') FROM llm_export_safetensors('tiny') AS chunk;
--> 28

-- llm_import_begin
INSERT INTO llm_param (model, name, token_id, shape, data)
SELECT 'ones', name, token_id, shape, pg_llm_tensor(array_fill(1, ARRAY[shape[1] * coalesce(shape[2], 1)]))
FROM llm_import_begin('ones', '{"n_layer": 1, "n_head": 2, "d_model": 8, "n_positions": 16, "vocab": 50}');
SELECT octet_length(llm_logits('{1}', 'ones')) / 4 AS vocab;
--> 50

-- pg_llm_export_safetensors
SELECT pg_llm_export_safetensors('/srv/gpt2/model.safetensors', 'tiny') AS bytes;

-- pg_llm_export_npz
SELECT pg_llm_export_npz('/srv/gpt2/model.npz', 'tiny') AS bytes;

-- llm_export_safetensors
SELECT sum(octet_length(chunk)) FROM llm_export_safetensors('tiny') AS chunk;
