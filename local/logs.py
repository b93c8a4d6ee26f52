"""The worker's log in this process, caught; afterwards logging is as it was."""

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qwen_worker import log as job_log


@contextmanager
def caught(level: str = "DEBUG", secrets: tuple[str, ...] = ()) -> Iterator[io.StringIO]:
    """The stream that the log of a worker with these settings goes to."""
    kept = (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook, sys.unraisablehook, logging.raiseExceptions)
    handlers, of_root = logging.root.handlers[:], logging.root.level
    stream = io.StringIO()
    job_log.setup(level, secrets, stream)
    try:
        yield stream
    finally:
        logging.captureWarnings(capture=False)
        logging.root.handlers[:], logging.root.level = handlers, of_root
        sys.stdout, sys.stderr, sys.excepthook, threading.excepthook, sys.unraisablehook, logging.raiseExceptions = kept
