#!/usr/bin/env bash
# First start of a container: the extension in the default database, and the models of $PG_GPT2_MODELS in it.
#
# docker-entrypoint.sh of the official image runs this once, as the server's user, when the data directory is new. A
# model is a directory as save_pretrained writes it (config.json, model.safetensors, vocab.json, merges.txt), and takes
# its name; the first of them becomes the model that is meant when none is named.
set -euo pipefail

models=${PG_GPT2_MODELS:-/usr/local/share/pg_gpt2/models}

sql() {
    psql -X -q -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --no-password --dbname "$POSTGRES_DB" "$@"
}

load_model() { # directory
    sql -v directory="$1" -v model="$(basename "$1")" -o /dev/null <<'SQL'
BEGIN;
INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab, eos_token_id)
SELECT :'model', n_layer, n_head, n_embd, n_positions, vocab_size, CASE WHEN eos_token_id < vocab_size THEN eos_token_id END
FROM jsonb_to_record(pg_read_file(:'directory' || '/config.json')::jsonb)
    AS config (n_layer integer, n_head integer, n_embd integer, n_positions integer, vocab_size integer, eos_token_id integer);
SELECT pg_llm_import_safetensors(:'directory' || '/model.safetensors', :'model');
SELECT pg_llm_load_bpe_vocab(:'directory' || '/vocab.json', :'model');
SELECT pg_llm_load_bpe_merges(:'directory' || '/merges.txt', :'model');
COMMIT;
SQL
    echo "pg_gpt2: loaded model $(basename "$1")"
}

sql -c 'CREATE EXTENSION pg_gpt2 CASCADE'
sql -v database="$POSTGRES_DB" <<<"ALTER DATABASE :\"database\" SET client_connection_check_interval = '10s'"
sql -c "ALTER SYSTEM SET autovacuum_naptime = '5s'" # every write of a model leaves a version of before
default=
for directory in "$models"/*; do
    [ -e "$directory/config.json" ] || continue
    load_model "$directory"
    default=${default:-$(basename "$directory")}
done
if [ -n "$default" ]; then
    sql -v model="$default" -v database="$POSTGRES_DB" <<<"ALTER DATABASE :\"database\" SET pg_gpt2.model = :'model'"
fi
