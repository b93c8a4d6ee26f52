"""Each example on the job API, with a worker that a test plays."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local import children
from local.runpod_api import LocalRunPod
from local.web import ImageHost
from tests.examples.programs import COMMANDS, KEY, Played, Program, Unsteady

PICTURE = b"a picture"
REFUSED = {"type": "BadInput", "message": "prompt: must not be blank", "details": {"retryable": False}}


@pytest.fixture
def api() -> Iterator[LocalRunPod]:
    """An API without a worker."""
    with LocalRunPod() as running:
        yield running


@pytest.fixture(params=COMMANDS)
def name(request: pytest.FixtureRequest) -> str:
    """Of an example."""
    found: str = request.param
    return found


def output(host: ImageHost) -> dict[str, object]:
    """What the worker answers, as far as the examples look at it."""
    link = host.put("/results/a.png?X-Amz-Signature=secret", PICTURE)
    return {"status": "success", "result": {"presigned_url": link, "meta": {"seed": 7}}}


def test_a_picture_is_edited(tmp_path: Path, api: LocalRunPod, host: ImageHost) -> None:
    """By all of them at a time: the request arrives as it was said, and the key is RunPod's alone."""
    programs = [Program(name, tmp_path, api.base_url) for name in COMMANDS]
    try:
        worker = Played(api)
        for _ in programs:
            job = worker.take()
            assert job["input"] == {"image_url": "https://example.com/a.jpg", "prompt": 'make it "warm"'}
            worker.post(job, output=output(host))
        assert [program.end() for program in programs] == [0] * len(programs), [one.told for one in programs]
    finally:
        for program in programs:
            program.kill()
    assert len(programs) >= 2
    for program in programs:
        assert program.file.read_bytes() == PICTURE
        assert program.said == f"{program.file}: seed 7\n"
    assert host.requests == ["/results/a.png?X-Amz-Signature=secret"] * len(programs)
    assert not any(KEY in str(headers) for headers in host.headers)


@pytest.mark.slow
def test_progress_is_told(tmp_path: Path, api: LocalRunPod, host: ImageHost, name: str) -> None:
    """As it comes."""
    program = Program(name, tmp_path, api.base_url)
    try:
        worker = Played(api)
        job = worker.take()
        worker.post(job, status="IN_PROGRESS", output={"stage": "edit", "step": 3, "steps": 30})
        end = time.monotonic() + 20
        while "IN_PROGRESS" not in program.told or '"step":3' not in program.told.replace(" ", ""):
            assert time.monotonic() < end, program.told
            time.sleep(0.1)
        worker.post(job, output=output(host))
        assert program.end() == 0, program.told
    finally:
        program.kill()


def failed(error: str) -> Callable[[LocalRunPod, str], None]:
    return lambda api, job: Played(api).post({"id": job}, error=error)


def done(output: object) -> Callable[[LocalRunPod, str], None]:
    return lambda api, job: Played(api).post({"id": job}, output=output)


def timed_out(api: LocalRunPod, job: str) -> None:
    api.jobs[job].status = "TIMED_OUT"


def cancelled(api: LocalRunPod, job: str) -> None:
    api.jobs[job].status = "CANCELLED"


def forgotten(api: LocalRunPod, job: str) -> None:
    del api.jobs[job]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (failed(json.dumps(REFUSED)), "BadInput: prompt: must not be blank\nThe same request would fail again.\n"),
        (
            failed(json.dumps({"type": "ModelError", "message": "no memory", "details": {"retryable": True}})),
            "ModelError: no memory\nRun this again.\n",
        ),
        (failed("job timed out after 1 retries"), "FAILED: job timed out after 1 retries\n"),
        (failed('{"error_type": "MemoryError"}'), 'FAILED: {"error_type": "MemoryError"}\n'),
        (done(None), "there is no picture in the answer: does RUNPOD_ENDPOINT_ID name an endpoint of this worker?\n"),
        (done("an echo"), "there is no picture"),
        (done({"status": "success", "result": {"model": "another"}}), "there is no picture"),
        (timed_out, "is TIMED_OUT\n"),
        (cancelled, "is CANCELLED\n"),
        (forgotten, "cannot be asked for"),
    ],
    ids=[
        "error",
        "retryable",
        "words",
        "other json",
        "nothing",
        "text",
        "no link",
        "timed out",
        "cancelled",
        "forgotten",
    ],
)
def test_an_end_without_a_picture(
    tmp_path: Path, api: LocalRunPod, name: str, happens: Callable[[LocalRunPod, str], None], told: str
) -> None:
    """Is told in words, with exit code 1."""
    program = Program(name, tmp_path, api.base_url)
    try:
        happens(api, Played(api).take()["id"])
        assert program.end() == 1
    finally:
        program.kill()

    assert told in program.told
    assert "Traceback" not in program.told
    assert KEY not in program.told
    assert not program.file.exists()


