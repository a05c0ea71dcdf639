"""Two servers of a core each beside one of them: the rows of a query, in foreign partitions that compute at the same time.

The servers are clusters of their own (`Bench.clusters`), each with the model; the benchmark's database asks them.
"""

from functools import partial

from decoding import english_of
from harness import Bench, us
from ours import MODEL, Server
from psycopg import conninfo, sql
from targets import ONE_SERVER
from texts import english

NAMES = ("one", "two")
SHORT, LONG, NEW = 8, 40, 16  # tokens of a text, and new ones
VOCABULARY = 100_000  # characters that it is learned from: both servers learn the same
CALLS = {  # what -> columns of a view, and where they come from
    "perplexity": ("perplexity", "llm_perplexity_rows('{source}', '{model}')"),
    "generation": ("text", "llm_generate_rows('{source}', {new}, 0, model_name => '{model}', eos_token => -1)"),
}
TYPES = {"perplexity": "double precision", "generation": "text"}


def rows(bench: Bench) -> None:
    """Rows a second of both, and whether they are those of one."""
    lengths = [bench.rng.randrange(SHORT, LONG) for _ in range(bench.length.rows // len(NAMES))]
    texts = [english_of(bench, length) for length in lengths for _ in NAMES]  # as much for one as for the other
    for name in NAMES:
        with server(bench, name).session() as session, session.conn.transaction():
            session.conn.execute("DROP TABLE IF EXISTS rows_of_bench")
            session.conn.execute("CREATE TABLE rows_of_bench (id integer PRIMARY KEY, body text)")
            for place, text in enumerate(texts):
                session.conn.execute("INSERT INTO rows_of_bench VALUES (%s, %s)", (place, text))
            for what in CALLS:
                session.conn.execute(_view(what, "all", "true", 0))
                session.conn.execute(_view(what, "half", f"id % 2 = {NAMES.index(name)}", NAMES.index(name)))
    main = bench.server.main
    _foreign_tables(bench)
    digest = "SELECT md5(string_agg(id || '|' || result::text, '|' ORDER BY id)) FROM {}"
    for what in CALLS:
        row = bench.row(
            f"servers {what}",
            f"{what} of {len(texts)} texts of {SHORT} to {LONG} tokens, two servers of a core each",
            *("rows/s", len(texts)),
            rate=True,
        )
        for table in (f"{what}_both", f"{what}_alone"):
            main.value(digest.format(table))  # connects, and maps the weights
        ours, theirs = bench.compare(
            row,
            0,
            [
                us(partial(main.value, digest.format(f"{what}_both"))),
                (ONE_SERVER, partial(main.value, digest.format(f"{what}_alone"))),
            ],
        )
        bench.check(f"servers: {what} as on one of them", ours == theirs)


def server(bench: Bench, name: str) -> Server:
    """The server of that name, with the model and a vocabulary, on one thread."""
    found = Server(bench.clusters[name], 1)
    if not found.main.value("SELECT count(*) FROM llm_bpe_vocab WHERE model = %s", MODEL):
        found.init_model(MODEL, bench.shape)
        found.main.value("SELECT llm_train_bpe(%s, 4096, %s)", _source(), MODEL)
    return found


def _source() -> str:
    return sql.SQL("SELECT {}::text").format(english(VOCABULARY)[0]).as_string(None)


def _view(what: str, which: str, condition: str, place: int) -> str:
    """What a server computes for all rows, or for its half of them."""
    column, call = CALLS[what]
    source = f"SELECT id, body FROM public.rows_of_bench WHERE {condition} ORDER BY id"
    made = call.format(source=source, model=MODEL, new=NEW)
    return f"CREATE OR REPLACE VIEW {what}_{which} AS SELECT {place} AS place, key::integer AS id, {column} AS result FROM {made}"


def _foreign_tables(bench: Bench) -> None:
    """In the benchmark's database: for each kind of rows the partitions of both servers, and all of the first."""
    conn = bench.server.main.conn
    conn.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    for name in NAMES:
        at = conninfo.conninfo_to_dict(bench.clusters[name])
        conn.execute(f"DROP SERVER IF EXISTS {name} CASCADE")
        conn.execute(
            f"CREATE SERVER {name} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (async_capable 'true',"
            f" options '-c pg_gpt2.prefix_cache=0', host '{at['host']}', port '{at['port']}', dbname '{at['dbname']}')"
        )
        conn.execute(f"CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user '{at['user']}')")
    for what, kind in TYPES.items():
        columns = f"place integer, id integer, result {kind}"
        conn.execute(f"DROP TABLE IF EXISTS {what}_both")
        conn.execute(f"CREATE TABLE {what}_both ({columns}) PARTITION BY LIST (place)")
        for place, name in enumerate(NAMES):
            conn.execute(
                f"CREATE FOREIGN TABLE {what}_{name} PARTITION OF {what}_both FOR VALUES IN ({place}) SERVER {name}"
                f" OPTIONS (table_name '{what}_half')"
            )
        conn.execute(
            f"CREATE FOREIGN TABLE {what}_alone ({columns}) SERVER {NAMES[0]} OPTIONS (table_name '{what}_all')"
        )
