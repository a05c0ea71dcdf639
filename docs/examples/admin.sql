-- llm_limit
INSERT INTO llm_limit VALUES ('max_memory', '8GB');
DELETE FROM llm_limit;

-- llm_doctor
SELECT item, status, hint FROM llm_doctor() WHERE status <> 'ok';

-- llm_cache_status
SELECT kind, model, shared FROM llm_cache_status();

-- llm_model_sessions
SELECT count(*) AS sessions, array_agg(DISTINCT a.usename) AS roles
FROM llm_model_sessions() AS s JOIN pg_stat_activity AS a USING (pid) WHERE s.model = 'gpt2';

-- llm_cache_clear
SELECT llm_cache_clear() AS bytes;

-- llm_grant_usage
CREATE ROLE trainer;
SELECT llm_grant_usage('trainer', 'train');
DROP OWNED BY trainer;
DROP ROLE trainer;

-- llm_settings
SELECT name, setting FROM llm_settings WHERE name = 'pg_gpt2.model';
--> pg_gpt2.model|tiny
