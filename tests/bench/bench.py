#!/usr/bin/env python3
"""Time pg_gpt2 beside its rivals and beside what the machine can do, with random weights of gpt2-small's shape.

Everything runs in rounds: a bound, we, the rivals, the bound again. Figures are medians over rounds, ratios are taken
within a round. Without torch only we and the bounds are measured. A database of its own is made in the cluster of --dsn,
and dropped. How to read the result: docs/performance.md.
"""

import argparse
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bounds  # first: it keeps BLAS at one thread
import choosing
import constrained
import decoding
import drafting
import learning
import long_texts
import lora
import machine
import many_rows
import report
import rivals
import scaling
import servers
import serving
import tokenizing
import variants
import workers
from clusters import Clusters
from harness import FULL, QUICK, SMOKE, Bench, Length
from ours import MODEL, Server, database
from shapes import Shape
from texts import english

# Topic -> which rivals it needs, rounds of --quick and of --full, and what a round is.
Topic = tuple[str, int, int, Callable[[Bench], None]]
TOPICS: dict[str, list[Topic]] = {
    "decode": [("decoders", 2, 5, decoding.decode)],
    "position": [("", 1, 3, decoding.position)],
    "verify": [("", 1, 3, decoding.verify)],
    "lookup": [("", 1, 3, decoding.lookup)],
    "draft": [("", 1, 3, drafting.at_a_rate), ("", 0, 1, drafting.pair)],
    "masks": [("", 1, 3, decoding.masks)],
    "constrained": [("", 1, 3, decoding.constrained)],
    "batch": [("decoders", 1, 3, decoding.batch)],
    "json": [("", 1, 3, constrained.json_schema)],
    "prefill": [("torch", 2, 5, decoding.prefill)],
    "prefix": [("torch", 1, 3, decoding.prefix)],
    "rows": [("", 1, 3, many_rows.many_rows)],
    "long": [("torch", 0, 3, long_texts.shipped), ("torch", 0, 2, long_texts.small)],
    "choose": [("torch", 1, 3, choosing.choose)],
    "train": [
        ("torch", 1, 3, lambda bench: learning.train(bench, 4, 64, 2)),
        ("torch", 0, 2, lambda bench: learning.train(bench, 4, 256, 1)),
        ("torch", 0, 2, lambda bench: learning.train(bench, 1, 1024, 1)),
        ("torch", 0, 1, lambda bench: learning.train(bench, 4, 64, 2, learning.DROPOUT)),
    ],
    "peak": [("torch", 0, 1, lambda bench: learning.peak(bench, 4, 256))],
    "adamw": [("torch", 1, 1, learning.adamw)],
    "adapters": [
        ("peft", 1, 3, lora.generate),
        ("peft", 0, 3, lora.train),
        ("", 0, 1, lora.many),
    ],
    "variants": [("", 0, 1, variants.decode), ("", 0, 1, variants.train)],
    "audit": [("", 0, 2, learning.audit)],
    "flush": [("", 0, 1, learning.flush)],
    "nanogpt": [("torch", 1, 1, learning.recipe)],
    "workers": [("", 0, 1, learning.workers)],
    "first": [("", 1, 3, decoding.first_token), ("", 0, 2, decoding.first_of_many)],
    "call": [("", 1, 2, decoding.call)],
    "memory": [("", 1, 1, decoding.memory)],
    "encode": [("tokenizers", 1, 1, tokenizing.tokenize)],
    "sessions": [("", 1, 2, decoding.sessions)],
    "serve": [("", 1, 3, serving.serve)],
    "servers": [("", 0, 3, servers.rows), ("", 0, 3, workers.train)],
    "sql": [("", 1, 1, decoding.pure_sql)],
}
SCALING: list[Topic] = [("", 1, 2, scaling.shapes), ("", 1, 2, scaling.lengths)]


def run(args: argparse.Namespace) -> None:
    """Measure, and print."""
    length: Length = FULL if args.full else SMOKE if args.smoke else QUICK
    shape = Shape(n_layer=2, n_head=2, d_model=64) if args.smoke else Shape()
    cores = sorted(os.sched_getaffinity(0))
    with (
        database(args.dsn) as dsn,
        tempfile.TemporaryDirectory(prefix="pg_gpt2_bench_") as scratch,
        Clusters({"one": cores[0], "two": cores[-1]}) as clusters,
    ):
        server = Server(dsn, args.threads)
        bench = Bench(
            *(shape, server, bounds.Bounds(args.threads, 1 if args.smoke else bounds.REPEATS), Path(scratch), length),
            patience=args.patience,
            clusters=clusters,
        )
        facts = machine.facts() | {"threads": args.threads, "length": length.name, "server": server.facts()}
        facts |= {"kind": "scaling" if args.scaling else "bench", "command": args.command}
        facts |= measure(bench, args, Progress(args.quiet))
    facts |= {"notes": bench.notes, "checks": bench.checks, "disturbed": bench.disturbed}
    result = report.as_json(list(bench.rows.values()), facts, bench.rates)
    print(report.summary(result))
    if args.json:
        report.write(args.json, result)
    if args.against:
        print(f"\nsince {args.against}:\n{report.since(result, report.read(args.against))}")
    if any(note.startswith("FAILED") for note in bench.notes):
        raise SystemExit(1)


