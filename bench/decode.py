"""What it costs to decode an ordinary picture, guarded as the worker does it and by Pillow alone.

    python -m bench.decode        writes bench/results/decode.json

A picture of 2000 x 1500 in each format, the two by turns in one process; the median of `ROUNDS`. Times are of this
machine, so it is their ratio that counts.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from hostile.caller import PILLOW, Decode, candidate
from hostile.outcome import WORKER
from hostile.pictures.parts import file_of, photo

OUT = Path(__file__).parent / "results" / "decode.json"
SIZE = 2000, 1500  # pixels
ROUNDS = 15
FILES: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG": ("JPEG", {"quality": 90}),
    "JPEG, progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "PNG": ("PNG", {}),
    "PNG with alpha": ("PNG", {}),
    "WebP": ("WEBP", {"quality": 90}),
}


def milliseconds(decode: Decode, data: bytes) -> float:
    """Of one decoding."""
    begin = time.perf_counter()
    decode(data)
    return (time.perf_counter() - begin) * 1000


def measure(guarded: Decode, plain: Decode, data: bytes) -> dict[str, Any]:
    """Medians of both, and how many times as long the guarded one takes."""
    pairs = [(milliseconds(guarded, data), milliseconds(plain, data)) for _ in range(ROUNDS + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "bytes": len(data),
        "worker_ms": round(ours, 1),
        "pillow_ms": round(theirs, 1),
        "ratio": round(ours / theirs, 2),
        "worker_slowest_ms": round(max(pair[0] for pair in pairs), 1),
    }


def picture(name: str) -> Image.Image:
    """Soft content and a camera's grain, the same each time."""
    grain = np.random.default_rng(0).normal(0, 4, (SIZE[1], SIZE[0], 3))
    image = Image.fromarray((np.asarray(photo(*SIZE)) + grain).clip(0, 255).astype(np.uint8))
    if name.endswith("alpha"):
        image.putalpha(image.convert("L"))
    return image


def main() -> None:
    """Measure, and write the file."""
    with candidate(WORKER) as guarded, candidate(PILLOW) as plain:
        rows = {
            name: measure(guarded, plain, file_of(picture(name), kind, **options))
            for name, (kind, options) in FILES.items()
        }
    setting = {
        "command": "python -m bench.decode",
        "size": SIZE,
        "rounds": ROUNDS,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pillow": features.version("pil"),
        "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
        "webp": features.version_module("webp"),
    }
    OUT.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
