"""Jobs that share a process, and those that are suspected of ending it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from qwen_worker.company import Company, Member
from qwen_worker.intake import Intake


class Process:
    """Jobs by their names, and the order in which they worked; each works until it is let go."""

    def __init__(self) -> None:
        self.intake = Intake()
        self.worked: list[str] = []
        self._company = Company(self.intake)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._go: dict[str, asyncio.Event] = {}

    async def start(self, name: str, suspicion: int = 0, *, same_as: asyncio.Lock | None = None) -> None:
        self._go[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._job(name, suspicion, same_as))
        await self.settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self._go[name].set()
            await self.settle()

    async def stop(self, name: str) -> None:
        self._tasks[name].cancel()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def _job(self, name: str, suspicion: int, same_as: asyncio.Lock | None) -> None:
        async with self._company.present() as member:
            if same_as:
                self._company.leave(member)
                await same_as.acquire()
                await self._company.enter(member)
            try:
                if suspicion:
                    async with self._company.alone(member, suspicion):
                        await self._work(name)
                else:
                    await self._work(name)
            finally:
                if same_as:
                    same_as.release()

    async def _work(self, name: str) -> None:
        self.worked.append(name)
        await self._go[name].wait()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


def test_ordinary_jobs_do_not_wait_for_each_other() -> None:
    """Whoever comes works."""

    async def story() -> None:
        process = Process()
        await process.start("a")
        await process.start("b")
        assert process.worked == ["a", "b"]
        assert process.intake.is_open

    run(story())


def test_a_suspect_goes_last_and_alone() -> None:
    """No job is asked for while it waits; one that comes all the same before its turn goes first, others wait."""

    async def story() -> None:
        process = Process()
        await process.start("innocent")
        await process.start("suspect", 1)
        assert not process.intake.is_open
        await process.start("just in time")
        await process.end("innocent")
        assert process.worked == ["innocent", "just in time"]
        await process.end("just in time")
        assert process.worked[2:] == ["suspect"]
        await process.start("too late")
        assert process.worked[3:] == []
        await process.end("suspect")
        assert process.worked[3:] == ["too late"]
        assert process.intake.is_open

    run(story())


def test_of_suspects_the_least_goes_first() -> None:
    """Of equals the last that came."""

    async def story() -> None:
        process = Process()
        await process.start("innocent")
        for name, suspicion in (("twice", 2), ("once", 1), ("once too", 1)):
            await process.start(name, suspicion)
        await process.end("innocent", "once too", "once", "twice")
        assert process.worked == ["innocent", "once too", "once", "twice"]
        assert process.intake.is_open

    run(story())


def test_copies_of_a_suspect_do_not_block_it() -> None:
    """They wait for it."""

    async def story() -> None:
        process, lock = Process(), asyncio.Lock()
        await process.start("suspect", 1, same_as=lock)
        await process.start("copy", same_as=lock)
        assert process.worked == ["suspect"]
        await process.end("suspect")
        assert process.worked == ["suspect", "copy"]

    run(story())


def test_one_that_is_stopped_leaves_nothing_behind() -> None:
    """Whether it waits or is alone."""

    async def story() -> None:
        process = Process()
        await process.start("innocent")
        await process.start("waits", 1)
        await process.stop("waits")
        assert process.intake.is_open
        await process.end("innocent")
        await process.start("alone", 1)
        await process.start("behind it")
        await process.stop("alone")
        assert process.worked == ["innocent", "alone", "behind it"]
        assert process.intake.is_open

    run(story())


def test_who_came_first_is_not_who_was_found_out_first() -> None:
    """Of equals the first to be taken was on the GPU, however long its source takes this time."""

    async def story() -> None:
        company, order = Company(Intake()), []

        async def work(member: Member, name: str) -> None:
            async with company.alone(member, 1):
                order.append(name)

        async with company.present() as first, company.present() as second:
            works = [asyncio.create_task(work(second, "second"))]
            await asyncio.sleep(0)
            works.append(asyncio.create_task(work(first, "first")))
            await asyncio.gather(*works)
        assert order == ["second", "first"]

    run(story())
