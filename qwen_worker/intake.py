"""Whether the worker takes jobs. For one event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Intake:
    """Open, until someone closes it for a while."""

    def __init__(self) -> None:
        self._inside = 0
        self._opened = asyncio.Event()
        self._shut = asyncio.Event()
        self._given_up = asyncio.Event()
        self._opened.set()

    @property
    def is_open(self) -> bool:
        """Whether nobody keeps it closed."""
        return self._opened.is_set()

    @contextlib.asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """While anyone is inside, no job is asked for; one that is already on its way still comes."""
        self._inside += 1
        self._opened.clear()
        self._shut.set()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._shut.clear()
                self._opened.set()

    async def until_open(self) -> None:
        """Wait until nobody keeps it closed."""
        await self._opened.wait()

    async def until_closed(self) -> None:
        """Wait until someone closes it."""
        await self._shut.wait()

    def give_up(self) -> None:
        """This process can do no more jobs: it should end, and another take its place."""
        self._given_up.set()

    async def until_given_up(self) -> None:
        """Wait until the process can do no more."""
        await self._given_up.wait()
