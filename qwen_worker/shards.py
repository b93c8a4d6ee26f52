"""The files that hold a network's weights: which they are, what is in them, and how they get into memory."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from qwen_worker.snapshots import weights

# In the files of a text encoder, and in none that is loaded: it makes words, and the pipelines read what lies before.
UNUSED = "lm_head.weight"
# Of a file's description of itself in bytes, as safetensors has it (MAX_HEADER_SIZE).
MAX_HEADER = 100_000_000
PIECE = 32 * 2**20  # bytes read at a time


def files(folder: Path) -> list[Path]:
    """Those with the weights of the network in this folder, as far as they are there."""
    return [file for file in weights(folder) if file.is_file()]


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


def read(file: Path) -> Iterator[tuple[int, bool]]:
    """Bring what is used of a file from the disk into the page cache, in its order, piece by piece.

    What is in memory already is not read again. Most disks are fastest so, and the kernel keeps what was read in order
    in large pages, which are quickly mapped.

    Yields:
        the bytes of each piece as soon as it is there, and whether it had to be read.

    Raises:
        OSError: the file cannot be read.
        Exception: of many kinds, if it is damaged.
    """
    with file.open("rb") as opened, Path(os.devnull).open("wb") as nowhere:
        for begin, end in _used(file):
            missing = _first_missing(opened.fileno(), begin, end)
            yield missing - begin, False
            # No byte is copied so. posix_fadvise alone reads but 8 MiB of it, and on some systems nothing.
            while sent := os.sendfile(nowhere.fileno(), opened.fileno(), missing, min(PIECE, end - missing)):
                missing += sent
                yield sent, True


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
