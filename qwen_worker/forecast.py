"""How long the GPU will be busy with the jobs that a worker has: what decides whether the next one is taken already.

A job that waits in a busy worker may keep an idle one from it, and RunPod counts the wait as its execution time. So
with PREFETCH=auto the next job is taken only when the GPU will soon be free. Nothing else depends on the estimate.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qwen_worker.request import ImageRequest

#: Seconds of GPU time that may be left when the next job is taken: for taking it, its sources, the bucket and decoding.
#: In bench.throughput, 250 ms from a host and for a write, those take 0.8 s, and 1.0 is enough; many hosts are slower.
AHEAD_S = 2.0
BEFORE_THE_GPU = {"validate", "fetch", "lookup"}


@dataclass(frozen=True)
class _Turn:
    """Of a job on the GPU; times of the forecast's clock."""

    begin: float
    last: float  # when the newest pass through the sampler was done
    done: int
    steps: int


@dataclass
class _Job:
    """What is known of one: before its request is understood, nothing.

    `since` is when it was taken. `images` are those not made yet, `steps` those of each, `passes` those of a step
    through the transformer.
    """

    since: float
    is_on_its_way: bool = True  # to the GPU: it waits for a host or the bucket
    images: int = 1
    steps: float = math.inf
    passes: int = 1
    turn: _Turn | None = None


class Forecast:
    """Told of jobs by the loop that takes them, and of their stages and steps by whoever does them, from any thread.

    Args:
        ahead_s: seconds of GPU time that may be left when another job is taken; infinite: any.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, ahead_s: float = math.inf, now: Callable[[], float] = time.monotonic) -> None:
        self._ahead_s = ahead_s
        self._now = now
        self._pass_s = math.inf  # seconds of the last edit, encoding and decoding too, for each of its passes
        self._jobs: dict[str, _Job] = {}

    def take(self, job_id: str) -> None:
        """The worker has it from now on; until more is known, it may take for ever."""
        self._jobs[job_id] = _Job(self._now())

    def drop(self, job_id: str) -> None:
        """The worker has it no more, however it ended."""
        self._jobs.pop(job_id, None)

    def expect(self, job_id: str, request: ImageRequest) -> None:
        """What a job asks for. Of one that was not taken nothing is kept."""
        if job := self._jobs.get(job_id):
            steps = request.num_inference_steps
            job.images, job.passes = request.num_images, 2 if request.true_cfg_scale > 1 else 1
            # It evaluates the model twice in each step but the last.
            job.steps = 2 * steps - 1 if request.scheduler == "FlowMatchHeun" else steps

    def hear(self, job_id: str, news: dict[str, Any]) -> None:
        """A stage of it begins, or a step is done: the news of a Stopwatch."""
        job, now = self._jobs.get(job_id), self._now()
        if job is None:
            return
        turn = job.turn
        if "step" in news:
            if turn:
                job.turn = replace(turn, last=now, done=news["step"], steps=news["steps"])
            return
        job.is_on_its_way = news["stage"] in BEFORE_THE_GPU
        if news["stage"] == "edit":
            job.turn = _Turn(now, now, 0, 0)
        elif turn:
            job.turn, job.images = None, news["images"] - news["image"]
            if turn.steps:  # else the model had nothing to do
                self._pass_s = (now - turn.begin) / (turn.steps * job.passes)

    def room(self, free: int) -> int:
        """How many jobs may be taken now into so many free slots. Where it matters, one: nothing is known of it yet."""
        if math.isinf(self._ahead_s):
            return free
        return min(free, 1) if self.seconds <= self._ahead_s else 0

    @property
    def seconds(self) -> float:
        """Until the GPU has done all jobs; infinite where nothing tells."""
        return sum(self._left(job) for job in list(self._jobs.values()))

    def _left(self, job: _Job) -> float:
        turn = job.turn
        if job.is_on_its_way and self._now() - job.since > self._ahead_s:
            # Others may be done before it: a slow host keeps nobody from the GPU.
            return 0.0
        waiting = job.images - 1 if turn else job.images
        one = job.steps * job.passes * self._pass_s
        left = waiting * one if waiting else 0.0
        if turn is None:
            return left
        now = self._now()
        if not turn.done:
            return left + max(0.0, one - (now - turn.begin))
        step_s = (turn.last - turn.begin) / turn.done
        return left + max(0.0, step_s * (turn.steps - turn.done) - (now - turn.last))
