-- Looking inside: every value of a forward pass, and tapes as graphs.

CREATE FUNCTION llm_trace(prompt text, model text DEFAULT NULL)
RETURNS TABLE (seq integer, layer integer, op text, name text, shape integer[], data bytea)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.trace_text@;
COMMENT ON FUNCTION llm_trace(text, text) IS
    'Every intermediate value of a forward pass, in order: embeddings, and for each layer (from 0) norms, q, k and v '
    'of the heads, attention matrix (name h.0.attn.weights, [n_head, T, T]), attention output, feed-forward output '
    'and block output; then the final norm, logits and probabilities. An op with parameters has their name; where an '
    'adapter adds to a layer, x A and x W + b have its name with .lora_A and .base_layer, and the sum has its name. '
    'pg_llm_values(data) shows the numbers.';

CREATE FUNCTION llm_trace_sent(ids bytea, model text)
RETURNS TABLE (seq integer, layer integer, op text, name text, shape integer[], data bytea)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.trace_ids@;
COMMENT ON FUNCTION llm_trace_sent IS
    'What llm_trace calls, with array_send(ids). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_trace(ids integer[], model text DEFAULT NULL)
RETURNS TABLE (seq integer, layer integer, op text, name text, shape integer[], data bytea)
LANGUAGE sql STABLE PARALLEL UNSAFE
BEGIN ATOMIC
    -- a row at a time: of a set in FROM all rows would be made first
    SELECT @extschema@.llm_trace_sent(CASE WHEN cardinality(ids) > 1048576 THEN '' ELSE array_send(ids) END, model);
END;
COMMENT ON FUNCTION llm_trace(integer[], text) IS
    'Every intermediate value of a forward pass over token ids; as llm_trace of a prompt gives them, and also for a '
    'model without a vocabulary.';

CREATE FUNCTION llm_attention_weights(
    prompt text,
    layer integer,
    head integer,
    model text DEFAULT NULL
)
RETURNS TABLE (query_position integer, query_token text, key_position integer, key_token text, weight real)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.attention_weights@;
COMMENT ON FUNCTION llm_attention_weights IS
    'The attention matrix of a head: what each token (query) takes from itself and each token before it (key). '
    'Positions, layers and heads count from 0; the weights of a query sum to 1.';

CREATE FUNCTION llm_logit_lens(prompt text, model text DEFAULT NULL, n integer DEFAULT 5)
RETURNS TABLE (layer integer, rank integer, token text, probability double precision, token_id integer)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.logit_lens@;
COMMENT ON FUNCTION llm_logit_lens IS
    'What each layer would say next: the n most probable tokens if the blocks ended there and the final norm '
    'followed. Layer 0 is the embeddings; the last is the model itself.';

CREATE FUNCTION llm_token_embedding(token_id integer, model text DEFAULT NULL)
RETURNS real[]
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.token_embedding@;
COMMENT ON FUNCTION llm_token_embedding IS
    'The embedding of a token as an array: its row of wte, also where wte is shared. model null = the setting '
    'pg_gpt2.model.';

CREATE FUNCTION llm_tape_dot(tape_id bigint DEFAULT NULL)
RETURNS text
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.dot@;
COMMENT ON FUNCTION llm_tape_dot IS
    'A tape as a graph in Graphviz''s language, for dot -Tsvg: ops are boxes, parameters and variables ellipses. '
    'tape_id null = that of llm_tape_id().';

CREATE FUNCTION llm_replay_tape(tape_id bigint DEFAULT NULL)
RETURNS TABLE (tape_row bigint, name text, handle bigint, what text, max_difference double precision)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.replay_tape@;
COMMENT ON FUNCTION llm_replay_tape IS
    'Run the recorded ops of a tape again, forward and backward, each from its recorded inputs, and report what '
    'differs from the record: the row of llm_tape, its op, the handle, and whether its value or its gradient differs. '
    'No row = everything is as recorded. tape_id null = that of llm_tape_id(); the tapes of training steps need audit '
    '=> ''full''.';

CREATE FUNCTION llm_gradcheck(handle bigint, epsilon double precision DEFAULT 1e-5, max_elements integer DEFAULT 64)
RETURNS TABLE (variable bigint, checked integer, max_error double precision, max_gradient double precision, ok boolean)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @inspect.gradcheck@;
COMMENT ON FUNCTION llm_gradcheck IS
    'Compare the gradients of the sum of a value, with respect to every variable that requires one, with central '
    'differences, both in double precision, on at most max_elements elements of each. ok: the largest error is below '
    '1e-6 * (1 + largest gradient).';
