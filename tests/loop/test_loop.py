"""The loop against a job API that misbehaves: RunPod's real SDK in a process, and a worker that echoes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import requests

from local import children, worker
from local.runpod_api import ENDPOINT, FINAL, LocalRunPod
from local.runpod_faults import Fault

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "echo_worker.py"
TIMEOUT_S = 20.0
# The true ones take minutes.
SHORT = {"first": 0.1, "idle": 0.2, "longest": 0.3, "asked": 3, "body": 0.3, "post": 0.5, "posting": 3}
PAUSES = "job-take: the next question waits"


class Echo:
    """Job API and worker. Use it as a context manager."""

    def __init__(self, folder: Path, patience: dict[str, float] | None = None, **more: str) -> None:
        self.api = LocalRunPod()
        self.log = folder / "echo.log"
        self._patience = patience or {}
        self._more = more

    def __enter__(self) -> Self:
        self.api.__enter__()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        worker.end_group(self.process)
        self.process.wait(10)
        self.api.__exit__()

    def start(self) -> None:
        """Another life."""
        asked = self.api.takes
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(worker.ROOT),
            "PATIENCE": json.dumps(self._patience),
            **self.api.worker_environment(),
            **self._more,
        }
        with self.log.open("a") as output:
            self.process = children.start(
                [sys.executable, str(SCRIPT)],
                variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: self.api.takes > asked)

    def submit(self, **said: Any) -> str:
        answer = requests.post(
            f"{self.api.base_url}/{ENDPOINT}/run", json={"input": said}, headers={"Authorization": "key"}, timeout=5
        )
        job_id: str = answer.json()["id"]
        return job_id

    def running(self, **said: Any) -> str:
        """A job that has begun."""
        job_id = self.submit(**said)
        until(lambda: self.api.jobs[job_id].status == "IN_PROGRESS")
        return job_id

    def cancel(self, job_id: str) -> None:
        requests.post(f"{self.api.base_url}/{ENDPOINT}/cancel/{job_id}", timeout=5).raise_for_status()

    def ended(self, *job_ids: str) -> list[str]:
        """How they ended."""
        until(lambda: all(self.api.jobs[job_id].status in FINAL for job_id in job_ids))
        return [self.api.jobs[job_id].status for job_id in job_ids]

    def ends(self, timeout_s: float = TIMEOUT_S) -> int:
        """The worker's exit code."""
        code: int = self.process.wait(timeout_s)
        return code

    def lines(self, text: str) -> list[dict[str, Any]]:
        """Of our log, with this in their message."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if text in line["message"]]


def until(condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Echo]:
    """One life, of little patience, for all tests that leave it alive."""
    with Echo(tmp_path_factory.mktemp("echo"), SHORT) as echo:
        yield echo


@pytest.fixture
def echo(shared: Echo) -> Iterator[Echo]:
    """The same, with a job API that behaves; it must be alive afterwards."""
    yield shared
    shared.api.take_fault = shared.api.stop_fault = shared.api.done_fault = shared.api.deform = None
    assert shared.ended(shared.submit()) == ["COMPLETED"]
    assert shared.process.poll() is None


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Echo]:
    """A life of this test alone, of true patience."""
    with Echo(tmp_path) as echo:
        yield echo


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (204, 400, 401, 429, 500)),
        Fault(body='[1, null, [], {}, {"id": 7}]'),
        Fault(body="<p>busy</p>", content_type="text/html"),
        *(Fault(kind=kind) for kind in ("reset", "drip", "endless")),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status} {fault.body[:5]}",
)
def test_a_job_api_that_fails_is_asked_a_few_times_and_then_the_job_is_done(echo: Echo, fault: Fault) -> None:
    """RunPod's own loop asks it thousands of times a second, or dies."""
    echo.api.take_fault = fault
    complained, asked = len(echo.lines(PAUSES)), echo.api.takes
    # The question that is open is answered well.
    first = echo.submit()
    until(lambda: echo.api.takes >= asked + 4)
    times, lines = echo.api.take_times[asked:], len(echo.lines(PAUSES)) - complained
    echo.api.take_fault = None

    # aiohttp puts a question whose connection breaks a second time at once.
    assert times[-1] - times[-3] >= SHORT["first"]
    assert lines <= len(times)
    assert echo.ended(first, echo.submit()) == ["COMPLETED"] * 2


