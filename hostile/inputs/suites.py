"""S18: whatever is generated as a job gets a typed answer, at once, of a size that RunPod passes on."""

import asyncio
import gc
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import HealthCheck, Phase, given, settings

from hostile.inputs.generated import KINDS_OF_ATTACK, SCHEMA, job_ids
from hostile.outcome import Outcome, Suite
from hostile.parts import idle_worker, tiny_folder
from local.logs import caught
from qwen_worker.errors import BadInput
from qwen_worker.job import Answer, Jobs
from qwen_worker.request import Request, parse
from qwen_worker.schema import Rules

#: kind of attack → how many of it
EXAMPLES = {
    "by the schema": 5_000, "spoilt": 5_000, "strange fields": 3_000, "all fields hostile": 2_000, "anything": 3_000,
    "fields by the thousand": 1_000, "JSON text": 1_000,
}  # fmt: skip
MAX_MS = 50  # of this thread's time, for one request
MAX_ANSWER = 16_384  # bytes of an error as it goes to RunPod
MAX_LINES = 65_536  # characters that one request writes into the log
MAX_PEAK_MB = 64
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RULES = Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=3, loras={"ink": "ink drawing"})
RULES = replace(RULES, generate=replace(RULES, loras={}))
_SCHEMA = jsonschema.Draft202012Validator(SCHEMA)


@dataclass
class Door:
    """Where jobs come in: `parse`, and a whole worker whose log is caught."""

    jobs: Jobs
    runner: asyncio.Runner
    log: io.StringIO

    def tried(self, raw: Any, job_id: Any) -> tuple[str | None, float]:
        """What did not hold, if anything, and the seconds that the slower of both took."""
        through, seconds = self._once(raw, job_id)
        if seconds * 1000 > MAX_MS:
            # Caches are shared with others too: what is slow by itself is slow again.
            seconds = min(seconds, self._once(raw, job_id)[1])
        if seconds * 1000 > MAX_MS:
            through = through or f"took {seconds * 1000:.0f} ms"
        return through, seconds

    def _once(self, raw: Any, job_id: Any) -> tuple[str | None, float]:
        found, seconds = _timed(lambda: parse(raw, job_id="job", rules=RULES))
        if isinstance(found, Exception):
            # Only what is refused: the worker would begin to do the others.
            answer, more = _timed(lambda: self.runner.run(self.jobs.answer({"id": job_id, "input": raw})))
            through, seconds = _refused(found) or _answered(answer) or self._logged(), max(seconds, more)
        else:
            through = _accepted(raw, found)
        return through, seconds

    def _logged(self) -> str | None:
        lines = self.log.getvalue()
        self.log.seek(0)
        self.log.truncate()
        if len(lines) > MAX_LINES:
            return f"{len(lines)} characters in the log"
        count = len(lines.splitlines())
        return None if count == 1 and json.loads(lines)["message"] == "job failed" else f"{count} lines in the log"


def run(_candidate: str) -> Iterator[Outcome]:
    """All kinds of attack on this worker."""
    with tiny_folder() as model:
        jobs = idle_worker(model)
        for kind, count in EXAMPLES.items():
            yield from attack(kind, count, jobs)


def attack(kind: str, count: int, jobs: Jobs) -> list[Outcome]:
    """So many generated requests of one kind, the same each time."""
    outcomes: list[Outcome] = []
    with door(jobs) as way_in:

        @settings(
            max_examples=count, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(KINDS_OF_ATTACK[kind], job_ids)
        def one(raw: Any, job_id: Any) -> None:
            idle_mb = _memory_mb("VmRSS")
            # Linux: from here on the peak is counted anew. hypothesis keeps what it made, and grows.
            PEAK.write_text("5")
            through, seconds = way_in.tried(raw, job_id)
            more = max(0.0, _memory_mb("VmHWM") - idle_mb)
            if more > MAX_PEAK_MB:
                through = through or f"{more:.0f} MB more than when idle"
            outcomes.append(Outcome(f"{kind} {len(outcomes)}", through, seconds, more))

        one()
    return outcomes


@contextmanager
def door(jobs: Jobs) -> Iterator[Door]:
    """The way in to a worker."""
    with caught("INFO") as log, asyncio.Runner() as runner:
        yield Door(jobs, runner, log)


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns or raises, and this thread's seconds: those of other processes are not its fault."""
    gc.collect(0)
    gc.disable()
    begin = time.thread_time()
    try:
        found = act()
    except Exception as error:  # noqa: BLE001 - what is raised is what is looked at
        found = error
    seconds = time.thread_time() - begin
    gc.enable()
    return found, seconds


def _refused(error: Exception) -> str | None:
    if not isinstance(error, BadInput):
        return f"{type(error).__name__} instead of BadInput"
    problems = error.details["problems"]
    named = problems and all(one["field"] and one["problem"] for one in problems)
    return None if named else "no field is named"


def _answered(answer: Answer | Exception) -> str | None:
    if isinstance(answer, Exception):
        return f"the worker raised {type(answer).__name__}"
    wire = json.dumps(answer.on_the_wire(), ensure_ascii=False).encode()
    return f"an answer of {len(wire)} bytes" if len(wire) > MAX_ANSWER else None


def _accepted(raw: Any, request: Request) -> str | None:
    # jsonschema writes down what it looks at, which Python refuses for a number of so many digits.
    written = {name: min(value, 10**9) if isinstance(value, int) else value for name, value in raw.items()}
    if not _SCHEMA.is_valid(written):
        return "taken, although the JSON Schema refuses it"
    try:
        # As RunPod's SDK sends an answer that repeats it.
        json.dumps(request.model_dump(mode="json"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        return f"an answer that repeats it cannot be sent: {type(error).__name__}"
    return None


def _memory_mb(name: str) -> float:
    (said,) = re.findall(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(said) / 1024


SUITE = Suite("S18", "generated jobs: typed, at once, and no endless answer", run)
