"""`python -m faults.soak [--jobs 3000] [--leak-jobs 1200]`: a worker's long day, a fifth of its jobs hostile.

Every job is answered once and as it must be, the worker does not die, holds no more at the end than after its warm-up,
and leaves nothing in the bucket but what the jobs account for. Then a worker that leaks has a shorter one, which must
find it. Writes out/soak.json; exit code 1 if anything is lost.
"""

import argparse
import json
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from faults.account import PREFIX, unaccounted, unlike
from faults.growth import WINDOW, Sample, growth, look, median
from faults.mix import EDIT, Mix, Planned
from local.runpod_api import FINAL
from local.stack import Stack
from local.worker import HANDLER, ROOT

OUT = Path("out/soak.json")
LEAKY = ("-m", "local.leaky_worker")
LIBRARIES = ("runpod", "torch", "diffusers", "transformers", "Pillow", "minio", "urllib3", "aiohttp", "psutil")
WARM_UP = 200  # jobs
IN_FLIGHT = 12  # jobs that are sent and not answered: more than the worker takes at a time, so that it is never idle
SAMPLE_EVERY = 10  # jobs
PATIENCE_S = 60.0  # without a single answer
CANCEL_S = 0.3  # after a job was taken
IDLE_S = 17.0  # the SDK keeps a connection that it does not need for 15 s


@dataclass
class Soak:
    """What was sent, and what came of it."""

    stack: Stack
    temporary: Path
    idle_s: float = IDLE_S
    sent: dict[str, Planned] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    idle: list[Sample] = field(default_factory=list)
    begin: float = field(default_factory=time.monotonic)
    _open: set[str] = field(default_factory=set)

    @property
    def done(self) -> int:
        """Jobs that have ended."""
        return len(self.sent) - len(self._open)

    def run(self, jobs: int, warm_up: int) -> None:
        """Send so many jobs, and wait for their ends.

        Raises:
            RuntimeError: the worker died, or answers no more.
        """
        coming = iter(Mix(self.stack.host))
        for goal in (warm_up, (warm_up + jobs) // 2, jobs):
            self._until(goal, coming)
            self.idle.append(self._rested())

    def _until(self, goal: int, coming: Iterator[Planned]) -> None:
        last = time.monotonic()
        while self.done < goal:
            while len(self._open) < IN_FLIGHT and len(self.sent) < goal:
                planned = next(coming)
                job_id = self.stack.submit(planned.input)
                self.sent[job_id] = planned
                self._open.add(job_id)
            before = self.done
            self._look_after()
            last = time.monotonic() if self.done > before else last
            if time.monotonic() - last > PATIENCE_S:
                raise RuntimeError(f"no answer for {PATIENCE_S:g} s after {self.done} jobs")
            if self.done // SAMPLE_EVERY > before // SAMPLE_EVERY:
                self.samples.append(self._looked())
            time.sleep(0.02)

    def _look_after(self) -> None:
        if self.stack.process is None or self.stack.process.poll() is not None:
            raise RuntimeError(f"the worker died after {self.done} jobs")
        for job_id in list(self._open):
            job = self.stack.api.jobs[job_id]
            if job.status in FINAL:
                self._open.discard(job_id)
            elif self.sent[job_id].expected == "cancelled" and job.taken and time.time() > job.taken + CANCEL_S:
                self.stack.cancel(job_id)

    def _looked(self) -> Sample:
        process = psutil.Process(self.stack.process.pid if self.stack.process else 0)
        return look(process, self.temporary, self.done, time.monotonic() - self.begin)

    def _rested(self) -> Sample:
        """The least that it holds while it has nothing to do."""
        end, seen = time.monotonic() + self.idle_s, [self._looked()]
        while time.monotonic() < end:
            time.sleep(0.2)
            seen.append(self._looked())
        return min(seen, key=lambda one: (one.fds, one.threads))

    def lost(self) -> list[str]:
        """Jobs that were not answered once and as they must be, and objects that no job accounts for."""
        jobs = {job_id: self.stack.api.jobs[job_id] for job_id in self.sent}
        wrong = [problem for job_id, job in jobs.items() if (problem := unlike(self.sent[job_id], job))]
        return [*wrong, *unaccounted(self.sent, jobs, self.stack.bucket.keys())]


@contextmanager
def soaking(leak_kb: int = 0) -> Iterator[Soak]:
    """A worker with everything around it."""
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name) / "tmp"
        temporary.mkdir()
        more = {"TMPDIR": str(temporary), "PREFETCH": "4", "TIMEOUT_SECONDS": "1", "PYTHONPATH": str(ROOT)}
        program = LEAKY if leak_kb else HANDLER
        more |= {"LEAK_KB": str(leak_kb)} if leak_kb else {}
        with Stack(Path(name) / "stack", more=more, program=program) as stack:
            yield Soak(stack, temporary)


