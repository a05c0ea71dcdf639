-- Learning: data, loss, steps, runs.

CREATE FUNCTION llm_dataset_load(
    source text,
    model text,
    block_size integer,
    split text DEFAULT 'train',
    val_fraction double precision DEFAULT 0,
    source_path text DEFAULT current_setting('search_path'),
    replace boolean DEFAULT false,
    pack boolean DEFAULT true
)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.load_dataset@;
COMMENT ON FUNCTION llm_dataset_load IS
    'Tokenize the texts of a query with the model''s vocabulary, one end-of-text token after each, and store them as '
    'rows of block_size tokens, at most n_positions of the model, in llm_dataset; the last val_fraction of the rows '
    'goes to the split val. Returns the number of rows. Rows go across texts; with pack => false each text has a row '
    'of its own, or several where it is longer than block_size. Rows that the model has in the splits that are '
    'written stay, and a NOTICE says how many there are; replace => true deletes them. The query returns one text '
    'column and runs with the caller''s rights and search_path (source_path); an ORDER BY makes the result '
    'reproducible.';

CREATE FUNCTION llm_dataset_load_pairs(
    source text,
    model text,
    max_length integer DEFAULT NULL,
    split text DEFAULT 'train',
    val_fraction double precision DEFAULT 0,
    replace boolean DEFAULT false,
    source_path text DEFAULT current_setting('search_path'),
    special boolean DEFAULT true
)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.load_pairs@;
COMMENT ON FUNCTION llm_dataset_load_pairs IS
    'Tokenize the pairs of a query, (prompt, completion) or (prompt, completion, weight), and store each as one row of '
    'llm_dataset: prompt, completion, end-of-text. Only completion and end-of-text carry loss (the targets of the prompt '
    'are -100), each of their tokens with the weight of the pair. Tokens are those of prompt and completion together; a '
    'completion best begins with a space. A prompt that is too long for max_length tokens (null = n_positions of the '
    'model) loses its beginning. A pair is skipped that has a NULL, no text, a weight that is not above 0 and at most '
    '1e9, or a completion too long for max_length. NOTICEs say how many were cut, and how many skipped. Returns the '
    'number of rows. split, val_fraction, replace and source_path as in llm_dataset_load. Special tokens in the texts, which '
    'mark the turns of a chat, are found; with special => false they are ordinary text, as for texts of strangers.';

CREATE FUNCTION llm_loss_sent(
    model text,
    tokens bytea,
    targets bytea,
    n_layer integer,
    n_head integer,
    d integer,
    vocab integer,
    dropout_p double precision,
    training boolean,
    seed bigint,
    audit text
)
RETURNS double precision
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.loss@;
COMMENT ON FUNCTION llm_loss_sent IS
    'What llm_loss calls, with array_send(tokens) and array_send(targets). An empty bytea stands for an array that is '
    'too long.';

CREATE FUNCTION llm_loss(
    model text,
    tokens integer[],
    targets integer[],
    n_layer integer DEFAULT NULL,
    n_head integer DEFAULT NULL,
    d integer DEFAULT NULL,
    vocab integer DEFAULT NULL,
    dropout_p double precision DEFAULT 0.1,
    training boolean DEFAULT true,
    seed bigint DEFAULT NULL,
    audit text DEFAULT NULL
)
RETURNS double precision
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_loss_sent(
    model, CASE WHEN cardinality(tokens) > 1048576 THEN '' ELSE array_send(tokens) END,
    CASE WHEN cardinality(targets) > 1048576 THEN '' ELSE array_send(targets) END, n_layer, n_head, d, vocab, dropout_p,
    training, seed, audit);
COMMENT ON FUNCTION llm_loss IS
    'Mean cross entropy, in nats, of predicting targets after tokens; a target of -100 carries no loss. With training => true, dropout of dropout_p is '
    'applied, drawn by seed and the model''s step, as the next training step draws it; seed null draws one. While '
    'recording is on (llm_autograd_mode), the ops go to the tape (llm_tape_id); audit overrides that: none records '
    'nothing, tape one row per op, full the values as well. The shape parameters are checks: null, or what the model '
    'has.';

CREATE FUNCTION llm_evaluate(
    model text,
    split text DEFAULT 'val',
    max_rows integer DEFAULT NULL,
    batch_size integer DEFAULT 8
)
RETURNS TABLE (loss double precision, perplexity double precision, tokens bigint)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.evaluate@;
COMMENT ON FUNCTION llm_evaluate IS
    'Mean cross entropy and perplexity of a model on a split of llm_dataset, or on its first max_rows rows, without '
    'dropout; tokens counts the targets that carry loss, of which each has the weight of its row in the mean.';

