-- Scoring: what a model thinks of a text.

CREATE FUNCTION llm_logprobs(text_in text, model_name text DEFAULT NULL, from_start boolean DEFAULT false)
RETURNS TABLE ("position" integer, token_id integer, token text, logprob double precision, rank integer)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @scoring.logprobs@;
COMMENT ON FUNCTION llm_logprobs IS
    'Each token of a text with its log-probability given the tokens before it, and its rank among all tokens (1 = '
    'most probable). For the first token both are null, or, with from_start, what the model says after an end-of-text '
    'token. Past the window, every token has at least half a window before it.';

CREATE FUNCTION llm_perplexity(text_in text, model_name text DEFAULT NULL, from_start boolean DEFAULT false)
RETURNS double precision
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @scoring.perplexity@;
COMMENT ON FUNCTION llm_perplexity IS
    'Perplexity of a text: exp of the mean negative log-probability of its tokens, without the first, unless '
    'from_start scores it as what follows an end-of-text token. Null where no token is scored. Past the window it '
    'slides by half a window, as in Hugging Face''s guide.';

CREATE FUNCTION llm_text_embedding(
    text_in text,
    layer integer DEFAULT NULL,
    pooling text DEFAULT 'mean',
    model_name text DEFAULT NULL
)
RETURNS real[]
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @scoring.text_embedding@;
COMMENT ON FUNCTION llm_text_embedding IS
    'Hidden state of a text as d_model numbers: after layer blocks (0 = embeddings, null = all and the final norm, '
    'negative counts from the end, as Hugging Face''s hidden_states), the mean of all tokens or the last one; null '
    'for an empty text. The result can be cast to pgvector''s type vector.';

-- The cosine is SQL, so that it may run in a parallel plan. Only its errors are PL/Python: they run no statement, so they are safe in
-- a worker. Sums over a set-returning target list, cast once, take half the time of FROM unnest(a, b).
CREATE FUNCTION llm_cosine_sent(count_a integer, count_b integer, ndims integer)
RETURNS double precision
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
message = f'the arrays have different numbers of elements, {count_a} and {count_b}'
hint = 'Compare embeddings of one model: they have d_model numbers each.'
if ndims > 1:
    message, hint = 'a and b must be arrays of one dimension', 'ARRAY(SELECT unnest(a)) makes one of all its elements.'
raise type('pg_gpt2', (plpy.Error,), {'__module__': 'builtins', 'sqlstate': '22023', 'hint': hint})(message)
$$;
COMMENT ON FUNCTION llm_cosine_sent IS
    'What llm_cosine calls: the error for arrays of so many numbers, which differ, or of as many dimensions.';

CREATE FUNCTION llm_cosine(a real[], b real[])
RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE
    WHEN cardinality(a) <> cardinality(b) OR array_ndims(a) > 1 OR array_ndims(b) > 1
        THEN @extschema@.llm_cosine_sent(cardinality(a), cardinality(b), greatest(array_ndims(a), array_ndims(b)))
    WHEN cardinality(a) > 0 AND array_position(a, NULL) IS NULL AND array_position(b, NULL) IS NULL THEN (
        SELECT CASE WHEN xy BETWEEN -length AND length THEN xy / length WHEN length < 'Infinity' THEN sign(xy) ELSE 'NaN' END
        FROM (
            SELECT sum(x * y) AS xy, nullif(sqrt(sum(x * x) * sum(y * y)), 0) AS length
            FROM (SELECT unnest(a)::double precision AS x, unnest(b)::double precision AS y) AS pair
        ) AS sums)
END;
COMMENT ON FUNCTION llm_cosine IS
    'Cosine of the angle between two vectors, as embeddings are compared: 1 for the same direction, 0 for nothing in '
    'common. NaN where one of them is zero, as in pgvector; null where one is null, empty, or has a null element. '
    'Arrays of different lengths, or of several dimensions, are an error (22023).';
