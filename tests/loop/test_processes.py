"""How `python handler.py` starts, does one job from the command line, serves HTTP, and refuses to start."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import load_file, save_file

from local import children, worker
from local.bucket import LocalBucket
from local.stack import Stack
from local.web import ImageHost
from tests.loop.test_jobs import RESULTS, SMALL, error_of, result_of
from tests.pictures import file_of, photo

pytestmark = pytest.mark.slow


def run(variables: dict[str, str], folder: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON lines of stdout, and stderr."""
    command = [sys.executable, str(worker.ROOT / "handler.py"), *arguments]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture
def variables(tiny: Path, shared_bucket: LocalBucket) -> dict[str, str]:
    """Of a worker that would work."""
    return worker.environment(tiny, shared_bucket.environment, {"WARMUP": "0"})


def test_one_job_from_the_command_line(variables: dict[str, str], host: ImageHost, tmp_path: Path) -> None:
    """Its answer is a line on stdout, and the exit code is 0."""
    request = {"image_url": host.put("/a.png", file_of(photo())), "prompt": "make it warm", **SMALL}
    code, lines, _ = run(variables, tmp_path, "--test_input", json.dumps({"input": request}))
    (answer,) = (line for line in lines if "status" in line and "result" in line)

    assert code == 0
    assert requests.get(answer["result"]["presigned_url"], timeout=5).ok


def test_a_failed_job_from_the_command_line(variables: dict[str, str], tmp_path: Path) -> None:
    """Its error is a line on stdout, and the exit code is 1. Each log obeys its level."""
    quiet = {**variables, "LOG_LEVEL": "ERROR", "RUNPOD_LOG_LEVEL": "ERROR"}
    code, lines, _ = run(quiet, tmp_path, '--test_input={"input": {"prompt": "no picture"}}')
    (answer,) = (line for line in lines if "error" in line)

    assert code == 1
    assert answer["error"]["type"] == "BadInput"
    assert {line["level"] for line in lines if "level" in line} == {"ERROR"}
    assert {line["logger"] for line in lines if "logger" in line} == {"runpod"}


def test_test_input_json_and_dot_env_are_read_from_the_folder(
    variables: dict[str, str], host: ImageHost, tmp_path: Path
) -> None:
    """As the README tells a person to try the worker."""
    request = {"image_url": host.put("/a.png", file_of(photo())), "prompt": "make it warm", **SMALL}
    (tmp_path / "test_input.json").write_text(json.dumps({"input": request}))
    ours = {name: variables.pop(name) for name in list(variables) if name.startswith("S3_")}
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in ours.items()))
    code, lines, _ = run(variables, tmp_path)

    assert code == 0
    assert any(line.get("status") == "success" and "result" in line for line in lines)


def test_a_wrong_environment_stops_the_worker_at_once(variables: dict[str, str], tmp_path: Path) -> None:
    """One line names every variable."""
    del variables["S3_BUCKET"]
    begin = time.monotonic()
    code, lines, errors = run({**variables, "PRESIGN_EXPIRY": "0", "PREFETCH": "x"}, tmp_path)

    assert code == 1
    assert all(name in lines[-1]["message"] for name in ("S3_BUCKET", "PRESIGN_EXPIRY", "PREFETCH"))
    assert lines[-1]["level"] == "CRITICAL"
    assert errors == ""
    assert time.monotonic() - begin < 30


def test_without_a_gpu_the_worker_stops(variables: dict[str, str], tmp_path: Path) -> None:
    """Unless it was told that it may."""
    del variables["ALLOW_CPU"]
    code, lines, _ = run(variables, tmp_path)

    assert code == 1
    assert "needs a GPU" in lines[-1]["message"]


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A model whose weights are not numbers, as a file damaged on disk may be."""
    folder = Path(shutil.copytree(tiny, tmp_path / "broken"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.bias"] = torch.full_like(weights["proj_out.bias"], float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_a_broken_model_stops_the_worker_at_its_warm_up(
    broken: Path, shared_bucket: LocalBucket, tmp_path: Path
) -> None:
    """It never takes a job."""
    code, lines, _ = run(worker.environment(broken, shared_bucket.environment), tmp_path)

    assert code == 1
    assert "not finite" in lines[-1]["message"]


def test_a_broken_model_makes_no_black_picture(broken: Path, tmp_path: Path) -> None:
    """Without a warm-up each job fails, and nothing is stored."""
    with Stack(tmp_path / "stack", model=broken, more={"WARMUP": "false"}) as stack:
        url = stack.host.put("/a.png", file_of(photo()))
        error = error_of(stack.run({"image_url": url, "prompt": "make it warm", **SMALL}))

        assert (error["type"], error["details"]["stage"]) == ("ModelError", "edit")
        assert stack.bucket.keys(RESULTS) == []


def test_the_local_api_answers_success_and_failure(variables: dict[str, str], host: ImageHost, tmp_path: Path) -> None:
    """`--rp_serve_api`: an error object instead of a string would be its 500."""
    port = children.free_port()
    process = worker.start(variables, tmp_path / "api.log", "--rp_serve_api", "--rp_api_port", str(port))
    try:
        url = f"http://127.0.0.1:{port}/runsync"
        request = {"image_url": host.put("/a.png", file_of(photo())), "prompt": "make it warm", **SMALL}
        good = _post(url, request)
        bad = _post(url, {**request, "seed": "no"})
    finally:
        process.terminate()
        process.wait(30)

    assert result_of(good)["meta"]["cache"] == "miss"
    assert error_of(bad)["type"] == "BadInput"


def _post(url: str, request: dict[str, Any]) -> dict[str, Any]:
    end = time.monotonic() + 60
    while True:
        try:
            answer = requests.post(url, json={"input": request}, timeout=60)
        except requests.ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            answer.raise_for_status()
            job: dict[str, Any] = answer.json()
            return job
