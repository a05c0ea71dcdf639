-- llm_publish
SELECT llm_publish('models', '{tiny}'); -- needs PostgreSQL 15, as each list of models
SELECT tablename, rowfilter FROM pg_publication_tables WHERE pubname = 'models' AND tablename = 'llm_param';
DROP PUBLICATION models;
--> 
--> llm_param|(model = ANY ('{tiny}'::text[]))
