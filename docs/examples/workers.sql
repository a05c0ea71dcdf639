-- llm_worker_begin
SELECT llm_worker_begin('{"config": {"n_layer": 1, "n_head": 1, "d_model": 2, "n_positions": 4, "vocab": 5}, "tied": {}}')
    -> 'weights' AS awaited;
--> 96

-- llm_worker_weights
SELECT llm_worker_weights(0, repeat('0000', 96) || repeat('AAAA', 32)) AS next;
--> 96

-- llm_worker_shard
SELECT round((llm_worker_shard('{"batches": [{"tokens": [[1, 2]], "targets": [[2, 3]], "weight": null}],
    "first_part": 0, "chunk": 64, "seed": 1, "step_no": 1, "total": 2, "dropout_p": 0}'))[1]::numeric, 4) AS loss;
--> 1.6094

-- llm_worker_gradients
SELECT llm_worker_gradients(0, 3) AS zeros;
--> 000000000000AAAA
