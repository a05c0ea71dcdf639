-- Models: make, copy, drop, list.

CREATE FUNCTION llm_model_config_changed()
RETURNS trigger
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @models.config_changed@;
COMMENT ON FUNCTION llm_model_config_changed IS
    'Triggers of llm_model_config: an inserted model takes the place of the preset of its name, on which restoring a dump '
    'and a subscription rely; the name of a row does not change; and a subscription does not remove what other models use.';
CREATE TRIGGER replaces_preset BEFORE INSERT ON llm_model_config
    FOR EACH ROW EXECUTE FUNCTION llm_model_config_changed();
ALTER TABLE llm_model_config ENABLE ALWAYS TRIGGER replaces_preset; -- also of a subscription
CREATE TRIGGER keeps_name BEFORE UPDATE OF model ON llm_model_config
    FOR EACH ROW WHEN (old.model <> new.model) EXECUTE FUNCTION llm_model_config_changed();
CREATE TRIGGER keeps_used BEFORE DELETE ON llm_model_config
    FOR EACH ROW EXECUTE FUNCTION llm_model_config_changed();
ALTER TABLE llm_model_config ENABLE REPLICA TRIGGER keeps_used; -- here llm_drop_model looks, and a publisher does not see our models

INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab, eos_token_id, preset) VALUES
    ('gpt2-small', 12, 12, 768, 1024, 50257, 50256, true),
    ('gpt2-medium', 24, 16, 1024, 1024, 50257, 50256, true),
    ('gpt2-large', 36, 20, 1280, 1024, 50257, 50256, true),
    ('gpt2-xl', 48, 25, 1600, 1024, 50257, 50256, true);

CREATE FUNCTION llm_init_model(
    model text,
    n_layer integer DEFAULT NULL,
    n_head integer DEFAULT NULL,
    d_model integer DEFAULT NULL,
    n_positions integer DEFAULT NULL,
    vocab integer DEFAULT NULL,
    seed bigint DEFAULT 0
)
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @models.init_model@;
COMMENT ON FUNCTION llm_init_model IS
    'Make a model with GPT-2''s random initialisation: weights from N(0, 0.02), residual projections scaled by '
    '1/sqrt(2 n_layer). A null takes the value of a configuration of that name, and vocab that of its vocabulary. So '
    'does what else llm_model_config has: an architecture other than GPT-2''s is inserted there first. The same seed '
    'gives the same weights.';

CREATE FUNCTION llm_copy_model(source text, target text, checkpoint_id integer DEFAULT NULL)
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @models.copy_model@;
COMMENT ON FUNCTION llm_copy_model IS
    'Copy configuration, weights, optimizer state and vocabulary of a model to a new name: as they are, or with '
    'checkpoint_id, which must be one of the source, as they were then (the vocabulary as it is). The copy of an '
    'adapter is an adapter of the same base. What llm_accumulate_grads gathered, and the outer momentum of a run with '
    'sync_every, stay with the source.';

CREATE FUNCTION llm_drop_model(model text)
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @models.drop_model@;
COMMENT ON FUNCTION llm_drop_model IS
    'Remove everything of a model: configuration, weights, vocabulary, data, runs, logs and checkpoints. A preset''s '
    'configuration stays, or comes back where the model had another shape. While another session trains the model, '
    'the call waits; llm_train_stop ends that sooner.';

CREATE VIEW llm_models AS
SELECT
    c.model, c.n_layer, c.n_head, c.d_model, c.n_positions, c.vocab, c.eos_token_id, c.preset,
    coalesce(p.n_params, 0) AS n_params,
    coalesce(t.tokens, 0) AS tokenizer_tokens,
    p.step,
    coalesce(p.bytes, 0) AS bytes,
    a.base,
    'gpt2' || coalesce(': ' || nullif(concat_ws(
        ', ',
        'activation_function ' || nullif(c.activation_function, 'gelu_new'),
        'n_inner ' || nullif(c.n_inner::bigint, 4 * c.d_model::bigint),
        'layer_norm_epsilon ' || nullif(c.layer_norm_epsilon, 1e-5),
        CASE WHEN NOT c.scale_attn_weights THEN 'scale_attn_weights false' END,
        CASE WHEN c.scale_attn_by_inverse_layer_idx THEN 'scale_attn_by_inverse_layer_idx true' END,
        CASE WHEN c.reorder_and_upcast_attn THEN 'reorder_and_upcast_attn true' END,
        CASE WHEN NOT c.tie_word_embeddings THEN 'tie_word_embeddings false' END
    ), ''), '') AS architecture
FROM llm_model_config AS c
LEFT JOIN llm_adapter AS a USING (model)
LEFT JOIN (
    SELECT
        model,
        sum(octet_length(data)) / 4 AS n_params,
        coalesce(max(step) FILTER (WHERE name LIKE '%.lora__'), max(step)) AS step,
        sum(octet_length(data)::bigint + coalesce(octet_length(grad), 0) + coalesce(octet_length(m), 0) + coalesce(octet_length(v), 0))
            FILTER (WHERE source_model = model) AS bytes
    FROM llm_param_resolved
    GROUP BY model
) AS p USING (model)
LEFT JOIN (SELECT model, count(*) AS tokens FROM llm_bpe_vocab GROUP BY model) AS t ON t.model = coalesce(a.base, c.model);
COMMENT ON VIEW llm_models IS
    'Models with their shape, number of weights (0 = none loaded yet), size of their vocabulary, training step, and '
    'bytes stored, not counting weights that they share; of an adapter its base, whose weights and vocabulary count as '
    'its own. architecture is gpt2, and what of llm_model_config is not as in GPT-2.';
