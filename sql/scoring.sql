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
