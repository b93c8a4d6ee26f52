"""How soon a worker reads its first weight, and what RunPod's SDK costs to import: plain and ours, by turns.

    python -m bench start

Each start is a process of its own, on the same tiny model, in the order A-B-B-A. The plain form is that of public
workers: RunPod's SDK, torch and diffusers are imported one after the other, and then `from_pretrained` opens the first
file of weights. It is QwenImagePipeline, since that of edits wants torchvision; ours is `python handler.py`, whose log
tells the moment. Both count from when the kernel started the process.
"""

import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.row import Row, spread
from local import tiny_model, worker
from qwen_worker import start

ROUNDS = 3  # of A-B-B-A: six of each
GOAL_S = 0.5  # of either
BUCKET = {"S3_ENDPOINT": "localhost", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b", "S3_BUCKET": "nobody-asks-it"}

PLAIN_START = f"""
import os, sys, time
from pathlib import Path
{inspect.getsource(start.age)}
def opened(*_, **__):
    print(age(), flush=True)
    os._exit(0)
import runpod
import torch
import safetensors.torch
safetensors.safe_open = safetensors.torch.safe_open = opened
from diffusers import QwenImagePipeline
QwenImagePipeline.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
"""
PLAIN_IMPORT = "import time; begin = time.perf_counter(); import runpod; print(time.perf_counter() - begin)"
OUR_IMPORT = """
import time
begin = time.perf_counter()
from qwen_worker.imports import importing, quick_cpuinfo
with importing(), quick_cpuinfo():
    import runpod
print(time.perf_counter() - begin)
"""


def printed(code: str, *arguments: str) -> float:
    """The number that a fresh process prints last."""
    command = [sys.executable, "-c", code, *arguments]
    variables = worker.environment(Path(), {"PYTHONPATH": str(worker.ROOT)})
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def first_byte(model: Path) -> float:
    """Of a worker that is ended as soon as it has told."""
    command = [sys.executable, *worker.HANDLER, "--test_input", "{}"]
    with subprocess.Popen(
        command, env=worker.environment(model, BUCKET), stdout=subprocess.PIPE, text=True, cwd=model
    ) as process:
        told = (json.loads(line) for line in process.stdout or ())
        seconds = next(line["first_byte_s"] for line in told if line["message"] == "weights read ahead")
        process.kill()
    return float(seconds)


def row(what: str, plain: Callable[[], float], ours: Callable[[], float]) -> Row:
    """Both by turns, after one of each that does not count."""
    plain(), ours()
    seconds: dict[Callable[[], float], list[float]] = {plain: [], ours: []}
    computed: dict[Callable[[], float], list[float]] = {plain: [], ours: []}
    for form in (plain, ours, ours, plain) * ROUNDS:
        before = sum(os.times()[2:4])
        seconds[form].append(form())
        computed[form].append(sum(os.times()[2:4]) - before)
    figures = {
        "plain_s": spread(seconds[plain], 2),
        "ours_s": spread(seconds[ours], 2),
        "plain_process_cpu_s": spread(computed[plain], 2),
        "ours_process_cpu_s": spread(computed[ours], 2),
        "load": round(os.getloadavg()[0], 1),
    }
    median = statistics.median(seconds[ours])
    waited = (
        f"the whole process computes {statistics.median(computed[ours]):.2f} s, the rest it waits for one of "
        f"{os.cpu_count()} cores at a load of {figures['load']}"
    )
    return Row(
        what=what,
        goal=f"<= {GOAL_S} s",
        plain=f"{statistics.median(seconds[plain]):.2f} s",
        ours=f"{median:.2f} s",
        passed=median <= GOAL_S,
        why="" if median <= GOAL_S else waited,
        figures=figures,
    )


def rows() -> list[Row]:
    """Both of them."""
    with tempfile.TemporaryDirectory() as home:
        words = tiny_model.make_t2i(Path(home) / "words")
        model = tiny_model.make(Path(home) / "edit")
        return [
            row(
                "process start to first weight byte read",
                lambda: printed(PLAIN_START, str(words)),
                lambda: first_byte(model),
            ),
            row("import of runpod", lambda: printed(PLAIN_IMPORT), lambda: printed(OUR_IMPORT)),
        ]
