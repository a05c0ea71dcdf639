-- Doing a run again: see plpython/pg_gpt2/server/training/run_replay.py.

CREATE FUNCTION llm_replay(run_id bigint, from_checkpoint integer DEFAULT NULL, to_step bigint DEFAULT NULL)
RETURNS TABLE (
    first_step bigint,
    last_step bigint,
    step bigint,
    what text,
    recorded text,
    replayed text,
    exact boolean,
    note text
)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @replay.replay@;
COMMENT ON FUNCTION llm_replay IS
    'Do a run of llm_train or llm_train_run again, on a copy of the model in memory, and compare it with what is '
    'recorded: the rows of llm_dataset that it read, llm_train_log, the checkpoints saved during it, and llm_param if '
    'the model has not been trained since. One row: the steps trained again, and the first difference with its step '
    'and what it is in, or nulls when there is none. It begins at from_checkpoint, else at a checkpoint of the run''s '
    'start, else at llm_init_model, else at the first checkpoint saved during it. exact: every bit was compared; '
    'where CPU, NumPy, BLAS, the version of pg_gpt2 or the setting pg_gpt2.fast are not those of the run, losses and '
    'norms are compared within 1e-3, and note says so.';
