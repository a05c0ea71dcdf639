#!/usr/bin/env python3
"""Time pg_gpt2 beside Hugging Face transformers, with random weights of gpt2-small's shape, and the machine's bounds.

Everything runs in one process in rounds: the bounds, we, the rival, and again. Figures are medians over rounds. Without
torch only we and the bounds are measured. A database of its own is made in the cluster of --dsn, and dropped.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import machine
import rivals
from bounds import Bounds
from ours import Server, database, timed
from report import BOUND, US, Row, table, write_json
from shapes import TEXT_BYTES, Shape, english

PROMPT, NEW_TOKENS, LONG_PROMPT = 32, 128, 1023
DROPOUT = 0.1  # the default of llm_train and of transformers; a row of --full
SEED = 1


@dataclass
class Bench:
    """The parties, and the rows as they fill."""

    shape: Shape
    server: Server
    torch: Any
    others: list[Any]
    bounds: Bounds
    rows: dict[str, Row] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=lambda: {"read": [], "sgemm": []})
    checks: dict[str, Any] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    patience: float = 0.0
    disturbed: list[bool] = field(default_factory=list)

    def ids(self, count: int) -> list[int]:
        """Random ids, other ones at each call, so that nothing can be reused."""
        return [self.rng.randrange(self.shape.vocab) for _ in range(count)]

    def row(self, key: str, what: str, unit: str, amount: float = 1.0, *, rate: bool = False) -> Row:
        """The row `key`, made at its first use."""
        return self.rows.setdefault(key, Row(key, what, unit, amount, rate))

    def rate(self, kind: str) -> float:
        """Measure a bound now: bytes or operations a second."""
        self.rates[kind].append(getattr(self.bounds, kind)())
        return self.rates[kind][-1]

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds and result of `work`, once the machine is idle."""
        self.wait()
        return timed(work)

    def wait(self) -> None:
        """Wait until the machine is idle, as long as patience lasts."""
        self.disturbed.append(not machine.wait_until_idle(self.patience))

    def compare(
        self, row: Row, kind: str, demand: float, parties: Sequence[tuple[str, Callable[[], Any]]]
    ) -> list[Any]:
        """One round: every party between two measurements of the bound on `demand`; what each returned."""
        rates = [self.rate(kind)]
        results = []
        for party, work in parties:
            seconds, result = self.timed(work)
            row.add(party, seconds)
            results.append(result)
        rates.append(self.rate(kind))
        row.add(BOUND, demand / max(rates))
        return results


def decode(bench: Bench) -> None:
    """One stream, greedy; the prompt's pass is part of the time."""
    row = bench.row(
        "decode", f"decode, one stream, prompt {PROMPT}, {NEW_TOKENS} new", "tokens/s", NEW_TOKENS, rate=True
    )
    ids = bench.ids(PROMPT)
    others = [*([bench.torch] if bench.torch else []), *bench.others]
    parties = [(US, partial(bench.server.generate, ids, NEW_TOKENS))]
    parties += [(other.name, partial(other.generate, ids, NEW_TOKENS)) for other in others]
    ours, *theirs = bench.compare(row, "read", NEW_TOKENS * bench.shape.decode_bytes(), parties)
    for other, ids_of_other in zip(others, theirs, strict=True):
        bench.checks.setdefault(f"decode: same ids as {other.name}", []).append(ours == ids_of_other)


def prefill(bench: Bench) -> None:
    """A prompt of nearly the window, to the token that follows it."""
    row = bench.row("prefill", f"prefill of {LONG_PROMPT:,} tokens", "s")
    ids = bench.ids(LONG_PROMPT)
    parties = [(US, lambda: bench.server.generate(ids, 1)[0])]
    if bench.torch:
        parties.append((bench.torch.name, lambda: bench.torch.prefill(ids)))
    results = bench.compare(row, "sgemm", bench.shape.prefill_flops(LONG_PROMPT), parties)
    if bench.torch:
        bench.checks.setdefault(f"prefill: same id as {bench.torch.name}", []).append(len(set(results)) == 1)