def measure(bench: Bench, args: argparse.Namespace, say: "Progress") -> dict[str, Any]:
    """Rounds of all topics that were asked for; which rivals and vocabulary they had."""
    topics = {"scaling": SCALING} if args.scaling else TOPICS
    chosen = [
        (name, needs, rounds, one_round)
        for name in args.only or topics
        for needs, few, many, one_round in topics[name]
        if (rounds := args.rounds or (many if args.full else few) or (1 if args.only or args.smoke else 0))
    ]
    facts: dict[str, Any] = {"versions": {}, "vocabulary": ""}
    if not args.scaling:
        say("making a random model")
        bench.server.init_model(MODEL, bench.shape)
        facts["vocabulary"] = bench.server.load_vocabulary(english(1_000_000)[0])
        if args.smoke:
            bench.limits = {}
        if not args.alone:
            facts["versions"] = invite(bench, args.threads, {needs for _, needs, *_ in chosen})
        decoding.warm_up(bench.server.main, bench)
    for number in range(max(rounds for _, _, rounds, _ in chosen)):
        for name, _, rounds, one_round in chosen:
            if number < rounds:
                say(f"round {number + 1}: {name}")
                attempt(bench, name, one_round)
    say("")
    return facts


def attempt(bench: Bench, name: str, one_round: Callable[[Bench], None]) -> None:
    """One round; an error is reported with the results of the others, and makes the run fail at its end."""
    try:
        one_round(bench)
    except Exception as error:
        traceback.print_exc()
        bench.notes[f"FAILED {name}"] = f"{type(error).__name__}: {error}"


def invite(bench: Bench, threads: int, needs: set[str]) -> dict[str, str]:
    """Set up the rivals that topics need, with the server's weights; their versions."""
    versions = {name: version(name) for name in ("tokenizers", "tiktoken") if "tokenizers" in needs and find_spec(name)}
    if "tokenizers" in needs:
        bench.tokenizers = rivals.tokenizers(*bench.server.vocabulary())
    if not rivals.has_torch() or not needs & {"torch", "decoders", "peft"}:
        return versions
    rivals.write_config(bench.scratch, bench.shape)
    bench.server.export(bench.scratch / "model.safetensors")
    bench.torch = rivals.Torch(bench.scratch, threads)
    bench.rivals = [bench.torch]
    if find_spec("ctranslate2") and "decoders" in needs:
        bench.rivals += [rivals.CTranslate2(bench.scratch, threads, bench.shape, kind) for kind in ("float32", "int8")]
    if find_spec("peft") and "peft" in needs:
        bench.peft = rivals.Peft(bench.scratch, threads)
        versions |= bench.peft.versions
    return versions | {name: version for rival in bench.rivals for name, version in rival.versions.items()}


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
    length.add_argument("--quick", action="store_true", help="few rounds and rows, about two minutes (the default)")
    length.add_argument("--full", action="store_true", help="all of it, about forty minutes")
    length.add_argument("--smoke", action="store_true", help="a very small model: only to see that everything works")
    parser.add_argument(
        "--scaling", action="store_true", help="instead: how costs grow with layers, width, length, batch"
    )
    parser.add_argument("--only", action="append", choices=TOPICS, metavar="TOPIC", help=f"of {', '.join(TOPICS)}")
    parser.add_argument("--rounds", type=int, help="rounds of everything")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for every party")
    parser.add_argument(
        "--patience", type=float, default=5.0, metavar="SECONDS", help="wait so long for an idle machine, each time"
    )
    parser.add_argument("--alone", action="store_true", help="without rivals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parser.add_argument("--against", type=Path, metavar="FILE", help="say what changed since that one was written")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(arguments)
    if args.scaling and args.only:
        parser.error("--scaling has no topics")
    chosen = [f"--{name}" for name in ("full", "smoke", "scaling", "alone") if getattr(args, name)]
    chosen += [f"--only {name}" for name in args.only or ()]
    args.command = f"make bench BENCH_ARGS='{' '.join(chosen or ['--quick'])}'"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the database is dropped
    run(args)


if __name__ == "__main__":
    main()
