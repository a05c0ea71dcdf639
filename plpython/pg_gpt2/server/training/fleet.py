"""Shards of a run's steps, or replicas of its rounds, on several servers at once, this one among them.

Each worker is a conversation, written as a generator that gives way while it waits; whoever turns the crank lets all of them
go on: between this server's own shards, and while these are computed, whenever the arithmetic looks for interrupts. A
worker that is lost leaves its shard to the others, and is tried again later. Nobody decides about bits: see training/shards.py.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from ... import host
from ...core.op import is_fast
from ...errors import FeatureNotSupported, PgGpt2Error, WrongState
from ...fast import buffers
from ...tensor import FLOAT32
from ...training.flat import Flat
from ...training.options import Course, Servers
from ...training.rounds import state_of
from ...training.shards import Found, Part, Sharded, Sum
from .. import db, resources
from . import environment, remote, shard_work
from .remote import Lost, Wait
from .session import Session
from .worker import Share, Worker, sent, slowly

IN_TURN = 0.02  # seconds of turning while this server computes
FORGET = 0.9  # what is left of a worker's pace after a step without it
AWAKE = 2e-3  # seconds since something has happened until this session sleeps, which takes longer than many a piece
BRIEFLY = 50e-6  # seconds of sleep


@dataclass
class Step:
    """The parts of a step or a round, who takes how many of them, and what has come."""

    parts: Sequence[Part]
    how: dict[str, Any]
    todo: deque[int]
    quotas: dict[str | None, int]  # by server, None for this one; {} = as they come
    found: list[tuple[int, Found]] = field(default_factory=list)

    def take(self, server: str | None) -> int | None:
        """The next shard for a server; None when there is none left for it."""
        if not self.todo or (self.quotas and not self.quotas[server]):
            return None
        if self.quotas:
            self.quotas[server] -= 1
        return self.todo.popleft()

    def add_to(self, added: Sum) -> None:
        """Add what has come."""
        while self.found:
            added.add(*self.found.pop())

    def lose(self, worker: "Worker", error: PgGpt2Error) -> None:
        """A worker is lost: all take its shard and what else is left as they come."""
        if worker.shard is not None:
            self.todo.append(worker.shard)
        self.quotas.clear()
        worker.lose(error)


class Fleet(Sharded):
    """The workers of a run, and this server."""

    def __init__(self, session: Session, servers: Servers, course: Course) -> None:
        trainer, config = session.trainer, session.config
        self._own = state_of(trainer) if course.is_local else Flat([trainer.params[name] for name in trainer.m])
        resources.require_memory(4 * self._own.size * (1 + course.shards), f"what {course.shards} shards give")
        super().__init__(trainer)
        self._base, self._base_names = session.base, shard_work.base_names(config)
        self._run = {"config": config.to_json(), "tied": trainer.tied, "learns": course.is_local}
        self._allow_other_bits, self._here = servers.allow_other_bits, environment.current()
        self._version = (db.row("SELECT extversion FROM pg_extension WHERE extname = 'pg_gpt2'") or {})["extversion"]
        schema, wait = remote.dblink_schema(), servers.worker_timeout
        for name in servers.workers:
            remote.require_server(name)
        self.workers = [
            Worker(remote.Connection(name, number, schema, wait)) for number, name in enumerate(servers.workers)
        ]
        self.share = Share()
        self.pace: float | None = None
        self._arrays = buffers.BufferPool()
        self._turned = self._happened = 0.0

    # ---- the beginning and the end

    def begin(self) -> None:
        """Greet all workers, at once; the first reason why one cannot help is an error."""
        resources.keep_freed_memory()
        for worker in self.workers:
            self._open(worker)
        while any(worker.talk for worker in self.workers):
            self._rest(self._turn(_refuse))

    def close(self) -> None:
        """End all connections, and what is computed for them: each, whatever becomes of the others."""
        with ExitStack() as ending:
            for worker in self.workers:
                ending.callback(worker.link.close)

    @property
    def environments(self) -> dict[str, Any]:
        """What each worker computes with."""
        return {worker.name: worker.environment for worker in self.workers}

    def told(self) -> dict[str, Any]:
        """What each server did for the last step."""
        return {"leader": self.share.told(), "workers": {worker.name: worker.share.told() for worker in self.workers}}

    def _open(self, worker: Worker) -> None:
        try:
            worker.link.open()
        except Lost as lost:
            raise lost.error from None
        worker.talk = self._greet(worker)

    def _greet(self, worker: Worker) -> Wait:
        """Let a worker take on the run, check that it computes the same bits, and give it an adapter's base."""
        before = worker.environment
        yield from worker.begin(self._run, self._version)
        other = environment.differing(self._here, worker.environment)
        if "sources" in other:
            raise Lost(
                FeatureNotSupported(
                    f'server "{worker.name}" has another build of pg_gpt2 {self._version}',
                    hint="All servers of a run need the same files of the extension.",
                )
            )
        known = not before or not environment.differing(before, worker.environment)
        if other and not (self._allow_other_bits and known):
            there = ", ".join(f"{name} {worker.environment[name]} and not {self._here[name]}" for name in other)
            raise Lost(
                WrongState(
                    f'server "{worker.name}" computes other bits: it has {there}',
                    hint="With options => '{\"allow_other_bits\": true}' who computes a shard decides about the last bits.",
                )
            )
        start = self._own.size
        for name in self._base_names if self._base else ():
            tensor = Flat([self._base.params[name]])  # type: ignore[union-attr]
            end = start + tensor.size
            yield from worker.send(start, end, lambda first, t=tensor, start=start: sent(t, first - start))  # type: ignore[misc]
            start = end
        worker.join()

    def _try_lost(self) -> None:
        """Greet those again whose time has come."""
        for worker in self.workers:
            if worker.is_there or time.monotonic() < worker.retry_at:
                continue
            try:
                self._open(worker)
                while worker.talk:
                    self._rest(self._turn(_refuse))
            except PgGpt2Error as error:
                worker.lose(error)
            else:
                db.notice(f'server "{worker.name}" is back')

    # ---- a step

    def collect(self, parts: Sequence[Part], added: Sum, how: dict[str, Any]) -> None:
        """Add every part to `added`, on all servers at once."""
        self.share, counting = Share(), []
        for worker in self.workers:
            worker.share, worker.link.sent, worker.link.received = Share(), 0, 0
        self._try_lost()
        for index, part in enumerate(parts):
            if part.counts():
                counting.append(index)
            else:
                added.add(index, None)
        quotas = self._quotas(len(counting))
        there = [worker for worker in self.workers if quotas.get(worker.name)]
        step = Step(parts, how, deque(counting), quotas)
        began, mine = time.monotonic(), step.take(None)
        pieces = lru_cache(maxsize=8)(partial(sent, self._own))  # workers are at about the same place
        for worker in there:
            worker.talk, worker.has_weights = self._converse(worker, step, pieces), False
        while any(worker.talk and not worker.has_weights for worker in there):
            self._rest(self._turn(step.lose))
        self.share.transfer = time.monotonic() - began
        while mine is not None or any(worker.talk for worker in there):
            if mine is None:
                self._rest(self._turn(step.lose))
            else:
                self._compute_here(mine, step, added)
            step.add_to(added)
            mine = self._next(step)
        self._account(time.monotonic() - began)

    def _converse(self, worker: Worker, step: Step, pieces: Callable[[int], str]) -> Wait:
        """All that is said to a worker for a step."""
        yield from worker.send(0, self._own.size, pieces)
        worker.has_weights = True
        while (index := step.take(worker.name)) is not None:
            worker.shard = index
            values = self._arrays.empty((self._own.size,), FLOAT32)
            found = yield from worker.compute(step.parts[index], self.trainer.chunk, step.how, values)
            worker.shard = None
            worker.share.shards.append(index)
            step.found.append((index, found))
            yield True

    def _compute_here(self, index: int, step: Step, added: Sum) -> None:
        """One shard on this server, which keeps the others going meanwhile."""
        began = time.monotonic()
        with self._turning(step):
            found = self.compute(step.parts[index], step.how)
        seconds = time.monotonic() - began
        self.share.compute += seconds
        self.share.shards.append(index)
        self.pace = slowly(self.pace, seconds)
        step.add_to(added)
        if found is not None and index != added.next:  # it has to wait, and the array is the trainer's
            kept = self._arrays.empty((self._own.size,), FLOAT32)
            kept[...] = found.gradients[0 : kept.size]
            found = found._replace(gradients=kept)
        added.add(index, found)

    def _next(self, step: Step) -> int | None:
        """The next shard for this server: one of its own, or one that a worker would begin too late."""
        index = step.take(None)
        if index is None and step.todo:
            behind = [
                (worker.pace or 0) * (1 + step.quotas.get(worker.name, 0)) for worker in self.workers if worker.talk
            ]
            if max(behind, default=0) >= (self.pace or 0) or not behind:
                index = step.todo.popleft()
        return index

    def _quotas(self, count: int) -> dict[str | None, int]:
        """Who is to compute how many of `count` shards, so that all end at the same time; this server has one at least.

        A worker that gets none is expected to be faster each time, until it is tried again: it may have been slow by chance.
        """
        there = [worker for worker in self.workers if worker.is_there]
        paces: dict[str | None, float | None] = {None: self.pace, **{worker.name: worker.pace for worker in there}}
        known = [pace for pace in paces.values() if pace]
        usual = sum(known) / len(known) if known else 1.0
        quotas: dict[str | None, int] = dict.fromkeys(paces, 0)
        quotas[None] = min(1, count)
        for _ in range(count - 1):
            quotas[min(paces, key=lambda server: (quotas[server] + 1) * (paces[server] or usual))] += 1
        for worker in there:
            if not quotas[worker.name] and worker.pace:
                worker.pace *= FORGET
        return quotas

    def _account(self, seconds: float) -> None:
        """Note how long each server waited, and what went to it and came back."""
        for share in (self.share, *(worker.share for worker in self.workers)):
            share.idle = max(0.0, seconds - share.compute - share.transfer)
        for worker in self.workers:
            worker.share.sent, worker.share.received = worker.link.sent, worker.link.received
        self.share.sent = sum(worker.share.sent for worker in self.workers)
        self.share.received = sum(worker.share.received for worker in self.workers)

    # ---- the crank

    def _turn(self, lose: "Callable[[Worker, PgGpt2Error], None]") -> bool:
        """Let all conversations go on until they wait; whether something has happened."""
        happened = False
        for worker in self.workers:
            try:
                if worker.talk is not None:
                    happened |= next(worker.talk)
            except StopIteration:
                happened, worker.talk = True, None
            except Lost as lost:
                happened, worker.talk = True, None
                lose(worker, lost.error)
        return happened

    @contextmanager
    def _turning(self, step: Step) -> Iterator[None]:
        """Within it, whatever looks for an interrupt turns the crank."""
        before = host.check_interrupts

        def look() -> None:
            before()
            now = time.monotonic()
            if now - self._turned >= IN_TURN:
                self._turned = math.inf  # a conversation that reads rows looks, too
                while self._turn(step.lose) and time.monotonic() < now + IN_TURN:
                    pass
                self._turned = time.monotonic()

        host.check_interrupts = look
        try:
            yield
        finally:
            host.check_interrupts = before

    def _rest(self, happened: bool) -> None:
        """Between two turns where there is nothing else to do: the longer, the longer nothing has happened."""
        now = time.monotonic()
        if happened:
            self._happened = now
        else:
            host.check_interrupts()
            if now < self._happened + AWAKE:
                os.sched_yield()
            else:
                time.sleep(BRIEFLY if now < self._happened + 100 * BRIEFLY else 20 * BRIEFLY)


def _refuse(worker: Worker, error: PgGpt2Error) -> None:
    raise error


@contextmanager
def shared(session: Session, servers: Servers, course: Course) -> Iterator[Fleet | None]:
    """Within it, the session's steps are computed on the workers, too, where there are any."""
    if not servers.workers:
        yield None
        return
    if not is_fast():
        raise FeatureNotSupported(
            "workers compute with the faster forms of ops, and pg_gpt2.fast is off", hint="RESET pg_gpt2.fast;"
        )
    fleet = Fleet(session, servers, course)
    try:
        fleet.begin()
        session.sharded, session.workers = fleet, fleet.environments
        yield fleet
    except BaseException:
        with suppress(Exception):  # the error to be told is the one that ended the run
            fleet.close()
        raise
    fleet.close()
