-- The figures of the model card, from the logs: of the run, and of its PyTorch twin (tests/oracle/twin.py).
--
--   psql -f loaders/shipped/postgresql-docs/figures.sql        where the repository is, in any database with pg_gpt2

\set ON_ERROR_STOP on
\set QUIET on

CREATE TEMPORARY TABLE run_log (
    step      integer PRIMARY KEY,
    lr        double precision,
    loss      double precision,
    grad_norm double precision,
    tokens    integer,
    seconds   double precision,
    val_loss  double precision
);
CREATE TEMPORARY TABLE twin_log (LIKE run_log INCLUDING INDEXES);
\copy run_log FROM 'loaders/shipped/postgresql-docs/log.csv' WITH (FORMAT csv, HEADER)
\copy twin_log FROM 'loaders/shipped/postgresql-docs/twin.csv' WITH (FORMAT csv, HEADER)

-- The run. Losses of single batches are noisy: the training loss is the mean of the last hundred.
SELECT count(*) AS steps, sum(tokens) AS tokens, round(sum(seconds)::numeric / 60) AS minutes,
       round(avg(loss) FILTER (WHERE step > 2400)::numeric, 3) AS training_loss,
       round(max(val_loss) FILTER (WHERE step = 2500)::numeric, 3) AS held_out_loss,
       round(exp(max(val_loss) FILTER (WHERE step = 2500))::numeric, 1) AS perplexity
FROM run_log;

-- Beside the same architecture, weights, batches and optimizer in PyTorch.
SELECT r.step, to_char(r.step * 4096 / 1e6, 'FM90.00') AS million_tokens, round(r.val_loss::numeric, 4) AS held_out_loss,
       round(t.val_loss::numeric, 4) AS pytorch, to_char(100 * (r.val_loss / t.val_loss - 1), 'FMSG990.000') || ' %' AS difference,
       round(exp(r.val_loss)::numeric, 1) AS perplexity, round(exp(t.val_loss)::numeric, 1) AS of_pytorch
FROM run_log AS r LEFT JOIN twin_log AS t USING (step)
WHERE r.step % 500 = 0 ORDER BY r.step;

SELECT max(t.step) AS steps_of_the_twin, count(*) AS batches_compared,
       to_char(100 * avg(abs(r.loss / t.loss - 1)), 'FM990.000') || ' %' AS mean_difference,
       to_char(100 * max(abs(r.loss / t.loss - 1)), 'FM990.000') || ' %' AS largest_difference
FROM run_log AS r JOIN twin_log AS t USING (step);

-- The loss as it fell: of training, and held out.
SELECT llm_sparkline(array_agg(loss ORDER BY step), 50) AS training_loss FROM run_log;
SELECT llm_sparkline(array_agg(val_loss ORDER BY step) FILTER (WHERE val_loss IS NOT NULL), 50) AS held_out_loss FROM run_log;