def train(bench: Bench, batch: int, length: int, steps: int, dropout: float = 0.0) -> None:
    """A training step in memory, by the log; and what a step of the call takes with reading and writing the tables."""
    key, name = f"train {batch}x{length}", f"training step, B={batch} T={length}"
    if dropout:
        key, name = f"{key} dropout", f"{name}, dropout {dropout}"
    row = bench.row(key, name, "s")
    whole = bench.row(f"{key} call", f"  a step of the call of {steps + 1}, with loading and saving", "s")
    stream = [bench.ids(length + 1) for _ in range(batch)]
    tokens, targets = [line[:-1] for line in stream], [line[1:] for line in stream]
    rates = [bench.rate("sgemm")]
    bench.wait()
    ours, whole_call = bench.server.train(tokens, targets, steps, dropout)
    row.add(US, ours)
    whole.add(US, whole_call)
    if bench.torch:
        bench.torch.train(tokens, targets, dropout)  # as our first step, not timed
        seconds, _ = bench.timed(lambda: [bench.torch.train(tokens, targets, dropout) for _ in range(steps)])
        row.add(bench.torch.name, seconds / steps)
    rates.append(bench.rate("sgemm"))
    row.add(BOUND, bench.shape.step_flops(batch * length) / max(rates))


def first_token(bench: Bench) -> None:
    """A new session: connecting, loading the package and the weights, a short prompt."""
    bench.wait()
    bench.row("first", "first token of a new session", "s").add(US, bench.server.first_token(bench.ids(PROMPT)))


def tokenize(bench: Bench, text: str) -> None:
    """1 MB of English, in a session that has seen no text, and again."""
    bench.wait()
    cold, warm, ids = bench.server.encode(text)
    megabytes = TEXT_BYTES / 1e6
    rows = [
        bench.row(f"encode {kind}", f"llm_encode, 1 MB of English, {kind}", "MB/s", megabytes, rate=True)
        for kind in ("cold", "warm")
    ]
    for row, seconds in zip(rows, (cold, warm), strict=True):
        row.add(US, seconds)
    if find_spec("tokenizers"):
        rival = rivals.Tokenizers(*bench.server.vocabulary())
        for row in rows:
            seconds, theirs = bench.timed(lambda: rival.encode(text))
            row.add(rival.name, seconds)
        bench.checks.setdefault("llm_encode: same ids as tokenizers", []).append(ids == theirs)


def rounds_of(args: argparse.Namespace, bench: Bench, text: str) -> list[tuple[str, Callable[[], None], int]]:
    """(topic, one round of it, number of rounds)."""
    n = args.rounds or (7 if args.full else 3)
    few = args.rounds or (5 if args.full else 2)
    found = [
        ("decode", lambda: decode(bench), n),
        ("prefill", lambda: prefill(bench), n),
        ("train", lambda: train(bench, 4, 64, 2), few),
        ("tokenize", lambda: tokenize(bench, text), n),
        ("first", lambda: first_token(bench), n),
    ]
    if args.full:
        found[3:3] = [
            ("train", lambda: train(bench, 4, 64, 2, DROPOUT), few),
            ("train", lambda: train(bench, 4, 256, 1), few),
        ]
    return [entry for entry in found if not args.only or entry[0] in args.only]


def warm_up(bench: Bench, topics: set[str]) -> None:
    """Load what is loaded once, and run each party's code once."""
    ids = bench.ids(PROMPT)
    if topics & {"decode", "prefill"}:
        bench.server.generate(ids, 8)
        for rival in [*([bench.torch] if bench.torch else []), *bench.others]:
            rival.generate(ids, 8)
    bench.bounds.read()
    bench.bounds.sgemm()


