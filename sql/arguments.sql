-- Arguments that may be large. PL/Python makes Python objects of them before our code runs, so what guards them is the type of a
-- parameter: it is checked before the call, costs less than a microsecond, and takes whatever its base type takes. A function that
-- users call declares the base type, and calls, as a body in SQL that the planner puts in its place, one that declares the guard.

CREATE FUNCTION llm_texts_sent(count integer)
RETURNS boolean
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @arguments.texts@;
COMMENT ON FUNCTION llm_texts_sent IS 'What llm_texts calls: refuses an array of so many texts.';

CREATE DOMAIN llm_texts AS text[]
    CHECK (CASE WHEN cardinality(VALUE) > 1048576 THEN llm_texts_sent(cardinality(VALUE)) ELSE true END);
COMMENT ON DOMAIN llm_texts IS 'An array of texts that a function takes: text[] with at most 1,048,576 elements.';

CREATE FUNCTION llm_bytes_sent(size integer)
RETURNS boolean
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @arguments.data@;
COMMENT ON FUNCTION llm_bytes_sent IS 'What llm_bytes calls: an error where there is no memory for so many bytes.';

CREATE DOMAIN llm_bytes AS bytea
    CHECK (CASE WHEN octet_length(VALUE) > 16777216 THEN llm_bytes_sent(octet_length(VALUE)) ELSE true END);
COMMENT ON DOMAIN llm_bytes IS
    'A bytea that a function takes: before a large one is copied, it is made sure that there is memory for the copy.';
