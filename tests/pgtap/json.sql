-- JSON: llm_generate_json, llm_json_schema.
BEGIN;
SELECT plan(44);
SELECT llm_train_bpe($$VALUES ('low lower lowest {"newer": "wider"}')$$, 280, 't');
SELECT llm_init_model('t', 1, 2, 8, 128, seed => 3);
SELECT llm_init_model('ids', 2, 2, 8, 16, 50);
SET LOCAL pg_gpt2.model = 't';

-- llm_generate_json.
SELECT volatility_is('llm_generate_json', 'volatile');
SELECT is(llm_generate_json('low', '{"const": {"a": [1, "x", null]}}'), '{"a": [1, "x", null]}', 'what is the only value');
SELECT ok(llm_generate_json('low', '{"enum": ["a", 2]}', seed => s) IN ('"a"', '2'), 'one of the values') FROM generate_series(1, 3) AS s;
SELECT is(llm_generate_json('low', '{"type": "string", "maxLength": 9}', seed => 5), llm_generate_json('low', '{"type": "string", "maxLength": 9}', seed => 5), 'the same seed, the same value');
SELECT is(llm_generate_json('low', '{"type": "string"}', seed => 5)::text, llm_generate('low', 256, seed => 5, echo => false, options => '{"json_schema": {"type": "string"}}'), 'it is the option json_schema');
SELECT is(jsonb_typeof(llm_generate_json('low', '{"type": "string"}', 5, seed => s)), 'string', 'complete, however few the tokens') FROM generate_series(1, 3) AS s;
SELECT ok((llm_generate_json('low', '{"type": "integer", "minimum": -5, "maximum": 300}', seed => s))::integer BETWEEN -5 AND 300, 'a number of a range') FROM generate_series(1, 3) AS s;
SELECT is(llm_generate_json(NULL, '{"type": "null"}'), NULL, 'null of a null prompt');
SELECT is(llm_generate_json('', '{"type": "null"}'), 'null', 'an empty prompt');
SELECT is(llm_generate_json('low', '{"enum": ["a"]}', options => '{"top_k": 1}'), '"a"', 'with options');
SELECT throws_ok(format('SELECT llm_generate_json(%s)', arguments), state, NULL, arguments) FROM (VALUES
    ($$'low', NULL$$, '22004'),
    ($$'low', '[]'$$, '22023'),
    ($$'low', '{}'$$, '22023'),
    ($$'low', '{"type": "integer", "minimum": 2, "maximum": 1}'$$, '22023'),
    ($$'low', '{"type": "string", "minLength": 900}'$$, '22023'),
    ($$'low', '{"uniqueItems": true, "items": {"type": "null"}}'$$, '0A000'),
    ($$'low', '{"$ref": "#"}'$$, '0A000'),
    ($$'low', '{"pattern": "("}'$$, '2201B'),
    ($$'low', '{"type": "null"}', options => '{"regex": "a"}'$$, '22023'),
    ($$'low', '{"type": "null"}', options => '{"stop": ["a"]}'$$, '22023'),
    ($$'low', '{"type": "null"}', options => '{"echo": true}'$$, '22023'),
    ($$'low', '{"type": "null"}', max_tokens => NULL$$, '22004'),
    ($$'low', '{"type": "null"}', model_name => 'nope'$$, '42704'),
    ($$'low', '{"type": "null"}', model_name => 'ids'$$, '55000')) AS v (arguments, state);

-- llm_json_schema.
CREATE DOMAIN grade AS smallint CHECK (VALUE BETWEEN 1 AND 6);
CREATE TYPE size AS (w integer, h integer);
CREATE TABLE thing (
    id serial PRIMARY KEY, name varchar(5) NOT NULL, kind text CHECK (kind IN ('x', 'y')), grade grade, price numeric(4, 2) NOT NULL,
    size size, tags text[] NOT NULL, made timestamptz NOT NULL DEFAULT now(), double integer GENERATED ALWAYS AS (2) STORED, photo bytea);
SELECT volatility_is('llm_json_schema', 'stable');
SELECT is(llm_json_schema('thing') -> 'required', '["name", "kind", "grade", "price", "size", "tags"]', 'all columns that are given, in their order');
SELECT is(llm_json_schema('thing') #> array['properties', column_name], described::jsonb, column_name) FROM (VALUES
    ('name', '{"type": "string", "maxLength": 5}'),
    ('kind', '{"anyOf": [{"enum": ["x", "y"]}, {"type": "null"}]}'),
    ('grade', '{"anyOf": [{"type": "integer", "minimum": 1, "maximum": 6}, {"type": "null"}]}'),
    ('price', '{"type": "number", "minimum": -99.99, "maximum": 99.99}'),
    ('tags', '{"type": "array", "items": {"type": "string"}}')) AS v (column_name, described);
SELECT is(llm_json_schema('thing') ->> 'additionalProperties', 'false', 'and no others');
SELECT lives_ok($$INSERT INTO thing (name, kind, grade, price, size, tags) SELECT name, kind, grade, price, size, tags
    FROM jsonb_populate_record(NULL::thing, llm_generate_json('low', llm_json_schema('thing'), seed => 2))$$, 'a row of it is inserted');
SELECT isnt((SELECT id FROM thing), NULL, 'with its defaults');
SELECT is(llm_json_schema(NULL), NULL, 'null of null');
SELECT throws_ok($$SELECT llm_json_schema('thing_pkey')$$, '22023', NULL, 'an index');
SELECT throws_ok($$SELECT llm_json_schema(4000000000)$$, '42704', NULL, 'nothing');
CREATE TABLE photo (data bytea NOT NULL);
SELECT throws_ok($$SELECT llm_json_schema('photo')$$, '0A000', NULL, 'a type that no schema describes');
SELECT * FROM finish();
ROLLBACK;
