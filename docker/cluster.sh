#!/usr/bin/env bash
# Private PostgreSQL clusters that have the extension of this checkout: one that stays, and throw-away ones for tests.
#
#   docker/cluster.sh up            start the checkout's cluster, or reuse it; its DSN is the last line of stdout
#   docker/cluster.sh down          stop it; data stay
#   docker/cluster.sh psql [ARG...] open psql in it
#   docker/cluster.sh remove        stop it and delete it with its data
#   docker/cluster.sh state         print the directory that holds it
#   docker/cluster.sh run CMD...    run CMD with PG_GPT2_TEST_DSN naming a throw-away cluster, then remove that
#   docker/cluster.sh start DIR     make a throw-away cluster in DIR (new); its DSN is the last line of stdout
#   docker/cluster.sh stop DIR      stop it and delete DIR
#
# A cluster never reads the checkout and never writes outside its own directory, so that checkouts run side by side and
# nothing needs root but the installation of packages. PostgreSQL finds its files relative to its own executable: each
# cluster runs a copy of `postgres` in a tree of links that mirrors the installation, with our two files added. An upgrade of the
# package puts newer libraries behind the links: `up` sees that the copy is another one, and restarts the cluster with a new one.
# Everything lies below ~/.local/state/pg_gpt2/<hash of the checkout's path>; run by root, whom PostgreSQL refuses,
# below /var/lib/pg_gpt2, and the server runs as `postgres`. PG_GPT2_STATE names another place. With PG_GPT2_CORETYPE=Haswell the
# server's BLAS takes the machine for one without AVX-512, with PG_GPT2_NUMPY=distribution it has the NumPy of the distribution.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
database=pg_gpt2
version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$checkout/pg_gpt2.control")
script=$checkout/pg_gpt2--$version.sql
numpy='numpy>=2,<3'

