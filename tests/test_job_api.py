"""Questions and answers to a job API that does what it likes."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import ClientSession

from local.runpod_api import ENDPOINT, Job, LocalRunPod
from local.runpod_faults import Fault
from qwen_worker.deadlines import retry_after
from qwen_worker.job_api import MAX_BODY, NotDeliveredError, Patience, Pauses, Question, deliver

pytestmark = pytest.mark.slow

SHORT = Patience(first=0.02, idle=0.04, longest=0.1, quick=0.3, asked=0.5, body=0.3, post=0.3, posting=1)


@pytest.fixture(scope="module")
def running() -> Iterator[LocalRunPod]:
    """One for all tests."""
    with LocalRunPod() as api:
        yield api


@pytest.fixture
def api(running: LocalRunPod) -> LocalRunPod:
    """It behaves, and one job has been taken."""
    running.take_fault = running.done_fault = None
    running.done_times.clear()
    running.jobs.clear()
    running.jobs["a"] = Job("a", {}, status="IN_PROGRESS", seen=time.monotonic())
    return running


def asked(
    api: LocalRunPod, count: int = 1, called_off: asyncio.Event | None = None, patience: Patience = SHORT
) -> tuple[list[Any], float]:
    """What the last of some questions brought, and the seconds that all took."""

    async def run() -> tuple[list[Any], float]:
        question = Question("test", lambda said: said or [], (called_off or asyncio.Event()).wait, patience)
        begin = time.monotonic()
        async with ClientSession() as session:
            for _ in range(count):
                found = await question.ask(session, f"{api.base_url}/{ENDPOINT}/job-take-batch/worker-1?gpu=x")
            return found, time.monotonic() - begin

    return asyncio.run(run())


def delivered(api: LocalRunPod) -> int:
    async def run() -> int:
        async with ClientSession() as session:
            url = f"{api.base_url}/{ENDPOINT}/job-done/worker-1/a?gpu=x"
            return await deliver(session, url, b'{"output": 1}', {"X-Request-ID": "a"}, SHORT)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (204, 302, 400, 401, 404, 429, 500, 503)),
        *(Fault(body=body) for body in ("", "null", "[]", "[" * 10**5, "[1", '"\\ud800', "9" * 10**4)),
        Fault(body="<p>busy</p>", content_type="text/html"),
        Fault(kind="reset"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status} {fault.body[:9]}",
)
def test_a_question_that_brings_nothing_at_once_costs_a_pause(api: LocalRunPod, fault: Fault) -> None:
    """And raises nothing."""
    api.take_fault = fault
    found, seconds = asked(api, 3)

    assert found == []
    assert seconds >= 0.02 + 0.04 + 0.04


@pytest.mark.parametrize("kind", ["drip", "endless"])
def test_an_answer_that_does_not_end_is_not_read_on(api: LocalRunPod, kind: Any) -> None:
    """After its time, or its bytes."""
    api.take_fault = Fault(kind=kind, times=1)

    assert asked(api)[0] == []


def test_an_answer_that_says_it_is_long_is_not_read(api: LocalRunPod) -> None:
    """Longer than any job."""
    api.take_fault = Fault(body='["' + "x" * MAX_BODY + '"]', times=1)

    assert asked(api)[0] == []


def test_a_question_may_be_called_off(api: LocalRunPod) -> None:
    """Though the API would hold it for ten seconds; but what had arrived by then counts."""
    called_off = asyncio.Event()
    called_off.set()
    nothing, seconds = asked(api, called_off=called_off)
    api.jobs["b"] = Job("b", {})

    assert nothing == []
    assert seconds < 5
    assert asked(api, called_off=called_off, patience=replace(SHORT, arrived=8))[0][0]["id"] == "b"


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        *((Fault(status=status, times=3), 4) for status in (408, 425, 429, 500)),
        (Fault(kind="reset", times=3), 4),
        (Fault(kind="hang", times=1), 2),
        *((Fault(status=status, times=2), 3) for status in (302, 401, 404)),
    ],
    ids=str,
)
def test_an_answer_is_posted_again(api: LocalRunPod, fault: Fault, tries: int) -> None:
    """Until it is taken."""
    api.done_fault = fault

    assert delivered(api) == tries
    assert api.jobs["a"].status == "COMPLETED"


@pytest.mark.parametrize(("status", "least", "most"), [(404, 3, 3), (503, 4, 30)])
def test_an_answer_is_given_up_in_the_end(api: LocalRunPod, status: int, least: int, most: int) -> None:
    """After three refusals, or when its time is up."""
    api.done_fault = Fault(status=status)
    with pytest.raises(NotDeliveredError, match=f"status {status}, after"):
        delivered(api)

    assert least <= len(api.done_times) <= most


def test_an_answer_that_became_another_question_was_not_taken(api: LocalRunPod) -> None:
    """A redirect of a POST may be followed by a GET, which is answered well."""
    health = {"Location": f"{api.base_url}/{ENDPOINT}/health"}
    api.done_fault = Fault(status=302, headers=health, times=1)

    assert delivered(api) == 2


def test_retry_after_is_obeyed_within_limits(api: LocalRunPod) -> None:
    """Who asks for an hour gets what our patience allows."""
    api.take_fault = Fault(status=429, headers={"Retry-After": "3600"})
    api.done_fault = Fault(status=429, headers={"Retry-After": "1"}, times=1)

    assert asked(api)[1] >= 0.5
    assert delivered(api) == 2
    assert api.done_times[1] - api.done_times[0] >= 1


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [("7", 7, 7), ("1.5", 1.5, 1.5), (formatdate(time.time() + 1e6, usegmt=True), 9e5, 1e6), ("9" * 400, 9e9, None)],
)
def test_retry_after_is_seconds_or_a_date(said: str, least: float, most: float | None) -> None:
    """Of a date in the past it is none."""
    seconds = retry_after(said)

    assert seconds is not None
    assert least <= seconds
    assert most is None or seconds <= most
    assert retry_after(formatdate(0)) in {0, None}


@pytest.mark.parametrize("said", ["", "soon", "-3", "1,5", "Mon, 99 Foo"])
def test_any_other_retry_after_is_none(said: str) -> None:
    """It does not break the loop."""
    assert retry_after(said) is None


def test_pauses_grow_and_begin_anew() -> None:
    """To their limit; not the same twice."""
    pauses = Pauses(0.5)
    grown = [pauses.next(30) for _ in range(12)]
    pauses.reset()

    assert 0.5 <= grown[0] <= 0.625
    assert all(later >= 1.5 * earlier or later == 30 for earlier, later in pairwise(grown))
    assert grown[-1] == 30
    assert pauses.next(30) <= 0.625
    assert len({Pauses(0.5).next(30) for _ in range(10)}) > 1
