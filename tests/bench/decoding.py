"""Rows about generating: one stream, a batch, long positions, prompts, sessions beside each other, new sessions."""

import json
import threading
import time
from contextlib import ExitStack
from functools import partial
from statistics import mean, median

from harness import Bench, us
from ours import MODEL, Session, timed
from report import US
from shapes import ROOT
from targets import CT2, CT2_INT8, PURE_SQL, READ, SGEMM
from texts import english

PROMPT, NEW_TOKENS, LONG_PROMPT = 32, 128, 1023
BATCH = 16
COMMON, OWN = 500, 30  # tokens of instructions and of a row
TEXTS = 3  # that repeat themselves: how soon and how often is luck
NEAR, FAR, WINDOW = 50, 900, 32


def decode(bench: Bench) -> None:
    """One stream, greedy; the prompt's pass is part of the time."""
    what = f"decode, one stream, prompt {PROMPT}, {NEW_TOKENS} new"
    row = bench.row("decode", what, "tokens/s", NEW_TOKENS, rate=True, bound=READ)
    ids = bench.ids(PROMPT)
    parties = [us(partial(bench.server.main.generate, ids, NEW_TOKENS))]
    parties += [(rival.name, partial(rival.generate, ids, NEW_TOKENS)) for rival in bench.rivals]
    ours, *theirs = bench.compare(row, NEW_TOKENS * bench.shape.decode_bytes(), parties)
    for rival, found in zip(bench.rivals, theirs, strict=True):
        if rival.exact:
            bench.check(f"decode: same ids as {rival.name}", ours == found)


