"""The worker's log → typed records. Nothing that a line says is taken as it is: it has its type, or is not there.

A line is used from its first `{` on, so that a console may write what it likes before it; what
`ops.deploy logs` wraps is unwrapped. What is no line of the worker is skipped and counted.
"""

import gzip
import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

STDIN = "-"
STAGES = ("validate", "fetch", "lookup", "decode", "queue", "edit", "encode", "upload")
PICTURES = ("edit", "inpaint", "background_replacement", "generate")
OPERATIONS = (*PICTURES, "health", "presign", "unknown")  # the last: of a request that was refused
PARTS = ("settings", "first_byte", "bucket", "imports", "load", "warm_up", "ready")
MEMORY = ("host", "gpu", "gpu_peak")
NOT_TOLD, OTHER = "not told", "other"
DONE, PARTIAL, FAILED = "done", "partial", "failed"
MAX_LINE = 2**20  # bytes: longer ones are no lines of the worker
MAX_NAME, MAX_TEXT = 24, 300  # characters
LARGEST = 1e15  # of any number: more is none that was measured
LONGEST_START = 86400.0  # seconds
YEARS = range(2000, 2100)
GZIP = b"\x1f\x8b"

_DECODER = json.JSONDecoder()


class ReadError(Exception):
    """A file cannot be read; which, and why."""


@dataclass(frozen=True, slots=True)
class Job:
    """`job done`, `job failed` or `job cancelled`."""

    at: float  # seconds since 1970, as every time here
    worker: str
    outcome: str
    operation: str
    ms: Mapping[str, float]
    total_ms: float | None
    made: int
    reused: int
    sources: int
    hits: int
    gpu_s: float
    usd: float | None
    memory: Mapping[str, float]
    error: str = ""
    stage: str = ""
    reason: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """`worker ready`."""

    at: float
    worker: str
    parts: Mapping[str, float]  # seconds from the start of the process until each was done
    usd_per_second: float | None
    about: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """A line that a person should see."""

    at: float
    worker: str
    level: str
    text: str


@dataclass
class Counts:
    """What became of the lines; empty ones are not counted."""

    files: int = 0
    lines: int = 0
    used: int = 0
    unused: int = 0  # lines of the worker of which the report tells nothing
    repeated: int = 0
    no_json: int = 0
    broken: int = 0
    foreign: int = 0  # JSON, but no line of the worker

    @property
    def skipped(self) -> int:
        """No lines of the worker."""
        return self.no_json + self.broken + self.foreign


@dataclass
class Log:
    """All that was read, each kind by time."""

    counts: Counts = field(default_factory=Counts)
    jobs: list[Job] = field(default_factory=list)
    ready: list[Ready] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)  # of a worker's lines, whatever they say
    damaged: list[str] = field(default_factory=list)  # gzip files that end too early


def read(files: Sequence[str]) -> Log:
    """The lines of all files; `-` is stdin.

    Raises:
        ReadError: of one or several files.
    """
    log, seen = Log(), set[int]()
    if problems := [f"{name}: {problem}" for name in files if (problem := _problem(name))]:
        raise ReadError("; ".join(problems))
    for number, name in enumerate(files):
        log.counts.files += 1
        label = worker_name("stdin" if name == STDIN else Path(name).name)
        alone = label not in log.times
        try:
            with _opened(name) as file:
                for line in _lines(file):
                    _take(line, log, seen, label if alone else f"{label} {number + 1}")
        except (EOFError, zlib.error, gzip.BadGzipFile):
            log.damaged.append(name)
        except OSError as error:
            raise ReadError(f"{name}: {error.strerror or error}") from error
    for records in (log.jobs, log.ready, log.events):
        records.sort(key=lambda one: one.at)
    return log


def _problem(name: str) -> str:
    if name == STDIN or Path(name).is_file() or Path(name).is_fifo():
        return ""
    return "is a folder" if Path(name).is_dir() else "there is no such file"


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO | gzip.GzipFile]:
    if name == STDIN:
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as file:
        if file.peek(2)[:2] != GZIP:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield unpacked


