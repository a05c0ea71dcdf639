-- llm_generate_json
SELECT llm_generate_json('Practice makes ', '{"enum": ["perfect", "money"]}', temperature => 0) AS ending,
       jsonb_typeof(llm_generate_json('n = ', '{"type": "integer", "minimum": 0, "maximum": 255}', seed => 1)) AS kind;
--> "perfect"|number

-- llm_json_schema
CREATE TABLE remark (
    id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY, mood text NOT NULL CHECK (mood IN ('glad', 'sad')), words integer
);
SELECT llm_json_schema('remark') #>> '{properties, mood}' AS mood, llm_json_schema('remark') #>> '{$comment}' AS comment;
--> {"enum": ["glad", "sad"]}|Left out: id (identity).
INSERT INTO remark (mood, words)
SELECT mood, words
FROM jsonb_populate_record(NULL::remark, llm_generate_json('All is well', llm_json_schema('remark'), seed => 1))
RETURNING mood IN ('glad', 'sad') AS fits;
--> t
