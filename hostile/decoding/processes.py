"""What the kernel says of a process and of all below it."""

from pathlib import Path

MB = 1024  # kB, as the kernel counts


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        lines = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return [pid]  # it is gone meanwhile
    return [pid, *(one for line in lines for child in line.split() for one in family(int(child)))]


def forget_peaks(pid: int) -> None:
    """Let the kernel count the peaks of memory anew."""
    for one in family(pid):
        Path(f"/proc/{one}/clear_refs").write_text("5")


def peaks(pid: int) -> dict[int, float]:
    """The most resident memory of each since then, in MB."""
    found = {}
    for one in family(pid):
        try:
            told = Path(f"/proc/{one}/status").read_text().partition("VmHWM:")[2]
        except OSError:
            continue
        if told:  # a process that is gone but not yet waited for has no memory
            found[one] = int(told.split()[0]) / MB
    return found


def queued(pid: int) -> dict[int, float]:
    """Seconds that each was ready to run while others had the processors; of a thread of its own each, the first."""
    found = {}
    for one in family(pid):
        try:
            found[one] = int(Path(f"/proc/{one}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            continue
    return found