def test_what_is_no_job_is_dropped_and_the_job_beside_it_done(echo: Echo) -> None:
    """RunPod's own loop dies of it."""
    echo.api.deform = lambda jobs: [1, None, [], {}, {"id": ["x"]}, {"id": ""}, {"id": "x" * 2000}, *jobs]

    assert echo.ended(echo.submit()) == ["COMPLETED"]
    assert echo.lines("what was no job was dropped")[-1]["entries"] == 7


def test_a_job_without_input_is_answered(echo: Echo) -> None:
    """RunPod's own loop takes it and forgets it."""
    echo.api.deform = lambda jobs: [{"id": job["id"]} for job in jobs]
    job_id = echo.submit()

    assert echo.ended(job_id) == ["FAILED"]
    assert echo.api.jobs[job_id].error == "BadInput"


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status, times=4) for status in (408, 429, 503)),
        Fault(kind="reset", times=4),
        Fault(kind="hang", times=1),
        *(Fault(status=status, times=2) for status in (302, 400, 404)),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
def test_an_answer_is_posted_until_it_is_taken(echo: Echo, fault: Fault) -> None:
    """RunPod's own loop drops it after three tries, or one."""
    echo.api.done_fault = fault

    assert echo.ended(echo.submit()) == ["COMPLETED"]


def test_an_answer_that_nobody_takes_is_told_and_the_next_job_is_done(echo: Echo) -> None:
    """After three refusals, with the job's id."""
    echo.api.done_fault = Fault(status=400, times=3)
    answered, job_id = len(echo.api.done_times), echo.submit()
    until(lambda: echo.lines("answer not delivered"))
    (line,) = echo.lines("answer not delivered")

    assert (line["level"], line["job_id"]) == ("ERROR", job_id)
    assert "status 400, after 3 tries" in line["message"]
    echo.api.requeue(job_id)
    assert echo.ended(job_id, echo.submit()) == ["COMPLETED"] * 2
    assert len(echo.api.done_times) == answered + 5


@pytest.mark.parametrize("said", [{"odd": True}, {"exit": True}])
def test_an_answer_that_is_none_is_an_error(echo: Echo, said: dict[str, Any]) -> None:
    """Typed, and told; and a job does not end its worker."""
    job_id = echo.submit(**said)

    assert echo.ended(job_id) == ["FAILED"]
    assert json.loads(echo.api.jobs[job_id].error)["type"] == "StorageError"


def test_stops_are_obeyed_after_nonsense(echo: Echo) -> None:
    """The stop channel may fail as well; a stop of somebody else's job does nothing."""
    first, second = echo.running(sleep=60), echo.running(sleep=60)
    echo.api.stop_fault = Fault(body='{"jobsToStop": ["nobody", 7, null]}', times=3)
    echo.cancel(first)
    until(lambda: echo.api.stop_fault and not echo.api.stop_fault.times)
    echo.api.stop_fault = Fault(status=500, times=3)
    until(lambda: echo.api.stop_fault and not echo.api.stop_fault.times)
    before = stopped_in(echo)
    echo.cancel(second)
    until(lambda: second in stopped_in(echo))

    assert first in before
    assert second not in before
    assert echo.ended(echo.submit()) == ["COMPLETED"]


def stopped_in(echo: Echo) -> list[str]:
    return [line["job_id"] for line in echo.lines("job stopped")]


def test_no_job_is_taken_while_the_intake_is_closed(echo: Echo) -> None:
    """Though there is room for one, and a question was open; afterwards it is done."""
    closing = echo.running(closed=60)
    until(lambda: echo.lines("intake closed"))
    time.sleep(0.5)
    asked, second = echo.api.takes, echo.submit()
    time.sleep(0.5)
    meanwhile = echo.api.jobs[second].status, echo.api.takes - asked
    echo.cancel(closing)

    assert meanwhile == ("IN_QUEUE", 0)
    assert echo.ended(second) == ["COMPLETED"]


