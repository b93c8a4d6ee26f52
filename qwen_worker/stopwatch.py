"""How long each stage of a job took, which one it is in, how far that is, and what was used up by then."""

import math
import time
from collections.abc import Callable
from typing import Any

from qwen_worker.budget import Clock
from qwen_worker.spent import Spent


def nobody(_news: dict[str, Any]) -> None:
    """Nobody wants to know."""


class Stopwatch:
    """Stages follow one another: the beginning of one is the end of the one before.

    Args:
        stage: the first.
        tell: called with each piece of news, from whatever thread has it.
        clock: ends what takes too long; running.

    Attributes:
        spent: by whoever does the job.
    """

    def __init__(self, stage: str, tell: Callable[[dict[str, Any]], None] = nobody, clock: Clock | None = None) -> None:
        self.stage = stage
        self.spent = Spent()
        self._tell = tell
        self._clock = clock
        self._image: dict[str, int] = {}
        self._start = self._lap = time.perf_counter()
        self._ms: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds that the job leaves for making a picture."""
        return self._clock.left if self._clock else math.inf

    def begin(self, stage: str, seconds: float | None = None) -> None:
        """End the current stage and begin another, which may take `seconds`, if not as long as ever."""
        self._end()
        self.stage = stage
        if self._clock:
            self._clock.begin(stage, seconds)
        self._tell({"stage": stage, **self._image})

    def allow(self, seconds: float) -> None:
        """From now on the current stage may take so long."""
        if self._clock:
            self._clock.begin(self.stage, seconds)

    @property
    def is_stuck(self) -> bool:
        """Whether the current stage was ended, and its thread does not end by itself."""
        return self._clock is not None and self._clock.is_stuck

    def image(self, number: int, total: int) -> None:
        """The work is now on this picture of several, from 1."""
        self._image = {"image": number, "images": total}

    def step(self, done: int, total: int) -> None:
        """So many passes of the model are done."""
        if self._clock:
            self._clock.step(done, total)
        self._tell({"stage": self.stage, "step": done, "steps": total, **self._image})

    def milliseconds(self) -> dict[str, float]:
        """Of each stage up to now, and `total` since the start."""
        self._end()
        times = {**self._ms, "total": (self._lap - self._start) * 1000}
        return {stage: round(ms, 1) for stage, ms in times.items()}

    def _end(self) -> None:
        now = time.perf_counter()
        self._ms[self.stage] = self._ms.get(self.stage, 0.0) + (now - self._lap) * 1000
        self._lap = now