@pytest.mark.slow
def test_a_job_that_takes_too_long_is_cancelled(tmp_path: Path, api: LocalRunPod, name: str) -> None:
    """Nobody would look at it, and it would be paid for."""
    program = Program(name, tmp_path, api.base_url, more={"TIME_LIMIT_S": "2"})
    assert program.end() == 1
    assert "took longer than 2 s and was cancelled" in program.told
    assert [job.status for job in api.jobs.values()] == ["CANCELLED"]


@pytest.mark.slow
def test_a_job_that_cannot_be_cancelled_is_named(tmp_path: Path, api: LocalRunPod, name: str) -> None:
    """It goes on, and whoever pays for it must know."""
    with Unsteady(api, "/cancel/", 1) as unsteady:
        program = Program(name, tmp_path, unsteady.base_url, more={"TIME_LIMIT_S": "1"})
        assert program.end() == 1
        assert unsteady.failed
    (job,) = api.jobs.values()
    said = f"job {job.id} took longer than 1 s and could not be cancelled: it goes on, and is paid for"
    assert program.told.splitlines()[-1] == said
    assert job.status == "IN_QUEUE"


@pytest.mark.slow
def test_bad_luck_is_not_the_end(tmp_path: Path, api: LocalRunPod, host: ImageHost, name: str) -> None:
    """RunPod's API fails twice, and then has the answer."""
    with Unsteady(api, "/status/", 2) as unsteady:
        program = Program(name, tmp_path, unsteady.base_url)
        try:
            worker = Played(api)
            worker.post(worker.take(), output=output(host))
            assert program.end() == 0, program.told
        finally:
            program.kill()
        assert unsteady.failed


@pytest.mark.slow
def test_nobody_there(tmp_path: Path, name: str) -> None:
    """One line, and no traceback."""
    program = Program(name, tmp_path, f"https://127.0.0.1:{children.free_port()}/v2")

    assert program.end() != 0
    assert len(program.told.splitlines()) == 1
    assert KEY not in program.told


@pytest.mark.slow
def test_a_link_that_does_not_open(tmp_path: Path, api: LocalRunPod, host: ImageHost, name: str) -> None:
    """Is not printed: whoever has it has the picture."""
    program = Program(name, tmp_path, api.base_url)
    try:
        worker = Played(api)
        answer = output(host)
        host.replies.clear()
        worker.post(worker.take(), output=answer)
        assert program.end() != 0
    finally:
        program.kill()
    assert "404" in program.told
    assert "X-Amz" not in program.told
    assert not program.file.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "more"),
    [(("https://example.com/a.jpg",), {}), ((), {"RUNPOD_API_KEY": ""}), ((), {"RUNPOD_ENDPOINT_ID": ""})],
    ids=["arguments", "key", "endpoint"],
)
def test_what_is_missing_is_told(tmp_path: Path, name: str, arguments: tuple[str, ...], more: dict[str, str]) -> None:
    """Before anything is asked."""
    program = Program(name, tmp_path, "http://127.0.0.1:1/v2", *arguments, more=more)

    assert program.end() == 1
    assert "IMAGE_URL PROMPT FILE" in program.told
    assert "RUNPOD_API_KEY and RUNPOD_ENDPOINT_ID in the environment" in program.told
