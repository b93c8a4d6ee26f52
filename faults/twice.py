"""S11: the same job again, in turn and at the same time."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from faults.checks import hold, result_of, until
from faults.rig import STEPS, Rig, rig, tried
from hostile.outcome import Outcome, Suite

COPIES = 5


def duplicates(_candidate: str) -> Iterator[Outcome]:
    """S11."""
    with rig(PREFETCH="4") as on:
        yield tried(on, "one after the other", partial(in_turn, on, on.request("in turn")))
        yield tried(on, "two pictures", partial(in_turn, on, on.request("two in turn", num_images=2)))
        yield tried(on, "in another life", partial(in_turn, on, on.request("lives"), anew=True))
        yield tried(on, "the same job at the same time", partial(_same_at_once, on))
        yield tried(on, "five jobs at the same time", partial(_at_once, on))


def in_turn(on: Rig, request: dict[str, Any], *, anew: bool = False) -> None:
    """The same job five times, each in another life of the worker if `anew`."""
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
    job_id = on.stuck(on.request("same at once"))
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
    jobs = [on.stuck(request)]
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


SUITE = Suite("S11", "the same job again and at the same time: the model runs once, one key, one answer", duplicates)
