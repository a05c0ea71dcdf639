-- pg_llm_tensor
SELECT pg_llm_tensor(ARRAY[1, 2]);
--> \x0000803f00000040

-- pg_llm_values
SELECT pg_llm_values('\x0000803f00000040');
--> {1,2}

-- pg_llm_matmul
SELECT pg_llm_values(pg_llm_matmul(pg_llm_tensor(ARRAY[1, 2, 3, 4]), pg_llm_tensor(ARRAY[1, 1]), m => 2, k => 2, n => 1));
--> {3,7}

-- pg_llm_add
SELECT pg_llm_values(pg_llm_add(pg_llm_tensor(ARRAY[1, 2, 3, 4]), pg_llm_tensor(ARRAY[10, 20])));
--> {11,22,13,24}

-- pg_llm_gelu
SELECT pg_llm_values(pg_llm_gelu(pg_llm_tensor(ARRAY[-100, 0, 10])));
--> {-0,0,10}

-- pg_llm_gelu_backward
SELECT pg_llm_values(pg_llm_gelu_backward(pg_llm_tensor(ARRAY[0, 10]), dy => pg_llm_tensor(ARRAY[1, 1])));
--> {0.5,1}

-- pg_llm_softmax
SELECT pg_llm_values(pg_llm_softmax(pg_llm_tensor(ARRAY[1, 1, 5, 5]), n => 2));
--> {0.5,0.5,0.5,0.5}

-- pg_llm_softmax_backward
SELECT pg_llm_values(pg_llm_softmax_backward(pg_llm_tensor(ARRAY[0.5, 0.5]), dy => pg_llm_tensor(ARRAY[1, 0])));
--> {0.25,-0.25}

-- pg_llm_layernorm
SELECT pg_llm_values(pg_llm_layernorm(pg_llm_tensor(ARRAY[1, 3]), gamma => pg_llm_tensor(ARRAY[1, 1]),
                                      beta => pg_llm_tensor(ARRAY[0, 0]), eps => 0));
--> {-1,1}

-- pg_llm_layernorm_backward
SELECT pg_llm_values(dgamma), pg_llm_values(dbeta)
FROM pg_llm_layernorm_backward(pg_llm_tensor(ARRAY[1, 3]), dy => pg_llm_tensor(ARRAY[1, 1]), gamma => pg_llm_tensor(ARRAY[1, 1]), eps => 0);
--> {-1,1}|{1,1}

-- pg_llm_cross_entropy
SELECT round(pg_llm_cross_entropy(pg_llm_tensor(ARRAY[0, 0]), target => 1)::numeric, 4);
--> 0.6931

-- pg_llm_cross_entropy_backward
SELECT pg_llm_values(pg_llm_cross_entropy_backward(pg_llm_tensor(ARRAY[0, 0]), target => 1));
--> {0.5,-0.5}

-- pg_llm_dropout
SELECT pg_llm_values(pg_llm_dropout(pg_llm_tensor(ARRAY[1, 1, 1, 1]), p => 0.5, training => true, seed => 1));

-- pg_llm_dropout_backward
SELECT pg_llm_values(pg_llm_dropout_backward(input => pg_llm_tensor(ARRAY[1, 1]), output => pg_llm_tensor(ARRAY[0, 2]),
                                             grad => pg_llm_tensor(ARRAY[1, 1]), p => 0.5, training => true));
--> {0,2}

-- pg_llm_ones_like
SELECT pg_llm_values(pg_llm_ones_like(pg_llm_tensor(ARRAY[7, 8])));
--> {1,1}

-- pg_llm_zeros_like
SELECT pg_llm_values(pg_llm_zeros_like(pg_llm_tensor(ARRAY[7, 8])));
--> {0,0}

-- pg_llm_transpose
SELECT pg_llm_values(pg_llm_transpose(pg_llm_tensor(ARRAY[1, 2, 3, 4, 5, 6]), rows => 2, cols => 3));
--> {1,4,2,5,3,6}

-- pg_llm_attention
CREATE TEMP TABLE one AS SELECT pg_llm_tensor(ARRAY[2]) AS x, pg_llm_tensor(ARRAY[1, 1, 1]) AS w_qkv,
    pg_llm_tensor(ARRAY[0, 0, 0]) AS b_qkv, pg_llm_tensor(ARRAY[1]) AS w_o, pg_llm_tensor(ARRAY[0]) AS b_o;
SELECT pg_llm_values(pg_llm_attention(x, w_qkv, b_qkv, w_o, b_o, n_head => 1, t => 1, d => 1)) FROM one;
--> {2}

-- pg_llm_attention_backward
SELECT pg_llm_values(g.dx), pg_llm_values(g.dw_o)
FROM one, pg_llm_attention_backward(x, w_qkv, b_qkv, w_o, b_o, grad_output => w_o, n_head => 1, t => 1, d => 1) AS g;
--> {1}|{2}

-- pg_llm_mlp_backward
SELECT pg_llm_values(g.db_proj)
FROM pg_llm_tensor(ARRAY[1]) AS x, pg_llm_tensor(ARRAY[1, 1, 1, 1]) AS w,
    pg_llm_mlp_backward(x, w_fc => w, b_fc => w, w_proj => w, b_proj => x, dy => x, t => 1, d => 1) AS g;
--> {1}

-- pg_llm_adamw_step
SELECT pg_llm_values(weight), pg_llm_values(m)
FROM pg_llm_adamw_step(weight => pg_llm_tensor(ARRAY[1]), grad => pg_llm_tensor(ARRAY[1]), m => NULL, v => NULL, lr => 0.5,
                       beta1 => 0.5, beta2 => 0.5, eps => 0, weight_decay => 0, step => 1);
--> {0.5}|{0.5}

-- pg_llm_grad_clip
SELECT pg_llm_values(pg_llm_grad_clip(pg_llm_tensor(ARRAY[3, 4]), clip => 2.5));

-- pg_llm_lr_schedule
SELECT pg_llm_lr_schedule(step => 50, warmup => 100, total => 1000, lr_max => 0.001);
--> 0.0005

-- pg_llm_sample
SELECT pg_llm_sample(pg_llm_tensor(ARRAY[1, 5, 2]), temperature => 0), pg_llm_sample(pg_llm_tensor(ARRAY[1, 5, 2]), topk => 1, seed => 1);
--> 1|1
