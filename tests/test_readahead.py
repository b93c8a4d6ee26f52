"""Weights come into the page cache while the process does other things, and never at the cost of what it needs."""

import json
import sys
from pathlib import Path

import pytest

from local.logs import caught
from qwen_worker.readahead import MARGIN, READERS, ReadAhead, available
from qwen_worker.shards import PIECE

SIZE = PIECE + 5


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three of two pieces each, which name no tensors; they take no room on the disk."""
    made = [tmp_path / name for name in "abc"]
    for file in made:
        with file.open("wb") as empty:
            empty.write((2).to_bytes(8, "little") + b"{}")
            empty.truncate(SIZE)
    return made


def test_every_byte_is_read_once(files: list[Path]) -> None:
    """And the first is told once."""
    began = iter([1.0])

    assert ReadAhead(files, lambda: next(began)).wait() == 3 * SIZE
    assert next(began, None) is None


def test_it_is_told_when_it_is_done(files: list[Path]) -> None:
    """When it began, bytes and seconds, in one line."""
    with caught() as stream:
        ReadAhead(files, lambda: 0.5).tell().join()
    line = json.loads(stream.getvalue())

    assert (line["message"], line["level"]) == ("weights read ahead", "INFO")
    assert (line["first_byte_s"], line["bytes"]) == (0.5, 3 * SIZE)
    assert {"seconds", "read_bytes"} <= line.keys()


def test_it_stops_before_memory_is_short(files: list[Path]) -> None:
    """What is there counts as taken, since it shall stay: after a file of each reader there is no more room."""
    many = files * READERS

    assert 0 < ReadAhead(many, lambda: 0.5, room=lambda: MARGIN + 1).wait() <= READERS * SIZE
    assert ReadAhead(many, lambda: 0.5, room=lambda: MARGIN - 1).wait() == 0


@pytest.mark.parametrize("missing", ["a", "b"])
def test_what_cannot_be_read_is_told_and_left_to_the_loader(files: list[Path], missing: str) -> None:
    """No thread dies of it."""
    files["ab".index(missing)].unlink()
    with caught() as stream:
        ReadAhead(files, lambda: 0.5)._tell()
    line = json.loads(stream.getvalue())

    assert line["level"] == "WARNING"
    assert line["message"].startswith("read-ahead stopped: FileNotFoundError")


def test_no_file_is_no_first_byte() -> None:
    """A model that is not here is downloaded by the loader."""
    assert ReadAhead([], lambda: sys.exit("began")).wait() == 0


def machine(root: Path, **files: str) -> Path:
    """A machine's /proc and /sys/fs/cgroup, two underscores for each slash."""
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MEMINFO = "MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\n"


def test_the_machine_says_what_is_available(tmp_path: Path) -> None:
    """Not what is free: cache gives way."""
    assert available(machine(tmp_path, proc__meminfo=MEMINFO)) == 1_024_000
    assert available() > 1_000_000


@pytest.mark.parametrize(("limit", "left"), [("max", 1_024_000), ("300000", 151_000), ("9999999999", 1_024_000)])
def test_a_container_may_have_less(tmp_path: Path, limit: str, left: int) -> None:
    """Its own file cache is not taken; what its programs hold is."""
    stat = "anon 149000\nactive_file 800\ninactive_file 200\nshmem 5\n"
    cgroup = {"memory.max": limit, "memory.current": "150000", "memory.stat": stat}
    files = {"proc__meminfo": MEMINFO, **{f"sys__fs__cgroup__{name}": text for name, text in cgroup.items()}}

    assert available(machine(tmp_path, **files)) == left


def test_an_older_kernel_says_it_elsewhere(tmp_path: Path) -> None:
    """The first version of cgroups."""
    stat = "active_file 1\ntotal_active_file 800\ntotal_inactive_file 200\n"
    cgroup = {"limit_in_bytes": "300000", "usage_in_bytes": "150000", "stat": stat}
    files = {f"sys__fs__cgroup__memory__memory.{name}": text for name, text in cgroup.items()}

    assert available(machine(tmp_path, proc__meminfo=MEMINFO, **files)) == 151_000
