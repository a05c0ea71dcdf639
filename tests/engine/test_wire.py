"""Numbers as text, as servers send them to each other: every float32 comes back with its bits, and nothing else is taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pg_gpt2.server.training import wire

words = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(words)
def test_bits_come_back(bits):
    values = np.array(bits, np.uint32).view(np.float32)
    text = wire.to_text(values)
    assert text.isascii()
    assert not set(text) & set("'$\0")
    assert len(text) == 4 * len(bits) + 4 * -(-len(bits) // 3)
    assert wire.from_text(text).tobytes() == values.tobytes()
    out = np.empty_like(values)
    wire.read(text, out)
    assert out.tobytes() == values.tobytes()


@given(words.filter(len), st.data())
def test_a_text_that_is_cut_or_has_other_characters_is_refused(bits, data):
    text = wire.to_text(np.array(bits, np.uint32).view(np.float32))
    place = data.draw(st.integers(0, len(text) - 1))
    refused = pytest.raises(ValueError, match=r"(?i)character|ascii|base64|padding")
    with refused:
        wire.from_text(text[:place] + text[place + 1 :])
    with refused:
        wire.from_text(text[:place] + data.draw(st.sampled_from("~$' é\n")) + text[place + 1 :])


def test_another_number_of_numbers_is_refused():
    text = wire.to_text(np.ones(1, np.float32))
    with pytest.raises(ValueError, match="1 numbers in the place of 4"):
        wire.read(text, np.empty(4, np.float32))
