"""Which part of a file is in memory, and a way to get it out again: what a load finds cold or warm."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIECE = 8 * 2**20
LIBC = ctypes.CDLL(None, use_errno=True)


def drop(files: Iterable[Path]) -> None:
    """Take files out of the page cache, so that the next reader waits for the disk. In a tmpfs they stay."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def fill(files: Iterable[Path]) -> None:
    """Read files from their beginnings to their ends, one after the other."""
    buffer = bytearray(PIECE)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def cached(file: Path) -> NDArray[np.bool_]:
    """Of each page of a file that is not empty, whether it is in memory.

    Raises:
        OSError: the kernel does not tell.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        first = ctypes.c_char.from_buffer(mapped)
        failed = LIBC.mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
        )
        del first  # else the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    resident: NDArray[np.bool_] = pages % 2 == 1  # the other bits mean nothing
    return resident
