-- JSON: a value that fits a schema, and the schema of a row.

CREATE FUNCTION llm_generate_json(
    prompt text,
    schema jsonb,
    max_tokens integer DEFAULT 256,
    temperature double precision DEFAULT 1.0,
    topk integer DEFAULT 50,
    topp double precision DEFAULT 0.95,
    model_name text DEFAULT NULL,
    eos_token integer DEFAULT NULL,
    seed bigint DEFAULT NULL,
    repetition_penalty double precision DEFAULT 1.0,
    min_p double precision DEFAULT 0,
    options jsonb DEFAULT NULL
)
RETURNS jsonb
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @json.generate_json@;
COMMENT ON FUNCTION llm_generate_json IS
    'Continue a prompt with JSON that is valid under a JSON schema, always complete: when few of the max_tokens are left, the '
    'shortest way to the end is taken, and where they are too few for any, that is an error. The model chooses among the tokens '
    'that the schema allows at each place; where there is only one, it is not asked. A schema may have type, properties, '
    'required, additionalProperties false, items, minItems, maxItems, enum, const, anyOf, $ref within the schema that is not '
    'recursive, minimum, maximum, exclusiveMinimum, exclusiveMaximum, minLength, maxLength, pattern, and format date, time, '
    'date-time, uuid or email; another keyword is an error that names it. Titles, descriptions and the like are not shown to '
    'the model: say in the prompt what is wanted. The other parameters are those of llm_generate. llm_json_schema gives the '
    'schema of a table''s rows.';

CREATE FUNCTION llm_json_schema(relation regclass)
RETURNS jsonb
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
SET standard_conforming_strings = on
SET extra_float_digits = 1
SET quote_all_identifiers = off
AS @json.row_schema@;
COMMENT ON FUNCTION llm_json_schema IS
    'The JSON schema of a row of a table, a view or a composite type: an object with a property for each column, in their '
    'order, for llm_generate_json, so that jsonb_populate_record makes a row which can be inserted. It has the types with '
    'their lengths and ranges, enums, domains, arrays, rows within rows, NOT NULL, and CHECK constraints on one column: IN, '
    '=, bounds of numbers, lengths and patterns of texts. A column that may be null may be null here, too, but is there. '
    'Left out are columns that the server fills in (DEFAULT, identity, generated), and those of types that no schema '
    'describes, such as bytea and json, where they may be null; where they may not, that is an error. So give INSERT a list '
    'of columns: what SELECT * gives for the ones left out is null, not their default. $comment says what is left out, '
    'whether a domain wants jsonb_to_record instead, and which constraints are not held: those on several columns or rows, on '
    'generated columns, of partitions, and conditions that the schema cannot say.';
