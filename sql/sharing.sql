-- Weight sharing: a block of one model stands in for a block of another, wherever that is read, trained or given a gradient.

CREATE TABLE llm_param_share (
    source_model    text NOT NULL,
    source_name     text NOT NULL,
    source_token_id integer NOT NULL DEFAULT 0,
    target_model    text NOT NULL,
    target_name     text NOT NULL,
    target_token_id integer NOT NULL DEFAULT 0,
    PRIMARY KEY (target_model, target_name, target_token_id),
    CHECK (source_model <> target_model)
);
CREATE INDEX llm_param_share_source ON llm_param_share (source_model, source_name, source_token_id);
COMMENT ON TABLE llm_param_share IS
    'Shared blocks of tensors, made by llm_share_param: the target has no row in llm_param; the row of the source is '
    'used. A source is never a target itself.';
COMMENT ON COLUMN llm_param_share.source_model IS 'Model whose row of llm_param is used.';
COMMENT ON COLUMN llm_param_share.source_name IS 'Tensor of that row.';
COMMENT ON COLUMN llm_param_share.source_token_id IS 'Block of that tensor.';
COMMENT ON COLUMN llm_param_share.target_model IS 'Model that uses it.';
COMMENT ON COLUMN llm_param_share.target_name IS 'Name of the tensor in that model.';
COMMENT ON COLUMN llm_param_share.target_token_id IS 'Block of the tensor in that model.';

SELECT pg_extension_config_dump('llm_param_share', '');

CREATE VIEW llm_param_resolved AS
SELECT model, name, token_id, shape, data, grad, m, v, step, model AS source_model, name AS source_name, token_id AS source_token_id
FROM llm_param
UNION ALL
SELECT
    s.target_model, s.target_name, s.target_token_id, p.shape, p.data, p.grad, p.m, p.v, p.step,
    s.source_model, s.source_name, s.source_token_id
FROM llm_param_share AS s
JOIN llm_param AS p ON p.model = s.source_model AND p.name = s.source_name AND p.token_id = s.source_token_id;
COMMENT ON VIEW llm_param_resolved IS
    'llm_param with shared rows in place: what a model works with, and which row of llm_param each is. Reading it '
    'takes the same rights as reading llm_param.';

CREATE FUNCTION llm_share_param(
    source_model text,
    source_name text,
    source_token_id integer,
    target_model text,
    target_name text DEFAULT NULL,
    target_token_id integer DEFAULT NULL
)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @sharing.share@;
COMMENT ON FUNCTION llm_share_param IS
    'Let a model use a tensor of another model, weights and optimizer state, in place of its own: the block '
    'source_token_id (0 for an unsplit tensor), or all blocks where that is null; returns how many. target_name and '
    'target_token_id default to those of the source. The target''s own rows are removed. Training either model then '
    'trains both. A target that llm_publish publishes needs the source among its models.';

CREATE FUNCTION llm_unshare_param(
    target_model text,
    target_name text,
    target_token_id integer DEFAULT 0,
    copy_optimizer_state boolean DEFAULT true
)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @sharing.unshare@;
COMMENT ON FUNCTION llm_unshare_param IS
    'Give a model its own copy of a block that it shares, or, with target_token_id null, of all blocks of the tensor; '
    'returns how many. Without copy_optimizer_state, AdamW starts anew on them.';
