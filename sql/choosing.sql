-- Choosing: which of several texts follows a prompt.

CREATE FUNCTION llm_choose(
    prompt text,
    choices llm_texts,
    "normalize" text DEFAULT 'none',
    model_name text DEFAULT NULL
)
RETURNS TABLE (
    rank integer,
    choice text,
    logprob double precision,
    probability double precision,
    tokens integer
)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @choosing.choose@;
COMMENT ON FUNCTION llm_choose IS
    'The choices in the order in which the model expects them to follow a prompt: the log-probability of a choice''s '
    'tokens, and its probability among the choices. Prompt and choice are encoded together; blanks at the prompt''s end '
    'belong to the choice, as in lm-evaluation-harness, whose loglikelihood this is. normalize says what is compared '
    '(it is a keyword of SQL: by name, write "normalize" => ''bytes''): none, the log-probability; tokens or bytes, that '
    'divided by the choice''s number of tokens or bytes (acc_norm); prior, that minus its log-probability at the beginning '
    'of a text, for choices that are likely anywhere. probability is the softmax of what is compared, and of equal choices '
    'the first comes first. The prompt is processed once, and '
    'what choices begin with in common, too. A prompt that does not fit the window beside a choice loses its beginning.';

CREATE FUNCTION llm_classify(
    prompt text,
    choices llm_texts,
    "normalize" text DEFAULT 'none',
    model_name text DEFAULT NULL
)
RETURNS text
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @choosing.classify@;
COMMENT ON FUNCTION llm_classify IS
    'The choice that the model expects most to follow a prompt: the first of llm_choose. For the rows of a table '
    'there is llm_choose_rows, where short prompts share passes of the model.';

CREATE FUNCTION llm_choose_from(
    prompt text,
    source text,
    "normalize" text DEFAULT 'none',
    model_name text DEFAULT NULL,
    source_path text DEFAULT current_setting('search_path')
)
RETURNS TABLE (
    rank integer,
    choice text,
    logprob double precision,
    probability double precision,
    tokens integer
)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @choosing.choose_from@;
COMMENT ON FUNCTION llm_choose_from IS
    'llm_choose among the rows of a query that returns one text column; NULLs are no choices. The query runs with the '
    'caller''s rights and search_path (source_path), so that row-level security limits what the model can answer. All '
    'choices are scored, be there tens of thousands.';

CREATE FUNCTION llm_choose_rows(
    source text,
    choices llm_texts,
    "normalize" text DEFAULT 'none',
    model_name text DEFAULT NULL,
    source_path text DEFAULT current_setting('search_path')
)
RETURNS TABLE (key text, choice text, probability double precision)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @choosing.choose_rows@;
COMMENT ON FUNCTION llm_choose_rows IS
    'For each prompt of a query the choice that llm_classify gives, and its probability. What prompts begin with in '
    'common, such as instructions, is processed once, and prompts share passes of the model. source is a query of two '
    'columns, a key of any type and a prompt, and runs with the caller''s rights and search_path (source_path). Rows come '
    'in its order; for a null prompt choice and probability are null, and so they are for one that the model cannot answer: '
    'a NOTICE at the end counts these.';
