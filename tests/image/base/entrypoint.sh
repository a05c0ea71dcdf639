#!/usr/bin/env bash
# docker-entrypoint.sh of the stand-in. What the official one promises an image that builds on it, in the same order: a data directory
# of the server's user; in a new one initdb with the password, a server that listens on its socket only, the database, the files of
# /docker-entrypoint-initdb.d, of which any may fail the start; then the server, as this process.
set -Eeo pipefail

first_start() { # with the server's arguments
    local file
    if [ -z "$POSTGRES_PASSWORD" ]; then
        echo 'the database is new, and POSTGRES_PASSWORD is not set' >&2
        exit 1
    fi
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
    printf '\nhost all all all %s\n' "$(postgres -C password_encryption "$@")" >>"$PGDATA/pg_hba.conf"
    export PGPASSWORD=$POSTGRES_PASSWORD
    PGUSER=$POSTGRES_USER pg_ctl -D "$PGDATA" -o "$(printf '%q ' "$@" -c listen_addresses=)" -w start
    if [ "$POSTGRES_DB" != postgres ]; then
        psql -X -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -w -d postgres -v database="$POSTGRES_DB" <<<'CREATE DATABASE :"database"'
    fi
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh)
            echo "$0: running $file"
            # shellcheck disable=SC1090
            if [ -x "$file" ]; then "$file"; else . "$file"; fi
            ;;
        *) echo "$0: ignoring $file" ;;
        esac
    done
    PGUSER=$POSTGRES_USER pg_ctl -D "$PGDATA" -m fast -w stop
    unset PGPASSWORD
    echo 'PostgreSQL init process complete; ready for start up.'
}

[ "${1:0:1}" != - ] || set -- postgres "$@"
if [ "$1" = postgres ]; then
    export POSTGRES_USER=${POSTGRES_USER:-postgres}
    export POSTGRES_DB=${POSTGRES_DB:-$POSTGRES_USER}
    if [ "$(id -u)" = 0 ]; then
        mkdir -p "$PGDATA"
        chmod 700 "$PGDATA"
        find "$PGDATA" /var/run/postgresql ! -user postgres -exec chown postgres {} +
        exec gosu postgres "$0" "$@"
    fi
    if [ -s "$PGDATA/PG_VERSION" ]; then
        echo 'PostgreSQL Database directory appears to contain a database; Skipping initialization'
    else
        first_start "${@:2}"
    fi
fi
exec "$@"
