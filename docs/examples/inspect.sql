-- llm_trace
SELECT seq, op, name, shape FROM llm_trace('Too many') WHERE layer IS NULL;
SELECT count(*) FROM llm_trace(ARRAY[1, 2, 3], 'tiny');

-- llm_attention_weights
SELECT query_token, key_token, weight FROM llm_attention_weights('Too many', layer => 0, head => 1);

-- llm_logit_lens
SELECT layer, token, probability FROM llm_logit_lens('Too many', n => 1);

-- llm_token_embedding
SELECT cardinality(llm_token_embedding(65, 'tiny'));
--> 64

-- llm_tape_dot
SELECT llm_tape_dot(llm_tape_id());

-- llm_replay_tape
SELECT count(*) FROM llm_replay_tape(llm_tape_id());
--> 0

-- llm_gradcheck
SELECT llm_variable(pg_llm_tensor(ARRAY[1, 2, 3]), ARRAY[3], true) AS v \gset
SELECT ok FROM llm_gradcheck(llm_op('gelu', ARRAY[:v]));
--> t
