"""Large pieces of memory go back to the system when they are freed."""

import ctypes

# Of malloc.h.
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
LARGE = 1_000_000  # bytes
HEAPS = 2


def give_back() -> None:
    """Keep what is large out of glibc's heaps, and their number small, for the whole process.

    Left to itself glibc raises its threshold to the largest piece that was ever freed, up to 32 MB. From then on
    downloads and pictures lie between what is small and stays, and leave holes: a worker that holds nothing more has
    hundreds of megabytes more after some thousand jobs; and each thread has a heap with holes of its own. Other C
    libraries have no such call, and nothing is done.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_ARENA_MAX, HEAPS)
