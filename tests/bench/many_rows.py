"""Functions over the rows of a query, beside one call a row: short texts of several lengths, which share passes."""

from functools import partial

from decoding import english_of
from harness import Bench, us
from ours import MODEL

SHORT, LONG, NEW, MOST = 8, 40, 16, 64  # tokens of a text, new ones, and at most where texts end unevenly
ALONE = "one by one"
ALL = "SELECT id, body FROM rows_of_bench ORDER BY id"
# what -> the call for all rows, and that for one
CALLS = {
    "perplexity": ("llm_perplexity_rows('{all}', '{model}')", "llm_perplexity(body, '{model}')"),
    "embedding": (
        "llm_embedding_rows('{all}', model_name => '{model}')",
        "llm_text_embedding(body, model_name => '{model}')",
    ),
    "generation": (
        "llm_generate_rows('{all}', {new}, 0, model_name => '{model}', eos_token => -1)",
        "llm_generate(body, {new}, 0, model_name => '{model}', eos_token => -1)",
    ),
    "uneven": (
        "llm_generate_rows('{all}', {most}, seed => 1, stop => '{{st}}', model_name => '{model}', eos_token => -1)",
        "llm_generate(body, {most}, seed => 1 + id, stop => '{{st}}', model_name => '{model}', eos_token => -1)",
    ),
}
COLUMN = {"generation": "text", "uneven": "text"}
NEW_TOKENS = {"generation": f", {NEW} new each", "uneven": f", {MOST} new at most, which end unevenly"}


def many_rows(bench: Bench) -> None:
    """Rows a second of each of them, and whether the results are those of one by one."""
    count = bench.length.rows
    session = bench.server.plain_session()
    session.generate(bench.ids(4), 2)  # maps the weights
    session.conn.execute("CREATE TEMPORARY TABLE rows_of_bench (id integer, body text)")
    lengths = [bench.rng.randrange(SHORT, LONG) for _ in range(count)]
    for place, length in enumerate(lengths):
        session.conn.execute("INSERT INTO rows_of_bench VALUES (%s, %s)", (place, english_of(bench, length)))
    for what, calls in CALLS.items():
        together, alone = (call.format(all=ALL, model=MODEL, new=NEW, most=MOST) for call in calls)
        name = "generation" if what in NEW_TOKENS else what
        texts = f"{name} of {count} texts of {SHORT} to {LONG} tokens{NEW_TOKENS.get(what, '')}"
        row = bench.row(f"rows {what}", texts, "rows/s", count, rate=True)
        column = COLUMN.get(what, what)
        # The results stay in the server, which makes a digest of them.
        digest = "SELECT md5(string_agg(result::text, '|' ORDER BY id)) FROM ({}) AS found (id, result)"
        queries = (f"SELECT key::integer, {column} FROM {together}", f"SELECT id, {alone} FROM rows_of_bench")
        ours, theirs = bench.compare(
            row,
            0,
            [
                us(partial(session.value, digest.format(queries[0]))),
                (ALONE, partial(session.value, digest.format(queries[1]))),
            ],
        )
        bench.check(f"rows: {what} as {ALONE}", ours == theirs)
    session.probe("watch_passes")
    session.value(f"SELECT count(*) FROM {CALLS['uneven'][0].format(all=ALL, model=MODEL, most=MOST)}")
    bench.notes["texts in a pass, of those that end unevenly"] = (
        f"{session.probe('watched_passes'):.1f} of {count} rows"
    )
    session.conn.close()
