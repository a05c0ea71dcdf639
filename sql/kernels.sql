-- Kernels: the ops on bytes. A tensor is contiguous little-endian row-major float32 without a header; shapes are arguments.
-- They touch no table. Those of attention read the setting pg_gpt2.attention_chunk, on which last bits may depend: STABLE.

CREATE TYPE attention_grads AS (dx bytea, dw_qkv bytea, db_qkv bytea, dw_o bytea, db_o bytea);
COMMENT ON TYPE attention_grads IS 'Result of pg_llm_attention_backward: one gradient per input.';
CREATE TYPE layernorm_grads AS (dx bytea, dgamma bytea, dbeta bytea);
COMMENT ON TYPE layernorm_grads IS 'Result of pg_llm_layernorm_backward: one gradient per input.';
CREATE TYPE mlp_grads AS (dx bytea, dw_fc bytea, db_fc bytea, dw_proj bytea, db_proj bytea);
COMMENT ON TYPE mlp_grads IS 'Result of pg_llm_mlp_backward: one gradient per input.';
CREATE TYPE adamw_state AS (weight bytea, m bytea, v bytea);
COMMENT ON TYPE adamw_state IS 'Result of pg_llm_adamw_step: the new weight and moments.';

CREATE FUNCTION pg_llm_tensor_sent(sent bytea, elements integer)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.tensor_received@;
COMMENT ON FUNCTION pg_llm_tensor_sent IS
    'What pg_llm_tensor calls: the tensor of an array of so many elements, given as array_send(double precision[]).';

-- PL/Python would make an object of each element. array_send is STABLE because it may be one of any type; that of numbers is not.
CREATE FUNCTION pg_llm_tensor(elements double precision[])
RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT @extschema@.pg_llm_tensor_sent(
    CASE WHEN cardinality(elements) <= 4194304 THEN array_send(elements) END,
    cardinality(elements)
)
$$;
COMMENT ON FUNCTION pg_llm_tensor IS
    'A tensor of the array''s elements, at most 4,194,304: little-endian float32, row by row, without a header; its '
    'shape is passed separately. An array of several dimensions gives its elements row by row.';

CREATE FUNCTION pg_llm_values(data bytea)
RETURNS real[]
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.values@;
COMMENT ON FUNCTION pg_llm_values IS
    'The values of a tensor as an array, at most 1,048,576 of them, for people to look at.';

-- Forward and backward.

CREATE FUNCTION pg_llm_matmul(
    a bytea,
    b bytea,
    m integer,
    k integer,
    n integer
)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.matmul@;
COMMENT ON FUNCTION pg_llm_matmul IS 'Matrix product [m,k] @ [k,n] -> [m,n].';

CREATE FUNCTION pg_llm_add(a bytea, b bytea)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.add@;
COMMENT ON FUNCTION pg_llm_add IS
    'Elementwise sum; b has the length of a, or is one row that repeats over the rows of a.';

CREATE FUNCTION pg_llm_gelu(a bytea)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.gelu@;
COMMENT ON FUNCTION pg_llm_gelu IS 'GELU in the tanh form of GPT-2: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).';

CREATE FUNCTION pg_llm_gelu_backward(x bytea, dy bytea)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.gelu_backward@;
COMMENT ON FUNCTION pg_llm_gelu_backward IS
    'Gradient of pg_llm_gelu with respect to its input x, given the gradient dy of its result.';

CREATE FUNCTION pg_llm_softmax(a bytea, n integer DEFAULT NULL)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.softmax@;
COMMENT ON FUNCTION pg_llm_softmax IS 'Softmax of each row of n values; n null = one row.';

CREATE FUNCTION pg_llm_softmax_backward(y bytea, dy bytea, n integer DEFAULT NULL)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.softmax_backward@;
COMMENT ON FUNCTION pg_llm_softmax_backward IS
    'Gradient of pg_llm_softmax, from its result y: y * (dy - sum(y * dy)) in each row of n values; n null = one row.';

CREATE FUNCTION pg_llm_layernorm(
    x bytea,
    gamma bytea,
    beta bytea,
    eps double precision
)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.layernorm@;
COMMENT ON FUNCTION pg_llm_layernorm IS
    'Layer normalisation of rows of gamma''s length: (x - mean) / sqrt(variance + eps) * gamma + beta. GPT-2 has eps '
    '1e-5.';

CREATE FUNCTION pg_llm_layernorm_backward(
    x bytea,
    dy bytea,
    gamma bytea,
    eps double precision
)
RETURNS layernorm_grads
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.layernorm_backward@;
COMMENT ON FUNCTION pg_llm_layernorm_backward IS
    'Gradients of pg_llm_layernorm with respect to x, gamma and beta, given the gradient dy of its result.';

CREATE FUNCTION pg_llm_cross_entropy(logits bytea, target integer)
RETURNS double precision
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.cross_entropy@;
COMMENT ON FUNCTION pg_llm_cross_entropy IS
    'Cross entropy of one row of logits: logsumexp(z) - z[target], target from 0; 0 for a target of -100.';

CREATE FUNCTION pg_llm_cross_entropy_backward(logits bytea, target integer)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.cross_entropy_backward@;
COMMENT ON FUNCTION pg_llm_cross_entropy_backward IS
    'Gradient of pg_llm_cross_entropy: softmax(z) - onehot(target); zeros for a target of -100.';

