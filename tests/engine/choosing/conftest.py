"""The ways of keeping keys and values, and the prefix cache: a test that takes `kind` or `kept` runs with each."""

from collections.abc import Iterator

import pytest
from pg_gpt2 import host
from pg_gpt2.core import op
from pg_gpt2.fast import layout
from pg_gpt2.generation import prefixes


@pytest.fixture(params=["panels", "rows", "plain"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The three ways of keeping keys and values."""
    monkeypatch.setattr(layout, "use_panels", request.param == "panels")
    op.use_fast(request.param != "plain")
    yield request.param
    op.use_fast(True)


@pytest.fixture(params=[0, 1 << 30], ids=["", "prefixes"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Without the prefix cache, and with it."""
    monkeypatch.setattr(host, "prefix_room", lambda: request.param)
    yield request.param
    prefixes.session.clear()
