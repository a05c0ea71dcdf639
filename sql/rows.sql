-- Rows: texts of a query, with keys, through a model. What they give, and in which form they stream, is docs/rows.md.

CREATE FUNCTION llm_generate_rows(
    source text,
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
    options jsonb DEFAULT NULL,
    source_path text DEFAULT current_setting('search_path')
)
RETURNS TABLE (key text, text text, sample integer)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @rows.generate_rows@;
COMMENT ON FUNCTION llm_generate_rows IS
    'Continue each prompt of a query as llm_generate does; many prompts share passes of the model, which is faster than '
    'one after another. source is a query of two columns, a key of any type and a prompt, and runs with the caller''s '
    'rights and search_path (source_path). Rows come in its order; row p draws by seed + p - 1, and with n samples for '
    'each prompt (options => ''{"n": 3}'') its sample i by seed + (p - 1) n + i - 1. A null prompt gives a null text, and '
    'so does one that cannot be continued: a NOTICE at the end counts these. Of one that is too long the end is used.';

CREATE FUNCTION llm_perplexity_rows(
    source text,
    model_name text DEFAULT NULL,
    from_start boolean DEFAULT false,
    source_path text DEFAULT current_setting('search_path')
)
RETURNS TABLE (key text, perplexity double precision, tokens integer)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @rows.perplexity_rows@;
COMMENT ON FUNCTION llm_perplexity_rows IS
    'Perplexity of each text of a query, as llm_perplexity has it, and how many tokens were scored for it; several short '
    'texts share a pass of the model, which is faster than one after another. source is a query of two columns, a key of '
    'any type and a text, and runs with the caller''s rights and search_path (source_path). Rows come in its order; the '
    'perplexity of a null or too short text is null, and so is that of one that the model cannot read: a NOTICE at the '
    'end counts these.';

CREATE FUNCTION llm_embedding_rows(
    source text,
    layer integer DEFAULT NULL,
    pooling text DEFAULT 'mean',
    model_name text DEFAULT NULL,
    source_path text DEFAULT current_setting('search_path')
)
RETURNS TABLE (key text, embedding real[])
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @rows.embedding_rows@;
COMMENT ON FUNCTION llm_embedding_rows IS
    'Hidden state of each text of a query, as llm_text_embedding has it; several short texts share a pass of the model, '
    'which is faster than one after another. source is a query of two columns, a key of any type and a text, and runs '
    'with the caller''s rights and search_path (source_path). Rows come in its order; the embedding of a null or empty '
    'text is null, and so is that of one that the model cannot read: a NOTICE at the end counts these.';