def _lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Each line; of one that is too long no more than its beginning."""
    while line := file.readline(MAX_LINE):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def _take(line: bytes, log: Log, seen: set[int], label: str) -> None:
    """One line, counted and put where it belongs."""
    counts = log.counts
    if not line.strip():
        return
    counts.lines += 1
    begin = line.find(b"{")
    if begin < 0:
        counts.no_json += 1
        return
    try:
        said, _ = _DECODER.raw_decode(line[begin:].decode())
    except (ValueError, RecursionError):
        counts.broken += 1
        return
    if isinstance(inner := said.get("line"), str):  # wrapped by `python -m ops.deploy logs`
        counts.lines -= 1  # it is counted unwrapped
        _take(inner.encode(errors="replace"), log, seen, worker_name(said.get("worker")) or label)
        return
    at = moment(said.get("time"))
    message = said.get("message")
    if at is None or not isinstance(message, str) or not isinstance(said.get("logger"), str):
        counts.foreign += 1
        return
    # Two exports of a log may overlap. No two lines of a worker have the same microsecond and all else the same.
    if (digest := hash(line[begin:].rstrip())) in seen:
        counts.repeated += 1
        return
    seen.add(digest)
    worker = worker_name(said.get("worker")) or label
    log.times.setdefault(worker, []).append(at)
    counts.used += 1
    if message in {"job done", "job failed", "job cancelled"}:
        log.jobs.append(_job(said, at, worker))
    elif message == "worker ready":
        log.ready.append(_ready(said, at, worker))
    elif _is_event(said, message):
        log.events.append(Event(at, worker, name(said.get("level")), text(message)))
    else:
        counts.used -= 1
        counts.unused += 1


def _is_event(said: Mapping[str, Any], message: str) -> bool:
    return said.get("level") == "CRITICAL" or message == "job stopped" or message.startswith("answer not delivered")


def _job(said: Mapping[str, Any], at: float, worker: str) -> Job:
    ms = _numbers(said.get("timings_ms"), (*STAGES, "total"))
    total = ms.pop("total", None)
    failed = said["message"] != "job done"
    pictures = [one for one in _list(said.get("reused")) if isinstance(one, bool)]
    partial = said.get("status") == "partial"
    return Job(
        at=at,
        worker=worker,
        outcome=FAILED if failed else PARTIAL if partial else DONE,
        operation=among(said.get("operation"), OPERATIONS),
        ms=ms,
        total_ms=total,
        made=pictures.count(False),
        reused=pictures.count(True),
        sources=int(number(said.get("sources")) or 0),
        hits=int(number(said.get("cache_hits")) or 0),
        gpu_s=number(said.get("gpu_s")) or 0.0,
        usd=number(said.get("cost_usd")),
        memory=_numbers(said.get("memory"), MEMORY),
        error=name(said.get("type") or (said.get("status") if failed else None)),
        stage=among(said.get("stage"), STAGES),
        reason=text(said.get("reason")),
        retryable=said.get("retryable") is True,
    )


def _ready(said: Mapping[str, Any], at: float, worker: str) -> Ready:
    device = said.get("device")
    device = device if isinstance(device, dict) else {}
    versions = said.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    about = {
        "model": text(said.get("model_id")),
        "preset": text(said.get("preset")),
        "profile": text(said.get("profile")),
        "device": text(device.get("name")),
        "versions": text(", ".join(f"{key} {value}" for key, value in versions.items() if isinstance(value, str))),
    }
    parts = _numbers(said.get("seconds_from_process_start"), PARTS)
    parts = {part: seconds for part, seconds in parts.items() if seconds <= LONGEST_START}
    return Ready(at, worker, parts, number(said.get("usd_per_second")), about)


def number(said: object) -> float | None:
    """A number of zero or more that can have been measured."""
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= LARGEST:
        return None
    return float(said)


def text(said: object) -> str:
    """A text of one line, without what controls a terminal or turns the direction of writing."""
    if not isinstance(said, str):
        return ""
    shown = said[: MAX_TEXT + 1]
    if not shown.isprintable():
        shown = "".join(" " if unicodedata.category(one)[0] == "C" else one for one in shown)
    return shown if len(shown) <= MAX_TEXT else f"{shown[:MAX_TEXT]}…"


def name(said: object) -> str:
    """A word of letters and digits, as types and levels are; of anything else nothing is told."""
    if said is None:
        return ""
    return said if isinstance(said, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,39}", said) else OTHER


def worker_name(said: object) -> str:
    """The id of a worker, or the name of a file, fit to be a label: plotly takes some characters for markup."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", said[:MAX_NAME]) if isinstance(said, str) else ""


def among(said: object, known: Sequence[str]) -> str:
    """One of those, or that it is none."""
    if said is None:
        return NOT_TOLD
    return said if isinstance(said, str) and said in known else OTHER


def moment(said: object) -> float | None:
    """Seconds since 1970 of an ISO 8601 time; without a zone it is UTC."""
    try:
        read = datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        return None
    if read is None or read.year not in YEARS:
        return None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def _numbers(said: object, known: Iterable[str]) -> dict[str, float]:
    found = {key: number(said.get(key)) for key in known} if isinstance(said, dict) else {}
    return {key: one for key, one in found.items() if one is not None}


def _list(said: object) -> list[Any]:
    return said if isinstance(said, list) else []
