-- llm_publish
SELECT llm_publish('models', '{tiny}');
SELECT tablename, rowfilter FROM pg_publication_tables WHERE pubname = 'models' AND tablename = 'llm_param';
DROP PUBLICATION models;
--> 
--> llm_param|(model = ANY ('{tiny}'::text[]))
