"""News of a job: in order, not too often, and never after its answer."""

import asyncio
import threading
import time
from typing import Any

import pytest

from qwen_worker.progress import Progress


class Listener:
    """Remembers what it was sent, and when; each takes `slow_s`."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.news: list[dict[str, Any]] = []
        self.times: list[float] = []
        self._slow_s = slow_s

    async def __call__(self, news: dict[str, Any]) -> None:
        self.times.append(time.monotonic())
        await asyncio.sleep(self._slow_s)
        self.news.append(news)


async def tell_from_a_thread(tell: Progress, count: int, pause_s: float) -> None:
    def steps() -> None:
        for number in range(count):
            tell({"step": number})
            time.sleep(pause_s)

    thread = threading.Thread(target=steps)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.001)


def test_it_is_in_order_and_not_too_often() -> None:
    """Of what comes faster the newest is sent."""
    listener = Listener()

    async def job() -> None:
        async with Progress(listener, gap_s=0.05) as tell:
            await tell_from_a_thread(tell, 50, 0.01)

    asyncio.run(job())
    steps = [news["step"] for news in listener.news]
    gaps = [later - earlier for earlier, later in zip(listener.times, listener.times[1:], strict=False)]

    assert steps == sorted(set(steps))
    assert 4 < len(steps) < 20
    assert min(gaps) >= 0.05


def test_the_last_of_many_at_once_is_sent() -> None:
    """A stage that lasts is not hidden by the one before it."""
    listener = Listener()

    async def job() -> None:
        async with Progress(listener, gap_s=0.01) as tell:
            for stage in ("fetch", "decode", "edit"):
                tell({"stage": stage})
            await asyncio.sleep(0.1)

    asyncio.run(job())

    assert listener.news == [{"stage": "edit"}]


def test_nothing_is_sent_after_the_end() -> None:
    """What is on its way is waited for, what came after it is dropped."""
    listener = Listener(slow_s=0.1)

    async def job() -> int:
        async with Progress(listener, gap_s=0) as tell:
            tell({"step": 1})
            await asyncio.sleep(0.05)
            tell({"step": 2})
        at_end = len(listener.news)
        tell({"step": 3})
        await asyncio.sleep(0.3)
        return at_end

    assert asyncio.run(job()) == 1
    assert listener.news == [{"step": 1}]


def test_what_is_told_when_the_loop_has_ended_is_nothing() -> None:
    """A stopped job's last step may end after everything."""
    kept: list[Progress] = []

    async def job() -> None:
        async with Progress(Listener()) as tell:
            kept.append(tell)

    asyncio.run(job())
    kept[0]({"step": 1})


@pytest.mark.slow
def test_an_answer_does_not_wait_for_ever_for_news_that_hang() -> None:
    """A few seconds, whatever the job API does."""
    listener = Listener(slow_s=60)

    async def job() -> float:
        async with Progress(listener) as tell:
            tell({"step": 1})
            await asyncio.sleep(0.05)
            begin = time.monotonic()
        return time.monotonic() - begin

    assert 2 < asyncio.run(job()) < 30
    assert listener.news == []


def test_nothing_is_left_of_a_job_that_is_stopped_while_it_ends() -> None:
    """Neither a task nor another send."""
    listener = Listener(slow_s=0.2)

    async def job(said: list[Progress]) -> None:
        async with Progress(listener, gap_s=0) as tell:
            said.append(tell)
            tell({"step": 1})
            await asyncio.sleep(0.05)

    async def stop() -> int:
        said: list[Progress] = []
        task = asyncio.create_task(job(said))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        said[0]({"step": 2})
        await asyncio.sleep(0.4)
        return len(asyncio.all_tasks())

    assert asyncio.run(stop()) == 1
    assert {"step": 2} not in listener.news
