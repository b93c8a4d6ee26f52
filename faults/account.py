"""Whether every job ended as it must, and what is in the bucket is what the jobs account for."""

import json
from collections.abc import Collection, Iterator, Mapping

from faults.mix import EDIT, Planned
from local.runpod_api import Job

PREFIX = "qwen-image-edit/"
# Of the worker's start.
PROBE = f"{PREFIX}health/check"


def unlike(planned: Planned, job: Job) -> str | None:
    """How a job did not end as it must, if so. Who is cancelled too late may have been answered."""
    error = json.loads(job.error)["type"] if isinstance(job.error, str) else job.error
    outcome = {"COMPLETED": "success", "FAILED": error}.get(job.status, job.status.lower())
    answers = len(job.answers)
    if planned.expected == "cancelled":
        fine = answers <= 1 and outcome in {"cancelled", "success"}
    else:
        fine = answers == 1 and outcome == planned.expected
    return None if fine else f"{planned.kind}: {outcome} instead of {planned.expected}, {answers} answers: {job.error}"


def unaccounted(sent: Mapping[str, Planned], jobs: Mapping[str, Job], found: Collection[str]) -> Iterator[str]:
    """What is wrong with the objects: one for each picture's address, one and a manifest for each edit that differs.

    Args:
        sent: id of a job → what was sent.
        jobs: id → what became of it.
        found: keys of all objects.
    """
    edits = {job_id: planned for job_id, planned in sent.items() if planned.kind == EDIT}
    results = [jobs[job_id].output["result"] for job_id, planned in edits.items() if not unlike(planned, jobs[job_id])]
    pictures = {result["object_key"] for result in results}
    told = pictures | {f"{_folder(key)}/manifest.json" for key in pictures}
    sources = {key for key in found if key.startswith(f"{PREFIX}sources/")}
    # A job that is cancelled too late has made its picture.
    cancelled = {job_id for job_id, planned in sent.items() if planned.expected == "cancelled"}
    late = {_folder(key) for key in found if key.rpartition("/")[2].partition(".")[0] in cancelled}
    for key in sorted({*found} - told - sources - {PROBE}):
        if _folder(key) not in late:
            yield f"unexpected object {key}"
    for key in sorted(told - {*found}):
        yield f"missing object {key}"
    requests = {json.dumps(planned.input) for planned in edits.values()}
    if len(pictures) != len(requests):
        yield f"{len(pictures)} pictures of {len(requests)} requests"
    least = {planned.source for planned in edits.values()}
    most = {planned.source for planned in sent.values() if planned.source}
    if not len(least) <= len(sources) <= len(most):
        yield f"{len(sources)} sources of {len(least)} addresses"


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
