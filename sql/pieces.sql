-- The model in pieces. While recording is on, each writes its ops to the tape.

CREATE FUNCTION llm_embed_sent(tokens bytea, model text, d integer)
RETURNS bytea
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @pieces.embed@;
COMMENT ON FUNCTION llm_embed_sent IS
    'What llm_embed calls, with array_send(tokens). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_embed(tokens integer[], model text, d integer DEFAULT NULL)
RETURNS bytea
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_embed_sent(CASE WHEN cardinality(tokens) > 1048576 THEN '' ELSE array_send(tokens) END, model, d);
COMMENT ON FUNCTION llm_embed IS
    'Token plus position embeddings, a float32 tensor (number of tokens, d_model). d is a check: null, or what the '
    'model has.';

CREATE FUNCTION llm_block_forward(
    input bytea,
    w_qkv bytea,
    b_qkv bytea,
    w_o bytea,
    b_o bytea,
    w_fc bytea,
    b_fc bytea,
    w_proj bytea,
    b_proj bytea,
    ln1_g bytea,
    ln1_b bytea,
    ln2_g bytea,
    ln2_b bytea,
    n_head integer,
    t integer,
    d integer,
    eps double precision DEFAULT 1e-5,
    dropout_p double precision DEFAULT 0.1,
    training boolean DEFAULT false
)
RETURNS bytea
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @pieces.block_forward@;
COMMENT ON FUNCTION llm_block_forward IS
    'One transformer block on input [t,d]: x + attention(ln_1(x)), then + mlp(ln_2), dropout when training. While '
    'recording is on, a tensor given as bytes is the latest value of the tape with the same bytes; where vectors of '
    'several layers are equal, the layer is the one that the matrices belong to.';

CREATE FUNCTION llm_forward_gpt2(
    input bytea,
    model text,
    n_layer integer,
    n_head integer,
    t integer,
    d integer,
    ln_f_weight bytea DEFAULT NULL,
    ln_f_bias bytea DEFAULT NULL,
    dropout_p double precision DEFAULT 0.1,
    training boolean DEFAULT false
)
RETURNS bytea
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @pieces.forward_gpt2@;
COMMENT ON FUNCTION llm_forward_gpt2 IS
    'All blocks of a model and its final norm on input [t,d], the result of llm_embed. n_layer, n_head and d are '
    'checks: null, or what the model has. ln_f_weight and ln_f_bias null = the model''s.';

CREATE FUNCTION llm_logits_sent(
    sent bytea,
    model_name text,
    n_layer integer,
    n_head integer,
    d_model integer,
    vocab_size integer
)
RETURNS bytea
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @pieces.logits@;
COMMENT ON FUNCTION llm_logits_sent IS
    'What llm_logits calls, with array_send(token_ids). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_logits(
    token_ids integer[],
    model_name text DEFAULT NULL,
    n_layer integer DEFAULT NULL,
    n_head integer DEFAULT NULL,
    d_model integer DEFAULT NULL,
    vocab_size integer DEFAULT NULL
)
RETURNS bytea
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_logits_sent(
    CASE WHEN cardinality(token_ids) > 1048576 THEN '' ELSE array_send(token_ids) END,
    model_name, n_layer, n_head, d_model, vocab_size);
COMMENT ON FUNCTION llm_logits IS
    'Logits of every position, a float32 tensor (number of ids, vocab); recorded while recording is on '
    '(llm_autograd_mode). The shape parameters are checks: null, or what the model has.';
