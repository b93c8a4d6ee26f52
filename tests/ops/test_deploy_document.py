"""docs/deploy.md: each of its commands is run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from local.runpod_api import LocalRunPod
from local.runpod_rest import KEY, LocalRest
from local.web import ImageHost
from local.worker import ROOT
from qwen_worker.cards import CARDS
from qwen_worker.family import EDIT
from tests.ops.conftest import deployed
from tests.ops.retouching import WORKER, Retoucher
from tests.ops.test_deploy import ENGINE

DOCUMENT = (ROOT / "docs" / "deploy.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]
TOOL = ".venv/bin/python -m ops.deploy "
COMMANDS = [shlex.split(line.removeprefix(TOOL)) for line in LINES if line.startswith(TOOL)]
SETUP = [line for line in LINES if not line.startswith(TOOL)]


def test_each_command_does_what_it_says(
    rest: LocalRest, host: ImageHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, on stand-ins: the endpoint is made, used, changed and deleted."""
    docker = tmp_path / "docker"
    docker.write_text(ENGINE)
    docker.chmod(0o755)
    (example,) = re.findall(r"```ini\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "deploy.env").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ENGINE_LOG", str(tmp_path / "engine.log"))
    rest.breaks = True
    with LocalRunPod() as jobs:
        monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", jobs.base_url)
        for command in COMMANDS:
            named = [one for one in rest.endpoints.values() if one["name"] == "qwen-image-edit"]
            for one in named:
                rest.workers[one["id"]] = [{"id": WORKER, "status": "IDLE", "isStale": False, "gpuCount": 1}]
            if command[0] == "smoke":
                with Retoucher(jobs, host, named[0]["id"]):
                    done = deployed(*command)
            else:
                done = deployed(*command)
            assert done.code == 0, (command, done.err)
    assert sorted(one["name"] for one in rest.endpoints.values()) == ["another", "baked", "cached", "on-a-volume"]
    assert [one["disk"] for one in rest.endpoints.values()] == [80, 20, 20, 20]
    releases = [one.body["image"] for one in rest.requests if one.method == "PATCH" and "image" in one.body]
    assert releases == ["docker.io/you/qwen-worker:1.1.0", "docker.io/you/qwen-worker:1.0.0"]


def test_every_command_is_in_it() -> None:
    """And its figures are those of the tables."""
    assert {command[0] for command in COMMANDS} == {
        "pools", "build", "push", "create", "update", "up", "status", "smoke", "logs", "destroy",
    }  # fmt: skip
    (a100,) = (one for one in CARDS if one.name == "A100 80GB")
    price = a100.usd_per_second or 0
    assert f"{price:.5f} x 86,400 = {price * 86_400:.2f} dollars" in DOCUMENT
    assert f"{EDIT.weights_gb} GB" in DOCUMENT


@pytest.mark.slow
def test_its_requirements_are_enough(tmp_path: Path) -> None:
    """Its first two commands make an environment in which the tool runs, and in which there is no torch."""
    for name in ("ops", "qwen_worker", "requirements-ops.txt", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    setup = "\n".join(SETUP).replace("python3 ", f"{sys.executable} ", 1)
    run = "set -e\n" + setup + f"\n{TOOL}pools\n! .venv/bin/python -c 'import torch' 2>/dev/null\n"

    done = subprocess.run(
        ["/bin/bash", "-c", run], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "AMPERE_80" in done.stdout
    assert KEY not in done.stdout
