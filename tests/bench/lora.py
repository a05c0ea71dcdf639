"""Rows about adapters: each beside its base, and beside PEFT on torch; and what many of them take."""

from contextlib import ExitStack
from functools import partial
from statistics import median

import learning
from decoding import LONG_PROMPT, NEW_TOKENS, PROMPT
from harness import Bench, us
from ours import MODEL, Session, timed
from report import US
from shapes import RANK, TARGET
from targets import BASE, FULL_MODEL, OWN_SIZE, PEFT

NAME = "bench_adapter_{}"
BATCH, LENGTH, STEPS = 4, 64, 4
TURNS = 3  # of all parties in a round, since the ratios are near 1


def generate(bench: Bench) -> None:
    """Decoding and reading a prompt; a new adapter gives what its base gives."""
    [adapter] = _adapters(bench, 1)
    what = f"r {RANK} of {TARGET}"
    kinds = {
        "adapter decode": (
            f"decode of an adapter, {what}, prompt {PROMPT}, {NEW_TOKENS} new",
            PROMPT,
            NEW_TOKENS,
            NEW_TOKENS,
        ),
        "adapter prefill": (f"prefill of an adapter, {what}, {LONG_PROMPT:,} tokens", LONG_PROMPT, 1, LONG_PROMPT),
    }
    with bench.server.plain_session() as session:
        for key, (name, read, new, amount) in kinds.items():
            ids = bench.ids(read)
            parties = [
                us(partial(session.generate, ids, new, adapter)),
                (BASE, partial(session.generate, ids, new)),
            ]
            if bench.peft:
                parties.append((PEFT, partial(bench.peft.generate, ids, new)))
            for _, work in parties:
                work()
            row = bench.row(key, name, "tokens/s", amount, rate=True)
            for _ in range(TURNS):
                found = bench.compare(row, 0, parties)
                for (party, _), theirs in zip(parties[1:], found[1:], strict=True):
                    bench.check(f"{key}: same ids as {party}", theirs == found[0])


def train(bench: Bench) -> None:
    """A training step, and the peak memory of a process that trains, mapped files included; a first step is not timed."""
    row = bench.row("adapter train", f"training step of an adapter, B={BATCH} T={LENGTH}", "s")
    peak = bench.row("adapter peak", "  peak memory of the process", "MB", 1e6)
    tokens, targets = learning.batch_of(bench, BATCH, LENGTH)
    for party, model in ((US, _adapters(bench, 1)[0]), (FULL_MODEL, MODEL)):
        bench.wait()
        with bench.server.session() as session:
            session.load_rows(tokens, targets, model)
            row.add(party, median(session.steps(BATCH, STEPS, model=model)))
            peak.add(party, session.probe("memory")["VmHWM"])
    if bench.peft:
        step = partial(bench.peft.train, tokens, targets, 0.0)
        step()
        bench.wait()
        row.add(PEFT, median(timed(step)[0] for _ in range(STEPS)))
        peak.add(PEFT, learning.peak_of_torch(bench, BATCH, LENGTH, "Peft"))


def many(bench: Bench) -> None:
    """First tokens of many adapters in a session that has used their base, and the memory that they add; in many sessions."""
    names, count = _adapters(bench, bench.length.adapters), bench.length.adapter_sessions
    seconds, alone = _use(bench, names, 1)
    first = bench.row("adapter first", "first token of a further adapter, its base in use by the session", "s")
    first.add(US, median(seconds))
    _, together = _use(bench, names, count)
    own = len(names) * bench.shape.adapter_bytes(RANK)
    for key, how, found in (("one", "one session", alone), ("many", f"{count} sessions, some by each", together)):
        row = bench.row(f"adapter memory {key}", f"memory of {len(names)} adapters, used by {how}", "MB", 1e6)
        row.add(US, found)
        row.add(OWN_SIZE, own)


def _use(bench: Bench, names: list[str], count: int) -> tuple[list[float], float]:
    """Seconds of the first token of each adapter, in one of `count` sessions, and the bytes that all of them add to these."""
    ids = bench.ids(PROMPT)
    with ExitStack() as stack:
        sessions = [stack.enter_context(bench.server.plain_session()) for _ in range(count)]
        for session in sessions:
            for _ in range(3):  # the first calls leave something of their own
                session.generate(ids, 2)
        before = sum(map(_own_memory, sessions))
        bench.wait()
        seconds = [timed(partial(sessions[n % count].generate, ids, 1, name))[0] for n, name in enumerate(names)]
        return seconds, sum(map(_own_memory, sessions)) - before


def _own_memory(session: Session) -> int:
    return session.probe("memory")["RssAnon"]


def _adapters(bench: Bench, count: int) -> list[str]:
    """The names of so many adapters of the model, which are made at their first use."""
    session, names = bench.server.main, [NAME.format(n) for n in range(count)]
    known = {name for (name,) in session.conn.execute("SELECT model FROM llm_adapter")}
    for name in names:
        if name not in known:
            session.value("SELECT llm_adapter_create(%s, %s, r => %s, targets => %s)", name, MODEL, RANK, [TARGET])
    if not known.issuperset(names):
        session.conn.execute("VACUUM ANALYZE llm_param, llm_param_share")
    return names
