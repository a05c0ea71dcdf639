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

CREATE TEMPORARY TABLE answer AS
SELECT model, unread, c.expected, c.chosen, c.n
FROM unnest(ARRAY['postgresql-docs', :'model']) AS model, unnest(ARRAY[false, true]) AS unread,
     llm_evaluate_choices(
         format('SELECT body || E''\nThe problem is with the '', topic FROM passage WHERE (section %% 20 = 0) = %L', unread),
         :'topics', model_name => model
     ) AS e, unnest(e.confusion) AS c;

SELECT held_out, model, sum(n) AS n, round(sum(n) FILTER (WHERE chosen = expected) / sum(n), 3) AS accuracy
FROM (VALUES ('all', '{false,true}'::boolean[]), ('not read by the base', '{true}')) AS part (held_out, parts)
     JOIN answer ON unread = ANY (parts)
GROUP BY held_out, model ORDER BY held_out, model;

SELECT expected, chosen, sum(n) AS n FROM answer WHERE model = :'model'
GROUP BY expected, chosen ORDER BY expected, chosen \crosstabview expected chosen n chosen
DROP TABLE passage, answer;
