"""Weights → the page cache, from the first moment of a process on: while it imports its libraries, the disk reads."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_worker.shards import read

log = logging.getLogger(__name__)

# At a damaged file.
FAILURES = (AttributeError, LookupError, OSError, TypeError, ValueError)

READERS = 4
# Bytes of memory that stay free beside what is read: for the libraries, and for what a network takes on its way.
MARGIN = 4_000_000_000
CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # version 1
)


class ReadAhead:
    """Reads what is used of files once, some of them at a time, in threads of its own; it ends by itself.

    The libraries map the files, and take a tensor's pages as they come to it, one wait after the other: they find them
    there. It stops where more would push out what was read before. What cannot be read is left to the loader, which
    tells it.

    Args:
        files: of safetensors, in the order in which they will be loaded.
        began: called when the first piece is there; returns the moment, as it is to be logged.
        room: bytes that may be taken, those that were read so far among them.
    """

    def __init__(
        self,
        files: Sequence[Path],
        began: Callable[[], float] = time.monotonic,
        room: Callable[[], int] | None = None,
    ) -> None:
        self._files = iter(files)
        self._began = began
        self._room = room or available
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._bytes, self._read_bytes, self._stopped = 0, 0, ""
        self._first_s: float | None = None
        self._readers = [
            threading.Thread(target=self._read, name=f"read-ahead-{number}", daemon=True) for number in range(READERS)
        ]
        for reader in self._readers:
            reader.start()

    def tell(self) -> threading.Thread:
        """Log what was read when it is done, from a thread of its own."""
        thread = threading.Thread(target=self._tell, name="read-ahead", daemon=True)
        thread.start()
        return thread

    def wait(self) -> int:
        """Until it is done; the number of bytes that are in memory now."""
        for reader in self._readers:
            reader.join()
        return self._bytes

    def _tell(self) -> None:
        size = self.wait()
        seconds = time.monotonic() - self._start
        figures = {
            "first_byte_s": self._first_s,
            "bytes": size,
            "read_bytes": self._read_bytes,  # the rest was there
            "seconds": round(seconds, 2),
        }
        if self._stopped:
            log.warning("read-ahead stopped: %s", self._stopped, extra=figures)
        else:
            log.info("weights read ahead", extra=figures)

    def _read(self) -> None:
        try:
            while file := self._next():
                for size, was_read in read(file):
                    if not self._count(size, was_read):
                        return
        except FAILURES as error:
            self._stopped = f"{type(error).__name__}: {error}"

    def _next(self) -> Path | None:
        with self._lock:
            return next(self._files, None) if self._may_go_on() else None

    def _count(self, size: int, was_read: bool) -> bool:  # noqa: FBT001 - as it is read
        """Whether there may be more."""
        with self._lock:
            if size and self._first_s is None:
                self._first_s = self._began()
            self._bytes += size
            self._read_bytes += size if was_read else 0
            return self._may_go_on()

    def _may_go_on(self) -> bool:
        if not self._stopped and self._room() - self._bytes < MARGIN:
            self._stopped = "no more fits into memory"
        return not self._stopped


def available(root: Path = Path("/")) -> int:
    """Bytes of memory that can be taken without pushing out anything but file cache: by this machine and this cgroup.

    The cgroup is the one that is mounted at its usual place, as in a container.
    """
    return int(min(_machine(root), *(_cgroup(root / folder, *names) for folder, *names in CGROUPS)))


def _machine(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 0)


def _cgroup(folder: Path, limit: str, used: str, prefix: str) -> float:
    try:
        most = (folder / limit).read_text().strip()
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        taken = int((folder / used).read_text())
    except OSError:
        return float("inf")
    cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return float("inf") if most == "max" else int(most) - taken + cache
