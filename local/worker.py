"""The worker, `python handler.py`, as a child process on local parts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from local import children

ROOT = Path(__file__).parent.parent
HANDLER = (str(ROOT / "handler.py"),)
# A worker must see what it is given and nothing else: no variable of this shell that means something to it.
KEPT = {"PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "SSL_CERT_FILE", "COVERAGE_PROCESS_START"}


def class_of(model: Path) -> str:
    """The pipeline's class of a model folder, or nothing."""
    index = model / "model_index.json"
    return str(json.loads(index.read_text())["_class_name"]) if index.exists() else ""


def environment(model: Path, *parts: Mapping[str, str]) -> dict[str, str]:
    """Every variable of a worker on the CPU with this model; later parts win."""
    base = {name: value for name, value in os.environ.items() if name in KEPT}
    own = {
        "MODEL_ID": str(model),
        "MODEL_CLASS": class_of(model),
        "ALLOW_CPU": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
        # Local parts listen wherever there is room.
        "SOURCE_PORTS": "1-65535",
        # The model is so small that a second thread only waits for the first.
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {key: value for part in (base, own, *parts) for key, value in part.items()}


def start(
    variables: Mapping[str, str], log: Path, *arguments: str, program: Sequence[str] = HANDLER
) -> subprocess.Popen[str]:
    """Start `python handler.py`, or another program of Python's; stdout and stderr go to `log` and to `log`.err.

    It runs beside the log, so that no `.env` and no `test_input.json` of the checkout reach it.
    """
    command = [sys.executable, *program, *arguments]
    with log.open("w") as output, log.with_suffix(".err").open("w") as errors:
        return children.start(command, variables, stdout=output, stderr=errors, cwd=log.parent, start_new_session=True)


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill what a worker left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
