"""S14: workers and jobs that are told to stop, a busy worker that stays awake, and a job API that is out of order."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

from faults.checks import hold, result_of, until
from faults.rig import STEPS, Rig, rig, tried
from hostile.outcome import Outcome, Suite, in_time
from local.faulty_orders import Order
from local.runpod_api import FINAL
from local.runpod_faults import Fault

TICK_S = 1.0  # the longest that a loop may be busy with anything but its jobs
IDLE_END_S = 5.0
BAD_S = 5.0  # that the job API is out of order
MOST_ASKED = 15  # times in those
#: what befalls questions for jobs
TAKES = {
    "400": Fault(status=400),
    "429": Fault(status=429, headers={"Retry-After": "2"}),
    "500": Fault(status=500),
    "a page": Fault(body="<html>", content_type="text/html"),
    "no JSON": Fault(body="[{"),
    "null": Fault(body="null"),
    "no jobs": Fault(body="[]"),
    "what is no job": Fault(body='[{}, 1, null, {"id": 7}]'),
    "a reset": Fault("reset"),
}
#: what befalls answers
POSTS = {
    "500": Fault(status=500, times=4),
    "429": Fault(status=429, headers={"Retry-After": "1"}, times=4),
    "400": Fault(status=400, times=2),
    "a reset": Fault("reset", times=4),
}


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
        for what, fault in TAKES.items():
            yield tried(on, f"job-take: {what}", partial(_bad_takes, on, fault))
        for what, fault in POSTS.items():
            yield tried(on, f"job-done: {what}", partial(_bad_posts, on, fault))


def _ended_busy(on: Rig, *numbers: signal.Signals) -> None:
    running = [on.stuck(on.request(f"busy {len(on.api.jobs)}"))]
    running.append(on.submit(on.request(f"behind busy {len(on.api.jobs)}")))
    on.reaches(running[1], "queue")
    process = on.process
    for number in numbers:
        if process:
            process.send_signal(number)
    later = on.submit(on.request(f"later {len(on.api.jobs)}"))
    time.sleep(1)
    on.order(None)
    for job in running:
        result_of(on.finished(job, 30))
    code, left = on.ends()
    hold(code == 0, f"it ended with {code}")
    hold(not left, f"left behind: {', '.join(left)}")
    hold(on.api.jobs[later].taken is None, "a job was taken after the signal")
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


def _bad_takes(on: Rig, fault: Fault) -> None:
    """A job API that is out of order for a while: the worker asks on, at its leisure."""
    on.api.take_fault = fault
    # A question that is open already is answered well.
    on.run({"operation": "health"})
    begin, process = on.api.takes, on.process
    time.sleep(BAD_S)
    asked = on.api.takes - begin
    job = on.submit(on.request(f"after bad takes {len(on.api.jobs)}"))
    on.api.take_fault = None
    result_of(on.finished(job))
    hold(0 < asked <= MOST_ASKED, f"it asked {asked} times in {BAD_S:g} s")
    hold(process is on.process and not on.has_ended, "the process ended")


def _bad_posts(on: Rig, fault: Fault) -> None:
    """Answers that are not taken at first arrive all the same."""
    on.api.done_fault = replace(fault)
    job = on.submit(on.request(f"bad posts {len(on.api.jobs)}"))
    result_of(on.finished(job))
    hold(on.api.done_fault.times == 0, "the job API was not out of order")


SUITE = Suite(
    "S14", "told to stop, it ends what it has and takes no more; a job API out of order loses nothing", endings
)
