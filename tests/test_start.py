"""The start of a worker: reading begins before anything dear is imported, and every part of it is told."""

import ast
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local import worker
from local.bucket import LocalBucket
from qwen_worker.imports import importing
from qwen_worker.shards import UNUSED, places

JOB = json.dumps({"input": {"operation": "health"}})
PARTS = ["settings", "first_byte", "imports", "load", "warm_up", "ready"]
# An import that says when it happens: what is imported after it is dear.
TRACE = """
import sys
from qwen_worker import start
begin = start.begin
def told():
    print("begins", sorted({"runpod", "torch", "transformers", "diffusers", "huggingface_hub"} & sys.modules.keys()))
    begin()
start.begin = told
"""


def once(model: Path, bucket: LocalBucket, folder: Path, *python: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A worker that does one job without a picture."""
    command = [sys.executable, *python, *worker.HANDLER, "--test_input", JOB]
    variables = worker.environment(model, bucket.environment, more)
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_weights_are_read_before_anything_dear_is_imported(
    tiny: Path, shared_bucket: LocalBucket, tmp_path: Path
) -> None:
    """And the log tells of each part of the start when it was done."""
    (tmp_path / "sitecustomize.py").write_text(TRACE)
    done = once(tiny, shared_bucket, tmp_path, PYTHONPATH=f"{tmp_path}:{worker.ROOT}")
    first, *lines = [line for line in done.stdout.splitlines() if line]
    log = {line["message"]: line for line in map(json.loads, lines) if "message" in line}
    seconds = log["worker ready"]["seconds_from_process_start"]
    weights = sum(file.stat().st_size for file in tiny.rglob("*.safetensors"))
    begin, end = places(tiny / "text_encoder" / "model.safetensors")[UNUSED]

    assert done.returncode == 0
    assert first == "begins []"
    assert log["weights read ahead"]["bytes"] == weights - (end - begin)
    assert list(seconds) == PARTS
    assert list(seconds.values()) == sorted(seconds.values())


@pytest.mark.parametrize("wrong", [{"S3_BUCKET": ""}, {"MODEL_ID": "someone/model", "MODEL_REVISION": "x"}])
def test_wrong_settings_are_told_as_ever(
    tiny: Path, shared_bucket: LocalBucket, tmp_path: Path, wrong: dict[str, str]
) -> None:
    """By the check of the settings: nothing is read, and the log is JSON."""
    done = once(tiny, shared_bucket, tmp_path, **wrong)
    (line,) = map(json.loads, done.stdout.splitlines())

    assert (done.returncode, done.stderr) == (1, "")
    assert line["level"] == "CRITICAL"
    assert line["message"].startswith("SettingsError: ")


def test_the_age_of_the_process_is_the_kernels() -> None:
    """Of a child: at least what it slept, and at most what its parent saw."""
    begin = time.monotonic()
    code = "import time; from qwen_worker import start; time.sleep(0.05); print(start.age())"
    done = subprocess.run([sys.executable, "-c", code], cwd=worker.ROOT, capture_output=True, text=True, check=True)

    assert 0.05 <= float(done.stdout) <= time.monotonic() - begin + 2 / os.sysconf("SC_CLK_TCK")


def test_the_collector_rests_during_imports_only() -> None:
    """Also when one of them fails."""
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()

    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


PROGRAMS = """
import sys
started = []
sys.addaudithook(lambda event, of: started.append(str(of[0])) if event == "subprocess.Popen" else None)
import handler
print(started)
"""


def test_no_search_is_started_to_import_the_sdk() -> None:
    """For the processor's name, as py-cpuinfo does in another Python for a second; `file` and `uname` are quick."""
    done = subprocess.run([sys.executable, "-c", PROGRAMS], cwd=worker.ROOT, capture_output=True, text=True, check=True)

    assert set(ast.literal_eval(done.stdout)) <= {"file", "uname"}


@pytest.mark.slow
def test_the_sdk_is_told_the_name_that_it_would_have_found() -> None:
    """And whatever else it may come to ask."""
    code = (
        "import cpuinfo, handler; from runpod.serverless.utils import rp_debugger as sdk; "
        "from qwen_worker.imports import CpuInfo; real = cpuinfo.get_cpu_info(); quick = CpuInfo(lambda: real); "
        "print(sdk.PROCESSOR == real['brand_raw'], dict(quick) == real, quick.get('nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=worker.ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "True True None\n"
