-- nanoGPT's recipe for a CPU, in SQL: a GPT of characters, 4 layers, 4 heads, 128 wide, learns 2,000 batches of 12 x 64.
--
-- Follows https://github.com/karpathy/nanoGPT, README, "I only have a macbook": the first nine tenths of a text are learned
-- from, in crops at random places; the rest measures. Two things differ. The text is the excerpt of PostgreSQL's manual that
-- comes with pg_gpt2, not Shakespeare (-v text=input.txt takes that, or any other); and linear layers have biases, as
-- GPT-2's have and nanoGPT's have not. Run it where the repository is:
--
--   psql "$DSN" -f docs/recipes/nanogpt.sql           or -v n_steps=20 for a look, -v model=NAME, -v seed=N
--
-- Removes what the model of that name had before.

\set ON_ERROR_STOP on
\if :{?model} \else \set model nanogpt \endif
\if :{?text} \else \set text loaders/data/postgresql_docs.txt \endif
\if :{?n_steps} \else \set n_steps 2000 \endif
\if :{?seed} \else \set seed 1337 \endif
\set content `cat :'text'`

SELECT llm_drop_model(:'model') FROM llm_models WHERE model = :'model' \g /dev/null

CREATE TEMPORARY TABLE nanogpt_text AS SELECT translate(:'content', '“”—', '""-') AS body;

-- A vocabulary is rows. Every character is a token, and there are no merges; Ġ and Ċ are how GPT-2 writes a space and a line end.
INSERT INTO llm_bpe_vocab (model, token_id, token, bytes)
SELECT :'model', row_number() OVER (ORDER BY c) - 1, CASE c WHEN ' ' THEN 'Ġ' WHEN E'\n' THEN 'Ċ' ELSE c END,
       convert_to(c, 'UTF8')
FROM (SELECT DISTINCT c COLLATE "C" AS c FROM nanogpt_text, string_to_table(body, NULL) AS c) AS characters;

SELECT llm_init_model(:'model', n_layer => 4, n_head => 4, d_model => 128, n_positions => 64, vocab => count(*)::integer,
                      seed => :seed)
FROM llm_bpe_vocab WHERE model = :'model' \g /dev/null

-- Data are rows, too: as many crops as all batches take, and the last tenth from end to end. Targets are one character on.
SELECT setseed(:seed / 10000.0) \g /dev/null
WITH
stream AS MATERIALIZED (
    SELECT ids, cardinality(ids) AS n, cardinality(ids) * 9 / 10 AS n_train
    FROM nanogpt_text, llm_encode(body, :'model') AS ids
),
crops AS (
    SELECT 'train' AS split, floor(random() * (n_train - 64))::integer AS start
    FROM stream, generate_series(1, 12 * :n_steps)
    UNION ALL
    SELECT 'val', start FROM stream, generate_series(n_train, n - 65, 64) AS start
)
INSERT INTO llm_dataset (model, split, tokens, target)
SELECT :'model', split, ids[start + 1 : start + 64], ids[start + 2 : start + 65] FROM stream, crops;

SELECT split, count(*) AS rows, sum(cardinality(tokens)) AS characters,
       (SELECT vocab FROM llm_model_config WHERE model = :'model') AS different
FROM llm_dataset WHERE model = :'model' GROUP BY split ORDER BY split;

SELECT llm_train(:'model', :n_steps, batch_size => 12, lr_max => 1e-3, min_lr => 1e-4, warmup => 100, beta2 => 0.99,
                 wd => 0.1, grad_clip => 1, dropout_p => 0, seed => :seed, audit => 'none',
                 eval_every => greatest(50, :n_steps / 8), log_every => greatest(50, :n_steps / 8)) AS run_id \gset

SELECT count(*) AS steps, round(sum(seconds)::numeric, 1) AS seconds, round(sum(tokens) / sum(seconds)) AS tokens_per_second,
       round(avg(loss) FILTER (WHERE step > :n_steps * 0.95)::numeric, 3) AS training_loss,
       round(max(val_loss) FILTER (WHERE step = :n_steps)::numeric, 3) AS validation_loss, llm_run_sparkline(:run_id, 24) AS curve
FROM llm_train_log WHERE run_id = :run_id;

SELECT llm_generate(E'\n', 400, temperature => 0.8, topk => 200, topp => 1, seed => :seed, model_name => :'model') AS sample;