def verdict(soak: Soak, jobs: int) -> list[str]:
    """Everything that is wrong, once so many jobs are sent."""
    try:
        soak.run(jobs, WARM_UP)
    except (RuntimeError, OSError, psutil.Error) as error:
        return [str(error), *soak.lost()]
    return [*soak.lost(), *growth(warm(soak), soak.idle)]


def warm(soak: Soak) -> list[Sample]:
    """The samples after the warm-up."""
    return [one for one in soak.samples if one.jobs >= WARM_UP]


def report(soak: Soak, problems: list[str], leak_kb: int) -> dict[str, Any]:
    """What is told of it."""
    kinds = Counter(planned.kind for planned in soak.sent.values())
    middle = len(warm(soak)) // 2
    parts = {"begin": warm(soak)[:WINDOW], "middle": warm(soak)[middle:][:WINDOW], "end": warm(soak)[-WINDOW:]}
    objects = Counter(key.removeprefix(PREFIX).partition("/")[0] for key in soak.stack.bucket.keys())  # noqa: SIM118
    return {
        "jobs": len(soak.sent),
        "hostile": len(soak.sent) - kinds[EDIT],
        "leak_kb": leak_kb,
        "seconds": round(time.monotonic() - soak.begin),
        "problems": problems,
        **{name: {part: median(some, name) for part, some in parts.items() if some} for name in ("rss_mb", "tree_mb")},
        "idle": [asdict(one) for one in soak.idle],
        "objects": dict(objects),
        "kinds": dict(sorted(kinds.items())),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "samples": [asdict(one) for one in soak.samples],
    }


def made(jobs: int, leak_kb: int = 0) -> dict[str, Any]:
    """One soak, and its line for people."""
    with soaking(leak_kb) as soak:
        problems = verdict(soak, jobs)
        said = report(soak, problems, leak_kb)
    told = ", ".join(f"{name} {said[name]}" for name in ("jobs", "hostile", "leak_kb", "seconds", "rss_mb", "objects"))
    print(*problems, f"soak: {'FAILED' if problems else 'passed'}, {told}", sep="\n", flush=True)
    return said


def main() -> int:
    """1 if anything is lost, or grows, or if the planted leak is not found."""
    parser = argparse.ArgumentParser(prog="python -m faults.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000, help=f"more than {2 * WARM_UP}")
    parser.add_argument("--leak-jobs", type=int, default=1200, help="of the worker that leaks; 0: none")
    parser.add_argument("--leak-kb", type=int, default=50, help="that it keeps of each")
    asked = parser.parse_args()
    if any(0 < jobs <= 2 * WARM_UP for jobs in (asked.jobs, asked.leak_jobs)):
        parser.error(f"so few jobs show nothing: more than {2 * WARM_UP}")
    # So that the worker's processes end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    said = {"soak": made(asked.jobs)}
    if asked.leak_jobs:
        said["leak"] = made(asked.leak_jobs, asked.leak_kb)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(said, indent=1) + "\n")
    missed = asked.leak_jobs and not any(problem.startswith("rss_mb") for problem in said["leak"]["problems"])
    print("the planted leak was not found" if missed else "", end="")
    return bool(said["soak"]["problems"] or missed)


if __name__ == "__main__":
    sys.exit(main())