CREATE FUNCTION llm_train_step_sent(
    model text,
    batch_id integer,
    n_layer integer,
    n_head integer,
    d integer,
    vocab integer,
    dropout_p double precision,
    beta1 double precision,
    beta2 double precision,
    eps double precision,
    wd double precision,
    lr_max double precision,
    warmup integer,
    total_steps integer,
    grad_clip double precision,
    grad_workers integer,
    prune_workers integer,
    batch bytea,
    min_lr double precision,
    seed bigint,
    audit text
)
RETURNS double precision
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.train_step@;
COMMENT ON FUNCTION llm_train_step_sent IS
    'What llm_train_step calls, with array_send(batch). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_train_step(
    model text,
    batch_id integer DEFAULT NULL,
    n_layer integer DEFAULT NULL,
    n_head integer DEFAULT NULL,
    d integer DEFAULT NULL,
    vocab integer DEFAULT NULL,
    dropout_p double precision DEFAULT 0.1,
    beta1 double precision DEFAULT 0.9,
    beta2 double precision DEFAULT 0.999,
    eps double precision DEFAULT 1e-8,
    wd double precision DEFAULT 0.01,
    lr_max double precision DEFAULT 2.5e-4,
    warmup integer DEFAULT 0,
    total_steps integer DEFAULT NULL,
    grad_clip double precision DEFAULT NULL,
    grad_workers integer DEFAULT 1,
    prune_workers integer DEFAULT 1,
    batch integer[] DEFAULT NULL,
    min_lr double precision DEFAULT 0,
    seed bigint DEFAULT 0,
    audit text DEFAULT 'tape'
)
RETURNS double precision
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_train_step_sent(
    model, batch_id, n_layer, n_head, d, vocab, dropout_p, beta1, beta2, eps, wd, lr_max, warmup, total_steps, grad_clip,
    grad_workers, prune_workers, CASE WHEN cardinality(batch) > 1048576 THEN '' ELSE array_send(batch) END, min_lr, seed,
    audit);
COMMENT ON FUNCTION llm_train_step IS
    'One AdamW step on the row batch_id of llm_dataset, or on the rows batch as one batch, or, without either, on the '
    'next row of the split train; returns the loss before the update. The learning rate follows the model''s own '
    'step: lr_max * step / warmup at first, then half a cosine to min_lr at total_steps, or lr_max throughout when '
    'total_steps is null. audit: none, tape (one row of llm_tape per op), or full (values and gradients in '
    'llm_tensor_rt as well); the last pg_gpt2.audit_keep steps stay (1; 0 = all). The level changes no result. The '
    'session keeps weights and moments in memory for the next step (llm_cache_status shows them).';

