"""The log stream."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_worker import log as job_log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The stream that setup was given; the process's own logging is put back afterwards."""
    kept = (sys.stdout, sys.excepthook, logging.root.handlers[:], logging.root.level)
    target = io.StringIO()
    job_log.setup("DEBUG", ("s3cret/key",), target)
    yield target
    logging.captureWarnings(capture=False)
    sys.stdout, sys.excepthook, logging.root.handlers[:], logging.root.level = kept


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_the_jobs_id(stream: io.StringIO) -> None:
    """`requestId` is what RunPod's console groups by."""
    with job_log.job_context("job-1"):
        logging.getLogger("x").warning("two\nlines", extra={"bytes": 3})
    logging.getLogger("x").info("outside")

    inside, outside = lines(stream)
    assert inside["message"] == "two\nlines"
    assert inside["level"] == "WARNING"
    assert inside["bytes"] == 3
    assert inside["job_id"] == inside["requestId"] == "job-1"
    assert "time" in inside
    assert "job_id" not in outside


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("the key is s3cret/key.", "s3cret"),
        ("GET https://host/a.jpg?X-Amz-Signature=abc%2F&b=c (failed)", "Signature"),
        ("Max retries exceeded with url: /a.jpg?token=abc (Caused by", "token"),
        ("https://user:pa55@host/a", "pa55"),
        ('prompt was a naïve "quoted" wish', "quoted"),
    ],
)
def test_no_secret_no_query_and_no_prompt_is_logged(stream: io.StringIO, said: str, secret: str) -> None:
    """Not in a message, not in a field, not in a traceback."""
    with job_log.job_context("job-1"):
        job_log.hide('a naïve "quoted" wish')
        logging.getLogger("x").debug("%s", said)
        logging.getLogger("x").info("field", extra={"field": {"deep": [said]}})
        try:
            raise ValueError(said)
        except ValueError:
            logging.getLogger("x").exception("failed")

    assert len(lines(stream)) == 3
    assert secret not in stream.getvalue()
    assert "hidden" in stream.getvalue() or "https://host/a" in stream.getvalue()


def test_what_others_print_stays_in_the_stream(stream: io.StringIO) -> None:
    """A library's print must not break a log collector."""
    job_log.setup("INFO", stream=stream)  # again: pytest has put its own stdout back since the fixture
    print("--- Starting", "Worker ---")  # noqa: T201
    print("no end yet", end="")  # noqa: T201

    assert [line["message"] for line in lines(stream)] == ["--- Starting Worker ---"]


def test_runpods_lines_lose_their_payload(stream: io.StringIO) -> None:
    """At DEBUG the SDK prints jobs and answers."""
    job_log.from_runpod("Handler output: {'output': {'presigned_url': 'x'}}", "DEBUG", "job-2")
    job_log.from_runpod("Started.", "INFO", "job-2")
    job_log.from_runpod("odd", "WARN")

    output, started, odd = lines(stream)
    assert output["message"] == "Handler output: {…}"
    assert (started["message"], started["requestId"], started["level"]) == ("Started.", "job-2", "INFO")
    assert odd["level"] == "WARNING"


def test_what_stops_the_process_is_a_line(stream: io.StringIO) -> None:
    """The reason a worker does not start is in the log, not beside it."""
    error = ValueError("no such model")
    sys.excepthook(ValueError, error, None)

    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("CRITICAL", "ValueError: no such model")
