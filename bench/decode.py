"""What it costs to decode an ordinary picture: guarded as in the worker, without the guard, and by Pillow alone.

    python -m bench.decode        writes bench/results/decode.json

A picture of 2000 x 1500 in each format, the three by turns in one process; the median of `ROUNDS`. Times are of this
machine, so it is their ratio that counts.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from hostile.decoding.caller import PILLOW, UNGUARDED, Decode, candidate
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


def measure(candidates: dict[str, Decode], data: bytes) -> dict[str, Any]:
    """Medians of each, by turns, and how many times as long the guarded one takes as the others."""
    rounds = [[milliseconds(decode, data) for decode in candidates.values()] for _ in range(ROUNDS + 1)][1:]
    times = dict(zip(candidates, zip(*rounds, strict=True), strict=True))
    middle = {name: statistics.median(column) for name, column in times.items()}
    return {
        "bytes": len(data),
        "median_ms": {name: round(time, 1) for name, time in middle.items()},
        "range_ms": {name: [round(min(column), 1), round(max(column), 1)] for name, column in times.items()},
        "guard_costs": round(middle[WORKER] / middle[UNGUARDED], 2),
        "to_pillow": round(middle[WORKER] / middle[PILLOW], 2),
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
    with candidate(WORKER) as guarded, candidate(UNGUARDED) as unguarded, candidate(PILLOW) as plain:
        candidates = {WORKER: guarded, UNGUARDED: unguarded, PILLOW: plain}
        rows = {
            name: measure(candidates, file_of(picture(name), kind, **options))
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
    argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__).parse_args()
    main()
