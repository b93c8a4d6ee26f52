"""What a log comes to, in numbers: the page shows them, and `--json` prints them. docs/report.md defines each.

Times are ISO 8601 in UTC, sizes bytes, and a quantile is the value at its rank: one that was measured.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import accumulate

from ops.report.read import DONE, FAILED, MEMORY, NOT_TOLD, OTHER, PARTIAL, PICTURES, STAGES, Job, Log, Ready

MAX_BINS = 120  # of what is drawn over time
HISTOGRAM_BINS = 40
MAX_LIVES = 60  # of workers, in tables and plots: the last ones
MAX_TYPES, MAX_REASONS, MAX_EVENTS = 12, 20, 100
MEMORY_POINTS = 600  # of each kind, of all lives together
WIDTHS = (1, 5, 10, 30, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 7 * 86400)  # seconds of a bin


class NothingToTell(Exception):  # noqa: N818 - it is no error of the report's
    """There is no job in the log."""


@dataclass(frozen=True)
class Quantiles:
    """Of so many values."""

    count: int
    p50: float
    p95: float
    p99: float
    highest: float
    sum: float


@dataclass(frozen=True)
class Head:
    """The numbers of the first lines."""

    begin: str
    end: str
    seconds: float
    workers: int
    starts: int
    jobs: int
    done: int
    partial: int
    failed: int
    success_share: float
    made: int
    reused: int
    gpu_seconds: float


@dataclass(frozen=True)
class Latency:
    """Of jobs for pictures that were done, wholly or in part; milliseconds, in the histogram seconds."""

    stages: dict[str, Quantiles]
    share: dict[str, dict[str, float]]  # operation → stage → its share of all the time
    bin_s: float
    begins_s: list[float]
    made: list[int]
    reused: list[int]  # jobs all of whose pictures were there
    longer: int  # jobs that took longer than the last bin; they are in none


@dataclass(frozen=True)
class OverTime:
    """One value a bin; None where nothing can be told."""

    bin_s: int
    begins: list[str]
    ends: list[str]
    done: list[int]
    partial: list[int]
    failed: list[int]
    per_minute: list[float]
    source_share: list[float | None]
    reused_share: list[float | None]
    queue_p50_ms: list[float | None]
    queue_p95_ms: list[float | None]
    queue_highest_ms: list[float | None]
    usd: list[float]  # up to the end of each bin, as the next one
    whole_usd: list[float]


@dataclass(frozen=True)
class Reason:
    """Reasons that differ in numbers only are one; `text` is the last of them."""

    type: str
    stage: str
    text: str
    count: int
    retryable: int
    first: str
    last: str


@dataclass(frozen=True)
class Errors:
    """Of jobs that failed, or came to a part of their pictures."""

    by_stage: dict[str, dict[str, int]]  # type → stage → jobs
    reasons: list[Reason]
    kinds_of_reasons: int


@dataclass(frozen=True)
class Cache:
    """What did not have to be fetched or made."""

    sources: int
    hits: int
    pictures: int
    reused: int


@dataclass
class Life:
    """A worker's process: from its start, or the first line there is, to its last line."""

    name: str
    begin: str
    end: str
    seconds: float
    start_is_known: bool
    about: dict[str, str]
    parts: dict[str, float]  # seconds from the start of the process until each was done, in their order
    jobs: int
    gpu_s: float
    busy_share: float | None
    usd: float | None
    whole_usd: float | None
    memory: dict[str, Quantiles] = field(default_factory=dict)
    times: list[str] = field(default_factory=list)
    drawn: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class CostOf:
    """An operation's. US dollars; None where no job has a price."""

    jobs: int
    made: int
    gpu_s: float
    usd: float | None
    usd_per_made: float | None


@dataclass(frozen=True)
class Cost:
    """US dollars; None where nothing has a price."""

    usd: float | None
    jobs_without_price: int
    usd_per_made: float | None
    operations: dict[str, CostOf]
    whole_usd: float | None
    whole_usd_per_made: float | None
    lives_without_price: int
    whole_seconds: float
    busy_share: float | None


@dataclass(frozen=True)
class Told:
    """A line that a person should see."""

    at: str
    worker: str
    level: str
    text: str


