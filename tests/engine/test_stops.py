"""Stop strings in a text that grows: found wherever they end, held back only while they may come, in linear time."""

import random
import time

import pytest
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.generation.generate import TextStream
from pg_gpt2.generation.stops import Stops
from pg_gpt2.limits import MOST_STOP_CHARACTERS
from pg_gpt2.tokenizer.bpe import Tokenizer

BYTES = Tokenizer.of({byte: bytes([byte]) for byte in range(256)}, [])
PIECES = Tokenizer.of(dict(enumerate([b"a", b"b", b"ab", b"aab\n", b"\xc3", b"\xa9", b"\0", b"\n"])), [])


@pytest.mark.parametrize("seed", range(10))
def test_a_stream_ends_with_all_that_was_generated_and_never_shows_what_it_takes_back(seed: int) -> None:
    """Whatever the stop strings: at the end nothing is held back, neither a beginning of one nor bytes of a character."""
    rng = random.Random(seed)
    held = 0
    for _ in range(300):
        ids = [rng.randrange(len(PIECES)) for _ in range(rng.randrange(12))]
        stops = ["".join(rng.choices("aab\né\ufffd", k=rng.randrange(1, 6))) for _ in range(rng.randrange(4))]
        stream, shown, taken = TextStream(PIECES, Stops(stops), None), "", 0
        while taken < len(ids) and not stream.stopped:
            stream.add(ids[taken])
            taken += 1
            assert stream.shown().startswith(shown)
            shown = stream.shown()
        held += stream.shown() != stream.text()
        stream.finish()
        text = PIECES.decode(ids[:taken]).replace("\0", "\ufffd")
        assert stream.shown() == stream.text()
        assert stream.text().startswith(shown)
        assert text.startswith(stream.text())
        assert not any(stop in stream.text() for stop in stops)
        assert stream.stopped == any(stop in text for stop in stops)
        if stream.stopped:
            assert any(text.startswith(stop, len(stream.text())) for stop in stops)
        else:
            assert stream.text() == text
    assert held > 10, "texts that end in the beginning of a stop string are among those tested"


def test_what_one_token_completes_ends_the_text_where_the_first_begins() -> None:
    stream = TextStream(PIECES, Stops(["b\n", "aab", "zz"]), None)
    assert stream.add(0) is False
    assert stream.add(3) is True  # "a" and "aab\n"
    assert stream.text() == "a"


def test_every_end_is_found_also_inside_another_beginning() -> None:
    """Ends that are beginnings of several stop strings: the automaton falls back to the next shorter one."""
    stream = TextStream(BYTES, Stops(["ababc", "bab!", "abd"]), None)
    for byte in b"ababab":
        assert not stream.add(byte)
    assert stream.shown() == "ab"
    assert stream.add(ord("d"))
    assert stream.text() == "abab"


def test_the_time_does_not_depend_on_number_or_length_of_the_stops() -> None:
    half = MOST_STOP_CHARACTERS // 2
    began = time.perf_counter()
    stream = TextStream(BYTES, Stops(["z" * half, *(f"{n:04}" for n in range(half // 4))]), None)
    for _ in range(20_000):
        stream.add(ord("z"))
        stream.shown()
    stream.finish()
    assert time.perf_counter() - began < 5
    assert stream.shown() == "z" * 20_000


@pytest.mark.parametrize("stops", [["a" * MOST_STOP_CHARACTERS, "b"], ["ab"] * (MOST_STOP_CHARACTERS // 2 + 1)])
def test_too_many_or_too_long_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(InvalidParameter, match=f"more than {MOST_STOP_CHARACTERS}"):
        Stops(stops)


@pytest.mark.parametrize("stops", [["a", ""], ["a", None]])
def test_empty_and_null_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(InvalidParameter, match="must not be empty or null"):
        Stops(stops)
