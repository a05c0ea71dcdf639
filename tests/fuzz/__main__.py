"""python -m tests.fuzz: fuzz the targets for some time, one after another; --save adds what was found to the corpus."""

import argparse
import random

from . import fuzzer
from .targets import TARGETS


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all by default", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default 60)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the mutations (default random)")
    parser.add_argument("--save", action="store_true", help="write the corpus")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    total = 0
    for name in chosen.targets:
        target, found = TARGETS[name], fuzzer.load(name)
        runs, kept = fuzzer.fuzz(target, found, chosen.seconds, chosen.seed)
        saved = f", {fuzzer.save(name, target, kept)} saved" if chosen.save else ""
        print(f"{name}: {runs} inputs, {len(kept)} of them of ways of their own{saved}", flush=True)
        total += runs
    print(f"{total} inputs, no failure")


if __name__ == "__main__":
    main()
