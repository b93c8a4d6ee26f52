"""S10, S11, S14: a worker that is killed, jobs that come twice, and workers and jobs that are told to stop."""

import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from faults.checks import hold, result_of, until
from faults.rig import STEPS, Rig, rig, tried
from hostile.outcome import Outcome, Suite, in_time
from local.fault_proxy import Fault
from local.faulty_orders import Order
from local.runpod_api import FINAL

KILLS = 10  # in each stage
GROUPS = 7  # from this one on the whole group of processes is killed
COPIES = 5
TICK_S = 1.0  # the longest that a loop may be busy with anything but its jobs
IDLE_END_S = 5.0
#: where the bucket holds an upload: what has been written by then differs
UPLOADS = (
    Fault("hang", ("PUT",), r"results/.*\.png"),
    Fault("drip", ("PUT",), r"results/.*\.png"),
    Fault("hang", ("HEAD",), r"results/.*\.png"),
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
    first = _edit(on, number, ahead)
    job = on.submit(request)
    on.reaches(job, "queue")
    return {**first, job: request}


def _edit(on: Rig, number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    before = on.calls()
    on.order(Order("transformer", "hang", after_calls=number % STEPS))
    job = on.submit(request)
    until(lambda: on.calls() == before + 1 + number % STEPS, "the model runs")
    return {job: request}


def _encode(on: Rig, _number: int, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    before = on.calls("save")
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


# --- the same again


def duplicates(_candidate: str) -> Iterator[Outcome]:
    """S11."""
    with rig(PREFETCH="4") as on:
        yield tried(on, "one after the other", partial(_in_turn, on, on.request("in turn")))
        yield tried(on, "two pictures", partial(_in_turn, on, on.request("two in turn", num_images=2)))
        yield tried(on, "in another life", partial(_in_turn, on, on.request("lives"), anew=True))
        yield tried(on, "the same job at the same time", partial(_same_at_once, on))
        yield tried(on, "five jobs at the same time", partial(_at_once, on))


def _in_turn(on: Rig, request: dict[str, Any], *, anew: bool = False) -> None:
    before, passes = on.results(), on.calls()
    job_id = on.submit(request)
    told = []
    for _ in range(COPIES):
        told.append([_told(one) for one in _results(on.finished(job_id))])
        if anew:
            on.replace_worker()
        on.api.requeue(job_id)
    on.finished(job_id)
    pictures = len(told[0])
    hold(all(one == told[0] for one in told), "the answers differ")
    hold(on.calls() - passes == STEPS * pictures, f"the model made {on.calls() - passes} passes")
    hold(len(on.results() - before) == pictures + 1, f"there are {len(on.results() - before)} keys")


def _same_at_once(on: Rig) -> None:
    """RunPod hands a job out again while it runs, as if its worker were lost."""
    before, passes = on.results(), on.calls()
    job_id = next(iter(_edit(on, 1, on.request("same at once"))))
    job = on.api.jobs[job_id]
    for _ in range(COPIES - 1):
        on.api.requeue(job_id)
        until(lambda: job.status == "IN_PROGRESS", "the job is taken again")
    on.order(None)
    on.finished(job_id)
    # The first is the one that counts; whatever comes later must say the same.
    time.sleep(2)
    _made_once(on, before, passes, [answer.get("output") for answer in job.answers])


def _at_once(on: Rig) -> None:
    """A caller who sends the same request five times."""
    before, passes = on.results(), on.calls()
    request = on.request("five at once", seed=5)
    jobs = list(_edit(on, 1, request))
    jobs += [on.submit(request) for _ in range(COPIES - 1)]
    until(lambda: all(on.api.jobs[job].taken for job in jobs), "all are taken")
    on.order(None)
    _made_once(on, before, passes, [{"results": _results(on.finished(job))} for job in jobs])


def _made_once(on: Rig, before: set[str], passes: int, outputs: list[Any]) -> None:
    hold(all(outputs), "one of the answers is an error")
    told = {_told(result) for output in outputs for result in output["results"]}
    hold(len(told) == 1, f"the answers differ: {sorted(told)}")
    hold(on.calls() - passes == STEPS, f"the model made {on.calls() - passes} passes")
    hold(len(on.results() - before) == 2, f"there are {len(on.results() - before)} keys")


def _results(job: dict[str, Any]) -> list[dict[str, Any]]:
    result_of(job)
    results: list[dict[str, Any]] = job["output"]["results"]
    return results


def _told(result: dict[str, Any]) -> tuple[str, str, int]:
    """What must be the same; links are signed anew."""
    return result["object_key"], result["meta"]["output"]["sha256"], result["meta"]["seed"]


# --- told to stop


def endings(_candidate: str) -> Iterator[Outcome]:
    """S14."""
    with rig() as on:
        reference = result_of(on.run(on.request("undisturbed", seed=1)))["meta"]["output"]["sha256"]
        for number in (signal.SIGTERM, signal.SIGINT):
            yield tried(on, f"{number.name} while it edits", partial(_ended_busy, on, number))
            yield in_time(partial(tried, on, f"{number.name} while idle", partial(_ended_idle, on, number)), IDLE_END_S)
        yield tried(on, "a second SIGTERM", partial(_ended_busy, on, signal.SIGTERM, signal.SIGTERM))
        yield in_time(partial(tried, on, "news of a running job", partial(_news, on)), TICK_S)
        yield in_time(partial(tried, on, "health while a job runs", partial(_health, on)), 2 * TICK_S)
        for passes in (1, 2):
            name = f"cancelled between {passes} passes a step"
            yield tried(on, name, partial(_cancelled, on, passes, reference))


def _ended_busy(on: Rig, *numbers: signal.Signals) -> None:
    count = on.calls()
    on.order(Order("transformer", "slow", times=None, seconds=0.6))
    running = [on.submit(on.request(f"busy {len(on.api.jobs)}"))]
    until(lambda: on.calls() > count, "the model runs")
    running.append(on.submit(on.request(f"busy {len(on.api.jobs)}")))
    on.reaches(running[1], "queue")
    process = on.process
    for number in numbers:
        if process:
            process.send_signal(number)
    later = on.submit(on.request(f"later {len(on.api.jobs)}"))
    for job in running:
        result_of(on.finished(job, 30))
    code, left = on.ends()
    hold(code == 0, f"it ended with {code}")
    hold(not left, f"left behind: {', '.join(left)}")
    hold(on.api.jobs[later].taken is None, "a job was taken after the signal")
    on.order(None)
    on.replace_worker()
    result_of(on.finished(later))


def _ended_idle(on: Rig, number: signal.Signals) -> float:
    """Seconds until its end."""
    begin = time.perf_counter()
    if on.process:
        on.process.send_signal(number)
    later = on.submit(on.request(f"after {number.name} {len(on.api.jobs)}"))
    if on.process is None or on.process.wait(60) != 0:
        hold(truth=False, what="it ended with an error")
    seconds = time.perf_counter() - begin
    hold(on.api.jobs[later].status in {"IN_QUEUE", *FINAL}, "a job was taken and lost")
    on.replace_worker()
    result_of(on.finished(later))
    return seconds


def _news(on: Rig) -> float:
    """The longest that a caller hears nothing while steps are done, in seconds over the half that is the rule."""
    job = on.submit(on.request(f"news {len(on.api.jobs)}", width=1024, height=1024, num_inference_steps=30))
    result_of(on.finished(job))
    times = [at for at, news in on.api.jobs[job].progress if "step" in news]
    hold(len(times) > 2, f"there were {len(times)} news")
    return max(later - earlier for earlier, later in pairwise(times)) - 0.5


def _health(on: Rig) -> float:
    """The longest that a job without any work takes beside an edit, in seconds; a worker polls once a second."""
    job = on.submit(on.request(f"health {len(on.api.jobs)}", width=1024, height=1024, num_inference_steps=50))
    on.reaches(job, "edit")
    longest = 0.0
    while on.api.jobs[job].status not in FINAL:
        begin = time.perf_counter()
        on.run({"operation": "health"})
        longest = max(longest, time.perf_counter() - begin)
    result_of(on.finished(job))
    hold(longest > 0, "the edit was too short")
    return longest


def _cancelled(on: Rig, passes: int, reference: str) -> None:
    """In the middle of a step: what runs of it runs to its end, and no other begins."""
    before, first = on.results(), on.calls()
    on.order(Order("transformer", "slow", times=None, seconds=0.4))
    request = on.request(f"cancelled {passes}", num_inference_steps=50, true_cfg_scale=float(2 * passes - 1))
    job = on.submit(request)
    until(lambda: on.calls() > first + 2 * passes, "the model runs")
    on.cancel(job)
    done = on.calls()
    time.sleep(0.5 * passes)
    # A job that follows finds the model's thread free.
    on.order(None)
    health = on.calls()
    anew = on.run(on.request("undisturbed", seed=1, reuse=False))
    hold(result_of(anew)["meta"]["output"]["sha256"] == reference, "the next job has other bytes")
    further = on.calls() - done - STEPS
    hold(further <= passes, f"{further} passes ran after the cancellation, {on.calls() - health} with the next job")
    hold(on.api.jobs[job].status == "CANCELLED", f"the job is {on.api.jobs[job].status}")
    new = {key for key in on.results() - before if key.endswith(".png")}
    hold(new == {result_of(anew)["object_key"]}, f"it stored {len(new) - 1} pictures")


S10 = Suite("S10", "kill -9 at each stage, then the same job: one result, the same bytes, nothing left", kills)
S11 = Suite("S11", "the same job again and at the same time: the model runs once, one key, one answer", duplicates)
S14 = Suite("S14", "told to stop, it ends what it has and takes no more; a cancelled job frees the model", endings)
SUITES = (S10, S11, S14)
