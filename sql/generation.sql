-- Generation: prompt in, text or token ids out.

CREATE FUNCTION llm_generate(
    prompt text,
    max_tokens integer DEFAULT 64,
    temperature double precision DEFAULT 1.0,
    topk integer DEFAULT 50,
    topp double precision DEFAULT 0.95,
    model_name text DEFAULT NULL,
    eos_token integer DEFAULT NULL,
    seed bigint DEFAULT NULL,
    stop llm_texts DEFAULT NULL,
    repetition_penalty double precision DEFAULT 1.0,
    min_p double precision DEFAULT 0,
    echo boolean DEFAULT true,
    options jsonb DEFAULT NULL
)
RETURNS text
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @generation.generate@;
COMMENT ON FUNCTION llm_generate IS
    'Continue a prompt by at most max_tokens tokens: prompt and completion, or with echo => false the completion. '
    'temperature 0 takes the most probable token each time; else one is drawn from the topk most probable (0 = all), '
    'of those the fewest that together have probability topp (1 = all), of those the ones with at least min_p times '
    'the probability of the best. repetition_penalty above 1 makes tokens that have occurred less probable. It ends '
    'at the end-of-text token (eos_token null = the model''s, -1 = none) or at one of the stop strings, which are '
    'left out. The same seed gives the same text; without one, setseed() decides. model_name null = the setting '
    'pg_gpt2.model, else gpt2-small, or where that has no weights the only model that has some. An empty prompt '
    'starts from the end-of-text token. When the model''s window is full, generation goes on from the last half of '
    'it. options takes more, including choices, a regex or a json_schema that the text must satisfy, and also the '
    'parameters under Hugging Face''s names: llm_generation_options lists them.';

CREATE FUNCTION llm_generate_stream(
    prompt text,
    max_tokens integer DEFAULT 64,
    temperature double precision DEFAULT 1.0,
    topk integer DEFAULT 50,
    topp double precision DEFAULT 0.95,
    model_name text DEFAULT NULL,
    eos_token integer DEFAULT NULL,
    seed bigint DEFAULT NULL,
    stop llm_texts DEFAULT NULL,
    repetition_penalty double precision DEFAULT 1.0,
    min_p double precision DEFAULT 0,
    echo boolean DEFAULT true,
    options jsonb DEFAULT NULL
)
RETURNS TABLE (
    step integer,
    token_id integer,
    token text,
    text text,
    is_complete boolean,
    logprob double precision,
    finish_reason text
)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @generation.stream@;
COMMENT ON FUNCTION llm_generate_stream IS
    'Continue a prompt as llm_generate does, one row per token, with the whole text so far in text. Rows arrive as '
    'they are computed in the form SELECT (llm_generate_stream(...)).*, directly or through a cursor; FROM '
    'llm_generate_stream(...) collects all rows first. logprob is the token''s under the plain distribution; '
    'finish_reason is stop or length on the last row.';

-- PL/Python makes an object of each element of an array before our code runs, and nothing interrupts it. So token ids go in the
-- binary form of the array, and of an array with more than limits.MOST_IDS nothing goes at all.
CREATE FUNCTION llm_generate_tokens_sent(
    sent bytea,
    max_tokens integer,
    temperature double precision,
    topk integer,
    topp double precision,
    model_name text,
    eos_token integer,
    seed bigint,
    stop llm_texts,
    repetition_penalty double precision,
    min_p double precision,
    options jsonb
)
RETURNS integer[]
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @generation.generate_tokens@;
COMMENT ON FUNCTION llm_generate_tokens_sent IS
    'What llm_generate_tokens calls, with array_send(ids). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_generate_tokens(
    ids integer[],
    max_tokens integer DEFAULT 64,
    temperature double precision DEFAULT 1.0,
    topk integer DEFAULT 50,
    topp double precision DEFAULT 0.95,
    model_name text DEFAULT NULL,
    eos_token integer DEFAULT NULL,
    seed bigint DEFAULT NULL,
    stop text[] DEFAULT NULL,
    repetition_penalty double precision DEFAULT 1.0,
    min_p double precision DEFAULT 0,
    options jsonb DEFAULT NULL
)
RETURNS integer[]
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_generate_tokens_sent(
    CASE WHEN cardinality(ids) > 1048576 THEN '' ELSE array_send(ids) END,
    max_tokens, temperature, topk, topp, model_name, eos_token, seed, stop, repetition_penalty, min_p, options);
COMMENT ON FUNCTION llm_generate_tokens IS
    'Continue token ids: the new ids only, the end-of-text token included where it ended generation. Works without a '
    'vocabulary, unless stop strings are given.';

