"""The time of a job: what fits in, and what ends when it is over."""

import asyncio
import threading
import time

import pytest

from qwen_worker.budget import ENDLESS, GRACE_S, MARGIN_S, Budget, Clock

pytestmark = pytest.mark.slow

DEFAULTS = {"storage_s": 10.0, "download_s": 120.0, "decode_s": 12.0, "inference_s": 300.0}
NEVER = 60.0


async def asleep(clock: Clock, *stages: str) -> None:
    async with clock:
        for stage in stages:
            clock.begin(stage)
        await asyncio.sleep(NEVER)


def test_the_defaults_fit_into_runpods_own() -> None:
    """With half a minute left."""
    budget = Budget.of(**DEFAULTS, execution_s=600)

    assert sum(budget.stages.values()) < budget.total == 600 - MARGIN_S


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_does_not_fit_is_refused(name: str) -> None:
    """With what it comes to."""
    with pytest.raises(ValueError, match=r"the deadlines of a job come to \d+ s"):
        Budget.of(**{**DEFAULTS, name: 10 * DEFAULTS[name]}, execution_s=600)


def test_a_stage_ends_and_tells_how_long_it_had() -> None:
    """Its own time, and a little for those who know better what happened."""

    async def run() -> float:
        clock = Clock(Budget({"fetch": 0.1, "edit": NEVER}, NEVER))
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            await asleep(clock, "edit", "fetch")
        assert clock.has_ended
        assert clock.seconds == pytest.approx(0.1)
        return time.monotonic() - begin

    assert 0.1 + GRACE_S <= asyncio.run(run()) < NEVER / 2


def test_the_next_stage_has_its_own_time() -> None:
    """From when it begins, in whatever thread; one without a time has that of the job, and may be given another."""

    async def run() -> None:
        clock = Clock(Budget({"fetch": -GRACE_S, "edit": NEVER}, NEVER))
        async with clock:
            clock.begin("fetch", NEVER)
            await asyncio.sleep(0)
            clock.begin("queue")
            assert clock.seconds == pytest.approx(NEVER, abs=5)
            thread = threading.Thread(target=clock.begin, args=("edit",))
            thread.start()
            await asyncio.sleep(0.1)
            thread.join()
        assert not clock.has_ended
        clock.begin("fetch")  # afterwards it ends nothing
        await asyncio.sleep(0.1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("stage", "seconds", "total", "stuck"),
    [("edit", 0.0, NEVER, True), ("edit", NEVER, 0.0, False), ("fetch", 0.0, NEVER, False)],
)
def test_what_is_stuck_is_told_from_what_came_too_late(
    stage: str, seconds: float, total: float, *, stuck: bool
) -> None:
    """A thread that is lost, from a job that waited too long, or a socket that was shut."""

    async def run() -> bool:
        clock = Clock(Budget({stage: seconds}, total))
        with pytest.raises(TimeoutError):
            await asleep(clock, stage)
        return clock.is_stuck

    assert asyncio.run(run()) is stuck


def test_what_follows_the_last_step_is_not_cut_off() -> None:
    """It may take as long as two."""

    async def run(done: int) -> bool:
        clock = Clock(Budget({"edit": 1.0 - GRACE_S}, NEVER))
        try:
            async with clock:
                clock.begin("edit")
                await asyncio.sleep(0.6)
                clock.step(done, 2)
                await asyncio.sleep(1)
        except TimeoutError:
            return False
        return True

    assert asyncio.run(run(2))
    assert not asyncio.run(run(1))


def test_the_job_has_an_end_whatever_its_stages_may() -> None:
    """And what is left of it leaves room for storing what is made."""

    async def run() -> Clock:
        clock = Clock(Budget({"edit": NEVER, "upload": 5}, 0.2))
        with pytest.raises(TimeoutError):
            await asleep(clock, "edit")
        return clock

    clock = asyncio.run(run())
    assert clock.seconds <= 0.2
    assert clock.left < -5
    assert Clock(ENDLESS).left > NEVER
