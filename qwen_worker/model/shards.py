"""The files that hold a network's weights: which they are, what is in them, and how they get into memory."""

import json
import mmap
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Those that the libraries open; a repository may hold the same weights once more under other names.
NAMES = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
# In the files of a text encoder, and in none that is loaded: it makes words, and the pipelines read what lies before.
UNUSED = "lm_head.weight"
# Of a file's description of itself in bytes, as safetensors has it (MAX_HEADER_SIZE).
MAX_HEADER = 100_000_000
# More than one waits for the disk, and each copies what it reads: more than there are cores are slower.
THREADS = min(4, len(os.sched_getaffinity(0)))
PIECE = 8 * 2**20  # bytes of one read


def files(folder: Path) -> list[Path]:
    """Those with the weights of the network in this folder, in their order."""
    return sorted(file for file in folder.glob("*.safetensors") if NAMES.fullmatch(file.name))


def places(file: Path) -> dict[str, tuple[int, int]]:
    """Name of each tensor in a file → where its bytes begin and end.

    Raises:
        Exception: of many kinds, if it is not such a file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(min(length, MAX_HEADER)))
    begin = 8 + length
    return {
        name: (begin + tensor["data_offsets"][0], begin + tensor["data_offsets"][1])
        for name, tensor in header.items()
        if name != "__metadata__"
    }


def read_ahead(folder: Path) -> None:
    """Bring all of a network's weights that are used from the disk into the page cache.

    The libraries map the files and take a tensor's pages as they come to it, one wait after the other. Here several
    files are read at once, each from its beginning to its end: most disks are faster at that, and the kernel keeps
    what was read in order in large pages, which are quickly mapped. What is in memory already is not read again.

    Raises:
        OSError: a file cannot be read.
        Exception: of many kinds, if it is damaged.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(_read, files(folder)))


def _read(file: Path) -> None:
    buffer = memoryview(mmap.mmap(-1, PIECE))  # memory that is not taken until it is used
    descriptor = os.open(file, os.O_RDONLY)
    try:
        for begin, end in _used(file):
            for offset in range(_first_missing(descriptor, begin, end), end, PIECE):
                os.preadv(descriptor, [buffer[: end - offset]], offset)
    finally:
        os.close(descriptor)


def _used(file: Path) -> Iterator[tuple[int, int]]:
    """What is to be read of a file: where it begins and ends."""
    size = file.stat().st_size
    begin, end = places(file).get(UNUSED, (size, size))
    yield 0, begin
    yield end, size


def _first_missing(descriptor: int, begin: int, end: int) -> int:
    """From where on the page cache lacks this part of a file, as far as a look at every PIECE bytes can tell.

    Not every file system tells: then all of it is taken to be missing.
    """
    byte = bytearray(1)
    for offset in range(begin, end, PIECE):
        try:
            os.preadv(descriptor, [byte], offset, os.RWF_NOWAIT)
        except OSError:
            return max(begin, offset - PIECE)
    return end
