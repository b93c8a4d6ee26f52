"""What a worker holds as it goes on, and whether it grows. Looked at from outside."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

GROWTH_MB = 32.0  # resident memory, 10^6 bytes, from the end of the warm-up to the end
PROCESSES = 3  # of a worker: the SDK's heartbeat, and two for decoding
WINDOW = 8  # samples whose median counts: one may fall upon a large picture


@dataclass(frozen=True)
class Sample:
    """What the worker holds after so many jobs; memory in 10^6 bytes.

    Attributes:
        rss_mb: resident, of the worker itself.
        tree_mb: of its processes too.
        fds: open files, sockets and pipes of the worker, but for one to each process that it has started.
        memory_files: those of them that are kept in memory.
        threads: of the worker.
        processes: that it has started: those for decoding are ended by some pictures, and started for the next ones.
        files: in its folder of temporary files.
    """

    jobs: int
    seconds: float
    rss_mb: float
    tree_mb: float
    fds: int
    memory_files: int
    threads: int
    processes: int
    files: int


def look(process: psutil.Process, temporary: Path, jobs: int, seconds: float) -> Sample:
    """One sample of a process that runs."""
    children = process.children(recursive=True)
    rss = process.memory_info().rss
    held = [_target(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    return Sample(
        jobs=jobs,
        seconds=round(seconds, 1),
        rss_mb=round(rss / 1e6, 1),
        tree_mb=round((rss + sum(_rss(child) for child in children)) / 1e6, 1),
        fds=len(held) - len(children),
        memory_files=sum(name.startswith("/memfd:") for name in held),
        threads=process.num_threads(),
        processes=len(children),
        files=sum(1 for _ in temporary.rglob("*")),
    )


def _target(link: Path) -> str:
    try:
        return link.readlink().as_posix()
    except OSError:  # closed meanwhile
        return ""


def _rss(process: psutil.Process) -> int:
    try:
        resident: int = process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return resident


def growth(samples: Sequence[Sample], idle: Sequence[Sample]) -> list[str]:
    """What has grown.

    Args:
        samples: taken while jobs ran, from the end of the warm-up on.
        idle: taken while there was no job, after the warm-up first and at the end last.
    """
    found = []
    for name in ("rss_mb", "tree_mb"):
        begin, end = (median(part, name) for part in (samples[:WINDOW], samples[-WINDOW:]))
        if end - begin > GROWTH_MB:
            found.append(f"{name} grew from {begin:.1f} to {end:.1f}")
    for name in ("fds", "threads", "memory_files", "processes", "files"):
        first, last = getattr(idle[0], name), getattr(idle[-1], name)
        if name == "processes":
            first = max(first, PROCESSES)
        if last > first:
            found.append(f"{name} grew from {first} to {last}")
    return found


def median(samples: Sequence[Sample], name: str) -> float:
    """Of one figure."""
    return float(statistics.median(getattr(one, name) for one in samples))
