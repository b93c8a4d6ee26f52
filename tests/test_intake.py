"""The intake: open, closed by several, open again."""

import asyncio

from qwen_worker.intake import Intake


def test_it_is_open_when_the_last_has_left() -> None:
    """However they leave."""

    async def closing(intake: Intake, leave: asyncio.Event) -> None:
        async with intake.closed():
            await leave.wait()

    async def run() -> list[bool]:
        intake, leave = Intake(), asyncio.Event()
        seen = [intake.is_open]
        first, second = (asyncio.create_task(closing(intake, leave)) for _ in range(2))
        await asyncio.wait_for(intake.until_closed(), 5)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        seen.append(intake.is_open)
        leave.set()
        await second
        await asyncio.wait_for(intake.until_open(), 5)
        return [*seen, intake.is_open]

    assert asyncio.run(run()) == [True, False, True]
