"""S10: a worker that is killed while a job is in one of its stages, and the same job again."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from faults.checks import hold, until
from faults.rig import PICTURE, SAVED, STEPS, Rig, rig, tried
from hostile.outcome import Outcome, Suite
from local.fault_proxy import Fault
from local.faulty_orders import Order

KILLS = 10  # in each stage
GROUPS = 7  # from this one on the whole group of processes is killed
#: where the bucket holds an upload: what has been written by then differs
UPLOADS = (
    Fault("hang", ("PUT",), PICTURE),
    Fault("drip", ("PUT",), PICTURE),
    Fault("hang", ("HEAD",), PICTURE),
    Fault("hang", ("PUT",), r"results/.*manifest"),
    Fault("drip", ("PUT",), r"results/.*manifest"),
)


def kills(_candidate: str) -> Iterator[Outcome]:
    """S10."""
    with rig() as on:
        files = _files(on)
        for stage, stands in STAGES.items():
            for number in range(KILLS):
                name = f"{stage} {number}"
                yield tried(on, name, partial(killed, on, name, partial(stands, on, number), group=number >= GROUPS))
        begin = time.perf_counter()
        left = sorted(_files(on) - files) + sorted(on.bucket.unfinished())
        yield Outcome("what is left in files and uploads", ", ".join(left) or None, time.perf_counter() - begin)


def killed(on: Rig, name: str, stands: Callable[[dict[str, Any]], dict[str, dict[str, Any]]], *, group: bool) -> None:
    """One kill. `stands` brings a request to its stage, and returns the requests of all jobs that are on their way."""
    before = on.results()
    jobs = stands(on.request(f"kill in {name}"))
    left = on.kill(group=group)
    on.clear()
    on.replace_worker()
    ended = {job_id: on.finished(job_id, 60) for job_id in jobs}
    expected = set[str]().union(*(on.one_result(job, before) for job in ended.values()))
    hold(on.results() - before == expected, "there are keys of no job")
    for job_id, request in jobs.items():
        on.same_undisturbed(request, ended[job_id])
    hold(not left, f"left behind: {', '.join(left)}")


def _validate(on: Rig, number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    job = on.submit(request)
    until(lambda: on.api.jobs[job].taken, "the job is taken")
    time.sleep(number * 0.005)
    return {job: request}


def _fetch(on: Rig, number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    target = request["image_url"].partition(str(on.host.port))[2]
    whole = on.host.replies[target]
    on.host.replies[target] = on.holding(half=number % 2 == 1)
    job = on.submit(request)
    until(lambda: target in on.host.requests, "the host is asked")
    on.reaches(job, "fetch")
    on.host.replies[target] = whole
    return {job: request}


def _lookup(on: Rig, number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    on.faulty(Fault(("hang", "drip")[number % 2], ("GET",), r"results/.*manifest"))
    job = on.submit(request)
    on.meets_fault()
    return {job: request}


def _decode(on: Rig, _number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    on.freeze_decoders()
    job = on.submit(request)
    on.reaches(job, "decode")
    return {job: request}


def _queue(on: Rig, number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    ahead = on.request(f"{request['prompt']} ahead")
    first = on.stuck(ahead, number % STEPS)
    job = on.submit(request)
    on.reaches(job, "queue")
    return {first: ahead, job: request}


def _edit(on: Rig, number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {on.stuck(request, number % STEPS): request}


def _encode(on: Rig, _number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    before = on.calls("save")
    request["output_format"] = SAVED
    on.order(Order("save", "hang"))
    job = on.submit(request)
    until(lambda: on.calls("save") > before, "the picture is encoded")
    return {job: request}


def _upload(on: Rig, number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    # What is written before the edit passes.
    jobs = _encode(on, number, request)
    on.faulty(UPLOADS[number % len(UPLOADS)])
    on.order(None)
    on.meets_fault()
    return jobs


STAGES: dict[str, Callable[[Rig, int, dict[str, Any]], dict[str, dict[str, Any]]]] = {
    "validate": _validate,
    "fetch": _fetch,
    "lookup": _lookup,
    "decode": _decode,
    "queue": _queue,
    "edit": _edit,
    "encode": _encode,
    "upload": _upload,
}


def _files(on: Rig) -> set[str]:
    """What lies beside the log, which is where the worker runs, and where temporary files go."""
    return {path.name for path in (*on.folder.iterdir(), *on.temporary.rglob("*"))}


SUITE = Suite("S10", "kill -9 at each stage, then the same job: one result, the same bytes, nothing left", kills)
