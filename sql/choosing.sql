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

CREATE TYPE llm_confusion AS (expected text, chosen text, n bigint);
COMMENT ON TYPE llm_confusion IS
    'An element of the confusion matrix of llm_evaluate_choices: in n rows the answer was expected and the choice was chosen; '
    'chosen is null where the model has no result.';

CREATE FUNCTION llm_evaluate_choices(
    source text,
    choices llm_texts DEFAULT NULL,
    "normalize" text DEFAULT 'none',
    model_name text DEFAULT NULL,
    source_path text DEFAULT current_setting('search_path')
)
RETURNS TABLE (accuracy double precision, accuracy_norm double precision, n bigint, confusion llm_confusion[])
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @choosing.evaluate_choices@;
COMMENT ON FUNCTION llm_evaluate_choices IS
    'How often a model chooses the answers that are expected: one row. source is a query of a prompt and its answer, or of a '
    'prompt, its answer and an array of its own choices, which go before the parameter choices; it runs with the caller''s rights '
    'and search_path (source_path). accuracy is the share of rows for which llm_choose_rows with the same choices, normalize and '
    'model gives the answer: acc of lm-evaluation-harness. accuracy_norm is that where log-probabilities are divided by the '
    'number of characters, whatever normalize says: its acc_norm. n is the number of rows with a prompt, an answer and choices; '
    'others are skipped. An answer that is none of the choices, and a row that the model cannot answer, counts as wrong; NOTICEs '
    'tell how many there are of each. confusion has an element for each pair of expected and chosen: SELECT c.* FROM '
    'llm_evaluate_choices(...), unnest(confusion) AS c. Of no rows, accuracies are null.';
