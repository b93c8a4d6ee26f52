"""Every figure of the README's table, measured anew.

    python -m bench [NAME...]      writes out/bench.json, and prints the table

Each module runs in a process of its own. A run in which a job fails, or is answered without having been done, is none:
it ends with that error.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from bench.row import Row, rows_of, table

MODULES = ("throughput", "hot_path", "lone_job", "encode", "repeats", "start", "loading")
LIBRARIES = ("runpod", "torch", "diffusers", "transformers", "minio", "Pillow", "opencv-python-headless", "numpy")
OUT = Path("out") / "bench.json"


def measured(name: str) -> tuple[list[Row], float]:
    """The rows of a module, in a fresh process, and the seconds that they took."""
    begin = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        rows = process.submit(rows_of, name).result()
    return rows, time.perf_counter() - begin


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="measure what the README's table says")
    parser.add_argument("modules", nargs="*", metavar="NAME", help=f"any of {' '.join(MODULES)}")
    asked = parser.parse_args().modules or MODULES
    if unknown := set(asked) - set(MODULES):
        parser.error(f"no such module: {' '.join(sorted(unknown))}")
    rows: list[Row] = []
    seconds: dict[str, int] = {}
    for name in asked:
        more, took = measured(name)
        seconds[name] = round(took)
        rows += more
        print(f"{name}: {took:.0f} s", *map(str, more), sep="\n  ", flush=True)
    report = {
        "setting": {
            "command": " ".join(["python -m bench", *(asked if asked != MODULES else ())]),
            "device": "cpu",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load_before": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            "libraries": {library: version(library) for library in LIBRARIES},
            "seconds": seconds,
        },
        "rows": [asdict(row) for row in rows],
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(table(rows))


def _processor() -> str:
    """As the system calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