CREATE FUNCTION pg_llm_dropout(
    input bytea,
    p double precision,
    training boolean DEFAULT false,
    seed bigint DEFAULT NULL
)
RETURNS bytea
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.dropout@;
COMMENT ON FUNCTION pg_llm_dropout IS
    'Inverted dropout: in training each value becomes 0 with probability p and is divided by 1 - p otherwise; outside '
    'training the result is the input. The same seed gives the same mask; seed null draws one from random(), which '
    'setseed() fixes.';

CREATE FUNCTION pg_llm_dropout_backward(
    input bytea,
    output bytea,
    grad bytea,
    p double precision,
    training boolean
)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.dropout_backward@;
COMMENT ON FUNCTION pg_llm_dropout_backward IS
    'Gradient of pg_llm_dropout, with the mask read off its output: the gradient passes, divided by 1 - p, where '
    'output <> 0 or input = 0.';

CREATE FUNCTION pg_llm_ones_like(src bytea)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.ones_like@;
COMMENT ON FUNCTION pg_llm_ones_like IS 'Ones, as many as src has values.';

CREATE FUNCTION pg_llm_zeros_like(src bytea)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.zeros_like@;
COMMENT ON FUNCTION pg_llm_zeros_like IS 'Zeros, as many as src has values.';

CREATE FUNCTION pg_llm_transpose(src bytea, rows integer, cols integer)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.transpose@;
COMMENT ON FUNCTION pg_llm_transpose IS 'The transpose: [rows,cols] -> [cols,rows].';

CREATE FUNCTION pg_llm_attention(
    x bytea,
    w_qkv bytea,
    b_qkv bytea,
    w_o bytea,
    b_o bytea,
    n_head integer,
    t integer,
    d integer
)
RETURNS bytea
LANGUAGE plpython3u STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.attention@;
COMMENT ON FUNCTION pg_llm_attention IS
    'Causal multi-head self-attention with its projections: x [t,d], w_qkv [d,3d], b_qkv [3d], w_o [d,d], b_o [d] -> '
    '[t,d]. Evaluated in chunks of pg_gpt2.attention_chunk rows.';

CREATE FUNCTION pg_llm_attention_backward(
    x bytea,
    w_qkv bytea,
    b_qkv bytea,
    w_o bytea,
    b_o bytea,
    grad_output bytea,
    n_head integer,
    t integer,
    d integer
)
RETURNS attention_grads
LANGUAGE plpython3u STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.attention_backward@;
COMMENT ON FUNCTION pg_llm_attention_backward IS
    'Gradients of pg_llm_attention with respect to its five tensors, given the gradient of its result.';

CREATE FUNCTION pg_llm_mlp_backward(
    x bytea,
    w_fc bytea,
    b_fc bytea,
    w_proj bytea,
    b_proj bytea,
    dy bytea,
    t integer,
    d integer
)
RETURNS mlp_grads
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.mlp_backward@;
COMMENT ON FUNCTION pg_llm_mlp_backward IS
    'Gradients of the feed-forward part of a block, gelu(x @ w_fc + b_fc) @ w_proj + b_proj, with respect to its five '
    'tensors: x [t,d], w_fc [d,4d], w_proj [4d,d].';

-- Optimizer and sampler.

CREATE FUNCTION pg_llm_adamw_step(
    weight bytea,
    grad bytea,
    m bytea,
    v bytea,
    lr double precision,
    beta1 double precision,
    beta2 double precision,
    eps double precision,
    weight_decay double precision,
    step integer
)
RETURNS adamw_state
LANGUAGE plpython3u IMMUTABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.adamw_step@;
COMMENT ON FUNCTION pg_llm_adamw_step IS
    'One AdamW step: new weight and moments. The decay is decoupled and acts on the old weight; step counts from 1, '
    'for bias correction; a null or empty m or v is zeros.';

CREATE FUNCTION pg_llm_grad_clip(grad bytea, clip double precision)
RETURNS bytea
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.grad_clip@;
COMMENT ON FUNCTION pg_llm_grad_clip IS 'The gradient, scaled down so that its L2 norm is at most clip.';

CREATE FUNCTION pg_llm_lr_schedule(
    step integer,
    warmup integer,
    total integer,
    lr_max double precision
)
RETURNS double precision
LANGUAGE plpython3u IMMUTABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.lr_schedule@;
COMMENT ON FUNCTION pg_llm_lr_schedule IS
    'Learning rate: lr_max * step / warmup before warmup, then half a cosine to 0 at total.';

CREATE FUNCTION pg_llm_sample(
    logits bytea,
    temperature double precision DEFAULT 1.0,
    topk integer DEFAULT 50,
    topp double precision DEFAULT 0.95,
    seed bigint DEFAULT NULL
)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @kernels.sample@;
COMMENT ON FUNCTION pg_llm_sample IS
    'Draw a token id from one row of logits: temperature, then the topk most probable (0 = all), then the smallest '
    'set of probability topp. temperature 0 takes the most probable. The same seed gives the same draw; seed null '
    'draws one from random(), which setseed() fixes.';
