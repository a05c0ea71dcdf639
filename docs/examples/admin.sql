-- llm_limit
INSERT INTO llm_limit VALUES ('max_memory', '8GB');
DELETE FROM llm_limit;

-- llm_doctor
SELECT item, status, hint FROM llm_doctor() WHERE status <> 'ok';

-- llm_cache_status
SELECT kind, model, shared FROM llm_cache_status();

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
