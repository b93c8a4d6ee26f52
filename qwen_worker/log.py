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

#: ?name=value..., of an address or of a request target, up to what may end it in JSON text
_QUERY = re.compile(r"""\?[\w.%~+-]+=[^\s"'\\<>)]*""")
_USER = re.compile(r"""(?<=://)[^\s/?#"'\\<>@]+@""")
MIN_HIDDEN = 8  # shorter texts of a job stand in other words by chance: "edit"

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
    """Keep these texts of the current job out of every line, whoever logs it."""
    _hidden.set((*_hidden.get(), *texts))


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
        return self._scrub(super().format(record))

    def _scrub(self, line: str) -> str:
        for text in (*self._secrets, *(text for text in _hidden.get() if len(text) >= MIN_HIDDEN)):
            for form in (json.dumps(text)[1:-1], text):
                line = line.replace(form, "[hidden]")
        return _USER.sub("", _QUERY.sub("?[hidden]", line))


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
    for chatty in ("urllib3", "httpx", "huggingface_hub", "PIL", "asyncio", "filelock"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
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
