-- JSON: a value that fits a schema, and the schema of a row.

CREATE FUNCTION llm_json_schema(relation regclass)
RETURNS jsonb
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
SET standard_conforming_strings = on
AS @json.row_schema@;
COMMENT ON FUNCTION llm_json_schema IS
    'The JSON schema of a row of a table, a view or a composite type: an object with a property for each column, in their '
    'order, for llm_generate_json, so that jsonb_populate_record makes a row which can be inserted. It has the types with '
    'their lengths and ranges, enums, domains, arrays, rows within rows, NOT NULL, and CHECK constraints on one column: IN, '
    '=, bounds of numbers, lengths and patterns of texts. A column that may be null may be null here, too, but is there. '
    'Left out are columns that the server fills in (DEFAULT, identity, generated), and those of types that no schema '
    'describes, such as bytea and json, where they may be null; where they may not, that is an error. So give INSERT a list '
    'of columns: what SELECT * gives for the ones left out is null, not their default. $comment says what is left out and '
    'which constraints are not held: those on several columns or rows, and conditions that the schema cannot say.';
