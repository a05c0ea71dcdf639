-- How often the right one of ten topics is chosen for a passage that was held out: by the base, and by the adapter.
--
--   psql "$DSN" -f loaders/shipped/postgresql-topics/evaluate.sql       where the repository is; also -v model=NAME
--
-- Once for all of them, and once for those of sections that the base never read. Then what the adapter takes for what.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?model} \else \set model postgresql-topics \endif

CREATE TEMPORARY TABLE passage (section integer, topic text, body text);
\copy passage FROM 'loaders/shipped/postgresql-topics/topics.csv' WITH (FORMAT csv, HEADER)
DELETE FROM passage WHERE section % 4 <> 0;
SELECT array_agg(DISTINCT topic) AS topics FROM passage \gset

SELECT held_out, model, n, round(accuracy::numeric, 3) AS accuracy
FROM (VALUES ('all', 4), ('not read by the base', 20)) AS part (held_out, each),
     unnest(ARRAY['postgresql-docs', :'model']) WITH ORDINALITY AS m (model, i),
     llm_evaluate_choices(
         format('SELECT body || E''\nThe problem is with the '', topic FROM passage WHERE section %% %s = 0', each),
         :'topics', model_name => model
     )
ORDER BY each, i;

SELECT expected, chosen, c.n
FROM llm_evaluate_choices(
         'SELECT body || E''\nThe problem is with the '', topic FROM passage', :'topics', model_name => :'model'
     ) AS e, unnest(e.confusion) AS c
ORDER BY expected, chosen \crosstabview expected chosen n chosen
DROP TABLE passage;
