"""What it takes to load the weights of a large network: as others do, and as this worker does.

    python -m bench loading

A QwenImageTransformer2DModel of 4.2 GB in shards of a gigabyte, random weights in bfloat16, is written to a temporary
folder. Each load is a process of its own, A-B-B-A: with the page cache cold (the files are dropped from it, which is
checked), then on the pages that this leaves both ways, by turns in either order. Imports are not counted. A virtual
machine may give free memory back to its host, and getting it again takes longer than the reading: so just before a cold
load the files are read once, in their order, and dropped, and either way finds the memory that this leaves.
Plain is `from_pretrained(folder, dtype=torch.bfloat16)` and `.to("cuda")` if there is CUDA. On a CPU the libraries map
the files and read nothing; so there both ways are counted until one byte of each page of every weight was read.
"""

import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file

from bench.row import Row, spread
from bench.start import printed
from local import page_cache
from qwen_worker import shards, start
from qwen_worker.model.load import DTYPE, network

Arm = Literal["plain", "ours"]
HEAD = f"""
import os, sys, time
from pathlib import Path
{inspect.getsource(start.age)}
"""
PLAIN_START = """
import runpod
import torch
from diffusers import QwenImageTransformer2DModel
model = QwenImageTransformer2DModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
"""
OUR_START = """
from qwen_worker import start
from qwen_worker.readahead import ReadAhead
from qwen_worker.shards import files
ReadAhead(files(Path(sys.argv[1])))
from qwen_worker.imports import importing, quick_cpuinfo
with importing(), quick_cpuinfo():
    import runpod
with importing():
    import torch
    from qwen_worker.model.load import network
    from diffusers import QwenImageTransformer2DModel
model = network(QwenImageTransformer2DModel, Path(sys.argv[1]))
"""
TAIL = """
for weight in model.parameters():
    weight.detach().flatten().view(torch.uint8)[:: os.sysconf("SC_PAGESIZE")].sum().item()
print(age())
"""
Task = Literal["plain", "ours", "disk"]
LAYERS = 6
SHARD = 10**9  # bytes
NAME = "diffusion_pytorch_model"
ORDER: tuple[Arm, ...] = ("plain", "ours", "ours", "plain") * 2
COLD, WARM, MEMORY = 1.5, 1.2, 1.1  # the goals
FAULTS = (
    "on a CPU nothing is copied: both ways map the same pages, and what takes time are the kernel's page faults, of "
    "which there are few for large pages (in_large_pages_gb)"
)


def make(folder: Path) -> None:
    """Write the network into a folder: every weight from the same random numbers, which are dear to make."""
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(num_layers=LAYERS)
    model.save_config(folder)
    parts: list[dict[str, torch.Size]] = [{}]
    for name, weight in model.state_dict().items():
        if DTYPE.itemsize * sum(shape.numel() for shape in (*parts[-1].values(), weight.shape)) > SHARD:
            parts.append({})
        parts[-1][name] = weight.shape
    largest = max(shape.numel() for part in parts for shape in part.values())
    numbers = (0.02 * torch.randn(largest)).to(DTYPE)
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"{NAME}-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {name: numbers[: shape.numel()].view(shape).clone() for name, shape in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def load(task: Task, folder: Path, *, cold: bool) -> dict[str, float]:
    """Load once, or only read the files, in this process: seconds, those in the kernel, and GB of host memory."""
    if cold:
        page_cache.drop(shards.files(folder))
        page_cache.fill(shards.files(folder))
        page_cache.drop(shards.files(folder))
        if left := sum(int(page_cache.cached(file).sum()) for file in shards.files(folder)):
            raise RuntimeError(f"{left} pages stay in the page cache: put TMPDIR on a disk")
    memory, system = _status("VmRSS"), os.times().system
    begin = time.perf_counter()
    weights: Iterable[torch.Tensor] = ()
    if task == "disk":
        page_cache.fill(shards.files(folder))
    elif task == "ours":
        weights = network(QwenImageTransformer2DModel, folder).parameters()
    else:
        model = QwenImageTransformer2DModel.from_pretrained(folder, dtype=DTYPE)
        weights = model.to("cuda" if torch.cuda.is_available() else "cpu").parameters()
    for weight in weights:
        weight.detach().flatten().view(torch.uint8)[:: os.sysconf("SC_PAGESIZE")].sum().item()
    seconds = time.perf_counter() - begin
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return {
        "seconds": seconds,
        "system_s": os.times().system - system,
        "grown_gb": (_status("VmHWM") - memory) / 1e9,
        "in_large_pages_gb": _kilobytes(rollup, "FilePmdMapped") / 1e9,
    }


