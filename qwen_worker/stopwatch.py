"""How long each stage of a job took, and which one it is in."""

import time


class Stopwatch:
    """Stages follow one another: the beginning of one is the end of the one before."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._start = self._lap = time.perf_counter()
        self._ms: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        """End the current stage and begin another."""
        self._end()
        self.stage = stage

    def milliseconds(self) -> dict[str, float]:
        """Of each stage up to now, and `total` since the start."""
        self._end()
        times = {**self._ms, "total": (self._lap - self._start) * 1000}
        return {stage: round(ms, 1) for stage, ms in times.items()}

    def _end(self) -> None:
        now = time.perf_counter()
        self._ms[self.stage] = self._ms.get(self.stage, 0.0) + (now - self._lap) * 1000
        self._lap = now
