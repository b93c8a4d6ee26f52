"""S17: no secret, prompt or signature is told by logs and answers, whatever goes wrong, at every log level."""

import asyncio
import contextlib
import http.client
import io
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from hostile.outcome import Outcome, Suite
from hostile.parts import editor_of, settings_of, tiny_folder
from hostile.secrecy import whole_workers
from hostile.secrecy.canaries import CANARY, told_in, without_what_is_due
from hostile.secrecy.faults import TARGET, Fault, faults, posed
from local.bucket import LocalBucket
from local.logs import caught
from local.web import ImageHost, Reply
from qwen_worker.build import assemble
from qwen_worker.job import Answer, Jobs

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
SECRETS = tuple(CANARY[place] for place in ("access key", "secret key", "hub token", "job api key"))
QUICK = {"TIMEOUT_SECONDS": "0.5", "STORAGE_TIMEOUT_SECONDS": "0.5", "INFERENCE_TIMEOUT_SECONDS": "0.001"}


class _Everything(dict[str, Reply]):
    """The same reply whatever is asked."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self._reply = Reply(script=script)

    def get(self, _target: str, _default: Any = None) -> Reply:
        return self._reply


class _FailingBucket(ImageHost):
    """A server in a bucket's place; `script` answers everything."""

    def __init__(self) -> None:
        super().__init__()
        self.script: Any = None
        self.replies = _Everything(self._answer)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.script(handler)


@dataclass
class World:
    """The parts that a worker talks to, and its model.

    Attributes:
        usual: a worker with a real bucket.
        quick: the same, with hardly any time for anything.
        broken: a worker on a bucket that fails.
    """

    host: ImageHost
    failing: _FailingBucket
    transformer: Any
    usual: Jobs
    quick: Jobs
    broken: Jobs
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def befall(self, fault: Fault) -> Answer:
        """Do the job to which it happens."""
        target = f"{TARGET}{next(self.numbers)}"  # a new one: what was fetched is kept
        said = posed(fault, self.host, target)
        self.failing.script = fault.bucket
        jobs = self.broken if fault.bucket else self.quick if fault.quick else self.usual
        with self._hooked(fault):
            return asyncio.run(jobs.answer({"id": fault.name, "input": said}))

    @contextmanager
    def _hooked(self, fault: Fault) -> Iterator[None]:
        with ExitStack() as hooks:
            if act := fault.model:
                hooks.callback(self.transformer.register_forward_pre_hook(lambda *_: act()).remove)
            if spoil := fault.spoil:
                hook = self.transformer.register_forward_hook(lambda _m, _i, output: (spoil(output[0]), *output[1:]))
                hooks.callback(hook.remove)
            yield


@contextmanager
def world(model: Path, folder: Path) -> Iterator[World]:
    """All parts, running."""
    with LocalBucket(folder / "bucket") as bucket, ImageHost() as host, _FailingBucket() as failing:
        usual = settings_of(model, bucket.environment)
        keys = {"S3_ENDPOINT": f"127.0.0.1:{failing.port}", "S3_ACCESS_KEY": CANARY["access key"],
                "S3_SECRET_KEY": CANARY["secret key"]}  # fmt: skip
        quick = settings_of(model, bucket.environment, QUICK)
        slow_editor, quick_editor = editor_of(usual), editor_of(quick)
        yield World(
            host,
            failing,
            slow_editor._pipeline.transformer,  # noqa: SLF001 - the seam: torch's own hooks
            assemble(usual, slow_editor),
            assemble(quick, quick_editor),
            assemble(settings_of(model, keys), slow_editor),
        )


def tell(parts: World, fault: Fault, level: str, *, wire: bool, secrets: tuple[str, ...] = SECRETS) -> str | None:
    """What somebody told of a fault's job, if anything; `wire`: urllib3 and http.client say all they can."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), caught(level, secrets) as log, _talkative(wire=wire):
        answer = parts.befall(fault)
    said = json.dumps(without_what_is_due(answer.body)) + json.dumps(without_what_is_due(answer.on_the_wire()))
    told = {"log": log.getvalue(), "stderr": errors.getvalue(), "answer": said}
    found = [f"{place} in {where}" for where, text in told.items() for place in told_in(text)]
    return ", ".join(found) or _kept(log.getvalue(), answer) or _as_expected(answer, fault)


def _kept(log: str, answer: Answer) -> str | None:
    """Of what the worker itself makes: lines that are JSON, and links that are in the answer alone."""
    lines = [json.loads(line) for line in log.splitlines()]
    if any(line["message"] == "forged" or "time" not in line for line in lines):
        return "a line was forged"
    link = answer.body.get("result", {}).get("presigned_url", "")
    return "the signature of a result in log" if link and link.rpartition("X-Amz-Signature=")[2] in log else None


def _as_expected(answer: Answer, fault: Fault) -> str | None:
    """A fault that does not happen proves nothing."""
    kind = answer.body.get("error", {}).get("type")
    expected = fault.kind.split("|") if fault.kind else [None]
    return None if kind in expected else f"ended as {kind}"


@contextmanager
def _talkative(*, wire: bool) -> Iterator[None]:
    """What a person does who looks for a fault in the network."""
    noisy = logging.getLogger("urllib3")
    kept = noisy.level
    if wire:
        noisy.setLevel(logging.DEBUG)
        http.client.HTTPConnection.debuglevel = 1
    try:
        yield
    finally:
        noisy.setLevel(kept)
        http.client.HTTPConnection.debuglevel = 0


def tried(parts: World, some: Sequence[Fault], level: str, *, wire: bool) -> Iterator[Outcome]:
    """Each fault, at one level."""
    for fault in some:
        begin = time.perf_counter()
        through = tell(parts, fault, level, wire=wire)
        yield Outcome(f"{fault.name}, {level}{', wire' if wire else ''}", through, time.perf_counter() - begin)


def run(_candidate: str) -> Iterator[Outcome]:
    """Every fault at every level, and whole workers."""
    with tiny_folder() as model, tempfile.TemporaryDirectory() as folder, world(model, Path(folder)) as parts:
        for level in LEVELS:
            yield from tried(parts, list(faults()), level, wire=level == "DEBUG")
        yield from whole_workers.workers(model)
        yield from whole_workers.starts()


SUITE = Suite("S17", "canaries in every secret place, every error, every log level: none in logs and answers", run)
