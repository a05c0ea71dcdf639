-- What a training run calls on other servers, which compute shards of its steps or replicas of its rounds:
-- see plpython/pg_gpt2/server/training/shard_work.py.

CREATE FUNCTION llm_worker_begin(run jsonb)
RETURNS jsonb
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @workers.begin@;
COMMENT ON FUNCTION llm_worker_begin IS
    'Called by llm_train_run on a server that its option workers names: take on the shards of a run, of a model of this '
    'shape, until the session ends or begins another run. The keys of run are config (its shape), tied '
    '(tensors that are others) and learns (whether it has sync_every). Returns what the bits of results depend on here '
    '(environment), and how many weights are awaited. Asks for the memory first. The session ends within a second when whoever it serves goes away.';

CREATE FUNCTION llm_worker_weights(first bigint, sent text)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @workers.weights@;
COMMENT ON FUNCTION llm_worker_weights IS
    'Called by llm_train_run after llm_worker_begin: weights from place first on, as text (see '
    'plpython/pg_gpt2/server/training/wire.py), in the order of the configuration; those that training changes come first and again before each step, those of an adapter''s base '
    'after them once. With sync_every both moments follow the weights, and all that comes before each round. Returns the '
    'place after the last of them.';

CREATE FUNCTION llm_worker_shard(shard jsonb)
RETURNS double precision[]
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @workers.shard@;
COMMENT ON FUNCTION llm_worker_shard IS
    'Called by llm_train_run after llm_worker_weights: compute loss and gradients of the rows in shard, which are its part '
    'of a step''s; returns the loss. The session keeps the gradients for llm_worker_gradients. With sync_every it makes '
    'a step of AdamW with them, and returns the loss and the norm of the gradient.';

CREATE FUNCTION llm_worker_gradients(first bigint, count integer)
RETURNS text
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @workers.gradients@;
COMMENT ON FUNCTION llm_worker_gradients IS
    'Called by llm_train_run after llm_worker_shard: count of the gradients from place first on, as text like '
    'those weights and in their order; with sync_every of weights and moments.';
