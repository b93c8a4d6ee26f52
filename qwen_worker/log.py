"""One JSON object a line on stdout, with the job's id, without secrets, prompts or query strings."""

import contextvars
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

#: what follows the question mark of an address or of a request target, up to white space
_QUERY = re.compile(r"(?<![^\s?])([^\s?/]*/[^\s?]*)\?\S+")
_USER = re.compile(r"(?<=://)[^\s/?#@]+@")
HIDDEN = "[hidden]"
MIN_HIDDEN = 3  # shorter texts stand in every line by chance

_job: contextvars.ContextVar[str | None] = contextvars.ContextVar("job", default=None)
_hidden: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("hidden", default=())


@contextmanager
def job_context(job_id: str) -> Iterator[None]:
    """Put the job's id on every line logged inside."""
    job = _job.set(job_id)
    hidden = _hidden.set(())
    try:
        yield
    finally:
        _job.reset(job)
        _hidden.reset(hidden)


def hide(*texts: str) -> None:
    """Keep these texts of the current job, as they are or quoted, out of whatever foreign code says."""
    forms = (form for text in texts for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1]))
    _hidden.set((*_hidden.get(), *(form for form in forms if len(form) >= MIN_HIDDEN)))


class Formatter(JsonFormatter):
    """A record → one line of JSON, scrubbed."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        )
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        job_id = getattr(record, "job_id", None) or _job.get()
        if job_id:
            # The name that RunPod's console groups lines by.
            record.job_id = record.requestId = job_id
        return super().format(record)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The fields, scrubbed: before they are JSON, so that nothing hidden can break a line or blank a key."""
        # Our own lines name no text of a job; what foreign code says, and every traceback, may.
        ours = str(log_data.get("logger", "")).startswith("qwen_worker")
        return {
            key: self._scrub(value, self._secrets if ours and key != "exception" else (*self._secrets, *_hidden.get()))
            for key, value in super().process_log_record(log_data).items()
        }

    def _scrub(self, value: Any, texts: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._scrub(item, texts) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._scrub(item, texts) for item in value]
        if not isinstance(value, str):
            return value
        for text in texts:
            value = value.replace(text, HIDDEN)
        return _USER.sub("", _QUERY.sub(rf"\1?{HIDDEN}", value))


class _Lines:
    """A stand-in for stdout whose lines become log lines: what others print keeps the stream JSON."""

    def __init__(self, stream: TextIO) -> None:
        self.encoding = stream.encoding
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            logging.getLogger("stdout").info(line)
        return len(text)

    def flush(self) -> None:
        """Nothing waits: a line is logged when it ends."""

    def isatty(self) -> bool:
        return False


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
    logging.getLogger("runpod").setLevel(logging.DEBUG)  # RUNPOD_LOG_LEVEL has been obeyed before it gets here
    sys.stdout = _Lines(stream)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__name__).critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def from_runpod(message: Any, level: str = "INFO", job_id: str | None = None) -> None:
    """One line of RunPod's SDK. What follows a brace is a job, an answer or a traceback: it is cut."""
    text = str(message)
    head = text.partition("{")[0]
    number = {"WARN": logging.WARNING, "ERROR": logging.ERROR, "INFO": logging.INFO, "TIP": logging.INFO}.get(level)
    line = head if head == text else f"{head}{{…}}"
    logging.getLogger("runpod").log(number or logging.DEBUG, line, extra={"job_id": job_id} if job_id else None)
