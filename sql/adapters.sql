-- Adapters: a model that is another one plus two small matrices beside some of its linear layers.

CREATE TABLE llm_adapter (
    model     text PRIMARY KEY CHECK (model <> ''),
    base      text NOT NULL,
    r         integer NOT NULL CHECK (r > 0),
    alpha     double precision NOT NULL CHECK (abs(alpha) <= 1e30),
    targets   text[] NOT NULL CHECK (
        (
            array_ndims(targets) = 1 AND array_lower(targets, 1) = 1 AND cardinality(targets)
            = ('attn.c_attn' = ANY (targets))::integer + ('attn.c_proj' = ANY (targets))::integer
            + ('mlp.c_fc' = ANY (targets))::integer + ('mlp.c_proj' = ANY (targets))::integer
        ) IS TRUE
    ), -- some of the four, each once
    dropout_p double precision NOT NULL DEFAULT 0 CHECK (dropout_p >= 0 AND dropout_p < 1),
    seed      bigint,
    CHECK (model <> base)
);
CREATE INDEX llm_adapter_base ON llm_adapter (base);
COMMENT ON TABLE llm_adapter IS
    'One row per adapter: which model it adapts, and how. Its tensors are those of its base, rows of llm_param_share, '
    'and two of its own for each matrix that it adapts, NAME.lora_A and NAME.lora_B in llm_param; its vocabulary is '
    'that of its base.';
COMMENT ON COLUMN llm_adapter.model IS 'Name of the adapter, which is a model: its shape is in llm_model_config.';
COMMENT ON COLUMN llm_adapter.base IS 'Model that it adapts, which is no adapter itself.';
COMMENT ON COLUMN llm_adapter.r IS 'Rank: how many columns lora_A, and rows lora_B, has.';
COMMENT ON COLUMN llm_adapter.alpha IS 'What alpha / r, the factor of the product of the two, follows from.';
COMMENT ON COLUMN llm_adapter.targets IS
    'The linear layers of a block that it adapts, in all blocks: attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj.';
COMMENT ON COLUMN llm_adapter.dropout_p IS
    'Probability of dropout of what goes into lora_A, in training; beside the dropout_p of a run.';
COMMENT ON COLUMN llm_adapter.seed IS 'Seed of its first lora_A; null = it came from elsewhere.';

SELECT pg_extension_config_dump('llm_adapter', '');

CREATE FUNCTION llm_adapter_create(
    model text,
    base text,
    r integer DEFAULT 8,
    alpha double precision DEFAULT 16,
    targets text[] DEFAULT '{attn.c_attn}',
    dropout_p double precision DEFAULT 0,
    seed bigint DEFAULT 0
)
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @adapters.create@;
COMMENT ON FUNCTION llm_adapter_create IS
    'Make an adapter of a model (LoRA): a model of its own name that uses the weights and the vocabulary of its base, '
    'and adds, beside each matrix W of the targets, matrices A and B of rank r: y = x W + b + (alpha / r) (x A) B. A '
    'is random, by the seed, and B zero: at first the adapter gives what its base gives, bit for bit. Training it '
    'changes A and B only.';

CREATE FUNCTION llm_adapter_merge(model text, target text)
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @adapters.merge@;
COMMENT ON FUNCTION llm_adapter_merge IS
    'Make an ordinary model of an adapter and its base: matrices W + (alpha / r) A B, a copy of the other tensors, and '
    'a copy of the vocabulary. The adapter stays.';