CREATE FUNCTION llm_train(
    model text,
    n_steps integer,
    n_layer integer DEFAULT NULL,
    n_head integer DEFAULT NULL,
    d integer DEFAULT NULL,
    vocab integer DEFAULT NULL,
    dropout_p double precision DEFAULT 0.1,
    beta1 double precision DEFAULT 0.9,
    beta2 double precision DEFAULT 0.999,
    eps double precision DEFAULT 1e-8,
    wd double precision DEFAULT 0.01,
    lr_max double precision DEFAULT 2.5e-4,
    warmup integer DEFAULT 2000,
    grad_clip double precision DEFAULT NULL,
    grad_workers integer DEFAULT 1,
    prune_workers integer DEFAULT 1,
    batch_size integer DEFAULT 8,
    grad_accum integer DEFAULT 1,
    min_lr double precision DEFAULT 0,
    seed bigint DEFAULT 0,
    eval_every integer DEFAULT NULL,
    log_every integer DEFAULT NULL,
    audit text DEFAULT 'tape',
    options jsonb DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.train@;
COMMENT ON FUNCTION llm_train IS
    'Train a model for n_steps AdamW steps on the split train of llm_dataset, in one transaction; returns the run_id '
    'under which llm_run and llm_train_log describe it. A step takes batch_size * grad_accum rows, in an order that '
    'depends on seed. The learning rate rises to lr_max over warmup steps (at most a tenth of n_steps) and falls to '
    'min_lr by half a cosine, or as the key lr_schedule of options says. wd is AdamW''s weight decay, on matrices only; grad_clip bounds the gradient''s global '
    'norm (null = no bound); dropout_p is GPT-2''s dropout. NOTICEs show progress every log_every steps (null = ten '
    'times in all, 0 = never); with eval_every the loss on the split val is measured every so many steps and after '
    'the last, and shown in a NOTICE. n_layer, n_head, d and vocab are checks: null, or what the model has. '
    'grad_workers is the number of threads, and changes no result; prune_workers is accepted and has no effect. audit '
    'as in llm_train_step, of the shards that this server computes; with sync_every it must be none. options takes the parameters under the names that Hugging Face has for them, and keys that '
    'are no parameters: lr_schedule; patience and min_delta, which end the run, with status early, after evaluations '
    'without gain; keep_best, which leaves the weights of the best evaluation; shards and workers, by which other servers '
    'share the steps, called by dblink, without changing a bit; sync_every, by which shards are replicas that learn by '
    'themselves for so many steps, after which evaluations come, too. llm_training_options lists them. Long runs: CALL llm_train_run.';

CREATE PROCEDURE llm_train_run(
    model text,
    n_steps integer,
    n_layer integer DEFAULT NULL,
    n_head integer DEFAULT NULL,
    d integer DEFAULT NULL,
    vocab integer DEFAULT NULL,
    dropout_p double precision DEFAULT 0.1,
    beta1 double precision DEFAULT 0.9,
    beta2 double precision DEFAULT 0.999,
    eps double precision DEFAULT 1e-8,
    wd double precision DEFAULT 0.01,
    lr_max double precision DEFAULT 2.5e-4,
    warmup integer DEFAULT 2000,
    grad_clip double precision DEFAULT NULL,
    grad_workers integer DEFAULT 1,
    prune_workers integer DEFAULT 1,
    batch_size integer DEFAULT 8,
    grad_accum integer DEFAULT 1,
    min_lr double precision DEFAULT 0,
    seed bigint DEFAULT 0,
    eval_every integer DEFAULT NULL,
    log_every integer DEFAULT NULL,
    commit_every integer DEFAULT 100,
    flush_seconds double precision DEFAULT 1,
    wait boolean DEFAULT false,
    audit text DEFAULT 'tape',
    options jsonb DEFAULT NULL
)
LANGUAGE plpython3u
AS @training.train_run@;
COMMENT ON PROCEDURE llm_train_run IS
    'Train as llm_train does, but commit every commit_every steps (no more often than every flush_seconds), so that '
    'other sessions see llm_train_log and llm_train_progress and generate from the last committed weights. If it is '
    'cut short, the steps since the last commit are lost; the same call then goes on with the run, and it ends with '
    'the same bits as an uninterrupted one. While another session trains the model, the call is an error that names '
    'that session, or waits with wait => true. With keep_best each evaluation that is the best so far is committed, as '
    'a checkpoint of the model, which llm_run names in best_checkpoint; the next replaces it, and the end of the run '
    'removes it. With sync_every commits come at the ends of rounds. Call it in autocommit mode, alone in its statement '
    'string. audit as in llm_train.';

CREATE FUNCTION llm_training_options_declared()
RETURNS TABLE (name text, type text, default_value text, domain text, meaning text)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.options@;
COMMENT ON FUNCTION llm_training_options_declared IS 'What the view llm_training_options shows.';

CREATE VIEW llm_training_options AS
SELECT name, type, default_value, domain, meaning FROM @extschema@.llm_training_options_declared();
COMMENT ON VIEW llm_training_options IS
    'The keys of options of llm_train and llm_train_run, by the names that TrainingArguments of Hugging Face has for '
    'them, where these mean the same. A key that is also a parameter sets it; where both are given and differ, that is '
    'an error. default_value null: none.';
GRANT SELECT ON llm_training_options TO PUBLIC;

CREATE FUNCTION llm_train_stop(model text)
RETURNS boolean
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @training.train_stop@;
COMMENT ON FUNCTION llm_train_stop IS
    'Ask a running llm_train_run of the model to commit and end after its current step; false when none is running. '
    'Commit this call for the run to see it.';

CREATE VIEW llm_train_progress AS
SELECT
    r.run_id, r.model, s.status, l.step, r.n_steps, l.loss, l.tokens_per_second,
    CASE WHEN s.status = 'running' THEN (r.n_steps - l.step) * l.seconds_per_step * interval '1 second' END AS eta,
    r.started_at, l.at AS updated_at, l.servers
FROM llm_run AS r
CROSS JOIN LATERAL (
    -- a run that was cut short is still entered as running, but nobody holds its model's lock; a standby has no locks to look at
    SELECT CASE WHEN r.status = 'running' AND NOT pg_is_in_recovery() AND NOT EXISTS (
        SELECT FROM pg_locks AS k
        WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 2
          AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND k.classid = 'llm_param'::regclass AND k.objid = hashtext(r.model)::oid
    ) THEN 'interrupted' ELSE r.status END AS status
) AS s
LEFT JOIN LATERAL (
    SELECT
        max(step) AS step, max(at) AS at, (array_agg(loss ORDER BY step DESC))[1] AS loss,
        (array_agg(t.servers ORDER BY step DESC))[1] AS servers,
        sum(tokens) / nullif(sum(seconds), 0) AS tokens_per_second, avg(seconds) AS seconds_per_step
    FROM (SELECT * FROM llm_train_log AS t WHERE t.run_id = r.run_id ORDER BY t.step DESC LIMIT 20) AS t
) AS l ON true
WHERE r.status <> 'manual';
COMMENT ON VIEW llm_train_progress IS
    'Runs, without the manual ones, of steps done by hand, which are in llm_run: with the last committed step and '
    'loss, tokens per second over the last 20 steps, and for a running one the time that it still needs. Status interrupted: it was cut short, and the same call goes on with it (a standby '
    'cannot tell, and says running). servers: what each server did for that step, see llm_train_log.';
