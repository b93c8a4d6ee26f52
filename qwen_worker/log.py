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

#: user:password@ and ?query of an address, up to what may end it in JSON text
_URL = re.compile(r"""(https?://)(?:[^\s/?#"'\\<>@]*@)?([^\s?#"'\\<>]*)(\?[^\s"'\\<>]*)?""")
MIN_HIDDEN = 4  # shorter texts stand in every line by chance

_job: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("job", default={})
_hidden: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("hidden", default=())


@contextmanager
def job_context(job_id: str) -> Iterator[None]:
    """Put the job's id on every line logged inside; `requestId` is the name that RunPod's console groups by."""
    job = _job.set({"job_id": job_id, "requestId": job_id})
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
        for key, value in _job.get().items():
            if not hasattr(record, key):
                setattr(record, key, value)
        return self._scrub(super().format(record))

    def _scrub(self, line: str) -> str:
        for text in (*self._secrets, *_hidden.get()):
            if len(text) >= MIN_HIDDEN:
                for form in (json.dumps(text)[1:-1], text):
                    line = line.replace(form, "[hidden]")
        return _URL.sub(lambda match: match[1] + match[2] + ("?[hidden]" if match[3] else ""), line)


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
    sys.stdout = _Lines(stream)  # type: ignore[assignment]
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__name__).critical(f"{kind.__name__}: {error}", exc_info=(kind, error, trace))


def from_runpod(message: Any, level: str = "INFO", job_id: str | None = None) -> None:
    """One line of RunPod's SDK. What follows a brace is a job, an answer or a traceback: it is cut."""
    text = str(message)
    head = text.partition("{")[0]
    number = {"WARN": logging.WARNING, "ERROR": logging.ERROR, "INFO": logging.INFO, "TIP": logging.INFO}.get(level)
    extra = {"job_id": job_id, "requestId": job_id} if job_id else {}
    logging.getLogger("runpod").log(number or logging.DEBUG, head + ("{…}" if head != text else ""), extra=extra)
