"""Which jobs are in the process at the same time. One that is suspected of ending it goes last, and alone."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from qwen_worker.intake import Intake


@dataclass(eq=False)
class Member:
    """A job; `number` is the place in which it came, `suspicion` how often its process ended before it did."""

    number: int
    suspicion: int = 0


class Company:
    """The jobs of a process. `intake` is closed while one waits to be alone."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._there: set[Member] = set()
        self._suspects: set[Member] = set()
        self._numbers = itertools.count()
        self._is_alone = False
        self._waiting: list[asyncio.Event] = []

    @property
    def is_closed(self) -> bool:
        """Whether a job is alone, and others must wait."""
        return self._is_alone

    @contextlib.asynccontextmanager
    async def present(self) -> AsyncIterator[Member]:
        """For the time of a job: it waits for one that is alone, and no other is alone beside it."""
        member = Member(next(self._numbers))
        await self.enter(member)
        try:
            yield member
        finally:
            self.leave(member)

    @contextlib.asynccontextmanager
    async def alone(self, member: Member, suspicion: int) -> AsyncIterator[None]:
        """When every other job is done, with no other beside it, for the rest of this one.

        Of several the least suspected comes first. Of equals that is the last: the first was on the GPU then.
        """
        member.suspicion = suspicion
        self._suspects.add(member)
        self.leave(member)
        try:
            async with self._intake.closed():
                await self._until(lambda: not self._there and self._next() is member)
                self._is_alone = True
                try:
                    yield
                finally:
                    self._is_alone = False
        finally:
            self._suspects.remove(member)
            self._notify()

    def _next(self) -> Member:
        return min(self._suspects, key=lambda member: (member.suspicion, -member.number))

    async def enter(self, member: Member) -> None:
        """It counts again; waits for one that is alone."""
        await self._until(lambda: not self._is_alone)
        self._there.add(member)

    def leave(self, member: Member) -> None:
        """It does not count while it waits for another of the same request, whose fate is its own."""
        self._there.discard(member)
        self._notify()

    def _notify(self) -> None:
        for event in self._waiting:
            event.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            event = asyncio.Event()
            self._waiting.append(event)
            try:
                await event.wait()
            finally:
                self._waiting.remove(event)
