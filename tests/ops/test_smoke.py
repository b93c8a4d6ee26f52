"""Three edits on an endpoint, and what is said of endpoints that do not do them."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from local.runpod_api import ENDPOINT, LocalRunPod
from local.runpod_rest import KEY, LocalRest
from local.stack import Stack
from local.web import ImageHost
from local.worker import ROOT
from tests.ops.conftest import Done, deployed
from tests.ops.retouching import WORKER, Retoucher

GPU = "NVIDIA A100-SXM4-80GB"
SMOKE = ("smoke", "--timeout", "20")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRunPod]:
    """The job API, which the commands of this test talk to."""
    with LocalRunPod() as api:
        monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", api.base_url)
        yield api


def worker(**more: Any) -> dict[str, Any]:
    return {"id": WORKER, "status": "IDLE", "isStale": False, "gpuCount": 1, "gpuTypeId": GPU, "uptimeSeconds": 9,
            **more}  # fmt: skip


@pytest.fixture
def smoked(rest: LocalRest, made: Callable[..., str], jobs: LocalRunPod, host: ImageHost) -> Callable[..., list[Done]]:
    """Runs `smoke` once for each thing that may be wrong with the worker."""
    endpoint_id = made()
    rest.workers[endpoint_id] = [worker()]

    def run(*wrongs: str, options: Sequence[str] = ()) -> list[Done]:
        done = []
        with Retoucher(jobs, host, endpoint_id) as retoucher:
            for retoucher.wrong in wrongs:
                done.append(deployed(*SMOKE, *options))
        return done

    return run


def test_three_edits_are_timed_and_priced(smoked: Callable[..., list[Done]], jobs: LocalRunPod) -> None:
    """One cold and two warm ones; each asks for something that was never asked before."""
    jobs.ready = 0
    (done,) = smoked("", options=["--json"])

    assert done.code == 0, done.err
    edits = done.json["edits"]
    assert [edit["which"] for edit in edits] == ["cold", "warm", "warm"]
    for edit in edits:
        assert edit["wall_ms"] >= edit["execution_ms"] >= 0
        assert edit["delay_ms"] >= 0
        assert edit["timings_ms"]["edit"] == 12
        assert (edit["worker"], edit["gpu"], edit["usd_told"]) == (WORKER, GPU, 0.00123)
        assert edit["usd"] == pytest.approx(edit["execution_ms"] / 1000 * 0.00076)
    for field in ("prompt", "seed", "image_url"):
        assert len({job.input[field] for job in jobs.jobs.values()}) == 3
    assert "no worker is up" in done.err


def test_it_is_told_to_people(smoked: Callable[..., list[Done]]) -> None:
    """A line an edit."""
    (done,) = smoked("")

    lines = done.out.splitlines()
    assert lines[0] == "a worker is warm already: no start is seen"
    assert len(lines) == 4
    assert f"on {GPU}; of it edit 0.01 s; costs $0.00123 by the worker" in lines[1]
    assert done.err == "3 edits are as they must be\n"


def test_what_is_wrong_is_told(smoked: Callable[..., list[Done]]) -> None:
    """In a sentence, with exit code 1, at the first edit that shows it."""
    sentences = {
        "failed": "is FAILED: ModelError: out of memory",
        "another worker": "is this endpoint this worker?",
        "unchanged": "is its source: nothing was edited",
        "bytes": "leads to other bytes than the worker wrote",
        "format": "is damaged, or not the PNG that was asked for",
        "size": "has 64 x 64 pixels, its source 256 x 192",
        "link": "answers 404: are S3_ENDPOINT",
        "cut": "does not open (",
        "reused": "reused an earlier result",
    }

    for said, done in zip(sentences.values(), smoked(*sentences), strict=True):
        assert (done.code, done.out.count("warm:")) == (1, 0)
        assert said in done.err


def test_a_job_that_nobody_takes_is_cancelled(made: Callable[..., str], jobs: LocalRunPod) -> None:
    """After the time that was said."""
    made()

    done = deployed("smoke", "--timeout", "0.2")

    assert "is still IN_QUEUE after 0.2 s and was cancelled" in done.err
    assert [job.status for job in jobs.jobs.values()] == ["CANCELLED"]


@pytest.mark.usefixtures("jobs")
def test_status_tells_all(rest: LocalRest, made: Callable[..., str]) -> None:
    """The endpoint, its workers, its releases and its queue."""
    endpoint_id = made()
    rest.workers[endpoint_id] = [worker(isStale=True)]
    deployed("update", "--tag", "2")

    people, programs = deployed("status"), deployed("status", "--json")

    for part in (
        f"qwen-image-edit ({endpoint_id}) runs docker.io/you/qwen-worker:2 on AMPERE_80",
        "workers: 0 to 3; timeout 600 s; FlashBoot FLASHBOOT",
        "jobs: 0 inQueue",
        f"{WORKER}: IDLE on {GPU}, up 9 s, of an older release",
        "release 2 of 2026-11-21T12:00:00Z: image",
        "release 1 of 2026-11-21T12:00:00Z: as made",
    ):
        assert part in people.out
    assert set(programs.json) >= {"endpoint", "workers", "summary", "releases", "rollout", "health"}


def test_logs_are_lines_of_json(rest: LocalRest, made: Callable[..., str]) -> None:
    """What a worker wrote cannot move the terminal of whoever reads it."""
    endpoint_id = made()
    assert "no worker is up" in deployed("logs").err
    rest.workers[endpoint_id] = [worker()]
    rest.lines, rest.breaks = ["\x1b[2Jloading", "ready"], True

    done = deployed("logs", "--tail", "2")

    assert "\x1b" not in done.out
    assert done.out.splitlines()[1] == (
        '{"worker": "w1", "source": "container", "line": "ready", "ts": "2026-11-21T12:00:00Z"}'
    )


@pytest.mark.slow
def test_logs_are_followed_until_ctrl_c(rest: LocalRest, made: Callable[..., str]) -> None:
    """New lines come when there are some, also where RunPod ends the stream; a signal ends it at once."""
    endpoint_id = made()
    rest.workers[endpoint_id] = [worker(), worker(id="w2")]
    rest.breaks = True
    command = [sys.executable, "-m", "ops.deploy", "logs", "--follow"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        first = [json.loads(process.stdout.readline()) for _ in range(4)]
        rest.lines.append("job done")
        then = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.communicate()

    assert {(one["worker"], one["line"]) for one in first} == {
        (name, line) for name in ("w1", "w2") for line in ("loading", "worker ready")
    }
    assert {(one["worker"], one["line"]) for one in then} == {("w1", "job done"), ("w2", "job done")}


@pytest.mark.slow
def test_the_true_worker_passes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RunPod's loop, a bucket and the true pipeline with tiny weights."""
    with Stack(tmp_path, model=tiny, more={"MAX_INFERENCE_STEPS": "2"}) as stack:
        monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", stack.api.base_url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setenv("RUNPOD_REST_URL", "http://127.0.0.1:9")  # cards are told by nobody

        done = deployed("smoke", "--endpoint-id", ENDPOINT, "--timeout", "300", "--json")

    assert done.code == 0, done.err
    for before, after in itertools.pairwise(done.json["edits"]):
        assert before["worker"] == after["worker"]
    assert KEY not in done.out + done.err
