"""Rows about llm_encode: English and mixed scripts, in a session that has seen no text, and again."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import rivals
from harness import Bench
from report import US
from texts import english, mixed

RIVALS_BYTES = 2_000_000  # of the text for the others: rates do not depend on more


def tokenize(bench: Bench) -> None:
    """Each text once; rivals encode a part of it."""
    size = bench.length.text_bytes
    prose, distinct = english(size)
    bench.notes["english"] = f"{distinct / 1e6:.1f} MB until it repeats"
    others = _rivals(bench)
    for kind, text in (("english", prose), ("mixed", mixed(size))):
        bench.wait()
        cold, warm, ids = bench.server.encode(text)
        length = len(text.encode())
        part = text[: len(text) * min(length, RIVALS_BYTES) // length]
        for state, seconds in (("cold", cold), ("warm", warm)):
            what = f"llm_encode, {length / 1e6:.2g} MB of {'English' if kind == 'english' else 'many scripts'}, {state}"
            row = bench.row(f"encode {kind} {state}", what, "MB/s", length / 1e6, rate=True)
            row.add(US, seconds)
            for rival in others:
                theirs, found = bench.timed(partial(rival.encode, part))
                row.add(rival.name, theirs * length / len(part.encode()))
                bench.check(f"llm_encode: same ids as {rival.name}", found[:-4] == ids[: len(found) - 4])


def _rivals(bench: Bench) -> list[Any]:
    names, ranks, merges = bench.server.vocabulary()
    found: list[Any] = []
    if find_spec("tokenizers"):
        found.append(rivals.Tokenizers(names, merges))
    if find_spec("tiktoken"):
        found.append(rivals.TikToken(ranks))
    return found
