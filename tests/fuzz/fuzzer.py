"""A coverage-guided fuzzer: inputs that take a new way through the code are kept, and mutated in their turn.

It follows AFL: an input is interesting when it makes a pair of lines follow one another that did not before, or more often by a
power of two. A failure is an exception that is not ours, or a limit of time or memory that is passed.
"""

import base64
import gzip
import random
import resource
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pg_gpt2
from pg_gpt2.errors import PgGpt2Error

from .targets import Target

CORPUS = Path(__file__).parent / "corpus"
WATCHED = (str(Path(pg_gpt2.__file__).parent), zipfile.__file__, gzip.__file__)
MOST_BYTES = 4096
MOST_SECONDS = 5.0  # of the processor for one input, some ten times slower than without tracing
MOST_MEMORY = 64 << 20  # by which one input may raise the process's peak
EDGES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, b"\0" * 8)

Path_ = frozenset[tuple[int, int]]  # (pair of lines, times as a power of two)


class Failure(AssertionError):
    """What an input did that it must not; the message has the input."""


class _Took(BaseException):
    """More than MOST_SECONDS."""


class _Tracer:
    """The ways that one run takes through the watched files."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.last = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self.line if frame.f_code.co_filename.startswith(WATCHED) else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A line of a watched file is about to run."""
        if event == "line":
            here = hash(frame.f_code) ^ frame.f_lineno
            pair = (self.last << 1 ^ here) & 0xFFFFFFFFFFFF
            self.counts[pair] = self.counts.get(pair, 0) + 1
            self.last = here
        return self.line

    def path(self) -> Path_:
        """What makes this run different from others."""
        return frozenset((pair, count.bit_length()) for pair, count in self.counts.items())


def run(target: Target, data: bytes) -> Path_:
    """Give `data` to the target; the way it took. Failure when it does what it must not."""
    tracer = _Tracer()
    _forget_peak()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _time_limit():
            sys.settrace(tracer)
            try:
                target.run(data)
            finally:
                sys.settrace(None)
    except PgGpt2Error as error:
        if not error.hint or error.sqlstate == "XX000":
            raise Failure(f"an error without a hint or a SQLSTATE: {error!r}, of {data!r}") from error
    except _Took:
        raise Failure(f"more than {MOST_SECONDS} s, of {data!r}") from None
    except Exception as error:
        raise Failure(f"{traceback.format_exc(limit=-4)}\nof {data!r}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    if grown > MOST_MEMORY:
        raise Failure(f"{grown >> 20} MB of memory, of {data!r}")
    return tracer.path()


def _forget_peak() -> None:
    """Else what took more memory before, another test perhaps, would hide what this run takes."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Took

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(target: Target, found: Iterable[bytes], seconds: float, seed: int) -> tuple[int, list[bytes]]:
    """Mutate for so long, in seconds of the processor; the number of runs, and the inputs that took new ways, after the
    seeds and those of `found`."""
    random_ = random.Random(seed)
    seen: set[tuple[int, int]] = set()
    kept: list[bytes] = []
    for data in (*target.seeds, *found):
        seen |= run(target, data)
        kept.append(data)
    runs, end = len(kept), time.process_time() + seconds
    while time.process_time() < end:
        data = mutated(random_.choice(kept[-200:] if random_.random() < 0.5 else kept), kept, target.words, random_)
        path = run(target, data)
        runs += 1
        if not path <= seen:
            seen |= path
            kept.append(data)
    return runs, kept


def mutated(data: bytes, others: list[bytes], words: Iterable[bytes], random_: random.Random) -> bytes:
    """`data` after a few changes."""
    changed = bytearray(data)
    for _ in range(1 << random_.randrange(5)):
        place = random_.randrange(len(changed) + 1)
        length = min(1 << random_.randrange(7), len(changed) - place)
        match random_.randrange(9):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random_.randrange(8)
            case 1 if place < len(changed):
                changed[place] = random_.randrange(256)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                other = random_.choice(others)
                start = random_.randrange(len(other) + 1)
                changed[place : place + length] = other[start : start + (1 << random_.randrange(8))]
            case 5:
                word = random_.choice((*EDGES, *words))
                changed[place : place + random_.choice((0, len(word)))] = word
            case 6:
                changed[place:place] = random_.choice((*EDGES, *words))
            case 7:
                _change_number(changed, random_)
            case 8 if random_.random() < 0.1:
                changed[place:place] = changed[place : place + length] * random_.randrange(2, 100)
    return bytes(changed[:MOST_BYTES])


def _change_number(data: bytearray, random_: random.Random) -> None:
    """Another number in place of one written in digits."""
    starts = [i for i, byte in enumerate(data) if 48 <= byte < 58 and not (i and 48 <= data[i - 1] < 58)]
    if starts:
        start = end = random_.choice(starts)
        while end < len(data) and 48 <= data[end] < 58:
            end += 1
        value = int(data[start:end][:30])
        numbers = (value + 1, value - 1, 2 * value, -value, 0, 1 << 31, (1 << 63) - 1, 1 << 64, 10**30)
        data[start:end] = str(random_.choice(numbers)).encode()


# --- the corpus: a file a target, an input a line ---------------------------------------------------------------------------


def load(name: str) -> list[bytes]:
    """The inputs that earlier runs kept for a target."""
    path = CORPUS / f"{name}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def save(name: str, target: Target, kept: list[bytes], most: int = 120, longest: int = 600) -> int:
    """Write the smallest inputs that together take every way that `kept` takes, within limits; their number."""
    seen: set[tuple[int, int]] = set()
    for data in target.seeds:
        seen |= run(target, data)
    chosen = []
    for data in sorted((data for data in kept if len(data) <= longest), key=len):
        path = run(target, data)
        if len(path - seen) > 1 and len(chosen) < most:
            seen |= path
            chosen.append(data)
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.txt").write_text("".join(f"{base64.b64encode(data).decode()}\n" for data in chosen))
    return len(chosen)
