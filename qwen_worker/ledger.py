"""What the jobs of this process came to: counts for `health` and for /metrics, and what a second of the GPU costs."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qwen_worker import cards
from qwen_worker.spent import Spent

# Upper ends in seconds, from a request that is answered from the bucket to fifty guided steps of a large picture.
BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)


@dataclass
class Histogram:
    """How many durations ended below each of BOUNDS, and above the last; and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total_s += seconds


def price_of(gpu: str, said: float | None) -> float | None:
    """US dollars a second of a GPU by its driver's name: what the operator says, else what is published, if it is."""
    if said is not None:
        return said
    known = cards.of_driver(gpu)
    return known.usd_per_second if known else None


class Ledger:
    """Counts; jobs are requests for pictures, and whatever failed.

    Args:
        usd_per_second: of the GPU; None: not known, and nothing has a price.

    Attributes:
        jobs: operation and outcome ("success", "partial", "cancelled", the type of an error) → jobs.
        pictures: "made" and "reused" → pictures.
        stages: stage, and "total" → how long it took.
        gpu_s: seconds of all turns on the GPU, also of jobs that were over before their turn was.
        spent: all else, by all jobs together.
    """

    def __init__(self, usd_per_second: float | None = None) -> None:
        self.usd_per_second = usd_per_second
        self.jobs: Counter[tuple[str, str]] = Counter()
        self.pictures: Counter[str] = Counter({"made": 0, "reused": 0})
        self.stages: dict[str, Histogram] = {}
        self.gpu_s = 0.0
        self.spent = Spent()

    def cost(self, gpu_s: float) -> float | None:
        """US dollars of so many seconds of the GPU, to a millionth; None without a price."""
        return None if self.usd_per_second is None else round(gpu_s * self.usd_per_second, 6)

    def enter(self, outcome: str, spent: Spent, timings_ms: Mapping[str, float], reused: Sequence[bool] = ()) -> None:
        """One job more; `reused`: of each of its pictures."""
        self.jobs[spent.operation, outcome] += 1
        self.pictures.update("reused" if one else "made" for one in reused)
        self.spent.add(spent)
        for stage, ms in timings_ms.items():
            self.stages.setdefault(stage, Histogram()).add(ms / 1000)

    def turn(self, seconds: float) -> None:
        """A turn on the GPU is over; from its thread."""
        self.gpu_s += seconds

    def outcomes(self) -> dict[str, int]:
        """Outcome → jobs, of all operations."""
        found: Counter[str] = Counter()
        for (_, outcome), count in self.jobs.items():
            found[outcome] += count
        return dict(found)

    def told(self) -> dict[str, object]:
        """As `health` tells it."""
        return {
            "jobs": self.outcomes(),
            "pictures": dict(self.pictures),
            **self.spent.told(),
            "gpu_s": round(self.gpu_s, 3),
            "usd_per_second": self.usd_per_second,
            "cost_usd": self.cost(self.gpu_s),
        }
