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

-- llm_logits
SELECT octet_length(llm_logits(llm_encode('Too many'))) / 4 / 300 AS positions, cardinality(llm_encode('Too many')) AS tokens;
--> 4|4
