-- llm_log_prune
SELECT llm_log_prune('copy', older_than => interval '30 days', keep_every => 100);
--> 0

-- llm_metrics
SELECT metric, type, value FROM llm_metrics WHERE model = 'tiny' AND metric = 'pg_gpt2_parameters';

-- llm_sparkline
SELECT llm_sparkline(ARRAY[1, 2, 3, 4, 5, 6, 7, 8]);

-- llm_run_sparkline
SELECT run_id, llm_run_sparkline(run_id, 40) FROM llm_train_progress WHERE model = 'tiny' ORDER BY run_id;
