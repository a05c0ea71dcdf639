-- Weights in and out: safetensors and NumPy files of the server, byte strings, and rows that a client inserts.

CREATE FUNCTION pg_llm_import_safetensors(path text, model text, replace boolean DEFAULT false)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @transfer.import_safetensors_file@;
COMMENT ON FUNCTION pg_llm_import_safetensors IS
    'Load the weights of a model from a safetensors file of the server (f32, f16 or bf16); returns the number of '
    'tensors. The model takes its shape from llm_model_config, from a config.json in the directory of the file, or '
    'from the file where it says so; these must agree. A config.json of anything but a GPT-2 is refused; without one, '
    'a NOTICE says what is assumed. All tensors must be there, with the right shape and finite values, or nothing '
    'changes. For members of pg_read_server_files.';

CREATE FUNCTION pg_llm_import_npz(path text, model text, replace boolean DEFAULT false)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @transfer.import_npz_file@;
COMMENT ON FUNCTION pg_llm_import_npz IS
    'Load the weights of a model from a NumPy .npz file of the server, standard or the older gzip container; '
    'otherwise as pg_llm_import_safetensors.';

CREATE FUNCTION llm_import_safetensors_sent(data llm_bytes, model text, replace boolean)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @transfer.import_safetensors@;
COMMENT ON FUNCTION llm_import_safetensors_sent IS
    'What llm_import_safetensors calls, with bytes for which memory is asked before PL/Python copies them.';

CREATE FUNCTION llm_import_safetensors(data bytea, model text, replace boolean DEFAULT false)
RETURNS integer
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_import_safetensors_sent(data, model, replace);
COMMENT ON FUNCTION llm_import_safetensors IS
    'Load the weights of a model from the bytes of a safetensors file, below 1 GB; otherwise as '
    'pg_llm_import_safetensors, without a config.json.';

CREATE FUNCTION llm_import_begin(model text, config jsonb, replace boolean DEFAULT false)
RETURNS TABLE (name text, token_id integer, shape integer[])
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @transfer.import_begin@;
COMMENT ON FUNCTION llm_import_begin IS
    'For a client that inserts the weights of a model into llm_param itself, as pg-gpt2 load-model does: what it calls '
    'first in its transaction. Returns the rows to insert, without their data. config has columns of llm_model_config by '
    'their names; or of an adapter, which is there, its base and columns of llm_adapter. What an import refuses is '
    'refused: a model in training is waited for, one that has weights keeps them unless replace is true, and its shape '
    'stays. Adapters of the model use the rows as they come.';

CREATE FUNCTION pg_llm_export_safetensors(path text, model text)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @transfer.export_safetensors_file@;
COMMENT ON FUNCTION pg_llm_export_safetensors IS
    'Write the weights of a model as a safetensors file of the server, under the names that transformers'' '
    'GPT2LMHeadModel uses; returns its size. For members of pg_write_server_files.';

CREATE FUNCTION pg_llm_export_npz(path text, model text)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @transfer.export_npz_file@;
COMMENT ON FUNCTION pg_llm_export_npz IS
    'Write the weights of a model as a standard NumPy .npz file of the server; returns its size. For members of '
    'pg_write_server_files.';

CREATE FUNCTION llm_export_safetensors(model text)
RETURNS SETOF bytea
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @transfer.export_safetensors@;
COMMENT ON FUNCTION llm_export_safetensors IS
    'The weights of a model as a safetensors file in chunks of at most 4 MB, which make up the file when they are '
    'written one after another.';
