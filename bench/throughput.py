"""How much of the time the GPU works while jobs wait, in RunPod's real loop, and how many jobs an hour come of it.

    python -m bench throughput        some six minutes

Our worker and the plain form (bench.plain_worker) get the same jobs, in fresh processes: sources of three megapixels,
results of one, a model that takes 0.3 s a step and no computing time. All jobs are there from the begin. Every request
to RunPod's API takes 60 ms, of a source 250 ms, a write to the bucket 250 ms and any other request to it 30 ms.
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from bench.decode import picture
from bench.row import Row, spread
from hostile.pictures.parts import file_of
from local import worker
from local.bucket import LocalBucket
from local.distant import Distant
from local.runpod_api import ENDPOINT, FINAL, KEY, Job, LocalRunPod
from local.web import ImageHost, Reply

PASS_S = 0.3
SHORT, LONG = 5, 40  # steps: 1.5 s and 12 s
COUNT, LONG_COUNT = 18, 5  # jobs of a run
API_S, SOURCE_S, WRITE_S, READ_S = 0.06, 0.25, 0.25, 0.03
PLAIN, OURS = "bench.plain_worker", "local.paced_worker"
GOAL, LONG_GOAL, RATIO_GOAL = 95.0, 99.0, 2.1
WAIT_S = 300.0


class InvalidRunError(Exception):
    """What came of a run says nothing."""


@dataclass(frozen=True)
class Run:
    """What one process did.

    Attributes:
        turns: begin and end of each edit, in seconds.
        finished: when the API had each answer, in seconds.
        queue_ms: how long each job waited for the GPU within the worker; of the plain form nothing is known.
    """

    turns: list[tuple[float, float]]
    finished: list[float]
    queue_ms: list[float]

    @property
    def busy(self) -> float:
        """Percent of the time from the first edit's begin to the last one's end."""
        return 100 * sum(end - begin for begin, end in self.turns) / (self.turns[-1][1] - self.turns[0][0])

    @property
    def hourly(self) -> float:
        """Jobs an hour, from the first answer to the last."""
        return 3600 * (len(self.finished) - 1) / (max(self.finished) - min(self.finished))


def rows() -> list[Row]:
    """Short jobs by turns, A-B-B-A, then long ones."""
    sources = make_sources(COUNT)
    order = PLAIN, OURS, OURS, PLAIN
    short = [(program, measured(program, SHORT, sources)) for program in order]
    long = {program: measured(program, LONG, sources[:LONG_COUNT]) for program in (PLAIN, OURS)}
    plain, ours = ([run for by, run in short if by == program] for program in (PLAIN, OURS))
    hourly = [statistics.mean(run.hourly for run in runs) for runs in (plain, ours)]
    ratio = hourly[1] / hourly[0]
    return [
        _busy_row(f"GPU busy, {COUNT} jobs of 1.5 s waiting", GOAL, plain, ours),
        _busy_row(f"GPU busy, {LONG_COUNT} jobs of 12 s waiting", LONG_GOAL, [long[PLAIN]], [long[OURS]]),
        Row(
            what="jobs an hour, of 1.5 s",
            goal=f"at least {RATIO_GOAL} x plain",
            plain=f"{hourly[0]:.0f}",
            ours=f"{hourly[1]:.0f} ({ratio:.2f} x)",
            passed=ratio >= RATIO_GOAL,
            figures={"plain": [round(run.hourly) for run in plain], "ours": [round(run.hourly) for run in ours]},
        ),
    ]


def _busy_row(what: str, goal: float, plain: list[Run], ours: list[Run]) -> Row:
    shares = [statistics.mean(run.busy for run in runs) for runs in (plain, ours)]
    return Row(
        what=what,
        goal=f"at least {goal:g} %",
        plain=f"{shares[0]:.1f} %",
        ours=f"{shares[1]:.1f} %",
        passed=shares[1] >= goal,
        figures={
            "plain_percent": [round(run.busy, 1) for run in plain],
            "ours_percent": [round(run.busy, 1) for run in ours],
            "ours_gap_ms": spread([gap for run in ours for gap in _gaps_ms(run)]),
            "ours_queue_ms": spread([wait for run in ours for wait in run.queue_ms]),
            # Of this machine, with whatever else it does: results are encoded while the next job is on the GPU.
            "load": [round(load, 1) for load in os.getloadavg()],
        },
    )


def _gaps_ms(run: Run) -> Iterator[float]:
    for (_, end), (begin, _) in zip(run.turns, run.turns[1:], strict=False):
        yield 1000 * (begin - end)


def measured(program: str, steps: int, sources: list[bytes]) -> Run:
    """One process does a job of so many steps for each source.

    Raises:
        InvalidRunError: not every job was done, anew, by one edit of its own.
    """
    with tempfile.TemporaryDirectory() as name:
        turns = Path(name) / "turns"
        variables = {
            "MODEL_CLASS": "QwenImageEditPipeline",
            "PACED_PASS_S": str(PASS_S),
            "PACED_TURNS": str(turns),
        }
        said = {"num_inference_steps": steps, "true_cfg_scale": 1.0, "size": "native"}
        done = served(("-m", program), Path(name), sources, said, variables)
        return _run(done.jobs, turns.read_text(), done.fetched, ours=program == OURS)


@dataclass(frozen=True)
class Served:
    """What a worker left.

    Attributes:
        jobs: each has ended.
        fetched: downloads of sources.
        started: when its process was, in seconds of `time.time`.
    """

    jobs: list[Job]
    fetched: int
    started: float


def served(
    program: tuple[str, ...],
    model: Path,
    sources: list[bytes],
    said: Mapping[str, Any],
    variables: Mapping[str, str],
) -> Served:
    """Start a worker, have it do a job for each source, and end it.

    Args:
        program: as of `local.worker.start`.
        model: folder of its model.
        sources: JPEGs.
        said: of each request, beside picture and prompt.
        variables: of the worker.

    Raises:
        InvalidRunError: it ended by itself, or took too long.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bucket = stack.enter_context(LocalBucket(folder / "bucket"))
        proxy = stack.enter_context(Distant(bucket.port, lambda method: WRITE_S if method == "PUT" else READ_S))
        host, api = stack.enter_context(ImageHost()), stack.enter_context(LocalRunPod())
        api.way_s = API_S
        for number, source in enumerate(sources):
            host.replies[f"/{number}.jpg"] = Reply(source, delay_s=SOURCE_S)
            _submit(api, host.url(f"/{number}.jpg"), said)
        paths = [str(worker.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {
            "S3_ENDPOINT": f"127.0.0.1:{proxy.port}",
            "PYTHONPATH": os.pathsep.join(paths),
            "RUNPOD_LOG_LEVEL": "INFO",
        }
        environment = worker.environment(model, bucket.environment, api.worker_environment(), own, variables)
        started = time.time()
        process = worker.start(environment, folder / "worker.log", program=program)
        try:
            end = time.monotonic() + WAIT_S
            while any(job.status not in FINAL for job in api.jobs.values()):
                if process.poll() is not None or time.monotonic() > end:
                    raise InvalidRunError((folder / "worker.err").read_text()[-2000:])
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
            worker.end_group(process)
        return Served(list(api.jobs.values()), len(host.requests), started)


def _submit(api: LocalRunPod, url: str, said: Mapping[str, Any]) -> None:
    asked = {"image_url": url, "prompt": "make it warmer", **said}
    headers = {"Authorization": f"Bearer {KEY}"}
    requests.post(
        f"{api.base_url}/{ENDPOINT}/run", json={"input": asked}, headers=headers, timeout=10
    ).raise_for_status()


def _run(jobs: list[Job], turns: str, fetched: int, *, ours: bool) -> Run:
    edits = [(float(begin), float(end)) for begin, end in (line.split() for line in turns.splitlines())]
    failed = [job.error for job in jobs if job.status != "COMPLETED"]
    metas: list[dict[str, Any]] = [job.output["result"]["meta"] for job in jobs] if ours and not failed else []
    if failed or not len(edits) == len(jobs) == fetched:
        raise InvalidRunError(f"{len(jobs)} jobs, {len(edits)} edits, {fetched} downloads, failed: {failed}")
    if any(meta["reused"] or meta["cache"] != "miss" for meta in metas):
        raise InvalidRunError("a job was answered from the cache")
    queue_ms = [meta["timings_ms"]["queue"] for meta in metas]
    return Run(sorted(edits), [job.finished for job in jobs if job.finished], queue_ms)


def make_sources(count: int) -> list[bytes]:
    """JPEGs of three megapixels, no two of them the same."""
    pixels = np.asarray(picture("JPEG"))
    shifted = (Image.fromarray(np.roll(pixels, 50 * number, axis=1)) for number in range(count))
    return [file_of(image, "JPEG", quality=90) for image in shifted]
