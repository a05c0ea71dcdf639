"""Templates rendered in processes beside the server: one that takes too long is ended, and holds up nobody but its request."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from ..errors import ApiError, Failed
from . import template as program

MOST = 4  # processes
PATIENCE = 5.0  # seconds for a chat
STARTING = 60.0  # seconds for a new process
LONGEST_LINE = 8 * program.MOST_BYTES  # in escapes
KEPT = ("PATH", "SYSTEMROOT", "TZ")  # of the environment, in which keys and passwords may be


class TemplateFailed(ApiError):
    """The template of a model does not render a chat."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the model's chat template does not take this chat: {reason}", param="messages", code="chat_template"
        )


@dataclass(frozen=True)
class Rendered:
    """The text of a chat, and what is hidden in it, by the characters that stand for it (hiding.py)."""

    text: str
    hidden: dict[str, str]


class Renderer:
    """`await renderer.render(template, messages, special, values)`; processes are kept, and end with `close`."""

    def __init__(self) -> None:
        self._idle: list[Process] = []
        self._turns = asyncio.Semaphore(MOST)

    async def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, str]],
        special: Collection[str] = (),
        values: Mapping[str, Any] = {},
    ) -> Rendered:
        """What template.py makes of a chat; TemplateFailed where that is nothing."""
        asked = {"template": template, "messages": [*messages], "special": [*special], "values": values}
        line = json.dumps(asked).encode() + b"\n"
        async with self._turns:
            process = await self._process()
            answer = b""
            try:
                with anyio.fail_after(PATIENCE):
                    answer = await _asked(process, line)
            except TimeoutError:
                raise TemplateFailed(f"it takes more than {PATIENCE:g} seconds") from None
            finally:
                if answer.endswith(b"\n"):
                    self._idle.append(process)
                else:  # too late, cancelled meanwhile, or dead
                    await _ended(process)
        if not answer:
            raise TemplateFailed("it ended its process")
        found = json.loads(answer)
        if "error" in found:
            raise TemplateFailed(found["error"])
        return Rendered(**found)

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await _ended(self._idle.pop())

    async def _process(self) -> Process:
        while self._idle:
            if (process := self._idle.pop()).returncode is None:
                return process
        return await _started()


async def _started() -> Process:
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = (sys.executable, "-c", f"from {program.__name__} import main; main()")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, env=environment, limit=LONGEST_LINE
    )
    ready = b""
    try:
        with anyio.fail_after(STARTING):
            ready = await process.stdout.readline()  # type: ignore[union-attr]
    finally:
        if ready != program.READY:
            await _ended(process)
    if ready != program.READY:
        raise Failed("the process that renders chat templates does not start")
    return process


async def _asked(process: Process, line: bytes) -> bytes:
    """The line that answers `line`; empty where the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        await process.stdin.drain()
        return await process.stdout.readline()
    except ConnectionError:
        return b""


async def _ended(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    with anyio.CancelScope(shield=True):
        await process.wait()
