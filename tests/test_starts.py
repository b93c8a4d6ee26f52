"""The bucket knows which requests a worker was at when it ended, and what becomes of those."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from local.bucket import LocalBucket
from local.web import ImageHost, Reply
from qwen_worker.archive import Manifest
from qwen_worker.budget import Budget
from qwen_worker.build import assemble, build_editor
from qwen_worker.job import Answer, Jobs
from qwen_worker.model.edit import Editor
from qwen_worker.service import MOST_STARTS
from tests.pictures import file_of, photo
from tests.test_job import answer, error_of, said, settings_of

pytestmark = pytest.mark.slow

RESULTS = "qwen-image-edit/results/"


@pytest.fixture(scope="module")
def editor(tiny: Path, shared_bucket: LocalBucket) -> Editor:
    """The model of this module's workers."""
    return build_editor(settings_of(tiny, shared_bucket))


@pytest.fixture
def jobs(tiny: Path, own_bucket: LocalBucket, editor: Editor) -> Iterator[Jobs]:
    """A worker with a bucket of its own."""
    made = assemble(settings_of(tiny, own_bucket), editor)
    yield made
    made._service._io.shutdown(wait=True)


@pytest.fixture
def request_(host: ImageHost) -> dict[str, Any]:
    """A request with a seed."""
    return said(host.put("/a.png", file_of(photo())), seed=7, reuse=None)


@contextmanager
def before_each_pass(editor: Editor, act: Any) -> Iterator[None]:
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: act())
    try:
        yield
    finally:
        hook.remove()


def manifest_of(bucket: LocalBucket) -> Manifest:
    (key,) = (key for key in bucket.keys(RESULTS) if key.endswith("manifest.json"))
    return Manifest.model_validate_json(bucket.client.get_object("pictures", key).read())


def forget(jobs: Jobs, bucket: LocalBucket, started: dict[str, int]) -> None:
    """As after so many workers that ended over the one request in the bucket, for these jobs."""
    (key,) = bucket.keys(RESULTS)
    archive = jobs._service._archive
    archive._write(key.split("/")[2], archive._manifest({}, started))


def test_the_note_is_there_while_the_model_works_and_gone_with_the_result(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any]
) -> None:
    """In the manifest, which is written anyway; of several pictures until the last."""
    seen: list[tuple[int, dict[str, int]]] = []

    def look() -> None:
        manifest = manifest_of(own_bucket)
        seen.append((len(manifest.finished), manifest.started))

    with before_each_pass(editor, look):
        assert answer(jobs, {**request_, "num_images": 2})["status"] == "success"

    note = {"job": 1}
    assert seen == [(0, note), (0, note), (1, note), (1, note)]
    assert manifest_of(own_bucket).started == {}


@pytest.mark.parametrize("error", [ValueError("broken"), EOFError("unforeseen")])
def test_a_job_that_fails_leaves_no_note(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any], error: Exception
) -> None:
    """The process goes on: nothing is suspected, and nothing is left in the bucket."""

    def fail() -> None:
        raise error

    with before_each_pass(editor, fail):
        error_of(answer(jobs, request_))

    assert own_bucket.keys(RESULTS) == []


def test_a_job_that_is_stopped_leaves_no_note(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any]
) -> None:
    """As one that fails."""
    begun = threading.Event()

    async def stop() -> None:
        task = asyncio.create_task(jobs.answer({"id": "a", "input": {**request_, "num_inference_steps": 50}}))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with before_each_pass(editor, begun.set):
        asyncio.run(stop())
    jobs._service._io.shutdown(wait=True)

    assert own_bucket.keys(RESULTS) == []


def test_a_sick_device_leaves_the_note(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any]
) -> None:
    """The process will end, and perhaps it was this request."""

    def fail() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with before_each_pass(editor, fail):
        error_of(answer(jobs, request_))

    assert manifest_of(own_bucket).started == {"job": 1}


def test_a_request_that_ended_a_worker_goes_alone(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any]
) -> None:
    """No job is asked for meanwhile, and the one that is there already is done first."""
    open_: list[bool] = []
    order: list[str] = []

    async def two() -> None:
        async def job(name: str, request: dict[str, Any]) -> None:
            assert (await jobs.answer({"id": name, "input": request})).body["status"] == "success"
            order.append(name)

        suspect = asyncio.create_task(job("suspect", request_))
        await asyncio.gather(suspect, job("innocent", {**request_, "seed": 8}))

    with before_each_pass(editor, lambda: open_.append(jobs.intake.is_open)):
        answer(jobs, request_)
        assert open_ == [True, True]
        (key,) = (key for key in own_bucket.keys(RESULTS) if not key.endswith("manifest.json"))
        own_bucket.client.remove_object("pictures", key)
        forget(jobs, own_bucket, {"suspect": 1})
        asyncio.run(two())

    assert order == ["innocent", "suspect"]
    assert open_[-2:] == [False, False]
    assert jobs.intake.is_open


def test_a_request_that_ends_every_worker_is_refused(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any]
) -> None:
    """At last: each costs the start of another. Until then it is tried."""
    passes: list[int] = []
    with before_each_pass(editor, lambda: passes.append(1)):
        answer(jobs, request_)
        own_bucket.client.remove_object("pictures", own_bucket.keys(RESULTS)[0])
        passes.clear()
        forget(jobs, own_bucket, {"job": MOST_STARTS})
        error = error_of(answer(jobs, request_))
        assert passes == []
        forget(jobs, own_bucket, {"job": MOST_STARTS - 1, "another": MOST_STARTS})
        assert answer(jobs, request_)["status"] == "success"

    assert (error["type"], error["details"]["retryable"]) == ("ModelError", False)
    assert error["details"]["attempts"] == MOST_STARTS
    assert passes


