-- Names of an earlier attempt that are not also core names, thin over core functions.

CREATE FUNCTION llm_get_model_config(model text)
RETURNS llm_model_config
LANGUAGE sql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT c FROM @extschema@.llm_model_config AS c WHERE c.model = llm_get_model_config.model $$;
COMMENT ON FUNCTION llm_get_model_config(text) IS 'Compatibility: the row of llm_model_config, or null.';

