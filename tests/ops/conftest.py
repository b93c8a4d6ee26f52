"""The tool as a person runs it, on stand-ins of RunPod's APIs."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

from local.runpod_rest import LocalRest
from local.worker import ROOT
from ops import deploy

BUCKET = ("--env", "S3_ENDPOINT=s3.us-west-000.backblazeb2.com", "--env", "S3_BUCKET=pictures")
HERE = (*BUCKET, "--registry", "docker.io/you")


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def deployed(*arguments: str) -> Done:
    """A command in this process, which costs no start of another."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            deploy.app(arguments, prog_name="deploy", standalone_mode=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())


def as_a_process(*arguments: str, more: dict[str, str] | None = None, said: str = "") -> Done:
    """A command as a person starts it, with nothing of this shell."""
    environment = {"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "NO_PROXY": "127.0.0.1", **(more or {})}
    done = subprocess.run(
        [sys.executable, "-m", "ops.deploy", *arguments], cwd=ROOT, env=environment, input=said, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def no_runpod_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test has a key that is true, nor an endpoint."""
    for name in ("RUNPOD_API_KEY", "RUNPOD_ENDPOINT_ID", "RUNPOD_REST_URL", "RUNPOD_ENDPOINT_BASE_URL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRest]:
    """REST v2, which the commands of this test talk to."""
    with LocalRest() as api:
        for name, value in api.environment.items():
            monkeypatch.setenv(name, value)
        yield api


@pytest.fixture
def made(rest: LocalRest) -> Callable[..., str]:
    """Makes an endpoint, and returns its id."""

    def make(*more: str) -> str:
        done = deployed("create", *HERE, *more)
        assert done.code == 0, done.err
        rest.requests.clear()
        return str(done.json["id"])

    return make
