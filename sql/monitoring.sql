-- Keeping an eye on it: curves in a terminal, a log that does not grow for ever, and metrics for monitoring.

CREATE FUNCTION llm_sparkline_sent(numbers bytea, width integer)
RETURNS text
LANGUAGE plpython3u IMMUTABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @monitoring.of_numbers@;
COMMENT ON FUNCTION llm_sparkline_sent IS
    'What llm_sparkline calls, with array_send(numbers). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_sparkline(numbers double precision[], width integer DEFAULT 60)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL UNSAFE
RETURN @extschema@.llm_sparkline_sent(CASE WHEN cardinality(numbers) > 1048576 THEN '' ELSE array_send(numbers) END, width);
COMMENT ON FUNCTION llm_sparkline IS
    'Numbers as a line of bars, from the lowest (U+2581) to the highest (U+2588); where there are more than width, '
    'means of neighbours. Null, NaN and infinity are left out; where there is nothing else, the line has a gap. '
    'Example: SELECT llm_sparkline(array_agg(grad_norm ORDER BY step)) FROM llm_train_log WHERE run_id = 1.';

CREATE FUNCTION llm_run_sparkline(run_id bigint, width integer DEFAULT 60)
RETURNS text
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @monitoring.of_run@;
COMMENT ON FUNCTION llm_run_sparkline IS
    'The losses of a training run as a line of at most width bars, as llm_sparkline draws them; empty for a run '
    'without steps. Example: SELECT run_id, model, status, step, loss, llm_run_sparkline(run_id) FROM '
    'llm_train_progress.';

CREATE FUNCTION llm_log_prune(
    model text DEFAULT NULL,
    older_than interval DEFAULT '30 days',
    keep_every integer DEFAULT 100
)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @monitoring.prune_log@;
COMMENT ON FUNCTION llm_log_prune IS
    'Thin out llm_train_log, for one model or for all. Of the steps logged longer ago than older_than, it keeps every '
    'keep_every-th (null = none), the first and the last of each run, those with a validation loss, and those with a '
    'digest of the weights. Runs that may be resumed are left alone. Returns the number of rows removed. A replay '
    'cannot compare steps that are gone.';

CREATE VIEW llm_metrics AS
WITH latest AS (
    SELECT m.model, m.n_params, m.bytes, m.step, l.lr, l.loss, l.grad_norm, l.tokens / nullif(l.seconds, 0) AS speed, l.at, v.val_loss
    FROM llm_models AS m
    LEFT JOIN LATERAL (
        SELECT * FROM llm_train_log AS t WHERE t.model = m.model ORDER BY t.run_id DESC, t.step DESC LIMIT 1
    ) AS l ON true
    LEFT JOIN LATERAL (
        SELECT t.val_loss FROM llm_train_log AS t
        WHERE t.model = m.model AND t.val_loss IS NOT NULL ORDER BY t.run_id DESC, t.step DESC LIMIT 1
    ) AS v ON true
    WHERE m.n_params > 0
), saved AS (
    SELECT model, count(*) AS checkpoints, max(created_at) AS at FROM llm_checkpoint GROUP BY model
), metrics AS (
    SELECT
        l.*, coalesce(s.checkpoints, 0) AS checkpoints, s.at AS saved_at,
        -- Whoever changes a model holds this lock: see locks.lock.
        CASE WHEN NOT pg_is_in_recovery() THEN EXISTS (  -- a standby has no locks to look at
            SELECT FROM pg_locks AS k
            WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 2
                AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND k.classid = 'llm_param'::regclass AND k.objid = hashtext(l.model)::oid
        ) END AS busy
    FROM latest AS l LEFT JOIN saved AS s USING (model)
)
SELECT 'pg_gpt2_' || metric.name AS metric, metric.type, metric.help, m.model, metric.value
FROM metrics AS m, LATERAL (VALUES
    ('parameters', 'gauge', 'Weights of the model.', m.n_params::double precision),
    ('bytes', 'gauge', 'Bytes of weights, gradients and optimizer state.', m.bytes::double precision),
    ('step', 'gauge', 'AdamW updates of the weights that are committed.', m.step::double precision),
    ('training', 'gauge', '1 while a session trains or loads the model.', m.busy::integer::double precision),
    ('loss', 'gauge', 'Loss of the last step logged, in nats a token.', m.loss),
    ('validation_loss', 'gauge', 'Last loss measured on the split val, in nats a token.', m.val_loss),
    ('learning_rate', 'gauge', 'Learning rate of the last step logged.', m.lr),
    ('gradient_norm', 'gauge', 'Norm of the gradient of the last step logged, before clipping.', m.grad_norm),
    ('tokens_per_second', 'gauge', 'Speed of the last step logged.', m.speed),
    ('last_step_timestamp_seconds', 'gauge', 'When the last step was logged, in seconds since 1970.', extract(epoch FROM m.at)::double precision),
    ('checkpoints', 'gauge', 'Checkpoints kept.', m.checkpoints::double precision),
    ('last_checkpoint_timestamp_seconds', 'gauge', 'When the last checkpoint was saved, in seconds since 1970.',
     extract(epoch FROM m.saved_at)::double precision)
) AS metric (name, type, help, value)
WHERE metric.value IS NOT NULL;
COMMENT ON VIEW llm_metrics IS
    'Numbers for monitoring, one row per metric and model. For a Prometheus SQL exporter, metric is the name, model '
    'the label, value the value. It reads the ends of indexes and the sizes of weights, not the weights. On a standby '
    'there are no rows about training.';