@dataclass(frozen=True)
class Numbers:
    """All of them."""

    read: dict[str, int]
    head: Head
    latency: Latency | None
    over_time: OverTime
    queue: Quantiles | None
    errors: Errors
    cache: Cache
    lives: list[Life]  # the last MAX_LIVES
    all_lives: int
    starts: Quantiles | None  # seconds until a worker was ready
    cost: Cost
    events: list[Told]
    all_events: int


@dataclass
class _Life:
    """A life while it is put together."""

    name: str
    begin: float
    end: float
    ready: Ready | None
    jobs: list[Job] = field(default_factory=list)

    @property
    def price(self) -> float | None:
        return self.ready.usd_per_second if self.ready else None

    @property
    def gpu_s(self) -> float:
        return sum(job.gpu_s for job in self.jobs)


class _Bins:
    """A time cut into equal parts that begin at round times; as many as a plot can show."""

    def __init__(self, begin: float, end: float) -> None:
        self.width = next((width for width in WIDTHS if (end - begin) / width < MAX_BINS), WIDTHS[-1])
        while (end - begin) / self.width >= MAX_BINS:
            self.width *= 2
        self._first = int(begin // self.width)
        self.count = int(end // self.width) - self._first + 1
        self.begins = [(self._first + number) * self.width for number in range(self.count)]

    def of(self, at: float) -> int:
        return min(max(int(at // self.width) - self._first, 0), self.count - 1)


def compute(log: Log) -> Numbers:
    """All numbers of a log.

    Raises:
        NothingToTell: it has no job.
    """
    if not log.jobs:
        raise NothingToTell
    lives = _lives(log)
    begin, end = min(life.begin for life in lives), max(life.end for life in lives)
    bins = _Bins(begin, end)
    outcomes = Counter(job.outcome for job in log.jobs)
    shown = lives[-MAX_LIVES:]
    of_pictures = [job for job in log.jobs if job.operation in PICTURES and job.outcome != FAILED]
    ready = [max(life.ready.parts.values()) for life in lives if life.ready and life.ready.parts]
    pictures = Counter(made=sum(job.made for job in log.jobs), reused=sum(job.reused for job in log.jobs))
    return Numbers(
        read={**asdict(log.counts), "skipped": log.counts.skipped},
        head=Head(
            begin=_iso(begin),
            end=_iso(end),
            seconds=end - begin,
            workers=len(log.times),
            starts=len(log.ready),
            jobs=len(log.jobs),
            done=outcomes[DONE],
            partial=outcomes[PARTIAL],
            failed=outcomes[FAILED],
            success_share=outcomes[DONE] / len(log.jobs),
            made=pictures["made"],
            reused=pictures["reused"],
            gpu_seconds=sum(job.gpu_s for job in log.jobs),
        ),
        latency=_latency(of_pictures),
        over_time=_over_time(log.jobs, of_pictures, lives, bins),
        queue=_quantiles([job.ms["queue"] for job in of_pictures if "queue" in job.ms]),
        errors=_errors(log.jobs),
        cache=Cache(
            sources=sum(job.sources for job in log.jobs),
            hits=sum(job.hits for job in log.jobs),
            pictures=pictures.total(),
            reused=pictures["reused"],
        ),
        lives=[_told(life, max(10, MEMORY_POINTS // len(shown))) for life in shown],
        all_lives=len(lives),
        starts=_quantiles(ready),
        cost=_cost(log.jobs, lives),
        events=[Told(_iso(one.at), one.worker, one.level, one.text) for one in log.events[-MAX_EVENTS:]],
        all_events=len(log.events),
    )


def _lives(log: Log) -> list[_Life]:
    """Each line belongs to the last process of its worker that had been started by then."""
    lives: list[_Life] = []
    jobs, ready = defaultdict[str, list[Job]](list), defaultdict[str, list[Ready]](list)
    for job in log.jobs:
        jobs[job.worker].append(job)
    for one in log.ready:
        ready[one.worker].append(one)
    for worker, unsorted in log.times.items():
        times, starts, before = sorted(unsorted), list[float](), None
        for one in ready[worker]:
            begin = one.at - max(one.parts.values(), default=0.0)
            starts.append(max(begin, before.at) if before else begin)
            before = one
        found: list[_Life] = []
        # The lines before the first start are of a life of which it is not known when it began.
        for number, owner in enumerate([None, *ready[worker]]):
            low = bisect_left(times, starts[number - 1]) if number else 0
            high = bisect_left(times, starts[number]) if number < len(starts) else len(times)
            if low < high:
                begin = starts[number - 1] if owner else times[low]
                found.append(_Life(worker, begin, times[high - 1], owner))
        begins = [life.begin for life in found]
        for job in jobs[worker]:
            found[max(bisect_right(begins, job.at) - 1, 0)].jobs.append(job)
        if len(found) > 1:
            for number, life in enumerate(found, 1):
                life.name = f"{worker} #{number}"
        lives += found
    return sorted(lives, key=lambda life: (life.begin, life.name))


def _told(life: _Life, points: int) -> Life:
    seconds = life.end - life.begin
    memory = {kind: _quantiles([job.memory[kind] for job in life.jobs if kind in job.memory]) for kind in MEMORY}
    times, drawn = _drawn(life, points)
    parts = life.ready.parts if life.ready else {}
    return Life(
        name=life.name,
        begin=_iso(life.begin),
        end=_iso(life.end),
        seconds=seconds,
        start_is_known=bool(parts),
        about=dict(life.ready.about) if life.ready else {},
        parts=dict(sorted(parts.items(), key=lambda part: part[1])),
        jobs=len(life.jobs),
        gpu_s=life.gpu_s,
        busy_share=life.gpu_s / seconds if seconds else None,
        usd=_sum(job.usd for job in life.jobs),
        whole_usd=None if life.price is None else seconds * life.price,
        memory={kind: found for kind, found in memory.items() if found},
        times=times,
        drawn=drawn,
    )


def _drawn(life: _Life, points: int) -> tuple[list[str], dict[str, list[float | None]]]:
    """Of so many parts of a life the highest values."""
    width = max((life.end - life.begin) / points, 1e-3)
    parts: dict[int, dict[str, float]] = {}
    for job in life.jobs:
        if job.memory:
            part = parts.setdefault(int((job.at - life.begin) / width), {})
            part |= {kind: max(size, part.get(kind, 0.0)) for kind, size in job.memory.items()}
    times = [_iso(life.begin + (number + 0.5) * width) for number in sorted(parts)]
    return times, {kind: [parts[number].get(kind) for number in sorted(parts)] for kind in MEMORY}


def _latency(jobs: Sequence[Job]) -> Latency | None:
    # A stage that did not take place is not told, or took no time.
    stages = {stage: _quantiles([spent for job in jobs if (spent := job.ms.get(stage))]) for stage in STAGES}
    totals = [(job.total_ms / 1000, job.made == 0 and job.reused > 0) for job in jobs if job.total_ms is not None]
    total = _quantiles([seconds * 1000 for seconds, _ in totals])
    if total is None:
        return None
    share = {}
    for operation in PICTURES:
        some = [job.ms for job in jobs if job.operation == operation]
        sums = {stage: math.fsum(ms.get(stage, 0.0) for ms in some) for stage in STAGES}
        if whole := math.fsum(sums.values()):
            share[operation] = {stage: spent / whole for stage, spent in sums.items() if spent}
    width = _round_up(max(total.p99, 1) / 1000 / HISTOGRAM_BINS)
    count = int(total.p99 / 1000 // width) + 1
    made, reused = [0] * count, [0] * count
    for seconds, was_there in totals:
        if (place := int(seconds // width)) < count:
            (reused if was_there else made)[place] += 1
    return Latency(
        stages={**{stage: found for stage, found in stages.items() if found}, "total": total},
        share=share,
        bin_s=width,
        begins_s=[round(number * width, 6) for number in range(count)],
        made=made,
        reused=reused,
        longer=len(totals) - sum(made) - sum(reused),
    )


def _over_time(jobs: Sequence[Job], of_pictures: Sequence[Job], lives: Sequence[_Life], bins: _Bins) -> OverTime:
    outcomes = [Counter[str]() for _ in bins.begins]
    sums = [Counter[str]() for _ in bins.begins]
    usd = [0.0] * bins.count
    waits: list[list[float]] = [[] for _ in bins.begins]
    for job in jobs:
        place = bins.of(job.at)
        outcomes[place][job.outcome] += 1
        sums[place].update(sources=job.sources, hits=job.hits, made=job.made, reused=job.reused)
        usd[place] += job.usd or 0.0
    for job in of_pictures:
        if "queue" in job.ms:
            waits[bins.of(job.at)].append(job.ms["queue"])
    found = [_quantiles(some) for some in waits]
    return OverTime(
        bin_s=bins.width,
        begins=[_iso(begin) for begin in bins.begins],
        ends=[_iso(begin + bins.width) for begin in bins.begins],
        done=[one[DONE] for one in outcomes],
        partial=[one[PARTIAL] for one in outcomes],
        failed=[one[FAILED] for one in outcomes],
        per_minute=[one.total() * 60 / bins.width for one in outcomes],
        source_share=[one["hits"] / one["sources"] if one["sources"] else None for one in sums],
        reused_share=[one["reused"] / all_ if (all_ := one["made"] + one["reused"]) else None for one in sums],
        queue_p50_ms=[one.p50 if one else None for one in found],
        queue_p95_ms=[one.p95 if one else None for one in found],
        queue_highest_ms=[one.highest if one else None for one in found],
        usd=list(accumulate(usd)),
        whole_usd=_whole_usd(lives, bins),
    )


def _whole_usd(lives: Sequence[_Life], bins: _Bins) -> list[float]:
    """What the time of all workers had cost by the end of each bin."""
    priced = [(life.begin, life.end, life.price) for life in lives if life.price is not None]
    ends = [begin + bins.width for begin in bins.begins]
    return [sum(max(min(end, last) - first, 0.0) * price for first, last, price in priced) for end in ends]


def _errors(jobs: Sequence[Job]) -> Errors:
    failed = [job for job in jobs if job.outcome != DONE]
    frequent = {kind for kind, _ in Counter(job.error or NOT_TOLD for job in failed).most_common(MAX_TYPES)}
    by_stage = defaultdict[str, Counter[str]](Counter)
    alike = defaultdict[tuple[str, str, str], list[Job]](list)
    for job in failed:
        kind = job.error or NOT_TOLD
        by_stage[kind if kind in frequent else OTHER][job.stage] += 1
        alike[kind, job.stage, re.sub(r"\d+(\.\d+)?", "0", job.reason)].append(job)
    reasons = [
        Reason(
            type=kind,
            stage=stage,
            text=some[-1].reason,
            count=len(some),
            retryable=sum(job.retryable for job in some),
            first=_iso(some[0].at),
            last=_iso(some[-1].at),
        )
        for (kind, stage, _), some in sorted(alike.items(), key=lambda pair: -len(pair[1]))[:MAX_REASONS]
    ]
    ordered = sorted(by_stage.items(), key=lambda pair: -pair[1].total())
    return Errors({kind: dict(stages) for kind, stages in ordered}, reasons, len(alike))


def _cost(jobs: Sequence[Job], lives: Sequence[_Life]) -> Cost:
    made = sum(job.made for job in jobs)
    usd = _sum(job.usd for job in jobs)
    whole = _sum(None if life.price is None else (life.end - life.begin) * life.price for life in lives)
    seconds = sum(life.end - life.begin for life in lives)
    by_operation = defaultdict[str, list[Job]](list)
    for job in jobs:
        by_operation[job.operation].append(job)
    return Cost(
        usd=usd,
        jobs_without_price=sum(job.usd is None for job in jobs),
        usd_per_made=_ratio(usd, made),
        operations={operation: _cost_of(some) for operation, some in sorted(by_operation.items())},
        whole_usd=whole,
        whole_usd_per_made=_ratio(whole, made),
        lives_without_price=sum(life.price is None for life in lives),
        whole_seconds=seconds,
        busy_share=_ratio(sum(life.gpu_s for life in lives), seconds),
    )


def _cost_of(jobs: Sequence[Job]) -> CostOf:
    usd, made = _sum(job.usd for job in jobs), sum(job.made for job in jobs)
    return CostOf(len(jobs), made, sum(job.gpu_s for job in jobs), usd, _ratio(usd, made))


def _sum(values: Iterable[float | None]) -> float | None:
    """Of those that are known, if any is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _ratio(value: float | None, of: float) -> float | None:
    return value / of if value is not None and of else None


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    if not values:
        return None
    ranked = sorted(values)
    p50, p95, p99 = (ranked[math.ceil(share * len(ranked)) - 1] for share in (0.5, 0.95, 0.99))
    return Quantiles(len(ranked), p50, p95, p99, ranked[-1], math.fsum(ranked))


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
