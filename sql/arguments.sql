-- Arguments that may be large. PL/Python makes Python objects of them before our code runs, so what guards them is the type of a
-- parameter: it is checked before the call, costs less than a microsecond, and takes whatever its base type takes. A function that
-- users call declares the base type, and calls, as a body in SQL that the planner puts in its place, one that declares the guard.

CREATE FUNCTION llm_texts_sent(count integer)
RETURNS boolean
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
if '@package@' not in GD: plpy.execute('SELECT @extschema@.llm_boot()')
return GD['@package@'].arguments.texts(globals())
$$;
COMMENT ON FUNCTION llm_texts_sent(integer) IS 'Refuses an array of so many texts for llm_texts.';

CREATE DOMAIN llm_texts AS text[]
    CHECK (CASE WHEN cardinality(VALUE) > 1048576 THEN llm_texts_sent(cardinality(VALUE)) ELSE true END);
COMMENT ON DOMAIN llm_texts IS 'An array of texts that a function takes: text[] of at most 1,048,576 elements.';

CREATE FUNCTION llm_bytes_sent(size integer)
RETURNS boolean
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
if '@package@' not in GD: plpy.execute('SELECT @extschema@.llm_boot()')
return GD['@package@'].arguments.data(globals())
$$;
COMMENT ON FUNCTION llm_bytes_sent(integer) IS 'Whether there is memory for so many bytes of llm_bytes; an error where there is none.';

CREATE DOMAIN llm_bytes AS bytea
    CHECK (CASE WHEN octet_length(VALUE) > 16777216 THEN llm_bytes_sent(octet_length(VALUE)) ELSE true END);
COMMENT ON DOMAIN llm_bytes IS 'A bytea that a function takes: for a large one memory is asked for before it is copied.';
