"""What a person runs: the demo, the local API, and RunPod's own client against the stand-in of its API."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from local import children
from local.stack import Stack
from local.worker import ROOT
from tests.loop.test_jobs import said

pytestmark = pytest.mark.slow


def test_the_demo_shows_one_edit(tmp_path: Path) -> None:
    """Exit code 0, the answer, and both pictures."""
    done = subprocess.run(
        [sys.executable, "-m", "local.demo", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    job = json.loads((tmp_path / "out" / "demo.json").read_text())
    meta = job["output"]["result"]["meta"]

    assert done.stderr == ""
    assert "[############################] done" in done.stdout
    assert re.search(r"the job is running: edit, step \d+ of 30", done.stdout)
    assert job["status"] == "COMPLETED"
    assert meta["prompt"] == json.loads((ROOT / "test_input.json").read_text())["input"]["prompt"]
    assert '"worker ready"' in (tmp_path / "out" / "demo.log").read_text()
    with Image.open(tmp_path / "out" / "demo.png") as picture:
        assert picture.height == 480


def test_serve_prints_a_line_that_works(tmp_path: Path) -> None:
    """And ends when it is told to."""
    port = children.free_port()
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "local.serve", "--port", str(port)], cwd=ROOT, stdout=output, stderr=output
        )
    try:
        body = _printed_body(log)
        end = time.monotonic() + 60
        while True:
            try:
                job = requests.post(f"http://127.0.0.1:{port}/runsync", json=body, timeout=60).json()
                metrics = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
                break
            except requests.ConnectionError:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    result = job["output"]["result"]

    assert result["meta"]["prompt"] == body["input"]["prompt"]
    counted = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }
    assert counted["qwen_worker_jobs_total", "edit", "success"] == 1
    assert counted["qwen_worker_gpu_seconds_total",] == pytest.approx(result["meta"]["gpu_s"], abs=1e-3)
    assert counted["qwen_worker_stage_seconds_count", "edit"] == 1
    # Here is no job API that could be told of the progress: nobody tries.
    assert "Failed to return" not in log.read_text()


def _printed_body(log: Path) -> dict[str, dict[str, str]]:
    end = time.monotonic() + 60
    while not (found := re.search(r"curl .* -d '(.*)'", log.read_text())):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    body: dict[str, dict[str, str]] = json.loads(found[1])
    return body


CLIENT = """
import json, sys
import runpod
runpod.api_key = "key"  # pragma: allowlist secret
endpoint = runpod.Endpoint("local")
request = json.loads(sys.argv[1])
synchronous = endpoint.run_sync({"input": request}, timeout=60)
job = endpoint.run({"input": request})
output = job.output(timeout=60)
print(json.dumps([synchronous, output, job.status(), endpoint.health()]))
"""


def test_runpods_own_client_gets_its_answer(stack: Stack) -> None:
    """`runpod.Endpoint`, from client to worker and back."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(said(stack, "client", seed=3))],
        env={**os.environ, "RUNPOD_ENDPOINT_BASE_URL": stack.api.base_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    synchronous, output, status, health = json.loads(done.stdout.splitlines()[-1])
    file = requests.get(output["result"]["presigned_url"], timeout=10)

    assert synchronous["status"] == output["status"] == "success"
    assert hashlib.sha256(file.content).hexdigest() == synchronous["result"]["meta"]["output"]["sha256"]
    assert status == "COMPLETED"
    assert health["jobs"]["completed"] >= 2
