"""What was large and is freed is the system's again."""

import subprocess
import sys

from local.worker import ROOT
from qwen_worker.memory import HEAPS

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

THREADS = """
import ctypes, threading, time
from qwen_worker.memory import give_back

{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fdopen.restype = ctypes.c_void_p, ctypes.c_void_p
together = threading.Barrier(8)
def work():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for one in threads:
    one.start()
for one in threads:
    one.join()
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


def said(code: str, call: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code.format(call=call)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def kept(call: str) -> int:
    """Bytes that a process still has after it has freed all that is large."""
    return int(said(CODE, call))


def heaps(call: str) -> int:
    """Of a process in which eight threads have asked for memory at the same time."""
    return said(THREADS, call).count("<heap ")


def test_large_pieces_are_given_back() -> None:
    """The small ones stay where they are."""
    assert kept("give_back()") < 10_000_000


def test_by_itself_the_c_library_keeps_them() -> None:
    """Else the call would be dead weight."""
    assert kept("") > 25_000_000


def test_threads_share_their_heaps() -> None:
    """By themselves they would not."""
    assert heaps("give_back()") <= HEAPS < heaps("")
