"""What a job has used up, and what it brought."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Spent:
    """Of one job, or of several together.

    Attributes:
        operation: of the job, once it is known.
        sources: pictures that it named, the mask too; `cache_hits` of them came out of the bucket.
        bytes_in: of its sources.
        bytes_out: of its results, also of those that were found.
    """

    operation: str = "unknown"
    sources: int = 0
    cache_hits: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    _turns_s: float = 0.0
    _turn: float | None = None  # when the one began that is not over

    @property
    def gpu_s(self) -> float:
        """Seconds that the GPU was its own, until now."""
        turn = self._turn
        return self._turns_s + (0.0 if turn is None else time.perf_counter() - turn)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The GPU is its own inside. The job may be over before its turn is."""
        self._turn = time.perf_counter()
        try:
            yield
        finally:
            self._turns_s, self._turn = self.gpu_s, None

    def add(self, other: "Spent") -> None:
        """That too, but for the GPU's time."""
        self.sources += other.sources
        self.cache_hits += other.cache_hits
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out

    def told(self) -> dict[str, float]:
        """All but operation and GPU, as log and `health` tell it."""
        names = ("sources", "cache_hits", "bytes_in", "bytes_out")
        return {name: getattr(self, name) for name in names}
