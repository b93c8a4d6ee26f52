"""Weights → the page cache, from the first moment of a process on: while it imports its libraries, the disk reads."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

PIECE = 16 * 1024 * 1024  # bytes asked for at a time
READERS = 4
# Bytes of memory that stay free beside what is read: for the libraries, and for what a network takes on its way.
MARGIN = 4_000_000_000
CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # version 1
)


class ReadAhead:
    """Reads files once, in their order, in threads of its own; it ends by itself.

    It stops where more would push out what was read before. What cannot be read is left to the loader, which tells it.

    Args:
        files: in the order in which they will be loaded.
        began: called when the first piece is there; returns the moment, as it is to be logged.
        room: bytes that may be taken, those that were read so far among them.
    """

    def __init__(
        self, files: Sequence[Path], began: Callable[[], float], room: Callable[[], int] | None = None
    ) -> None:
        self._pieces = _pieces(files)
        self._began = began
        self._room = room or available
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._bytes, self._stopped = 0, ""
        self._first_s: float | None = None
        self._readers = [
            threading.Thread(target=self._read, name=f"read-ahead-{number}", daemon=True) for number in range(READERS)
        ]
        for reader in self._readers:
            reader.start()

    def tell(self) -> None:
        """Log what was read when it is done, from a thread of its own."""
        threading.Thread(target=self._tell, name="read-ahead", daemon=True).start()

    def wait(self) -> int:
        """Until it is done; the number of bytes that were read."""
        for reader in self._readers:
            reader.join()
        return self._bytes

    def _tell(self) -> None:
        size = self.wait()
        seconds = time.monotonic() - self._start
        figures = {
            "first_byte_s": self._first_s,
            "bytes": size,
            "seconds": round(seconds, 2),
            "gb_per_s": round(size / seconds / 1e9, 2),
        }
        if self._stopped:
            log.warning("read-ahead stopped: %s", self._stopped, extra=figures)
        else:
            log.info("weights read ahead", extra=figures)

    def _read(self) -> None:
        buffer = memoryview(bytearray(PIECE))
        try:
            while piece := self._next():
                self._count(_read(*piece, buffer))
        except (OSError, ValueError) as error:
            self._stopped = f"{type(error).__name__}: {error}"

    def _next(self) -> tuple[Path, int] | None:
        with self._lock:
            if not self._stopped and self._room() - self._bytes < MARGIN:
                self._stopped = "no more fits into memory"
            return None if self._stopped else next(self._pieces, None)

    def _count(self, size: int) -> None:
        with self._lock:
            if size and not self._bytes:
                self._first_s = self._began()
            self._bytes += size


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


def _pieces(files: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    for file in files:
        for offset in range(0, file.stat().st_size, PIECE):
            yield file, offset


def _read(file: Path, offset: int, buffer: memoryview) -> int:
    """One piece; Python's lock is not held meanwhile."""
    number = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Into the reader's own memory: posix_fadvise alone reads but 8 MiB of a piece, and on some systems nothing.
        return os.preadv(number, [buffer], offset)
    finally:
        os.close(number)
