-- For whoever runs the server: what is there, what is cached, who may use it.

CREATE TABLE llm_limit (
    name  text PRIMARY KEY CHECK (name IN ('max_memory')),
    value text NOT NULL
);
COMMENT ON TABLE llm_limit IS
    'Upper limits, set by the owner only, for settings that any user may SET: INSERT INTO llm_limit VALUES '
    '(''max_memory'', ''8GB'').';
COMMENT ON COLUMN llm_limit.name IS 'Name of the setting without pg_gpt2.; so far max_memory.';
COMMENT ON COLUMN llm_limit.value IS 'The largest value that it may have.';
GRANT SELECT ON llm_limit TO PUBLIC;
SELECT pg_extension_config_dump('llm_limit', '');

CREATE FUNCTION llm_doctor()
RETURNS TABLE (item text, value text, status text, hint text)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @admin.doctor@;
COMMENT ON FUNCTION llm_doctor IS
    'What this session runs on - Python, NumPy, BLAS and its speed, threads, memory, encoding, models - each with the '
    'status ok, warn or error, the last two with a hint.';

CREATE FUNCTION llm_cache_status()
RETURNS TABLE (
    kind         text,
    model        text,
    version      text,
    bytes        bigint,
    shared       boolean,
    entries      integer,
    tokens_saved bigint
)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @admin.cache_status@;
COMMENT ON FUNCTION llm_cache_status IS
    'Weights and tokenizers that this session keeps, of models that the caller may see, and the weights and AdamW '
    'moments that llm_train_step left for the next step (kind training). Kind prefix: texts that were read, how many, '
    'and how many tokens calls did not have to read again because of them, since the first of them; see '
    'pg_gpt2.prefix_cache. Of each kind the first row is the next to be given up; prefixes go before weights. '
    'Weights that are not shared are its own memory, bounded by pg_gpt2.max_memory; what is shared is mapped from a '
    'file that all sessions use.';

CREATE FUNCTION llm_model_sessions()
RETURNS TABLE (model text, pid integer)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @admin.model_sessions@;
COMMENT ON FUNCTION llm_model_sessions IS
    'Which sessions of this database have the weights of a model mapped from the file that they share (models of 8 MB and more), '
    'of models that the caller may see; an adapter counts for its base. pg_stat_activity says by pid whose they are. It is '
    'what Linux tells in /proc, and takes a moment for each session of the database.';

CREATE FUNCTION llm_cache_clear()
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @admin.cache_clear@;
COMMENT ON FUNCTION llm_cache_clear IS
    'Give up what this session keeps in memory; returns the bytes of weights, moments and prefixes freed. The next use reads '
    'the tables again. Called by the owner of the extension, it also removes the files of weights that sessions '
    'share.';

CREATE FUNCTION llm_grant_usage(role text, level text DEFAULT 'read')
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @admin.grant_usage@;
COMMENT ON FUNCTION llm_grant_usage IS
    'Let a role use the extension: read (generate, score, inspect), train (also load data and train), or admin '
    '(everything except the code, the caps and granting). For files on the server it also needs pg_read_server_files '
    'or pg_write_server_files.';

CREATE VIEW llm_settings AS
SELECT name, coalesce(nullif(current_setting(name, true), ''), boot_val) AS setting, boot_val, short_desc
FROM (VALUES
    ('pg_gpt2.model', 'gpt2-small', 'Model that is meant when none is named.'),
    ('pg_gpt2.threads', NULL,
     'Threads of a session, at most one a core; null = all cores. Results do not depend on it.'),
    ('pg_gpt2.max_memory', NULL,
     'What would need more memory than this, for example 2GB, is refused, and the models that a session keeps are '
     'bounded by it; null = three quarters of the machine''s. A cap is in llm_limit.'),
    ('pg_gpt2.fast', 'on',
     'Whether ops, attention over what was read and AdamW run as the fast forms; off = as plain NumPy, to read along '
     'and to check, for the owner of the extension: slow, it takes memory that is not asked for, a cancel waits for the '
     'op that runs, and kernels below 256 kB stay fast.'),
    ('pg_gpt2.prompt_lookup', 'on',
     'Whether a continuation is guessed from what occurred before and verified several tokens at a time, where this '
     'processor gives the same tokens so; changes no result.'),
    ('pg_gpt2.prefix_cache', '64MB',
     'Memory for texts that this session has read: a call that begins with the same tokens goes on from there, with the '
     'same result. A position of gpt2-small takes 72 kB, so that 64 MB are some 900 positions; 0 keeps nothing. Counts in '
     'pg_gpt2.max_memory.'),
    ('pg_gpt2.autograd', 'off',
     'Whether llm_logits, llm_loss and the pieces of the model record on the tape what they compute; also '
     'llm_autograd_mode.'),
    ('pg_gpt2.tape', 'transaction',
     'What handles, the tape and llm_autograd_mode belong to: transaction, or session, which is not for connections '
     'through a pooler in transaction mode.'),
    ('pg_gpt2.audit_keep', '1', 'Training steps of a model that stay on the tape; 0 = all.'),
    ('pg_gpt2.attention_chunk', '64', 'Query rows of attention at a time; rounding depends on it.')
) AS known (name, boot_val, short_desc);
COMMENT ON VIEW llm_settings IS
    'The settings of the extension, as in this session, with their defaults. SET works, and so does ALTER DATABASE '
    '... SET, ALTER ROLE ... SET and a line in postgresql.conf; ALTER SYSTEM refuses them.';
GRANT SELECT ON llm_settings TO PUBLIC;