def test_copies_of_a_suspect_do_not_block_it(
    jobs: Jobs, host: ImageHost, own_bucket: LocalBucket, request_: dict[str, Any]
) -> None:
    """They wait for it, and it does not wait for them: here for one whose source takes longer."""
    data = host.replies["/a.png"].body

    def slow(handler: Any) -> None:
        time.sleep(0.5)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    host.replies["/b.png"] = Reply(script=slow)
    answer(jobs, request_)
    own_bucket.client.remove_object("pictures", own_bucket.keys(RESULTS)[0])
    forget(jobs, own_bucket, {"suspect": 1})

    async def both() -> list[Answer]:
        urls = {"suspect": request_["image_url"], "copy": host.url("/b.png")}
        works = (jobs.answer({"id": name, "input": {**request_, "image_url": url}}) for name, url in urls.items())
        return await asyncio.wait_for(asyncio.gather(*works), 30)

    assert [one.body["result"]["meta"]["reused"] for one in asyncio.run(both())] == [False, True]


def test_a_picture_that_is_missing_between_others_leaves_no_note(
    jobs: Jobs, own_bucket: LocalBucket, request_: dict[str, Any]
) -> None:
    """Nothing is left to be made behind it."""
    three = {**request_, "num_images": 3}
    answer(jobs, three)
    own_bucket.client.remove_object("pictures", next(key for key in own_bucket.keys(RESULTS) if "-1." in key))
    results = answer(jobs, three)["results"]

    assert [one["meta"]["reused"] for one in results] == [True, False, True]
    assert manifest_of(own_bucket).started == {}


def test_waiting_for_others_is_no_stage_of_its_own(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any]
) -> None:
    """A copy of what is being made, and who comes while a suspect is alone, have the time of the job."""
    answer(jobs, request_)
    own_bucket.client.remove_object("pictures", own_bucket.keys(RESULTS)[0])
    forget(jobs, own_bucket, {"suspect": 1})
    jobs._budget = Budget({"validate": 0.5, "lookup": 0.5, "upload": 5}, 60)
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(1.5)

    async def three() -> list[Answer]:
        suspect = asyncio.create_task(jobs.answer({"id": "suspect", "input": request_}))
        await asyncio.to_thread(begun.wait, 30)
        seeds = {"b": 7, "c": 8}
        late = [jobs.answer({"id": name, "input": {**request_, "seed": seed}}) for name, seed in seeds.items()]
        return await asyncio.gather(suspect, *late)

    with before_each_pass(editor, slow):
        assert [one.body["status"] for one in asyncio.run(three())] == ["success"] * 3


def test_a_job_that_hangs_its_worker_leaves_the_note(
    jobs: Jobs, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any]
) -> None:
    """The next worker is warned."""
    released = threading.Event()
    jobs._budget = Budget({"edit": 0.1, "upload": 5}, 60)

    async def hang() -> Answer:
        try:
            return await jobs.answer({"id": "job", "input": request_})
        finally:
            await asyncio.to_thread(time.sleep, 0.5)
            released.set()

    with before_each_pass(editor, lambda: released.wait(30)):
        assert asyncio.run(hang()).refresh_worker

    assert manifest_of(own_bucket).started == {"job": 1}


@pytest.mark.parametrize("hangs", [True, False])
def test_a_stopped_job_does_not_hide_that_the_process_is_done_for(
    jobs: Jobs, editor: Editor, request_: dict[str, Any], *, hangs: bool
) -> None:
    """Its answer, which would have said so, never comes."""
    begun, released = threading.Event(), threading.Event()
    jobs._service._gpu._stuck_s = 0.2 if hangs else 60.0

    def act() -> None:
        begun.set()
        released.wait(30)
        if not hangs:
            raise RuntimeError("CUDA error: device-side assert triggered")

    async def stop() -> None:
        task = asyncio.create_task(jobs.answer({"id": "job", "input": request_}))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not hangs:
            released.set()
        await asyncio.wait_for(jobs.intake.until_given_up(), 20)
        released.set()
        other = jobs.answer({"id": "other", "input": {**request_, "seed": 8}})
        assert isinstance((await asyncio.gather(other, return_exceptions=True))[0], asyncio.CancelledError)

    with before_each_pass(editor, act):
        asyncio.run(stop())


def test_storing_has_the_time_that_its_size_takes(jobs: Jobs, request_: dict[str, Any]) -> None:
    """And so has reading what was stored: the stages' own is for what is usual."""
    jobs._budget = Budget({"upload": -60}, 60)
    assert answer(jobs, request_)["status"] == "success"


def test_a_copy_waits_as_long_as_it_takes(jobs: Jobs, editor: Editor, request_: dict[str, Any]) -> None:
    """For the one that is made."""
    jobs._budget = Budget({"fetch": 20, "lookup": 0.2, "upload": 5}, 60)

    async def two() -> list[Answer]:
        return await asyncio.gather(*(jobs.answer({"id": name, "input": request_}) for name in "ab"))

    with before_each_pass(editor, lambda: time.sleep(1.2)):
        answers = asyncio.run(two())

    assert sorted(one.body["result"]["meta"]["reused"] for one in answers) == [False, True]
