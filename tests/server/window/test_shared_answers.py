"""Many viewers cost what one does: they get the same answers, but none that another role asked for."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from loaders.serve.shared import Shared
from tests.server.serve.serving import serving


class Work:
    """Something that is computed when it is allowed to go on."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.goes_on = asyncio.Event()

    async def __call__(self) -> bytes:
        self.begun += 1
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"%d" % self.begun


def asked(
    shared: Shared, work: Callable[[], Awaitable[bytes]], times: int, key: str = ""
) -> "list[asyncio.Task[bytes]]":
    return [asyncio.ensure_future(shared.get(key, work)) for _ in range(times)]


def test_what_many_ask_for_is_computed_once(monkeypatch):
    async def ask() -> None:
        shared, work = Shared(), Work()
        viewers = asked(shared, work, 50)
        await asyncio.sleep(0)
        viewers += asked(shared, work, 50)
        viewers[0].cancel()
        work.goes_on.set()
        assert set(await asyncio.gather(*viewers[1:])) == {b"1"}
        assert (await asyncio.gather(*asked(shared, work, 2), *asked(shared, work, 1, "another"))) == [b"1", b"1", b"2"]
        monkeypatch.setattr("loaders.serve.shared.SECONDS", 0)
        assert await shared.get("", work) == b"3"

    asyncio.run(ask())


def test_what_nobody_waits_for_any_more_is_given_up():
    async def ask() -> None:
        shared, work = Shared(), Work()
        viewers = asked(shared, work, 2)
        await asyncio.sleep(0.01)
        for viewer in viewers:
            assert not work.cancelled
            viewer.cancel()
            await asyncio.sleep(0)
        (again,) = asked(shared, work, 1)
        await asyncio.sleep(0.01)
        work.goes_on.set()
        assert await again == b"2"
        assert work.cancelled == 1

    asyncio.run(ask())


def test_an_error_is_told_to_all_and_not_kept():
    async def ask() -> None:
        shared, begun = Shared(), []

        async def fail() -> bytes:
            begun.append(1)
            await asyncio.sleep(0)
            raise ValueError("once more")

        found = await asyncio.gather(*asked(shared, fail, 3), return_exceptions=True)
        assert [type(each) for each in found] == [ValueError] * 3
        with pytest.raises(ValueError, match="once more"):
            await shared.get("", fail)
        assert len(begun) == 2

    asyncio.run(ask())


def test_roles_do_not_share_answers(dsn, model, conn):
    conn.execute("CREATE ROLE sees_nothing")
    conn.execute("GRANT USAGE ON SCHEMA public TO sees_nothing")
    try:
        with serving(dsn, "--role-header", "X-Role") as client:

            def look(role: str) -> int:
                return client.post("/api/pictures/models", json={}, headers={"X-Role": role}).status_code

            assert [look("postgres"), look("sees_nothing"), look("postgres")] == [200, 403, 200]
            assert client.post("/api/pictures/models", json={}).status_code == 401
    finally:
        conn.execute("DROP OWNED BY sees_nothing")
        conn.execute("DROP ROLE sees_nothing")
