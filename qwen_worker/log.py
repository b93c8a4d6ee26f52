"""One JSON object a line on stdout, with the job's id, without secrets, prompts or query strings."""

import contextvars
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from qwen_worker.scrub import is_long_enough, secret_parts, without

MAX_ID = 200  # characters of a job's id in a line
MAX_TEXT = 20_000  # characters of any other text
# A task or a thread may outlive its job: the texts of so many jobs that have ended are looked for too.
LATE = 8
NOISY = ("torchao", "bitsandbytes", "diffusers.quantizers", "diffusers.models.modeling_utils", "torch.utils._pytree")

_job: contextvars.ContextVar[str | None] = contextvars.ContextVar("job", default=None)
_hidden: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("hidden", default=None)
# One job's texts may be told in another's lines: by a thread of neither, or by what the garbage collector sets off.
_running: list[list[str]] = []
_late: deque[list[str]] = deque(maxlen=LATE)


@contextmanager
def job_context(job_id: str) -> Iterator[None]:
    """Put the job's id on every line logged inside."""
    job = _job.set(job_id)
    texts: list[str] = []
    hidden = _hidden.set(texts)
    _running.append(texts)
    try:
        yield
    finally:
        _job.reset(job)
        _hidden.reset(hidden)
        _late.append(texts)
        _running[:] = [one for one in _running if one is not texts]


def hide(*texts: str) -> None:
    """Keep these texts of the current job out of whatever foreign code says from now on, in any of its threads."""
    hidden = _hidden.get()
    if hidden is not None:
        hidden.extend(text for text in texts if is_long_enough(text))


def hide_address(url: str) -> None:
    """Keep out what of an address may let one in; its host may be told."""
    hide(*secret_parts(url))


def _foreign() -> list[str]:
    """What foreign code must not repeat: texts of the jobs that run, and of the last ones."""
    return [text for texts in (*_running, *_late) for text in texts]


class Formatter(JsonFormatter):
    """A record → one line of JSON, scrubbed."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        )
        self._secrets = tuple(filter(None, secrets))
        self._worker = os.environ.get("RUNPOD_POD_ID")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        job_id = getattr(record, "job_id", None) or _job.get()
        if job_id:
            # The name that RunPod's console groups lines by.
            record.job_id = record.requestId = str(job_id)[:MAX_ID]
        if self._worker:
            record.worker = self._worker
        return super().format(record)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The fields, scrubbed: before they are JSON, so that nothing hidden can break a line or blank a key."""
        # Our own lines name no text of a job, and RunPod's are cut; what foreign code says, and every traceback, may.
        logger = str(log_data.get("logger", ""))
        ours = logger.startswith("qwen_worker") or logger == "runpod"
        return {
            key: self._scrub(value, self._secrets if ours and key != "exception" else (*self._secrets, *_foreign()))
            for key, value in super().process_log_record(log_data).items()
        }

    def _scrub(self, value: Any, texts: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {self._scrub(str(key), texts): self._scrub(item, texts) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._scrub(item, texts) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        # Whatever else it is would be text in the line.
        return without(_cut(str(value)), texts)


def _cut(text: str) -> str:
    """Of a long text its beginning and its end: what failed, and why."""
    half = MAX_TEXT // 2
    return text if len(text) <= MAX_TEXT else f"{text[:half]} [...] {text[-half:]}"


class _Lines:
    """A stand-in for stdout or stderr whose lines become log lines: what others print keeps the stream JSON."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.encoding = stream.encoding
        self._log = logging.getLogger(name)
        self._fileno = stream.fileno
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > MAX_TEXT:  # a progress bar ends no line
            lines, self._rest = [*lines, self._rest], ""
        for line in filter(str.strip, lines):
            self._log.info(line)
        return len(text)

    def flush(self) -> None:
        """Nothing waits: a line is logged when it ends."""

    def fileno(self) -> int:
        return self._fileno()

    def isatty(self) -> bool:
        return False


def hush() -> None:
    """Silence libraries that warn, at every start, of kernels that nobody asks for and of what is done on purpose."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def setup(level: str, secrets: tuple[str, ...] = (), stream: TextIO | None = None) -> None:
    """Send every log line and every print of this process to stdout as JSON.

    Call it after importing runpod, which configures the root logger for itself.
    """
    stream = stream or sys.__stdout__ or sys.stdout
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(secrets))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for chatty in ("urllib3", "httpx", "httpx2", "httpcore2", "huggingface_hub", "PIL", "asyncio", "filelock"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    hush()
    logging.getLogger("runpod").setLevel(logging.DEBUG)  # RUNPOD_LOG_LEVEL has been obeyed before it gets here
    # What cannot be formatted would be told with its arguments, and what cannot be written, again and again.
    logging.raiseExceptions = False
    sys.stdout, sys.stderr = _Lines(stream, "stdout"), _Lines(stream, "stderr")
    sys.excepthook = _log_uncaught
    threading.excepthook = sys.unraisablehook = _log_lost


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__name__).critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_lost(lost: Any) -> None:
    """What ended a thread, or was raised where nobody could catch it: python would write it to stderr, as it is."""
    if not issubclass(lost.exc_type, SystemExit):
        caught = (lost.exc_type, lost.exc_value or lost.exc_type(), lost.exc_traceback)
        logging.getLogger("python").error("an exception that nobody caught", exc_info=caught)


def from_runpod(message: Any, level: str = "INFO", job_id: str | None = None) -> None:
    """One line of RunPod's SDK. What follows a brace is a job, an answer or a traceback: it is cut."""
    text = str(message)
    head = text.partition("{")[0]
    number = {"WARN": logging.WARNING, "ERROR": logging.ERROR, "INFO": logging.INFO, "TIP": logging.INFO}.get(level)
    line = head if head == text else f"{head}{{…}}"
    logging.getLogger("runpod").log(number or logging.DEBUG, line, extra={"job_id": job_id} if job_id else None)
