-- Vocabularies: learned, or loaded from files; their triggers tell sessions of changes.

-- The one function with its owner's rights: whoever may change a vocabulary need not, and must not, be able to write the table of
-- versions otherwise. Only the owner may make a trigger of it. It adds a row and takes no lock that another change would wait for.
CREATE FUNCTION llm_bpe_changed()
RETURNS trigger
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS @vocabularies.changed@;
COMMENT ON FUNCTION llm_bpe_changed IS 'Triggers of llm_bpe_vocab and llm_bpe_merges: add a row to llm_bpe_version.';
REVOKE EXECUTE ON FUNCTION llm_bpe_changed() FROM PUBLIC;
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON llm_bpe_vocab
    FOR EACH STATEMENT EXECUTE FUNCTION llm_bpe_changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON llm_bpe_merges
    FOR EACH STATEMENT EXECUTE FUNCTION llm_bpe_changed();
ALTER TABLE llm_bpe_vocab ENABLE ALWAYS TRIGGER changed;
ALTER TABLE llm_bpe_merges ENABLE ALWAYS TRIGGER changed;
-- What a subscription receives fires triggers of rows only. The first row of a transaction is enough: a setting, which a rollback to
-- a savepoint takes back as well, says that there was one.
CREATE TRIGGER replicated AFTER INSERT OR UPDATE OR DELETE ON llm_bpe_vocab
    FOR EACH ROW WHEN (current_setting('pg_gpt2.bpe_replicated', true) IS DISTINCT FROM pg_current_xact_id()::text)
    EXECUTE FUNCTION llm_bpe_changed();
CREATE TRIGGER replicated AFTER INSERT OR UPDATE OR DELETE ON llm_bpe_merges
    FOR EACH ROW WHEN (current_setting('pg_gpt2.bpe_replicated', true) IS DISTINCT FROM pg_current_xact_id()::text)
    EXECUTE FUNCTION llm_bpe_changed();
ALTER TABLE llm_bpe_vocab ENABLE REPLICA TRIGGER replicated;
ALTER TABLE llm_bpe_merges ENABLE REPLICA TRIGGER replicated;

CREATE FUNCTION llm_train_bpe(
    source text,
    vocab_size integer,
    model text,
    source_path text DEFAULT current_setting('search_path')
)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @vocabularies.train@;
COMMENT ON FUNCTION llm_train_bpe IS
    'Learn a byte-pair vocabulary of vocab_size tokens, counting the 256 bytes and <|endoftext|>, from a query that '
    'returns one text column; returns the number of tokens learned, fewer when the text has no more pairs. The query '
    'runs with the caller''s rights and search_path (source_path). It replaces nothing: for a model that has a '
    'vocabulary it is an error.';

CREATE FUNCTION pg_llm_load_bpe_vocab(path text, model text)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @vocabularies.load_vocab@;
COMMENT ON FUNCTION pg_llm_load_bpe_vocab IS
    'Load a vocab.json of the server''s file system as the vocabulary of a model, replacing the one it had; returns '
    'the number of tokens. For members of pg_read_server_files.';

CREATE FUNCTION pg_llm_load_bpe_merges(path text, model text)
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @vocabularies.load_merges@;
COMMENT ON FUNCTION pg_llm_load_bpe_merges IS
    'Load a merges.txt of the server''s file system as the merges of a model, replacing those it had; returns their '
    'number. For members of pg_read_server_files.';