def measure(folder: Path) -> tuple[float, float, dict[str, list[dict[str, float]]]]:
    """Size of the network and of its largest shard in bytes, and what was measured: arm and page cache → each run."""
    sizes = [file.stat().st_size for file in shards.files(folder)]
    runs: dict[str, list[dict[str, float]]] = {}
    _run("plain", folder)  # warms up: the libraries' own files
    for number, arm in enumerate(ORDER):
        if number % 2:
            runs.setdefault("disk, cold", []).append(_run("disk", folder, "--cold"))
        runs.setdefault(f"{arm}, cold", []).append(_run(arm, folder, "--cold"))
        for next_arm in get_args(Arm)[:: 1 if number % 2 else -1]:
            runs.setdefault(f"{next_arm} after {arm}", []).append(_run(next_arm, folder))
    return sum(sizes), max(sizes), runs


def starts(folder: Path) -> dict[Arm, list[float]]:
    """Seconds from the start of a process until it has imported its libraries and all weights are in memory."""
    seconds: dict[Arm, list[float]] = {arm: [] for arm in get_args(Arm)}
    for number, arm in enumerate(ORDER):
        page_cache.drop(shards.files(folder))
        done = printed(f"{HEAD}{PLAIN_START if arm == 'plain' else OUR_START}{TAIL}", str(folder))
        if number >= 2:  # the libraries' own files are warm from here on
            seconds[arm].append(done)
    return seconds


def rows() -> list[Row]:
    """Cold, warm and memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        size, largest, runs = measure(folder)
        begun = starts(folder)
    rates = {way: [size / 1e9 / run["seconds"] for run in some] for way, some in runs.items()}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    what = f"loading {size / 1e9:.1f} GB of weights ({where})"
    figures: dict[str, Any] = {f"{way}, GB/s": spread(some, 2) for way, some in rates.items()}
    for field in ("system_s", "in_large_pages_gb"):
        figures |= {f"{way}, {field}": spread([run[field] for run in some], 2) for way, some in runs.items()}

    def faster(how: str, goal: float, plain: str, ours: str, why: str) -> Row:
        middle = [statistics.median(rates[way]) for way in (plain, ours)]
        ratio = middle[1] / middle[0]
        told = f"{middle[1]:.2f} GB/s = {ratio:.2f} x"
        passed = ratio >= goal
        return Row(
            f"{what}, {how}", f">= {goal} x", f"{middle[0]:.2f} GB/s", told, passed, "" if passed else why, figures
        )

    over = {arm: [run["grown_gb"] - size / 1e9 for run in runs[f"{arm}, cold"]] for arm in get_args(Arm)}
    shares = {arm: max(values) * 1e9 / largest for arm, values in over.items()}
    alone = spread(rates["disk, cold"], 1)
    disk = (
        f"when they are only read, in order, the files come at {alone['least']} to {alone['most']} GB/s, by what the "
        "host of this virtual machine has in memory"
    )
    middle = {arm: statistics.median(seconds) for arm, seconds in begun.items()}
    return [
        Row(
            f"process start until libraries are imported and {size / 1e9:.1f} GB of weights are there, page cache cold",
            "imports and reading overlap",
            f"{middle['plain']:.1f} s",
            f"{middle['ours']:.1f} s = {middle['plain'] / middle['ours']:.2f} x",
            middle["ours"] < middle["plain"],
            "reading is the slower part here",
            {f"{arm}, s": spread(seconds, 2) for arm, seconds in begun.items()},
        ),
        faster("page cache cold", COLD, "plain, cold", "ours, cold", disk),
        faster("warm from the same way before", WARM, "plain after plain", "ours after ours", FAULTS),
        faster("warm from a plain load", WARM, "plain after plain", "ours after plain", FAULTS),
        Row(
            f"memory of the host while loading, beyond that of the weights ({where})",
            f"<= {MEMORY} of the largest shard",
            f"{shares['plain']:.2f}",
            f"{shares['ours']:.2f}",
            shares["ours"] <= MEMORY,
            figures={f"{arm}, GB": spread(values, 3) for arm, values in over.items()},
        ),
    ]


def _run(task: Task, folder: Path, *more: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.loading", task, str(folder), *more],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    run: dict[str, float] = json.loads(done.stdout)
    return run


def _status(field: str) -> int:
    """Of this process, in bytes."""
    return _kilobytes(Path("/proc/self/status").read_text(), field)


def _kilobytes(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    asked, folder, *more = sys.argv[1:]
    (task,) = (known for known in get_args(Task) if known == asked)
    sys.stdout.write(json.dumps(load(task, Path(folder), cold=bool(more))))
