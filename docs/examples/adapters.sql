-- llm_adapter_create
SELECT llm_adapter_create('tiny-adapter', 'tiny', r => 4, targets => '{attn.c_attn,mlp.c_fc}');

-- llm_adapter_merge
SELECT llm_adapter_merge('tiny-adapter', 'tiny-merged');

-- llm_adapter
SELECT model, base, r, alpha, targets FROM llm_adapter;
--> tiny-adapter|tiny|4|16|{attn.c_attn,mlp.c_fc}
