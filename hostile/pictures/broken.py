"""Pictures that were cut off on their way, or of which a bit is wrong."""

from collections.abc import Iterator

import numpy as np

from hostile.pictures.parts import Named, file_of, photo, photo_file

FLIPS = 300  # of each format


def whole() -> dict[str, bytes]:
    """One of each way in which the three formats store their pixels."""
    clear = photo()
    clear.putalpha(photo().convert("L"))
    return {
        "jpeg": photo_file("JPEG"),
        "jpeg-progressive": photo_file("JPEG", progressive=True),
        "jpeg-restarts": photo_file("JPEG", restart_marker_blocks=2),
        "png": photo_file("PNG"),
        "webp": photo_file("WEBP"),
        "webp-lossless": photo_file("WEBP", lossless=True),
        "webp-alpha": file_of(clear, "WEBP"),
    }


def cut() -> Iterator[Named]:
    """Each at 1 to 99 percent, and without its last bytes."""
    for name, data in whole().items():
        for percent in range(1, 100):
            yield f"{name}-cut-at-{percent}-percent", data[: len(data) * percent // 100]
        for missing in range(1, 13):
            yield f"{name}-without-its-last-{missing}", data[:-missing]


def flipped() -> Iterator[Named]:
    """One bit each, anywhere."""
    draw = np.random.default_rng(0)
    for name, data in whole().items():
        for place in draw.choice(8 * len(data), FLIPS, replace=False):
            odd = bytearray(data)
            odd[place // 8] ^= 1 << place % 8
            yield f"{name}-bit-{place}", bytes(odd)


def scrambled() -> Iterator[Named]:
    """Runs of other bytes, at the beginning more often than behind."""
    draw = np.random.default_rng(1)
    for name, data in whole().items():
        for number in range(100):
            at = int(len(data) * draw.random() ** 3)
            length = int(draw.integers(1, 40))
            yield f"{name}-scrambled-{number}", data[:at] + draw.bytes(length) + data[at + length :]


def all_of_them() -> Iterator[Named]:
    """Every case of this module."""
    for some in (cut, flipped, scrambled):
        yield from some()
