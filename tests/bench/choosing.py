"""Rows about choosing: prompts that begin alike, one choice of five, in one statement and one by one, beside transformers."""

from functools import partial
from typing import Any

from harness import Bench, us
from ours import MODEL, Session
from texts import english

COMMON, OWN = 500, 30  # tokens of instructions and of a row
CHOICES = [" the", " of", " and", " to", " in"]  # a token each, so that nobody needs more than one pass
ONE_BY_ONE = 4  # rows of that many are asked one by one
WARM = 8  # rows that each party chooses for before it is timed


def choose(bench: Bench) -> None:
    """All rows at once; one by one with what was read before, and without; transformers with its own keys and values reused."""
    count = bench.length.choose_rows
    what = f"one choice of five, {COMMON} common tokens and {OWN} of its own"
    row = bench.row("choose", what, "rows/s", count, rate=True)
    one_by_one = bench.row("choose one by one", f"{what}, one by one", "rows/s", count, rate=True)
    common, rows, texts = _prompts(bench, count)
    with bench.server.session(prefix_cache="64MB") as session, bench.server.session(prefix_cache=0) as without:
        for each in (session, without):
            each.conn.execute("CREATE TEMP TABLE prompt (n integer, body text)")
            with each.conn.cursor() as cursor:
                cursor.executemany("INSERT INTO prompt VALUES (%s, %s)", list(enumerate(texts)))
            _each(each, texts[:1])
        _together(session, WARM)
        few = texts[: max(1, count // ONE_BY_ONE)]
        # Each has read the common tokens before.
        parties: list[tuple[str, Any]] = [us(partial(_together, session, count))]
        if bench.torch:
            bench.torch.read(common)
            ids = [bench.server.main.value("SELECT llm_encode(%s, %s)", choice, MODEL)[0] for choice in CHOICES]
            bench.torch.choose(rows[:WARM], ids)
            parties.append((bench.torch.name, lambda: [CHOICES[n] for n in bench.torch.choose(rows, ids)]))
        found = bench.compare(row, 0, parties)
        scale = len(texts) / len(few)
        seconds, cached = bench.timed(partial(_each, session, few))
        one_by_one.add("pg_gpt2", scale * seconds)
        seconds, alone = bench.timed(partial(_each, without, few))
        row.add("without", scale * seconds)
        one_by_one.add("without", scale * seconds)
    bench.check("choose: the same alone and together", found[0][: len(few)] == alone == cached)
    for (name, _), theirs in zip(parties[1:], found[1:], strict=True):
        bench.check(f"choose: same choices as {name}", theirs == found[0])


def _prompts(bench: Bench, count: int) -> tuple[list[int], list[list[int]], list[str]]:
    """Ids that all prompts begin with, those of each row, and the prompts as texts that give just those ids."""
    ids = bench.server.main.value("SELECT llm_encode(%s, %s)", english(1_000_000)[0][:200_000], MODEL)
    common = ids[:COMMON]
    rows: list[list[int]] = []
    texts: list[str] = []
    while len(rows) < count:
        start = bench.rng.randrange(COMMON, len(ids) - OWN)
        row = ids[start : start + OWN]
        text = bench.server.main.value("SELECT llm_decode(%s, %s)", common + row, MODEL)
        if text == text.rstrip() and bench.server.main.value("SELECT llm_encode(%s, %s)", text, MODEL) == common + row:
            rows.append(row)
            texts.append(text)
    return common, rows, texts


def _together(session: Session, count: int) -> list[str]:
    query = "SELECT choice FROM llm_choose_rows(%s, %s, 'none', %s, 'pg_temp')"
    source = f"SELECT n, body FROM prompt WHERE n < {count} ORDER BY n"
    return [choice for (choice,) in session.conn.execute(query, (source, CHOICES, MODEL))]


def _each(session: Session, texts: list[str]) -> list[str]:
    return [session.value("SELECT llm_classify(%s, %s, 'none', %s)", text, CHOICES, MODEL) for text in texts]
