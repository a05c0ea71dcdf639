-- Names of an earlier attempt that are not also core names, thin over core functions.

CREATE FUNCTION llm_get_model_config(model text)
RETURNS llm_model_config
LANGUAGE sql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT c FROM @extschema@.llm_model_config AS c WHERE c.model = llm_get_model_config.model $$;
COMMENT ON FUNCTION llm_get_model_config IS 'Compatibility: the row of llm_model_config, or null.';

-- Autograd.

CREATE FUNCTION pg_llm_autograd_enabled()
RETURNS boolean
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @compatibility.enabled@;
COMMENT ON FUNCTION pg_llm_autograd_enabled IS
    'Compatibility: whether what is computed is recorded, the flag of llm_autograd_mode.';

CREATE FUNCTION pg_llm_autograd_track_tensor(data bytea, shape integer[], requires_grad boolean)
RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_variable_sent(
    data, CASE WHEN cardinality(shape) > 1048576 THEN '' ELSE array_send(shape) END, requires_grad);
COMMENT ON FUNCTION pg_llm_autograd_track_tensor IS
    'Compatibility: the same as llm_variable, which gives a handle for a value.';

CREATE FUNCTION pg_llm_autograd_map_param_sent(
    model text,
    name text,
    token_id integer,
    tensor bytea,
    shape bytea
)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @compatibility.map_param@;
COMMENT ON FUNCTION pg_llm_autograd_map_param_sent IS
    'What pg_llm_autograd_map_param calls, with array_send(shape). An empty bytea stands for an array that is too '
    'long.';

CREATE FUNCTION pg_llm_autograd_map_param(
    model text,
    name text,
    token_id integer,
    tensor bytea,
    shape integer[] DEFAULT NULL
)
RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.pg_llm_autograd_map_param_sent(
    model, name, token_id, tensor, CASE WHEN cardinality(shape) > 1048576 THEN '' ELSE array_send(shape) END);
COMMENT ON FUNCTION pg_llm_autograd_map_param IS
    'Compatibility: a handle for a row of llm_param, remembered in llm_tensor_map: functions that record on the same '
    'tape use it for that parameter, and llm_accumulate_grads brings its gradient back. shape null = the row''s.';

CREATE FUNCTION llm_materialize_params(model text)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @compatibility.materialize_params@;
COMMENT ON FUNCTION llm_materialize_params IS
    'Compatibility: handles for all parameters of a model, mapped in llm_tensor_map in place of earlier ones; returns '
    'their number. Recorded functions do this by themselves for parameters that are not mapped.';

CREATE FUNCTION llm_accumulate_grads(model text, workers integer DEFAULT 1)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @compatibility.accumulate_grads@;
COMMENT ON FUNCTION llm_accumulate_grads IS
    'Compatibility: add the gradients of the handles mapped on the tape to llm_param.grad; returns the number of '
    'rows. The result does not depend on workers.';

CREATE FUNCTION llm_prune_autograd_state(workers integer DEFAULT 1)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @compatibility.prune@;
COMMENT ON FUNCTION llm_prune_autograd_state IS
    'Compatibility: drop the tape of llm_tape_id(), its values and mapped parameters; returns the number of values. '
    'The result does not depend on workers.';
