-- How the model postgresql-docs was made: PostgreSQL's documentation becomes a table, a vocabulary, and a GPT-2 that read it.
--
-- The text is all of the documentation, as loaders/data/README.md tells how to make it; Debian's postgresql-doc-15 15.20 gives
-- 5,494,935 bytes. Each twentieth section is held out. On two cores this took 42 minutes beside other work (log.csv).
--
--   psql "$DSN" -v text=full.txt -f loaders/shipped/postgresql-docs/train.sql
--
-- For a look: -v text=loaders/data/postgresql_docs.txt -v n_steps=20 (the excerpt); also model=NAME, batch_size=N.
-- Interrupted, the same command goes on with the last CALL. With the same text it makes the same tokens and batches, and
-- with the same processor and NumPy the same weights.

\set ON_ERROR_STOP on
\if :{?model} \else \set model postgresql-docs \endif
\if :{?n_steps} \else \set n_steps 2500 \endif
\if :{?batch_size} \else \set batch_size 16 \endif

SELECT EXISTS (SELECT FROM llm_run WHERE model = :'model' AND status <> 'finished') AS begun \gset
\if :begun
\else

\set content `cat :'text'`
CREATE TABLE postgresql_docs (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL);
INSERT INTO postgresql_docs (body)
SELECT section FROM string_to_table(btrim(:'content', E' \n\t'), E'\n====\n') WITH ORDINALITY AS part (section, n) ORDER BY n;

SELECT llm_train_bpe('SELECT body FROM postgresql_docs WHERE id % 20 <> 0 ORDER BY id', 4096, :'model') AS tokens;
SELECT llm_init_model(:'model', n_layer => 6, n_head => 4, d_model => 256, n_positions => 256, seed => 15) \g /dev/null
SELECT llm_dataset_load('SELECT body FROM postgresql_docs WHERE id % 20 <> 0 ORDER BY id', :'model', 256) AS train_rows;
SELECT llm_dataset_load('SELECT body FROM postgresql_docs WHERE id % 20 = 0 ORDER BY id', :'model', 256, 'val') AS val_rows;

\endif

CALL llm_train_run(
    :'model', :n_steps, batch_size => :batch_size, lr_max => 1.5e-3, min_lr => 1.5e-4, warmup => 100,
    beta1 => 0.9, beta2 => 0.99, wd => 0.1, grad_clip => 1.0, dropout_p => 0, seed => 15,
    eval_every => 100, log_every => 50, commit_every => 50, audit => 'none'
);
SELECT * FROM llm_evaluate(:'model', 'val');
