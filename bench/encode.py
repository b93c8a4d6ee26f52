"""What it costs to write a result, and how large it gets.

    python -m bench encode

Each encoder that was to be chosen from, on pictures like those that models make and on flat art: computing time of
the process and wall time (the median of `ROUNDS`, by turns with the plain form), bytes beside its file, whether
the pixels are the same, and whether other threads can run meanwhile.
"""

import io
import statistics
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from bench.pictures import poster, real_looking
from bench.row import Row, spread
from qwen_worker.images.encode import encode

ROUNDS = 5
QUALITY = 95  # the worker's default
WORKING_S = 0.5
PLAIN = "Pillow's default"
OURS = "this worker's"
# Percent of the plain form's time, and percent more bytes: of the encoder, and of one that is to be fast above all.
GOALS = (25, 7), (6, 17)

Encoder = Callable[[Image.Image], bytes]


def pillow(kind: str, **options: int) -> Encoder:
    """Image.save with these options."""

    def encoded(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return encoded


def opencv(kind: str, *options: int) -> Encoder:
    """cv2.imencode with these options."""

    def encoded(image: Image.Image) -> bytes:
        _, data = cv2.imencode(kind, cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR), options)
        return data.tobytes()

    return encoded


PNG: dict[str, Encoder] = {
    PLAIN: pillow("PNG"),
    OURS: lambda image: encode(image, "png", QUALITY).data,
    "Pillow, level 1": pillow("PNG", compress_level=1),
    "Pillow, level 1, runs": pillow("PNG", compress_level=1, compress_type=zlib.Z_RLE),
    "Pillow, level 1, frequencies": pillow("PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY),
    "OpenCV's default": opencv(".png"),
    "OpenCV, all filters, runs": opencv(
        ".png", cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_ALL_FILTERS, cv2.IMWRITE_PNG_STRATEGY, zlib.Z_RLE
    ),
}  # fmt: skip
LOSSY: dict[str, Encoder] = {
    "jpeg, " + PLAIN: pillow("JPEG", quality=QUALITY, subsampling=0),
    "jpeg, " + OURS: lambda image: encode(image, "jpeg", QUALITY).data,
    "webp, " + OURS: lambda image: encode(image, "webp", QUALITY).data,
    **{f"webp, Pillow, method {method}": pillow("WEBP", quality=QUALITY, method=method) for method in range(5)},
    **{
        f"webp of quality 75, Pillow, method {method}": pillow("WEBP", quality=75, method=method) for method in range(5)
    },
}


def timed(encoder: Encoder, image: Image.Image) -> tuple[float, float]:
    """Milliseconds of computing and of wall time."""
    computing, wall = time.process_time(), time.perf_counter()
    encoder(image)
    return (time.process_time() - computing) * 1000, (time.perf_counter() - wall) * 1000


def measure(encoders: dict[str, Encoder], image: Image.Image) -> dict[str, Any]:
    """Of each: times, bytes, and how near the pixels are; the first is what the others are compared with."""
    files = {name: encoder(image) for name, encoder in encoders.items()}
    rounds = [[timed(encoder, image) for encoder in encoders.values()] for _ in range(ROUNDS)]
    first, *_ = files.values()
    found = {}
    for number, (name, file) in enumerate(files.items()):
        computing, wall = zip(*(times[number] for times in rounds), strict=True)
        plain = statistics.median(times[0][0] for times in rounds)
        found[name] = {
            "cpu_ms": spread(computing),
            "wall_ms": spread(wall),
            "cpu_percent": round(100 * statistics.median(computing) / plain, 1),
            "bytes": len(file),
            "size_percent": round(100 * (len(file) / len(first) - 1), 1),
            "psnr_db": nearness(image, file),
        }
    return found


def nearness(image: Image.Image, file: bytes) -> float | None:
    """PSNR; None if every pixel is the same."""
    error = np.asarray(image).astype(int) - np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    return round(float(10 * np.log10(255**2 / np.mean(error**2))), 2) if error.any() else None


def kept_percent(encoder: Encoder, image: Image.Image) -> float:
    """Of the time that an encoder works, the share in which a thread of Python that only counts cannot go on.

    That thread sleeps then. Where other programs keep it from a processor it does not: that is not counted.
    """
    started, done = threading.Event(), threading.Event()

    def counting() -> None:
        started.set()
        number = 0
        while not done.is_set():
            number += 1

    thread = threading.Thread(target=counting)
    thread.start()
    started.wait()
    state = Path(f"/proc/self/task/{thread.native_id}/schedstat")  # nanoseconds on a processor, and in its queue
    awake = sum(map(int, state.read_text().split()[:2]))
    begin = time.perf_counter()
    while (seconds := time.perf_counter() - begin) < WORKING_S:
        encoder(image)
    awake = sum(map(int, state.read_text().split()[:2])) - awake
    done.set()
    thread.join()
    return round(max(0.0, 100 * (1 - awake / 1e9 / seconds)), 1)


def results() -> dict[str, Any]:
    """Everything, as the file has it."""
    pictures = real_looking()
    flat = poster()
    one = next(iter(pictures.values()))
    return {
        "png": {name: measure(PNG, image) for name, image in {**pictures, "poster": flat}.items()},
        "lossy": {name: measure(LOSSY, image) for name, image in {**pictures, "poster": flat}.items()},
        "lock_kept_percent": {name: kept_percent(encoder, one) for name, encoder in {**PNG, **LOSSY}.items()},
    }


def rows() -> list[Row]:
    """One: the worst over the pictures that look real."""
    found = results()
    ours = {name: table[OURS] for name, table in found["png"].items()}
    real = [one for name, one in ours.items() if name != "poster"]
    time_, size = max(one["cpu_percent"] for one in real), max(one["size_percent"] for one in real)
    same = all(one["psnr_db"] is None for one in ours.values())
    mine = [one["cpu_ms"]["median"] for one in real]
    theirs = [table[PLAIN]["cpu_ms"]["median"] for name, table in found["png"].items() if name != "poster"]
    plain = f"{min(theirs):.0f} to {max(theirs):.0f} ms"
    told = f"{time_:.1f} % ({min(mine):.0f} to {max(mine):.0f} ms) at {size:+.1f} %"
    what = "PNG of a result, 1024 x 1024 to 1664 x 928, computing time and size, the worst of four pictures"
    return [
        Row(
            what=what if not first else "the same, as a fast mode: there is one encoder",
            goal=f"<= {most} % of the time at <= +{larger} %, same pixels",
            plain=plain,
            ours=told,
            passed=time_ <= most and size <= larger and same,
            why="the filters of the rows and their choice" if time_ > most else "the pictures do not suit its filters",
            figures=found if not first else {},
        )
        for first, (most, larger) in enumerate(GOALS)
    ]
