#!/usr/bin/env bash
# Run inside `docker/cluster.sh run`: the tests of the engine, of hostile input and of the server with pytest, then the pgTAP files, in
# a database of their own. Fails when any fails, and with --no-skips when one is skipped.
#
#   tests/run.sh PYTHON [ARGUMENT OF PYTEST...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
shift

# One file waits for full minutes, in a cluster of its own: beside all others.
waits=tests/server/live_tables/test_live_cron.py
logs=$(mktemp -d)
"$python" -m pytest "$waits" "$@" --numprocesses 0 >"$logs/waits" 2>&1 &
trap 'kill $! 2>/dev/null || true; rm -rf "$logs"' EXIT

status=0
"$python" -m pytest tests/engine tests/fuzz tests/server --ignore "$waits" "$@" || status=$?
wait $! || [ $? = 5 ] || { # 5: it has none of the tests that were asked for
    status=1
    cat "$logs/waits"
}

# pg_prove passes no connection string on, so the parts of the DSN go into libpq's variables.
for part in $PG_GPT2_TEST_DSN; do
    case $part in
    host=*) export PGHOST=${part#*=} ;;
    port=*) export PGPORT=${part#*=} ;;
    user=*) export PGUSER=${part#*=} ;;
    dbname=*) export PGDATABASE=${part#*=} ;;
    esac
done
psql() { "$PG_GPT2_TEST_BINDIR/psql" -X -q -v ON_ERROR_STOP=1 "$@"; }
psql -c 'CREATE DATABASE pgtap TEMPLATE template_pg_gpt2'
export PGDATABASE=pgtap
psql -c 'CREATE EXTENSION pgtap'

PGOPTIONS='-c client_min_messages=warning' pg_prove --psql-bin "$PG_GPT2_TEST_BINDIR/psql" --ext .sql --directives \
    --recurse tests/pgtap | tee "$logs/pgtap" || status=$?
if [[ " $* " == *" --no-skips "* ]] && grep -qiE '# *skip' "$logs/pgtap"; then
    echo 'a pgTAP test was skipped' >&2
    status=1
fi
exit "$status"
