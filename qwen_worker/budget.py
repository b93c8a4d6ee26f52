"""The time of a job in seconds: of each of its stages, and of all. A clock ends what takes longer."""

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

MARGIN_S = 30.0  # from the last moment for an answer to RunPod's execution timeout
# How much later than the deadlines of the network and of the model within a stage, which know better what happened.
GRACE_S = 0.9
# A process that decodes and gets no computing time, or sleeps, is ended after as many times what it may compute.
WALL = 8
LOOK_UP_S = 10.0  # of the host of upload_url
ENCODE_S = 55.0  # WebP of 50 megapixels takes that on two slow cores
#: stages whose threads cannot be stopped from outside: one that is stuck is lost, and its process with it
THREADS = {"decode", "edit", "encode"}
LOOKUP_MORE_S, UPLOAD_MORE_S = 5.0, 5.0


@dataclass(frozen=True)
class Budget:
    """Seconds that stages may take, and that a job may: those of a job of one picture fit in."""

    stages: Mapping[str, float]
    total: float

    @classmethod
    def of(
        cls, *, storage_s: float, download_s: float, decode_s: float, inference_s: float, execution_s: float
    ) -> "Budget":
        """From the deadlines of what stages do.

        Args:
            storage_s: of one operation on the bucket.
            download_s: of one download.
            decode_s: of one picture.
            inference_s: of one edit.
            execution_s: of RunPod, from when a job is taken.

        Raises:
            ValueError: they do not fit.
        """
        stages = {
            "validate": LOOK_UP_S,
            "fetch": storage_s + download_s,
            "lookup": storage_s + LOOKUP_MORE_S,
            # Of three pictures two at a time.
            "decode": 2 * decode_s,
            "edit": inference_s,
            "encode": ENCODE_S,
            # The picture, a look at it, and the manifest.
            "upload": 3 * storage_s + UPLOAD_MORE_S,
        }
        needed, total = sum(stages.values()), execution_s - MARGIN_S
        if needed > total:
            raise ValueError(
                f"is {execution_s:g}, but the deadlines of a job come to {needed:g} s and {MARGIN_S:g} s must be left: "
                "raise it, on the endpoint too, or lower TIMEOUT_SECONDS, STORAGE_TIMEOUT_SECONDS, DECODE_SECONDS or "
                "INFERENCE_TIMEOUT_SECONDS"
            )
        return cls(stages, total)


ENDLESS = Budget({}, math.inf)


class Clock:
    """Ends a stage that takes longer than it may, and the job that does. Use it as an async context manager.

    Raises at its exit:
        TimeoutError: it has ended what was inside.
    """

    def __init__(self, budget: Budget = ENDLESS) -> None:
        self._budget = budget
        self._end = time.monotonic() + budget.total
        #: Seconds that the stage which began last may take.
        self.seconds = math.inf
        self._last = self._stage_end = 0.0
        self._threads = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended what was inside."""
        return self._timeout.expired()

    @property
    def is_stuck(self) -> bool:
        """Whether it has ended a stage whose thread does not end by itself."""
        return self.has_ended and self._threads

    @property
    def left(self) -> float:
        """Seconds of the job that are left for a picture to be made in: what is made must be stored in time."""
        return self._end - time.monotonic() - self._budget.stages.get("upload", 0)

    def begin(self, stage: str, seconds: float | None = None) -> None:
        """A stage begins, from any thread; `seconds` is how long it may take, if not as long as ever."""
        own = self._budget.stages.get(stage, math.inf) if seconds is None else seconds
        now = time.monotonic()
        left = max(0.0, self._end - now)
        self.seconds = min(own, left)
        # The job's end says nothing about the stage.
        self._threads = stage in THREADS and own <= left
        self._last, self._stage_end = now, now + self.seconds
        self._schedule(self._stage_end)

    def step(self, done: int, total: int) -> None:
        """A step of the stage is done. What follows the last takes no longer than two: it is not cut off for less."""
        now = time.monotonic()
        if done == total:
            self._schedule(max(self._stage_end, now + 2 * (now - self._last)))
        self._last = now

    def _schedule(self, end: float) -> None:
        with contextlib.suppress(RuntimeError):  # of a loop that has ended, when a stopped job's edit begins
            self._loop.call_soon_threadsafe(self._reschedule, end + GRACE_S)

    def _reschedule(self, when: float) -> None:
        """Another end, by the monotonic clock."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._timeout.reschedule(None if math.isinf(when) else when + self._loop.time() - time.monotonic())
