"""What was large and is freed is the system's again."""

import subprocess
import sys

from local.worker import ROOT

# A piece of 30 MB teaches glibc to keep the next one on its heap, where small ones behind it hold it down.
CODE = """
import os
from pathlib import Path
from qwen_worker.memory import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

{call}
before = resident()
large = b"x" * 30_000_000
del large
large = b"x" * 29_000_000
small = [bytes(1000) for _ in range(2000)]
del large
print(resident() - before)
"""


def kept(call: str) -> int:
    """Bytes that a process still has after it has freed all that is large."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(call=call)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_large_pieces_are_given_back() -> None:
    """The small ones stay where they are."""
    assert kept("give_back()") < 10_000_000


def test_by_itself_the_c_library_keeps_them() -> None:
    """Else the call would be dead weight."""
    assert kept("") > 25_000_000
