"""What reads the model tiny, and the tables that are read."""

TABLES = (
    "llm_model_config, llm_adapter, llm_param, llm_param_share, llm_bpe_vocab, llm_bpe_merges, llm_dataset, llm_run,"
    " llm_train_log"
)
READING = {
    "generate": "SELECT llm_generate('low', 3, model_name => 'tiny', seed => 1)",
    "stream": "SELECT (llm_generate_stream('low', 3, model_name => 'tiny', seed => 1)).text",
    "logits": "SELECT llm_logits('{1}', 'tiny')",
    "encode": "SELECT llm_encode('low', 'tiny')",
    "export": "SELECT llm_export_safetensors('tiny')",
}