say() { printf 'cluster: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# ---- places and users

if [ "$(id -u)" = 0 ]; then
    umask 022 # the server's user reads programs and NumPy here; data and sockets are 0700 and its own
    server_user=${PG_GPT2_SERVER_USER:-postgres}
    state_base=/var/lib/pg_gpt2
else
    umask 077
    server_user=$(id -un)
    state_base=${XDG_STATE_HOME:-$HOME/.local/state}/pg_gpt2
fi
state=${PG_GPT2_STATE:-$state_base/$(printf %s "$checkout" | sha256sum | cut -c1-8)}
unset PGDATA PGHOST PGPORT PGDATABASE PGUSER PGPASSWORD PGSERVICE PGOPTIONS PGAPPNAME PG_COLOR

as_server() { # run a program as the server's user, from a place that it can read
    (
        cd /
        if [ "$(id -u)" = 0 ]; then
            exec setpriv --reuid "$server_user" --regid "$(id -g "$server_user")" --init-groups "$@"
        fi
        exec "$@"
    )
}

dsn() { echo "host=$1/run port=5432 dbname=${2:-$database} user=postgres"; } # of cluster $1

psql_in() { # cluster, database, psql arguments
    local cluster=$1 name=$2
    shift 2
    PGOPTIONS='-c client_min_messages=warning' "$bindir/psql" -X -q -v ON_ERROR_STOP=1 -d "$(dsn "$cluster" "$name")" "$@"
}

# ---- what a cluster is made from

find_installation() {
    local pg_config
    pg_config=$("$checkout/docker/provision.sh")
    bindir=$("$pg_config" --bindir)
    sharedir=$("$pg_config" --sharedir)
    pkglibdir=$("$pg_config" --pkglibdir)
}

# PL/Python embeds the distribution's Python, whatever `python3` means to the caller. NumPy comes from a virtual
# environment made with that one, which holds nothing else.
provide_numpy() {
    local python minor
    minor=$(ldd "$pkglibdir/plpython3.so" | sed -n 's/.*libpython3\.\([0-9]*\)\.so.*/\1/p' | head -n 1)
    python=/usr/bin/python3.$minor
    [ -x "$python" ] || die "PL/Python embeds Python 3.$minor, but there is no $python to install NumPy for"
    if [ -n "${PG_GPT2_NUMPY:-}" ]; then
        [ "$PG_GPT2_NUMPY" = distribution ] || die "PG_GPT2_NUMPY must be 'distribution', not '$PG_GPT2_NUMPY'"
        "$python" -I -c 'import numpy' 2>/dev/null || die "$python has no NumPy of the distribution's: apt-get install python3-numpy"
        numpy_path=
        return
    fi
    venv=$state/python3.$minor
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$numpy" ]; then
        say "installing $numpy for the server's Python 3.$minor in $venv"
        rm -rf "$venv"
        "$python" -m venv "$venv" >&2
        "$venv/bin/pip" --disable-pip-version-check install --quiet --only-binary numpy "$numpy" >&2
        echo "$numpy" >"$venv/installed"
    fi
    numpy_path=$venv/lib/python3.$minor/site-packages
}

install_extension() { # into cluster $1: beside links to what the server brings
    local extension=$1/pg$sharedir/extension
    [ -e "$script" ] || die "$script is missing: run python3 build.py"
    rm -f "$extension"/pg_gpt2*
    install -m 644 "$checkout/pg_gpt2.control" "$checkout"/pg_gpt2--*.sql "$extension/" # a clone may be its owner's only
}

programs=(postgres initdb pg_ctl) # that are copied

mirror_installation() { # into cluster $1
    local root=$1/pg
    rm -rf "$root"
    mkdir -p "$root$bindir" "$root$sharedir/extension" "$root$(dirname "$pkglibdir")"
    cp "${programs[@]/#/$bindir/}" "$root$bindir/"
    ln -s "$pkglibdir" "$root$pkglibdir"
    find "$sharedir" -mindepth 1 -maxdepth 1 ! -name extension -exec ln -s -t "$root$sharedir" {} +
    find "$sharedir/extension" -mindepth 1 -maxdepth 1 ! -name 'pg_gpt2*' -exec ln -s -t "$root$sharedir/extension" {} +
    install_extension "$1"
}

mirrors_installation() { # whether cluster $1 does, or one that was there before an upgrade
    local program
    for program in "${programs[@]}"; do
        cmp -s "$bindir/$program" "$1/pg$bindir/$program" || return 1
    done
}

settings() { # of cluster $1, which is for $2
    cat <<-CONF
		listen_addresses = ''
		unix_socket_directories = '$1/run'
		unix_socket_permissions = 0700
		port = 5432
		shared_buffers = 256MB
		max_wal_size = 4GB
		client_connection_check_interval = 10s
		min_wal_size = 256MB
		log_line_prefix = '%m [%p] %q%u@%d '
	CONF
    if [ "$2" = test ]; then
        printf '%s\n' 'fsync = off' 'full_page_writes = off' 'synchronous_commit = off' 'max_wal_size = 1GB' \
            'max_prepared_transactions = 8' 'wal_level = logical'
    else
        echo 'autovacuum_naptime = 5s' # every write of a model leaves a version of before
    fi
}

make_cluster() { # in directory $1, for `use` or for `test`
    local cluster=$1
    say "creating a PostgreSQL cluster in $cluster"
    mkdir -p "$cluster"
    mirror_installation "$cluster"
    mkdir "$cluster/data" "$cluster/run"
    : >"$cluster/log"
    chmod 700 "$cluster/data" "$cluster/run"
    [ "$(id -u)" != 0 ] || chown "$server_user:" "$cluster/data" "$cluster/run" "$cluster/log"
    # The directory of the socket is closed to all but the server's user and root, so nobody else can log in at all.
    as_server "$cluster/pg$bindir/initdb" -D "$cluster/data" -U postgres --auth=trust --encoding=UTF8 \
        --locale=C.UTF-8 --no-sync >"$cluster/initdb.log" 2>&1 || die "initdb failed: $(cat "$cluster/initdb.log")"
    settings "$cluster" "$2" | as_server tee -a "$cluster/data/postgresql.conf" >/dev/null
    touch "$cluster/complete"
}

is_running() { [ -d "$1/data" ] && as_server "$1/pg$bindir/pg_ctl" -D "$1/data" status >/dev/null 2>&1; }

start_server() { # of cluster $1
    local socket=$1/run/.s.PGSQL.5432
    [ "${#socket}" -le 107 ] || die "$socket is too long for a Unix socket; set PG_GPT2_STATE to a shorter path"
    # Threads, modules and kernels of the server must not depend on what the caller's shell happens to export.
    as_server env -u PYTHONHOME -u PYTHONSTARTUP -u TMPDIR -u OPENBLAS_NUM_THREADS -u GOTO_NUM_THREADS \
        -u OMP_NUM_THREADS -u MKL_NUM_THREADS -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE \
        HOME="$1/data" PYTHONNOUSERSITE=1 PYTHONPATH="$numpy_path" ${PG_GPT2_CORETYPE:+OPENBLAS_CORETYPE="$PG_GPT2_CORETYPE"} \
        "$1/pg$bindir/pg_ctl" -D "$1/data" -l "$1/log" -w -t 120 start >/dev/null 9>&- ||
        die "the server did not start: $(tail -n 20 "$1/log")"
}

stop_server() { # of cluster $1, in mode $2
    as_server "$1/pg$bindir/pg_ctl" -D "$1/data" -w -t 120 -m "$2" stop >/dev/null
}

# ---- the checkout's own cluster

lock_state() {
    mkdir -p "$state"
    exec 9>"$state/lock"
    flock 9
}

# A database that has another version of the extension is replaced: 1.0 in development has no update script to itself.
# It is dropped only if it holds no weights, else kept under another name.
provide_database() {
    local cluster=$1 wanted have kept
    wanted="pg_gpt2 $(cat "$checkout/pg_gpt2.control" "$script" | sha256sum | cut -c1-16)"
    have=$(psql_in "$cluster" postgres -At \
        -c "SELECT coalesce(shobj_description(oid, 'pg_database'), 'unknown') FROM pg_database WHERE datname = '$database'")
    [ "$have" != "$wanted" ] || return 0
    if [ -n "$have" ]; then
        if [ "$(psql_in "$cluster" "$database" -At -c 'SELECT count(*) FROM (SELECT FROM llm_param LIMIT 1) p' 2>&1)" = 0 ]; then
            say "the extension changed: making database $database anew (it held no weights)"
            psql_in "$cluster" postgres -c "DROP DATABASE $database WITH (FORCE)"
        else
            kept=${database}_$(date +%Y%m%d_%H%M%S)
            say "the extension changed: making database $database anew; the old one is kept as $kept"
            psql_in "$cluster" postgres -o /dev/null \
                -c "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '$database'" \
                -c "ALTER DATABASE $database RENAME TO $kept"
        fi
    fi
    create_database "$cluster" "$database" "$wanted"
}

create_database() { # in cluster $1, named $2, with comment $3; it appears only when it is complete
    psql_in "$1" postgres -c 'DROP DATABASE IF EXISTS pg_gpt2_being_made' \
        -c 'CREATE DATABASE pg_gpt2_being_made TEMPLATE template0'
    psql_in "$1" pg_gpt2_being_made -c 'CREATE EXTENSION pg_gpt2 CASCADE'
    psql_in "$1" postgres -c "ALTER DATABASE pg_gpt2_being_made RENAME TO $2" -c "COMMENT ON DATABASE $2 IS '$3'"
}

up() {
    lock_state
    provide_numpy
    if [ ! -e "$cluster/complete" ]; then
        rm -rf "$cluster"
        make_cluster "$cluster" use
    fi
    if is_running "$cluster" && ! mirrors_installation "$cluster"; then
        say "PostgreSQL was upgraded since the cluster was started: restarting it with the installed one"
        stop_server "$cluster" fast
    fi
    if is_running "$cluster"; then
        install_extension "$cluster"
    else
        mirror_installation "$cluster"
        start_server "$cluster"
        say "started in $cluster (log: $cluster/log)"
    fi
    provide_database "$cluster"
}

# The major version of existing data decides which server runs it.
prefer_version_of_data() {
    local major programs
    major=$(as_server cat "$cluster/data/PG_VERSION" 2>/dev/null) || return 0
    programs=/usr/lib/postgresql/$major/bin
    [ "$("$bindir/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" != "$major" ] || return 0
    [ -x "$programs/postgres" ] ||
        die "the data in $cluster are PostgreSQL $major's, and only $bindir is installed; install it, or remove $cluster"
    PG_CONFIG=$programs/pg_config find_installation
}

# ---- throw-away clusters

start_temporary() { # in directory $1
    local cluster=$1
    [ ! -e "$cluster/data" ] || die "$cluster has a cluster already"
    (lock_state && provide_numpy) # one at a time installs NumPy
    provide_numpy
    make_cluster "$cluster" test
    # Tests exchange files with the server here: written by either, read by both.
    mkdir "$cluster/files"
    [ "$(id -u)" != 0 ] || chown "$server_user:" "$cluster/files"
    start_server "$cluster"
    create_database "$cluster" template_pg_gpt2 'copied by tests'
    psql_in "$cluster" postgres -c "ALTER DATABASE template_pg_gpt2 IS_TEMPLATE true" \
        -c "CREATE DATABASE $database TEMPLATE template_pg_gpt2"
}

stop_temporary() { # in directory $1
    [ -d "$1/pg" ] || die "$1 has no cluster"
    if is_running "$1"; then
        stop_server "$1" immediate || true
    fi
    rm -rf "$1"
}

remove_abandoned() { # throw-away clusters whose `run` was killed, one of our own number among them: the first of a namespace is always 1
    local directory owner
    for directory in "$state"/test.*; do
        owner=${directory##*.}
        if [ -d "$directory/pg" ] && { [ "$owner" = $$ ] || ! kill -0 "$owner" 2>/dev/null; }; then
            say "removing $directory, whose owner is gone"
            stop_temporary "$directory"
        fi
    done
}

run() {
    local directory=$state/test.$$ status=0
    remove_abandoned
    trap 'stop_temporary "$directory" 2>/dev/null || rm -rf "$directory"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    start_temporary "$directory"
    PG_GPT2_TEST_DSN=$(dsn "$directory") PG_GPT2_TEST_DATA=$directory/files PG_GPT2_TEST_BINDIR=$bindir "$@" || status=$?
    if [ "$status" != 0 ]; then
        cp "$directory/log" "$state/failed.log"
        say "failed with status $status; the server's log is kept in $state/failed.log"
    fi
    exit "$status"
}

cluster=$state/main
command=${1:-}
shift || true
case $command in # installs what is missing, so not where there is nothing to run
up | psql | run | start | stop) find_installation ;;
down | remove) [ ! -d "$cluster" ] || find_installation ;;
esac
case $command in
up)
    prefer_version_of_data
    up
    dsn "$cluster"
    ;;
down)
    prefer_version_of_data
    if is_running "$cluster"; then
        stop_server "$cluster" fast
        say "stopped $cluster"
    else
        say "$cluster is not running"
    fi
    ;;
psql)
    prefer_version_of_data
    up
    exec "$bindir/psql" -d "$(dsn "$cluster")" "$@" 9>&-
    ;;
remove)
    if is_running "$cluster"; then
        stop_server "$cluster" immediate
    fi
    rm -rf "$state"
    ;;
state) echo "$state" ;;
run) run "$@" ;;
start)
    start_temporary "$(realpath -m "${1:?a directory}")"
    dsn "$(realpath "$1")"
    ;;
stop) stop_temporary "$(realpath "${1:?a directory}")" ;;
*)
    sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