def run(args: argparse.Namespace) -> None:
    """Measure, and print."""
    shape = Shape()
    say = Progress(args.quiet)
    text = english()
    with database(args.dsn) as dsn, tempfile.TemporaryDirectory(prefix="pg_gpt2_bench_") as scratch:
        say("making a random model of gpt2-small's shape")
        server = Server(dsn, shape, args.threads, SEED)
        facts = machine.facts() | {"threads": args.threads, "server": server.facts()}
        torch, others = rivals_of(args, server, Path(scratch), shape)
        for rival in [*([torch] if torch else []), *others]:
            facts |= rival.versions
        bench = Bench(shape, server, torch, others, Bounds(args.threads), patience=args.patience)
        topics = rounds_of(args, bench, text)
        wanted = {topic for topic, _, _ in topics}
        if "tokenize" in wanted:
            facts["vocabulary"] = server.load_vocabulary(text)
        warm_up(bench, wanted)
        for number in range(max(count for _, _, count in topics)):
            for topic, one_round, count in topics:
                if number < count:
                    say(f"round {number + 1}: {topic}")
                    one_round()
        say("")
    show(bench, facts)
    if args.json:
        write_json(
            args.json,
            list(bench.rows.values()),
            facts | {"checks": bench.checks, "disturbed": bench.disturbed},
            bench.rates,
        )


def rivals_of(args: argparse.Namespace, server: Server, scratch: Path, shape: Shape) -> tuple[Any, list[Any]]:
    """Transformers with the server's weights, and further rivals for decoding; None and none without torch."""
    topics = set(args.only or ("decode", "prefill", "train"))
    if args.alone or not rivals.has_torch() or not topics & {"decode", "prefill", "train"}:
        return None, []
    rivals.write_config(scratch, shape)
    server.export(scratch / "model.safetensors")
    others = (
        [rivals.CTranslate2(scratch, args.threads, shape)] if find_spec("ctranslate2") and "decode" in topics else []
    )
    return rivals.Torch(scratch, args.threads), others


def show(bench: Bench, facts: dict[str, Any]) -> None:
    """The table, the bounds it refers to, and what a reader must know."""
    print(f"{facts['processor']}, {facts['threads']} of {facts['cores']} cores, commit {facts['commit'] or 'unknown'}")
    print(
        ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "ctranslate2") if name in facts)
        or "no rivals: only pg_gpt2 and the bounds"
    )
    print()
    print(table(list(bench.rows.values())))
    print()
    for kind, scale, unit in (("read", 1e9, "GB/s memory read"), ("sgemm", 1e9, "GFLOP/s sgemm")):
        if bench.rates[kind]:
            low, middle, high = (f(bench.rates[kind]) / scale for f in (min, median, max))
            print(f"bound: {middle:.0f} {unit} on {facts['threads']} threads ({low:.0f} to {high:.0f} over rounds)")
    for check, found in bench.checks.items():
        print(f"check: {check}: {sum(found)} of {len(found)}")
    if "vocabulary" in facts:
        print(f"vocabulary: {facts['vocabulary']}")
    for where, environment in (("here", os.environ), ("in the server", facts["server"]["environment"])):
        if "OPENBLAS_CORETYPE" in environment:
            print(f"note: OPENBLAS_CORETYPE is set {where}: NumPy may be slowed")
    if any(bench.disturbed):
        print(f"note: the machine was busy before {sum(bench.disturbed)} of {len(bench.disturbed)} measurements")


class Progress:
    """One line on the terminal that is overwritten; lines elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def __call__(self, message: str) -> None:
        if self.quiet:
            return
        if sys.stderr.isatty():
            print(f"\r\x1b[K{message}", end="", file=sys.stderr, flush=True)
        elif message:
            print(message, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", required=True, help="a cluster whose installation has pg_gpt2; as a superuser of it")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="few rounds, about two minutes (the default)")
    length.add_argument("--full", action="store_true", help="more rounds, and training with T=256 and with dropout")
    parser.add_argument("--rounds", type=int, help="rounds of everything")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for every party")
    parser.add_argument(
        "--patience", type=float, default=5.0, metavar="SECONDS", help="wait so long for an idle machine, each time"
    )
    parser.add_argument("--only", action="append", choices=("decode", "prefill", "train", "tokenize", "first"))
    parser.add_argument("--alone", action="store_true", help="without rivals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
