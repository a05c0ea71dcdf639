-- llm_replay
SELECT last_step, step AS differs_at, what, exact FROM llm_replay(1, to_step => 20);