def position(bench: Bench) -> None:
    """Two streams in turns, a token each: one at the window's beginning, one near its end."""
    row = bench.row("position", f"decode at position {FAR}", "tokens/s", rate=True)
    prompts = {place: english_of(bench, place - WINDOW // 2) for place in (NEAR, FAR)}
    seconds: dict[int, list[float]] = {NEAR: [], FAR: []}
    with ExitStack() as stack:
        near, far = (
            stack.enter_context(stack.enter_context(bench.server.plain_session()).stream(prompts[place]))
            for place in (NEAR, FAR)
        )
        near(), far()  # the prompts
        bench.wait()
        for _ in range(WINDOW):
            seconds[NEAR].append(near())
            seconds[FAR].append(far())
    row.add(US, median(seconds[FAR]))
    row.add(f"at position {NEAR}", median(seconds[NEAR]))


def verify(bench: Bench) -> None:
    """A pass over several tokens beside one over a single token, in the server: what prompt lookup lives on."""
    bench.wait()
    with bench.server.session() as session:
        seconds = session.probe("passes", MODEL, 10)
    for count in (4, 8, 16):
        row = bench.row(f"verify {count}", f"a pass over {count} tokens of one stream", "ms", 1e-3)
        row.add(US, median(seconds[str(count)]))
        row.add("one token", median(seconds["1"]))


def lookup(bench: Bench) -> None:
    """Texts that repeat themselves, as those of random weights do: with prompt lookup, and without; the tokens are the same."""
    count = TEXTS * NEW_TOKENS
    what = f"decode of {TEXTS} texts that repeat themselves, {NEW_TOKENS} new"
    row = bench.row("lookup", what, "tokens/s", count, rate=True, bound=READ)
    prompts = [bench.ids(PROMPT // 4) * 4 for _ in range(TEXTS)]
    with bench.server.session() as guessing, bench.server.plain_session() as plain:
        for session in (guessing, plain):
            session.generate(prompts[0], 2)
        parties = [
            us(lambda: [guessing.generate(ids, NEW_TOKENS) for ids in prompts]),
            ("without lookup", lambda: [plain.generate(ids, NEW_TOKENS) for ids in prompts]),
        ]
        ours, theirs = bench.compare(row, count * bench.shape.decode_bytes(), parties)
    bench.check("lookup: same ids as without", ours == theirs)
    bench.notes["the texts that repeat themselves"] = f"{[len(set(text)) for text in ours]} different tokens"


def english_of(bench: Bench, length: int) -> str:
    """English of about `length` tokens, another at each call."""
    text = english(1_000_000)[0]
    start = bench.rng.randrange(len(text) - 20 * length)
    query = "SELECT llm_decode((llm_encode(%s, %s))[:%s], %s)"
    return bench.server.main.value(query, text[start : start + 20 * length], MODEL, length, MODEL)


PATTERNS = (
    r"[A-Za-z ,.]{1,9000}",
    r"\d{4}-\d{2}-\d{2}( \d{2}:\d{2})?",
    r".{0,400}",
    r"\w+( \w+)*[.!?]",
    r"[^aeiou]+",
    r'"([^"\\]|\\["\\/bfnrt])*"',
    r'\{"name": "[A-Za-z ]{1,40}", "age": \d{1,3}, "city": "[A-Za-z ]{1,40}"\}',
)
WORDS, RECORDS = PATTERNS[0], "(" + PATTERNS[-1] + ", ){7,99}"


def masks(bench: Bench) -> None:
    """The tokens that may come within patterns, of the whole vocabulary: in the first state of each, and in later ones."""
    bench.wait()
    with bench.server.session() as session:
        found = session.probe("masks", MODEL, json.dumps(PATTERNS))
    bench.row("mask first", "the first mask of a pattern, the slowest of some", "ms", 1e-3).add(US, max(found["first"]))
    bench.row("mask later", "masks of later states, mean", "ms", 1e-3).add(US, mean(found["later"]))
    bench.notes["the tree of the vocabulary, once a session"] = f"{found['tree']:.2f} s"


def constrained(bench: Bench) -> None:
    """One stream within a pattern beside one that is free; and within one of which much must come."""
    ids = bench.ids(PROMPT)
    with bench.server.plain_session() as session:
        session.generate(ids, 1, pattern="a")  # loads the vocabulary, which ids alone do not need
        for key, what, pattern in (
            ("constrained", "decode within a pattern of letters", WORDS),
            ("records", "decode of records, of which much must come", RECORDS),
        ):
            row = bench.row(key, f"{what}, {NEW_TOKENS} new", "tokens/s", NEW_TOKENS, rate=True)
            parties = [
                us(partial(session.generate, ids, NEW_TOKENS, pattern=pattern)),
                ("free", partial(session.generate, ids, NEW_TOKENS)),
            ]
            ours, _ = bench.compare(row, 0, parties)
            bench.check(f"{key}: all tokens", len(ours) > NEW_TOKENS - 16)


def batch(bench: Bench) -> None:
    """Sixteen prompts at once, beside one of them alone and beside CTranslate2 with all."""
    count = bench.length.batch_tokens
    row = bench.row(
        "batch",
        f"batch of {BATCH} prompts of {PROMPT}, {count} new each",
        "tokens/s",
        BATCH * count,
        rate=True,
        bound=SGEMM,
    )
    texts = [english_of(bench, PROMPT) for _ in range(BATCH)]
    prompts = [bench.server.main.value("SELECT llm_encode(%s, %s)", text, MODEL) for text in texts]
    parties = [us(partial(bench.server.main.generate_batch, texts, count))]
    parties += [
        (rival.name, partial(rival.generate_batch, prompts, count))
        for rival in bench.rivals
        if rival.name in (CT2, CT2_INT8)
    ]
    bench.compare(row, BATCH * (PROMPT + count) * bench.shape.decode_flops(), parties)
    alone, _ = bench.timed(partial(bench.server.main.generate, prompts[0], count))
    row.add("one stream", BATCH * alone)


def prefill(bench: Bench) -> None:
    """A prompt of nearly the window, to the token that follows it."""
    row = bench.row("prefill", f"prefill of {LONG_PROMPT:,} tokens", "s", bound=SGEMM)
    ids = bench.ids(LONG_PROMPT)
    parties = [us(lambda: bench.server.main.generate(ids, 1)[0])]
    if bench.torch:
        parties.append((bench.torch.name, lambda: bench.torch.prefill(ids)))
    results = bench.compare(row, bench.shape.prefill_flops(LONG_PROMPT), parties)
    if bench.torch:
        bench.check(f"prefill: same id as {bench.torch.name}", len(set(results)) == 1)


def prefix(bench: Bench) -> None:
    """Rows that begin with the same instructions: going on from what was read, without that, and torch reusing its cache."""
    count = bench.length.prefix_rows
    row = bench.row("prefix", f"token after {COMMON} common tokens and {OWN} of its own", "rows/s", count, rate=True)
    common = bench.ids(COMMON)
    prompts = [common + bench.ids(OWN) for _ in range(count)]
    with (
        bench.server.plain_session() as without,
        bench.server.session(prompt_lookup="off", prefix_cache="64MB") as with_it,
    ):
        for session in (without, with_it):
            session.generate(common, 1)
        parties = [us(lambda: [with_it.generate(ids, 1) for ids in prompts])]
        parties.append(("without", lambda: [without.generate(ids, 1) for ids in prompts]))
        if bench.torch:
            bench.torch.read(common)
            parties.append((bench.torch.name, lambda: [bench.torch.after(ids) for ids in prompts]))
        ours, *theirs = bench.compare(row, 0, parties)
    for (name, _), found in zip(parties[1:], theirs, strict=True):
        bench.check(f"prefix: same ids as {name}", ours == found)


def sessions(bench: Bench) -> None:
    """The same call in 1, 2, 4 and 8 sessions at once: tokens a second of all together."""
    count = bench.length.session_tokens
    found: dict[int, float] = {}
    most = bench.length.most_sessions
    opened = [bench.server.plain_session() for _ in range(most)]
    for session in opened:
        session.generate(bench.ids(4), 2)
    for number in (n for n in (1, 2, 4, 8) if n <= most):
        bench.wait()
        found[number] = _together([partial(s.generate, bench.ids(PROMPT), count) for s in opened[:number]]) / number
        what = f"{number} generating session{'s' if number > 1 else ''}, together"
        row = bench.row(f"sessions {number}", what, "tokens/s", count, rate=True)
        row.add(US, found[number])
    for session in opened:
        session.conn.close()
    row = bench.row("sessions", f"{most} sessions beside the best number of them", "tokens/s", count, rate=True)
    row.add(US, found[most])
    row.add("the best number", min(found.values()))


def _together(calls: list[partial]) -> float:
    """Seconds until all of the calls, begun at once, are done."""
    barrier = threading.Barrier(len(calls) + 1)

    def run(call: partial) -> None:
        barrier.wait()
        call()

    workers = [threading.Thread(target=run, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def first_token(bench: Bench) -> None:
    """A new session: connecting, loading the package and the weights, a short prompt; before and after others did so."""
    ids = bench.ids(PROMPT)

    def work() -> None:
        with bench.server.session() as session:
            session.generate(ids, 1)

    warm = bench.row("first warm", "first token of a new session, model in use by another", "s", bound=READ)
    bench.compare(warm, bench.shape.decode_bytes(), [us(work)])
    text = bench.row("first text", "first text of a new session, whose prompt is a text, too", "s", bound=READ)
    bench.compare(text, bench.shape.decode_bytes(), [us(partial(_first_text, bench))])
    bench.server.main.value("SELECT llm_cache_clear()")
    cold = bench.row("first cold", "first token of a new session, cold, from the tables", "s", bound=READ)
    bench.compare(cold, bench.shape.decode_bytes(), [us(work)])
    bench.server.main.generate(ids, 1)


def _first_text(bench: Bench) -> None:
    with bench.server.session() as session:
        session.value("SELECT llm_generate('Once upon a time', 1, model_name => %s)", MODEL)


def first_of_many(bench: Bench) -> None:
    """As many new sessions at once as a pool may open: until each of them has its first token."""
    ids, count = bench.ids(PROMPT), bench.length.new_sessions

    def work() -> None:
        with bench.server.session() as session:
            session.generate(ids, 1)

    row = bench.row("first many", f"first token of {count} new sessions at once, the last of them", "s")
    bench.wait()
    row.add(US, _together([partial(work)] * count))


def call(bench: Bench) -> None:
    """What a call takes beside the model's work: one token of a very small model for each row of a query."""
    name, count = _tiny(bench), 40
    row = bench.row("call", "a call of llm_generate beside the model's work", "ms", count * 1e-3)
    with bench.server.session() as session:
        one = "llm_generate('the quick ' || n, 1, model_name => %s, seed => 1)"
        query = f"SELECT count({one}) FROM generate_series(1, {count}) AS n"
        session.probe("watch_tokens")
        found = []
        for _ in range(12):
            before = session.probe("watched_seconds")
            seconds, _ = timed(partial(session.value, query, name))
            watched = session.probe("watched_seconds") - before
            bench.check("call: the model's work is known", watched > 0)
            found.append(seconds - watched)
        row.add(US, min(found))


def _tiny(bench: Bench) -> str:
    """A model of 2 layers, 32 wide, with a vocabulary, which is made at its first use."""
    server, name, body = bench.server, "bench_tiny", "the quick brown fox jumps over the lazy dog and runs away. "
    if not server.main.value("SELECT EXISTS (SELECT FROM llm_model_config WHERE model = %s)", name):
        server.main.conn.execute("CREATE TABLE bench_words AS SELECT %s::text AS body", (body * 8,))
        server.main.value("SELECT llm_train_bpe('SELECT body FROM bench_words', 290, %s)", name)
        server.main.value("SELECT llm_init_model(%s, 2, 2, 32, 64, seed => 4)", name)
        server.main.conn.execute("ANALYZE")
    return name


def memory(bench: Bench) -> None:
    """What a second generating session holds for itself, above one that has only loaded NumPy."""
    row = bench.row("memory", "memory of a further generating session, its own", "MB", 1e6)
    with bench.server.session() as idle, bench.server.session(prefix_cache="64MB") as session:
        session.generate(bench.ids(PROMPT), 16)
        row.add(US, session.probe("memory")["RssAnon"] - idle.probe("memory")["RssAnon"])


def pure_sql(bench: Bench) -> None:
    """A very small model: one recursive query over its tables, and llm_generate."""
    server, count, name = bench.server, 4, _tiny(bench)
    row = bench.row("pure sql", f"{count} tokens of a model of 2 layers, 32 wide", "tokens/s", count, rate=True)
    with server.session() as session:
        session.conn.execute("SET jit = off")  # compiling costs more than running
        session.conn.execute((ROOT / "docs" / "sql" / "generate.sql").read_text(encoding="utf-8"))
        ours = "SELECT llm_generate('the quick', %s, temperature => 0, model_name => %s, eos_token => -1)"
        session.value(ours, count, name)
        found = min(timed(partial(session.value, ours, count, name))[0] for _ in range(5))
        row.add(US, found)
        seconds, _ = timed(lambda: session.conn.execute(f"EXECUTE generate('the quick', {count}, '{name}')").fetchall())
        row.add(PURE_SQL, seconds)


def warm_up(session: Session, bench: Bench) -> None:
    """Run each party's code once."""
    ids = bench.ids(PROMPT)
    session.generate(ids, 8)
    for rival in bench.rivals:
        rival.generate(ids, 8)
