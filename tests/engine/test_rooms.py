"""Decoders that are lent: within bounded memory, again and again, and a larger one in the place of what is too small."""

import pytest
from pg_gpt2 import host
from pg_gpt2.errors import OutOfMemory
from pg_gpt2.fast import layout
from pg_gpt2.generation import rooms
from pg_gpt2.generation.decode import bytes_of_several

from .small_models import CONFIGS, random_params

CONFIG = CONFIGS[0]


@pytest.fixture(params=[True, False], ids=["panels", "rows"])
def params(request, monkeypatch):
    monkeypatch.setattr(layout, "use_panels", request.param)
    return layout.lay_out(random_params(CONFIG), CONFIG)


def held(found: rooms.Rooms) -> int:
    return sum(lot.nbytes for lot in found._lots)


def test_no_more_is_lent_than_there_is_room_for(params, monkeypatch):
    monkeypatch.setattr(rooms, "MOST_CACHED", bytes_of_several(params, CONFIG, [64] * 11))
    lender = rooms.Rooms(params, CONFIG)
    lent = lender.lend([50] * 30)
    assert 6 <= len(lent) <= 11
    assert held(lender) <= rooms.MOST_CACHED
    assert lender.lend([50]) == []
    assert len(rooms.Rooms(params, CONFIG, 3).lend([50] * 30)) == 3


def test_what_comes_back_is_lent_again_and_given_up_for_something_larger(params, monkeypatch):
    monkeypatch.setattr(rooms, "MOST_CACHED", bytes_of_several(params, CONFIG, [64] * 16))
    lender = rooms.Rooms(params, CONFIG)
    lent = lender.lend([50] * 16)
    assert len(lent) == 16
    lender.take_back(lent[3])
    assert lender.lend([64]) == [lent[3]]
    assert lender.lend([20]) == []
    for decoder in lent:
        lender.take_back(decoder)
    (larger, *_) = lender.lend([150] * 2)
    assert larger.cache.room >= 150
    assert larger not in lent
    assert held(lender) <= rooms.MOST_CACHED


def test_one_is_lent_whatever_it_takes_or_the_error_says_why_not(params, monkeypatch):
    monkeypatch.setattr(rooms, "MOST_CACHED", 1)
    assert len(rooms.Rooms(params, CONFIG).lend([100, 100])) == 1

    def nothing_left(wanted: int, purpose: str) -> None:
        raise OutOfMemory(purpose, hint="")

    monkeypatch.setattr(host, "require_memory", nothing_left)
    with pytest.raises(OutOfMemory, match="keys and values of 128 positions"):
        rooms.Rooms(params, CONFIG).lend([100, 100])
