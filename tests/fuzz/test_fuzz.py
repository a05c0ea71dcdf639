"""Hostile input, guided by coverage: the corpus again, and a short search from it. `make fuzz` searches for longer."""

import os

import pytest
from pg_gpt2.formats.vocab import parse_merges

from tests.fuzz import fuzzer
from tests.fuzz.targets import TARGETS

SECONDS = float(os.environ.get("PG_GPT2_FUZZ_SECONDS", "1"))


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_gives_typed_errors_in_bounded_time_and_memory(name):
    runs, kept = fuzzer.fuzz(TARGETS[name], fuzzer.load(name), SECONDS, seed=0)
    assert runs > len(kept) > 0


def test_the_fuzzer_finds_what_is_there():
    """It reaches an error that two good lines lead to, from none; and notices what takes much memory."""

    def fails(data: bytes) -> None:
        if len(parse_merges(data)) > 1:
            raise KeyError

    def hoards(data: bytes) -> None:
        assert bytearray(256 << 20)

    with pytest.raises(fuzzer.Failure, match="KeyError"):
        fuzzer.fuzz(fuzzer.Target(fails, [b"a"], [b"\n", b" "]), [], 10, seed=0)
    assert bytearray(400 << 20)  # more, before it looks
    with pytest.raises(fuzzer.Failure, match="MB of memory"):
        fuzzer.run(fuzzer.Target(hoards, []), b"")
