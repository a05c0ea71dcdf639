"""Rows about llm_encode: English and mixed scripts, in a session that has seen no text, and again."""

from functools import partial

from harness import Bench
from report import US
from texts import english, mixed

RIVALS_BYTES = 2_000_000  # of the text for the others
MIXED_BYTES = 1_000_000  # at most: however many tokens these have, an array of llm_encode takes them


def tokenize(bench: Bench) -> None:
    """Each text once; rivals encode a part of it."""
    size = bench.length.text_bytes
    prose, distinct = english(size)
    bench.notes["english"] = f"{distinct / 1e6:.1f} MB until it repeats"
    for kind, text in (("english", prose), ("mixed", mixed(min(size, MIXED_BYTES)))):
        bench.wait()
        cold, warm, ids = bench.server.encode(text)
        length = len(text.encode())
        part = text[: len(text) * min(length, RIVALS_BYTES) // length]
        for state, seconds in (("cold", cold), ("warm", warm)):
            what = f"llm_encode, {length / 1e6:.2g} MB of {'English' if kind == 'english' else 'many scripts'}, {state}"
            row = bench.row(f"encode {kind} {state}", what, "MB/s", length / 1e6, rate=True)
            row.add(US, seconds)
            for rival in bench.tokenizers:
                theirs, found = bench.timed(partial(rival.encode, part))
                row.add(rival.name, theirs * length / len(part.encode()))
                bench.check(f"llm_encode: same ids as {rival.name}", found[:-4] == ids[: len(found) - 4])
