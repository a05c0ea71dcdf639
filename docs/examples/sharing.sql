-- llm_share_param
SELECT llm_share_param('tiny', 'wte', NULL, target_model => 'copy');
--> 1

-- llm_unshare_param
SELECT llm_unshare_param('copy', 'wte', copy_optimizer_state => false);
--> 1

-- llm_param_share
SELECT llm_share_param('tiny', 'wpe', NULL, target_model => 'copy');
SELECT source_model, target_model, target_name FROM llm_param_share;
SELECT llm_unshare_param('copy', 'wpe');
--> 1
--> tiny|copy|wpe
--> 1

-- llm_param_resolved
SELECT count(*) FROM llm_param_resolved WHERE model = 'copy' AND source_model = 'copy';
--> 28
