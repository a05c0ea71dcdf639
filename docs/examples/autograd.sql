-- llm_autograd_mode
UPDATE llm_autograd_mode SET flag = true;
SELECT octet_length(llm_logits(ARRAY[1, 2], 'tiny'));
UPDATE llm_autograd_mode SET flag = false;
SELECT count(*) > 10 FROM llm_tape WHERE tape_id = llm_tape_id();
--> 2400
--> t

-- llm_tape_id
SELECT count(*) FROM llm_tape WHERE tape_id = llm_tape_id();

-- llm_variable
SELECT llm_variable(pg_llm_tensor(ARRAY[1, 2, 3]), ARRAY[3], requires_grad => true) AS x \gset

-- llm_op
SELECT llm_op('mul', ARRAY[:x, :x]) AS y \gset
SELECT llm_op('scale', ARRAY[:y], '{"factor": 0.5}') AS half \gset

-- llm_value
SELECT pg_llm_values(llm_value(:half));
--> {0.5,2,4.5}

-- llm_backprop
SELECT llm_backprop(:half);

-- llm_grad
SELECT pg_llm_values(llm_grad(:x));
--> {1,2,3}

-- llm_tensor
SELECT name, shape, requires_grad FROM llm_tensor WHERE id = :y;
--> mul|{3}|t

-- llm_embed
SELECT octet_length(llm_embed(ARRAY[1, 2, 3], 'tiny')) / 4 / 64;
--> 3

-- llm_block_forward
SELECT pg_llm_values(llm_block_forward(x, w_qkv => z3, b_qkv => z3, w_o => z, b_o => z, w_fc => z4, b_fc => z4, w_proj => z4, b_proj => z,
                                       ln1_g => z, ln1_b => z, ln2_g => z, ln2_b => z, n_head => 1, t => 1, d => 1))
FROM pg_llm_tensor(ARRAY[5]) AS x, pg_llm_tensor(ARRAY[0]) AS z, pg_llm_tensor(ARRAY[0, 0, 0]) AS z3, pg_llm_tensor(ARRAY[0, 0, 0, 0]) AS z4;
--> {5}

-- llm_forward_gpt2
SELECT octet_length(llm_forward_gpt2(llm_embed(ARRAY[1, 2, 3], 'tiny'), 'tiny', n_layer => 2, n_head => 2, t => 3, d => 64)) / 4 / 64;
--> 3
