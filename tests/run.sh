#!/usr/bin/env bash
# Run inside `docker/cluster.sh run`: the tests of the engine and of the server with pytest, then the pgTAP files, each
# in a database of its own. Fails when any fails, and with --no-skips when one is skipped.
#
#   tests/run.sh PYTHON [ARGUMENT OF PYTEST...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
shift

status=0
"$python" -m pytest tests/engine tests/server "$@" || status=$?

psql() { "$PG_GPT2_TEST_BINDIR/psql" -X -q -v ON_ERROR_STOP=1 -d "$PG_GPT2_TEST_DSN" "$@"; }
psql -c 'CREATE DATABASE pgtap TEMPLATE template_pg_gpt2'
psql -d "${PG_GPT2_TEST_DSN/dbname=pg_gpt2/dbname=pgtap}" -c 'CREATE EXTENSION pgtap'

report=$(mktemp)
trap 'rm -f "$report"' EXIT
PGOPTIONS='-c client_min_messages=warning' pg_prove --psql-bin "$PG_GPT2_TEST_BINDIR/psql" --ext .sql --directives \
    --dbname "${PG_GPT2_TEST_DSN/dbname=pg_gpt2/dbname=pgtap}" tests/pgtap | tee "$report" || status=$?
if [[ " $* " == *" --no-skips "* ]] && grep -qiE '# *skip' "$report"; then
    echo 'a pgTAP test was skipped' >&2
    status=1
fi
exit "$status"