def test_a_job_of_which_nothing_is_known_keeps_the_next_one_out_only_until_it_ends(tmp_path: Path) -> None:
    """However it ends, and though nobody takes its answer: with PREFETCH=auto."""
    with Echo(tmp_path, AHEAD_S="2") as echo:
        stopped = echo.running(sleep=60)
        second = echo.submit()
        time.sleep(0.5)
        meanwhile = echo.api.jobs[second].status
        echo.cancel(stopped)
        ended = echo.ended(second)
        echo.api.done_fault = Fault(kind="hang", times=1)
        waits, answers = echo.submit(), len(echo.api.done_times)
        until(lambda: len(echo.api.done_times) > answers)
        ended += echo.ended(echo.submit())

        assert meanwhile == "IN_QUEUE"
        assert ended == ["COMPLETED"] * 2
        assert echo.api.jobs[waits].status == "IN_PROGRESS"


def test_an_idle_worker_ends_at_once(patient: Echo) -> None:
    """Its question is called off; what comes later is the next life's."""
    begin, asked = time.monotonic(), patient.api.takes
    patient.process.send_signal(signal.SIGTERM)
    code, seconds = patient.ends(), time.monotonic() - begin
    asked_after, job_id = patient.api.takes, patient.submit()
    patient.start()

    assert code == 0
    assert seconds < 6  # the question is held open for ten
    assert asked_after == asked
    assert patient.ended(job_id) == ["COMPLETED"]


def test_a_job_that_comes_while_the_worker_ends_is_done(patient: Echo) -> None:
    """RunPod's own loop takes it and forgets it."""
    patient.api.body_delay_s = 1.0
    job_id = patient.running()
    patient.process.send_signal(signal.SIGINT)

    assert patient.ends() == 0
    assert patient.api.jobs[job_id].status == "COMPLETED"


def test_a_busy_worker_answers_and_ends(patient: Echo) -> None:
    """Stops are obeyed meanwhile, a second signal changes nothing, and no thread that hangs is waited for."""
    stopped, done = patient.running(sleep=60, hang=True), patient.running(sleep=2)
    asked = patient.api.takes
    for _ in range(2):
        patient.process.send_signal(signal.SIGTERM)
    later = patient.submit()
    patient.cancel(stopped)

    assert patient.ends() == 0
    assert [patient.api.jobs[job_id].status for job_id in (stopped, done, later)] == [
        "CANCELLED",
        "COMPLETED",
        "IN_QUEUE",
    ]
    assert patient.api.takes == asked
    assert stopped_in(patient) == [stopped]


def test_a_process_that_is_not_to_be_trusted_ends_and_loses_nothing(patient: Echo) -> None:
    """Its other jobs are handed out again, though one would still answer, and a thread hangs."""
    other = patient.running(sleep=60, hang=True, stubborn=True)
    patient.api.done_fault = Fault(status=503, times=1)
    last = patient.submit(refresh=True)
    code = patient.ends()

    assert code == 1
    assert (patient.api.jobs[last].status, patient.api.jobs[last].stop_pod) == ("COMPLETED", True)
    assert patient.api.jobs[other].status == "IN_QUEUE"
    assert [line["level"] for line in patient.lines("cannot be trusted")] == ["CRITICAL"]


def test_a_killed_worker_pings_no_more_and_the_next_life_does_its_job(patient: Echo) -> None:
    """The heartbeat is a process of its own. While an answer waits, the other slot goes on."""
    patient.api.done_fault = Fault(kind="hang", times=1)
    waits = patient.submit()
    until(lambda: patient.api.done_times)
    meanwhile = patient.ended(patient.submit(), patient.submit())
    until(lambda: waits in patient.api.last_ping.get("job_id", ""))
    children_of_it = psutil.Process(patient.process.pid).children(recursive=True)
    os.kill(patient.process.pid, signal.SIGKILL)
    patient.process.wait(5)
    _, alive = psutil.wait_procs(children_of_it, timeout=5)
    pings = patient.api.pings
    patient.start()

    assert meanwhile == ["COMPLETED"] * 2
    assert children_of_it
    assert alive == []
    assert patient.ended(waits) == ["COMPLETED"]
    assert pings > 0
