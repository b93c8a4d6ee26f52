"""The log stream."""

import contextvars
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from local.logs import caught
from qwen_worker import log as job_log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The stream that setup was given; the process's own logging is put back afterwards."""
    with caught("DEBUG", ("s3cret/key",)) as target:
        yield target


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
        ("Max retries exceeded with url: /a?&token=abc (Caused by", "token"),
        ("with url: /a?abc (Caused by", "abc"),
        ("with url: /a?v1;sig=abc", "sig"),
        ("with url: /a?x=1)token<b>", "token"),
        ("https://host?token=abc", "token"),
        ("https://user:pa55@host/a", "pa55"),  # pragma: allowlist secret
    ],
)
@pytest.mark.parametrize("logger", ["urllib3", "qwen_worker.job"])
def test_no_secret_and_no_query_is_logged(stream: io.StringIO, logger: str, said: str, secret: str) -> None:
    """Not in a message, not in a field, not in a traceback; not by us and not by others."""
    with job_log.job_context("job-1"):
        logging.getLogger(logger).warning("%s", said)
        logging.getLogger(logger).warning("field", extra={"field": {"deep": [said]}})
        try:
            raise ValueError(said)
        except ValueError:
            logging.getLogger(logger).exception("failed")

    assert len(lines(stream)) == 3
    assert secret not in stream.getvalue()


@pytest.mark.parametrize("prompt", ['a naïve "quoted" wish', "two\nlines", "edit", '"level":', "back\\slash", "日本語"])
def test_no_prompt_is_logged(stream: io.StringIO, prompt: str) -> None:
    """Foreign code puts its arguments into what it raises and says, as they are or quoted."""
    with job_log.job_context("job-1"):
        job_log.hide(prompt)
        for text in (prompt, repr(prompt), json.dumps(prompt)):
            logging.getLogger("foreign").warning("cannot encode <%s>", text)
            try:
                raise ValueError(f"bad <{text}>")
            except ValueError:
                logging.getLogger("qwen_worker.job").exception("job failed")

    said = [line.get("exception", line["message"]) for line in lines(stream)]
    assert len(said) == 6
    assert all("[hidden]" in text and f"<{prompt}>" not in text for text in said)


@pytest.mark.parametrize("prompt", ["requestId", "job failed", '"level": "', "edit", "{", "timings_ms"])
def test_a_prompt_cannot_change_our_own_lines(stream: io.StringIO, prompt: str) -> None:
    """Neither their keys nor what we say."""
    with job_log.job_context("job-1"):
        job_log.hide(prompt)
        logging.getLogger("qwen_worker.job").warning("job failed", extra={"timings_ms": {"edit": 1.5}})

    (line,) = lines(stream)
    assert (line["message"], line["requestId"], line["level"]) == ("job failed", "job-1", "WARNING")
    assert line["timings_ms"] == {"edit": 1.5}


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
    job_log.setup("ERROR", stream=stream)
    job_log.from_runpod("SDK's level is its own", "DEBUG")

    output, started, odd, _ = lines(stream)
    assert output["message"] == "Handler output: {…}"
    assert (started["message"], started["requestId"], started["level"]) == ("Started.", "job-2", "INFO")
    assert odd["level"] == "WARNING"


def test_what_stops_the_process_is_a_line(stream: io.StringIO) -> None:
    """The reason a worker does not start is in the log, not beside it."""
    error = ValueError("no such model")
    sys.excepthook(ValueError, error, None)

    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("CRITICAL", "ValueError: no such model")


def test_a_part_of_a_prompt_is_hidden_wherever_it_is_said(stream: io.StringIO) -> None:
    """In another thread, after the job, in a field that is no text, by what python prints to stderr."""
    prompt = "a rather private wish of mine"
    with job_log.job_context("job-1"):
        threading.Thread(target=contextvars.copy_context().run, args=(job_log.hide, prompt)).start()
    logging.getLogger("foreign").warning("late: %s", prompt[:20], extra={"x": {prompt: prompt.encode()}})

    def die() -> None:
        raise ValueError(prompt)

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()

    late, died = lines(stream)
    assert late["message"] == "late: [hidden]"
    assert late["x"] == {"[hidden]": "b'[hidden]'"}
    assert died["exception"].endswith("ValueError: [hidden]")


def test_a_text_is_hidden_in_every_jobs_lines_as_long_as_its_job_runs(stream: io.StringIO) -> None:
    """However many others come and go: a thread of neither may tell it, or what the garbage collector sets off."""
    prompt = "a rather private wish of mine"

    def another() -> None:
        with job_log.job_context("job-2"):
            logging.getLogger("foreign").warning("in another job: %s", prompt)

    with job_log.job_context("job-1"):
        job_log.hide(prompt)
        for _ in range(job_log.LATE + 1):
            contextvars.Context().run(another)
        contextvars.Context().run(logging.getLogger("foreign").warning, "outside: %s", prompt)

    told = lines(stream)
    assert {(line["message"], line.get("job_id")) for line in told} == {
        ("in another job: [hidden]", "job-2"),
        ("outside: [hidden]", None),
    }


def test_no_line_is_longer_than_a_person_reads(stream: io.StringIO) -> None:
    """Whatever the id, and whatever a library prints without an end."""
    job_log.setup("INFO", stream=stream)  # again, as above
    with job_log.job_context("x" * 10**6):
        logging.getLogger("foreign").warning("m" * 10**6)
        print("." * 10**6, end="")  # noqa: T201

    assert len(lines(stream)) == 2
    assert all(len(line) < 50_000 for line in stream.getvalue().splitlines())


def test_what_cannot_be_formatted_is_not_told(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """Python would write it to stderr, with its arguments."""
    logging.getLogger("foreign").warning("%d", "private")

    assert stream.getvalue() == ""
    assert "private" not in capsys.readouterr().err