CREATE FUNCTION llm_generate_batch(
    prompts llm_texts,
    max_tokens integer DEFAULT 64,
    temperature double precision DEFAULT 1.0,
    topk integer DEFAULT 50,
    topp double precision DEFAULT 0.95,
    model_name text DEFAULT NULL,
    eos_token integer DEFAULT NULL,
    seed bigint DEFAULT NULL,
    stop llm_texts DEFAULT NULL,
    repetition_penalty double precision DEFAULT 1.0,
    min_p double precision DEFAULT 0,
    echo boolean DEFAULT true,
    options jsonb DEFAULT NULL
)
RETURNS TABLE (
    n integer,
    text text,
    sample integer,
    finish_reason text,
    n_tokens integer,
    logprob double precision
)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @generation.generate_batch@;
COMMENT ON FUNCTION llm_generate_batch IS
    'Continue several prompts at once, which is faster than one after another; row n is the continuation of prompt n, '
    'the one that llm_generate gives with seed + n - 1. The key n of options, here s, asks for s samples of each prompt, '
    'which is read once: sample i of prompt n is what seed + (n - 1) s + i - 1 gives. The key '
    'prompt_ids, token ids, stands for one prompt, and prompts is null then. finish_reason is stop or length, '
    'n_tokens counts new tokens, an end-of-text token included. With logprobs in options, logprob is the sum of those that '
    'llm_generate_stream has for them.';

CREATE FUNCTION llm_beam_search_sent(
    prompt text,
    sent bytea,
    beam_width integer,
    max_tokens integer,
    length_penalty double precision,
    early_stopping boolean,
    eos_token integer,
    model_name text,
    options jsonb
)
RETURNS TABLE (rank integer, score double precision, text text, token_ids integer[])
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @generation.beam_search@;
COMMENT ON FUNCTION llm_beam_search_sent IS
    'What llm_beam_search calls, with array_send(prompt_ids). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_beam_search(
    prompt text DEFAULT NULL,
    beam_width integer DEFAULT 4,
    max_tokens integer DEFAULT 64,
    length_penalty double precision DEFAULT 1.0,
    early_stopping boolean DEFAULT false,
    eos_token integer DEFAULT NULL,
    model_name text DEFAULT NULL,
    prompt_ids integer[] DEFAULT NULL,
    options jsonb DEFAULT NULL
)
RETURNS TABLE (rank integer, score double precision, text text, token_ids integer[])
LANGUAGE sql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT * FROM @extschema@.llm_beam_search_sent(
    prompt, CASE WHEN cardinality(prompt_ids) > 1048576 THEN '' ELSE array_send(prompt_ids) END,
    beam_width, max_tokens, length_penalty, early_stopping, eos_token, model_name, options)
$$;
COMMENT ON FUNCTION llm_beam_search IS
    'The beam_width most probable continuations that beam search finds for a prompt, or for prompt_ids: the new text '
    'and ids, best first. Candidates, scores (sum of log-probabilities over length ^ length_penalty) and stopping are '
    'those of Hugging Face. Prompt and continuation must fit the model''s window. Of the keys of options '
    '(llm_generation_options) those apply that do not concern drawing; they change log-probabilities, which are not '
    'normalised again.';

CREATE FUNCTION llm_generation_options_declared()
RETURNS TABLE (name text, type text, default_value text, domain text, meaning text)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @generation.options@;
COMMENT ON FUNCTION llm_generation_options_declared IS 'What the view llm_generation_options shows.';

CREATE VIEW llm_generation_options AS
SELECT name, type, default_value, domain, meaning FROM @extschema@.llm_generation_options_declared();
COMMENT ON VIEW llm_generation_options IS
    'The keys of options of llm_generate, llm_generate_stream, llm_generate_tokens, llm_generate_batch, '
    'llm_generate_rows and llm_beam_search, by the names that Hugging Face or OpenAI have for them: the processors are those of '
    'transformers, applied in its order. A key that is also a parameter sets it; where both are given and differ, '
    'that is an error. default_value null: none.';
GRANT SELECT ON llm_generation_options TO PUBLIC;

CREATE FUNCTION llm_next_token(
    prompt text,
    n integer DEFAULT 10,
    temperature double precision DEFAULT 1,
    model_name text DEFAULT NULL
)
RETURNS TABLE (rank integer, token_id integer, token text, logit real, probability double precision)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @generation.next_token@;
COMMENT ON FUNCTION llm_next_token IS
    'The n most probable next tokens after a prompt, with their logits and their probabilities at the temperature, '
    'over the whole vocabulary.';
