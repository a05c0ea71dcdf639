-- How the adapter postgresql-topics was made: the model that ships learns which topic a passage of the manual is about.
--
-- The passages are topics.csv, which loaders/data/README.md tells how to make. Each fourth section of the manual is held out; of
-- those, each fifth is one that the base never read. Run it where the repository is, in a database that has the base:
--
--   pg-gpt2 load-model --dsn "$DSN" postgresql-docs
--   psql "$DSN" -f loaders/shipped/postgresql-topics/train.sql
--
-- For a look: -v n_steps=20; also model=NAME. Interrupted, the same command goes on with the last CALL.

\set ON_ERROR_STOP on
\if :{?model} \else \set model postgresql-topics \endif
\if :{?n_steps} \else \set n_steps 212 \endif

SELECT EXISTS (SELECT FROM llm_run WHERE model = :'model' AND status <> 'finished') AS begun \gset
\if :begun
\else

CREATE TABLE IF NOT EXISTS postgresql_topics (section integer NOT NULL, topic text NOT NULL, body text NOT NULL);
TRUNCATE postgresql_topics;
\copy postgresql_topics FROM 'loaders/shipped/postgresql-topics/topics.csv' WITH (FORMAT csv, HEADER)

SELECT llm_adapter_create(:'model', 'postgresql-docs', r => 8, alpha => 16,
                          targets => '{attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj}', seed => 15) \g /dev/null

-- The blank before a topic is the answer's, as it is where one is chosen.
SELECT llm_dataset_load_pairs($$
    SELECT body || E'\nThe problem is with the', ' ' || topic FROM postgresql_topics
    WHERE section % 4 <> 0 ORDER BY section, body COLLATE "C"
$$, :'model') AS train_rows;

\endif

CALL llm_train_run(
    :'model', :n_steps, batch_size => 16, lr_max => 1.5e-3, warmup => 20, wd => 0, grad_clip => 1.0, dropout_p => 0,
    seed => 15, log_every => 20, commit_every => 100, audit => 'none'
);
