"""A job dict → an answer dict: the whole worker in this process, on real parts."""

import asyncio
import hashlib
import io
import json
import logging
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from runpod.serverless.modules.rp_job import run_job

from local import worker
from local.bucket import BUCKET, LocalBucket
from local.logs import caught
from local.tls import Authority, TLSForwarder
from local.web import ImageHost, Reply
from qwen_worker.archive import Archive
from qwen_worker.budget import ENDLESS, Budget
from qwen_worker.build import SWITCH_S, assemble, build_bucket, build_editor, decoder, limits
from qwen_worker.job import UNFORESEEN, Answer, Jobs
from qwen_worker.model.edit import Editor
from qwen_worker.originals import Originals
from qwen_worker.schema import Rules
from qwen_worker.service import Service
from qwen_worker.settings import Settings
from qwen_worker.sources import Source, Sources
from qwen_worker.sources.cache import SourceCache
from qwen_worker.sources.fetch import Fetcher
from qwen_worker.upload import Uploader
from tests.pictures import file_of, photo

RULES = Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=1)
STAGES = ("validate", "fetch", "lookup", "decode", "queue", "edit", "encode", "upload")


@pytest.fixture(scope="module")
def editor(tiny: Path, shared_bucket: LocalBucket) -> Editor:
    """The model of this module's workers."""
    return build_editor(settings_of(tiny, shared_bucket))


def settings_of(model: Path, bucket: LocalBucket, **more: str) -> Settings:
    variables = worker.environment(model, bucket.environment, {"WARMUP": "0", **more})
    named = {
        name.lower(): value for name, value in variables.items() if value and name.lower() in Settings.model_fields
    }
    return Settings(_env_file=None, **named)  # type: ignore[arg-type]


@pytest.fixture
def jobs(tiny: Path, shared_bucket: LocalBucket, editor: Editor) -> Jobs:
    """A worker."""
    return assemble(settings_of(tiny, shared_bucket), editor)


def said(url: str, **fields: Any) -> dict[str, Any]:
    small = {"num_inference_steps": 2, "width": 256, "height": 256, "true_cfg_scale": 1.0}
    # Tests share a bucket: none may find what another made.
    return {"image_url": url, "prompt": "make it warm", "reuse": False, **small, **fields}


def answer(jobs: Jobs, request: Any, job_id: str = "job") -> dict[str, Any]:
    body = asyncio.run(jobs.answer({"id": job_id, "input": request})).body
    json.dumps(body, allow_nan=False)
    return body


def error_of(body: dict[str, Any]) -> dict[str, Any]:
    assert set(body) == {"status", "error"}
    assert set(body["error"]) == {"type", "message", "details"}
    error: dict[str, Any] = body["error"]
    return error


def test_whoever_computes_gives_way_to_the_gpu(jobs: Jobs) -> None:
    """Python's own 5 ms are longer than what an edit waits for else."""
    assert jobs
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)


def test_a_success_has_the_documented_shape(jobs: Jobs, host: ImageHost) -> None:
    """And every word of it is true."""
    data = file_of(photo(300, 200), "JPEG")
    body = answer(
        jobs, said(host.put("/a.jpg", data), seed=5, output_format="webp", guidance_scale=2.0, true_cfg_scale=2.0)
    )
    result = body["result"]
    meta = result["meta"]
    file = requests.get(result["presigned_url"], timeout=5)

    assert body["status"] == "success"
    assert set(body) == {"status", "result", "results"}
    assert body["results"] == [result]
    assert set(result) == {
        "presigned_url", "bucket", "object_key", "content_type", "expires_in", "expires_at", "data_url", "uploaded",
        "meta",
    }  # fmt: skip
    assert (result["data_url"], result["uploaded"]) == (None, None)
    ends = datetime.fromisoformat(result["expires_at"]) - datetime.now(UTC)
    assert 86300 < ends.total_seconds() <= 86400
    assert (result["bucket"], result["content_type"], result["expires_in"]) == (BUCKET, "image/webp", 86400)
    assert result["object_key"].startswith("qwen-image-edit/results/")
    assert result["object_key"].endswith("/job.webp")
    assert (file.status_code, file.headers["Content-Type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(file.content)).size == (256, 256)
    assert meta["output"] == {
        "width": 256, "height": 256, "format": "webp", "sha256": hashlib.sha256(file.content).hexdigest()
    }  # fmt: skip
    assert meta["sources"] == [
        {"width": 300, "height": 200, "format": "jpeg", "sha256": hashlib.sha256(data).hexdigest()}
    ]
    assert meta["mask"] is None
    assert meta["model_revision"].startswith("local-")
    assert (meta["prompt"], meta["negative_prompt"], meta["seed"]) == ("make it warm", " ", 5)
    assert (meta["num_inference_steps"], meta["true_cfg_scale"], meta["scheduler"]) == (2, 2.0, "FlowMatchEuler")
    assert meta["cache"] == "miss"


@pytest.mark.slow
def test_qwen_image_21_does_jobs(tiny_21: Path, shared_bucket: LocalBucket, host: ImageHost) -> None:
    """In the source's exact size; of three images each place counts; a mask is refused before anything is fetched."""
    settings = settings_of(tiny_21, shared_bucket, ACCEPT_RESEARCH_LICENSE="1")
    worker_21 = assemble(settings, build_editor(settings))
    urls = [host.put(f"/21-{n}.png", file_of(photo(301 + n, 203, seed=n))) for n in range(3)]
    whole = answer(worker_21, {"image_url": urls[0], "prompt": "make it warm", "num_inference_steps": 2})["result"]
    small = said(urls[0], seed=1) | {"image_url": None}
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [0, 1]]
    metas = [answer(worker_21, {**small, "image_urls": [urls[n] for n in order]})["result"]["meta"] for order in orders]
    fetched = len(host.requests)
    refused = error_of(answer(worker_21, said(host.url("/21-new.png"), mask_url=host.url("/21-mask.png"))))
    picture = Image.open(io.BytesIO(requests.get(whole["presigned_url"], timeout=5).content))

    assert (picture.size, picture.mode) == ((301, 203), "RGB")
    assert whole["meta"]["true_cfg_scale"] == 1.0
    assert all(side % 32 == 0 for side in whole["meta"]["geometry"]["generated"])
    assert [[source["width"] - 301 for source in meta["sources"]] for meta in metas] == orders
    assert len({meta["output"]["sha256"] for meta in metas}) == len(orders)
    assert refused["type"] == "BadInput"
    assert [problem["field"] for problem in refused["details"]["problems"]] == ["mask_url"]
    assert len(host.requests) == fetched


def test_the_stages_are_true(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """A slow host shows in `fetch`, a slow model in `edit`, and the whole is what a clock outside says."""
    url = host.url("/slow.png")
    picture = file_of(photo())

    def slow(handler: Any) -> None:
        time.sleep(0.3)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + picture)

    host.replies["/slow.png"] = Reply(script=slow)
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    begin = time.monotonic()
    timings = answer(jobs, said(url))["result"]["meta"]["timings_ms"]
    seen = (time.monotonic() - begin) * 1000
    hook.remove()

    assert tuple(timings) == (*STAGES, "total")
    assert seen - 100 < timings["total"] <= seen
    assert timings["total"] == pytest.approx(sum(timings[stage] for stage in STAGES), abs=1)
    assert timings["fetch"] >= 300
    assert timings["edit"] >= 400
    assert timings["fetch"] + timings["edit"] < timings["total"]


def test_a_second_job_of_the_same_source_says_hit(jobs: Jobs, host: ImageHost) -> None:
    """The host is asked once."""
    url = host.put("/once.png", file_of(photo()))
    caches = [answer(jobs, said(url))["result"]["meta"]["cache"] for _ in range(2)]

    assert caches == ["miss", "hit"]
    assert host.requests == ["/once.png"]


def test_the_key_tells_requests_and_jobs_apart(jobs: Jobs, host: ImageHost) -> None:
    """Same request and source, same folder; another job, another name."""
    url = host.put("/a.png", file_of(photo()))
    first, again, other = (
        answer(jobs, said(url, seed=seed), job)["result"]["object_key"].rsplit("/", 1)
        for seed, job in ((1, "a"), (1, "b"), (2, "c"))
    )

    assert first[0] == again[0] != other[0]
    assert (first[1], again[1]) == ("a.png", "b.png")


def test_what_differs_from_the_request_is_said(jobs: Jobs, host: ImageHost) -> None:
    """Clamped steps, an alias, an animation."""
    frames = [photo(64, 64), photo(64, 64, seed=1)]
    url = host.put("/a.webp", file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    request = said(url, num_inference_steps=99, guidance_scale=1.0)
    del request["true_cfg_scale"]
    meta = answer(jobs, request)["result"]["meta"]

    assert len(meta["warnings"]) == 3
    assert meta["num_inference_steps"] == 50


@pytest.mark.parametrize("job", [{}, {"id": "x"}, {"input": None}, {"id": None, "input": []}, {"id": 3, "input": {}}])
def test_any_job_gets_an_answer(jobs: Jobs, job: dict[str, Any]) -> None:
    """Whatever RunPod hands over."""
    error = error_of(asyncio.run(jobs.answer(job)).body)

    assert error["type"] == "BadInput"
    assert error["details"]["stage"] == "validate"
    assert error["details"]["problems"]


def test_a_source_that_is_no_picture_is_not_kept(jobs: Jobs, host: ImageHost) -> None:
    """The next job asks the host again."""
    url = host.put("/page", b"<html>a login page</html>")
    for _ in range(2):
        error = error_of(answer(jobs, said(url)))
        assert (error["type"], error["details"]) == (
            "BadInput",
            {"picture": "the source", "stage": "decode", "retryable": False, "attempts": 1},
        )

    assert host.requests == ["/page", "/page"]


def test_a_control_token_costs_no_model_time(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """It is refused before the GPU's turn."""
    runs: list[int] = []
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: runs.append(1))
    url = host.put("/a.png", file_of(photo()))
    error = error_of(answer(jobs, said(url, prompt="a <|im_end|> b")))
    hook.remove()

    assert error["type"] == "BadInput"
    assert runs == []


def test_a_failed_download_says_why(jobs: Jobs, host: ImageHost) -> None:
    """With the host's status."""
    error = error_of(answer(jobs, said(host.url("/missing.png"))))

    assert error["type"] == "DownloadFailed"
    assert error["details"] == {
        "status": 404,
        "picture": "the source",
        "stage": "fetch",
        "retryable": False,
        "attempts": 1,
    }


def test_a_failing_device_asks_for_another_worker(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """The answer is the caller's, the wish is RunPod's. No other job reaches the device, or gets an answer here."""
    runs: list[int] = []

    def fail(*_: Any) -> None:
        runs.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async def two() -> list[Any]:
        works = [jobs.answer({"id": name, "input": said(url, seed=len(name))}) for name in ("a", "bb")]
        return await asyncio.gather(*works, return_exceptions=True)

    hook = editor._pipeline.transformer.register_forward_pre_hook(fail)
    url = host.put("/a.png", file_of(photo()))
    found, other = sorted(asyncio.run(two()), key=lambda one: isinstance(one, BaseException))
    hook.remove()

    assert len(runs) == 1
    assert found.refresh_worker
    assert error_of(found.body)["type"] == "ModelError"
    assert "refresh_worker" not in found.body
    assert found.on_the_wire()["refresh_worker"] is True
    assert isinstance(other, asyncio.CancelledError)


def test_an_edit_that_never_ends_is_answered(
    jobs: Jobs, host: ImageHost, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that hangs cannot be stopped: the process is to be replaced, and its other jobs with it."""
    released = threading.Event()
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: released.wait(60) and None)
    jobs._budget = Budget({"edit": 0.1}, 60)
    url = host.put("/a.png", file_of(photo()))

    async def hang() -> Answer:
        try:
            return await jobs.answer({"id": "a", "input": said(url)})
        finally:
            hook.remove()
            released.set()

    found = asyncio.run(hang())

    assert found.refresh_worker
    assert error_of(found.body)["message"] == "the worker gave up after 0.1 s: try again"
    assert error_of(found.body)["details"] == {"stage": "edit", "retryable": True, "attempts": 1}
    # The GPU was the job's own all the while, and until the turn was over.
    (line,) = (one for one in caplog.records if one.message == "job failed")
    assert line.gpu_s >= 0.1  # type: ignore[attr-defined]
    end = time.monotonic() + 10
    while jobs.ledger.gpu_s < line.gpu_s:  # type: ignore[attr-defined]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("stage", "kind"), [("fetch", "DownloadFailed"), ("lookup", "CacheReadFailed")])
def test_what_takes_too_long_is_typed_by_its_stage(jobs: Jobs, host: ImageHost, stage: str, kind: str) -> None:
    """Nothing is stuck where sockets can be shut: the process goes on."""
    jobs._budget = Budget({stage: -60}, 60)
    url = host.put("/a.png", file_of(photo()))
    found = asyncio.run(jobs.answer({"id": "a", "input": said(url)}))

    assert (error_of(found.body)["type"], error_of(found.body)["details"]["stage"]) == (kind, stage)
    assert error_of(found.body)["details"]["retryable"]
    assert not found.refresh_worker


def test_a_job_that_waited_too_long_costs_no_model_time(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """Its result could not be stored in time."""
    runs: list[int] = []
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: runs.append(1))
    jobs._budget = Budget({"upload": 60}, 60)
    error = error_of(answer(jobs, said(host.put("/a.png", file_of(photo())))))
    hook.remove()

    assert (error["type"], error["details"]["retryable"]) == ("ModelError", True)
    assert "busy" in error["message"]
    assert runs == []


def test_an_error_travels_as_text() -> None:
    """RunPod's SDK loses an object, and makes a string the job's error."""
    body = {"status": "error", "error": {"type": "BadInput", "message": "m", "details": {"stage": "validate"}}}
    wire = Answer(body).on_the_wire()

    assert isinstance(wire["error"], str)
    assert json.loads(wire["error"]) == body["error"]
    assert isinstance(body["error"], dict)
    assert Answer({"status": "success", "result": {}}).on_the_wire() == {"status": "success", "result": {}}


def test_what_nobody_foresaw_is_typed_by_its_stage(
    jobs: Jobs, host: ImageHost, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """The trace is in the log; the caller sees none of it."""

    def fail(*_: Any) -> None:
        raise EOFError("secret detail")

    hook = editor._pipeline.transformer.register_forward_pre_hook(fail)
    with caplog.at_level(logging.WARNING):
        error = error_of(answer(jobs, said(host.put("/a.png", file_of(photo())))))
    hook.remove()

    assert error == {
        "type": "ModelError",
        "message": "internal error: the worker's log says more, under this job's id",
        "details": {"stage": "edit", "retryable": False, "attempts": 1},
    }
    assert "secret detail" in caplog.text
    assert set(UNFORESEEN) == set(STAGES)


def test_the_next_source_is_fetched_while_an_edit_runs(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """The GPU waits for nobody, and nobody for the GPU: the next job comes to its queue while a pass is held."""
    urls = [host.put(f"/{name}.png", file_of(photo(seed=number))) for number, name in enumerate("ab")]
    held, queued = threading.Event(), threading.Event()
    ready: list[bool] = []

    def until_the_next_is_ready(*_: Any) -> None:
        if not held.is_set():
            held.set()
            ready.append(queued.wait(30))

    def heard(news: dict[str, Any]) -> None:
        if news["stage"] == "queue":
            queued.set()

    async def both() -> list[Answer]:
        first = asyncio.create_task(jobs.answer({"id": "a", "input": said(urls[0])}))
        while not held.is_set():
            await asyncio.sleep(0.01)
        second = asyncio.create_task(jobs.answer({"id": "b", "input": said(urls[1])}, heard))
        return [await first, await second]

    hook = editor._pipeline.transformer.register_forward_pre_hook(until_the_next_is_ready)
    answers = asyncio.run(both())
    hook.remove()

    assert [one.body["status"] for one in answers] == ["success", "success"]
    assert ready == [True]
    assert answers[1].body["result"]["meta"]["timings_ms"]["queue"] > 0


def test_the_wait_for_the_gpu_and_the_turn_on_it_are_told_apart(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """A job is queued for as long as the one before it still edits, and none of that is its own edit."""
    urls = [host.put(f"/apart-{number}.png", file_of(photo(seed=number))) for number in range(2)]
    editing, queued = threading.Event(), threading.Event()
    queued_at: list[float] = []
    passes: list[float] = []  # when each began: two of the first job, two of the second

    def held(*_: Any) -> None:
        editing.set()
        queued.wait(30)
        passes.append(time.perf_counter())
        time.sleep(0.1)

    def heard(news: dict[str, Any]) -> None:
        if news["stage"] == "queue":
            queued_at.append(time.perf_counter())
            queued.set()

    async def both() -> list[Answer]:
        first = asyncio.create_task(jobs.answer({"id": "a", "input": said(urls[0])}))
        while not editing.is_set():
            await asyncio.sleep(0.01)
        second = asyncio.create_task(jobs.answer({"id": "b", "input": said(urls[1])}, heard))
        return [await first, await second]

    hook = editor._pipeline.transformer.register_forward_pre_hook(held)
    first, second = (one.body["result"]["meta"]["timings_ms"] for one in asyncio.run(both()))
    end = time.perf_counter()
    hook.remove()

    assert first["edit"] > 1000 * (passes[1] - passes[0])
    assert second["queue"] > 1000 * (passes[1] - queued_at[0])
    assert 1000 * (passes[3] - passes[2]) < second["edit"] < 1000 * (end - passes[1])


def test_only_one_edit_runs_at_a_time(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """One pipeline, one thread, however many jobs."""
    threads: set[int] = set()
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    url = host.put("/a.png", file_of(photo()))

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(jobs.answer({"id": f"job-{n}", "input": said(url, seed=1)}) for n in range(4)))

    answers = asyncio.run(all_at_once())
    hook.remove()

    assert len(threads) == 1
    assert len({one.body["result"]["meta"]["output"]["sha256"] for one in answers}) == 1


def test_a_stopped_job_frees_the_gpu(
    tiny: Path, own_bucket: LocalBucket, host: ImageHost, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """RunPod cancels the handler's task: the edit ends after its step, and nothing is stored; its time is counted."""
    caplog.set_level(logging.INFO, "qwen_worker.job")
    jobs = assemble(settings_of(tiny, own_bucket), editor)
    url = host.put("/a.png", file_of(photo()))
    steps: list[float] = []

    def slow(*_: Any) -> None:
        steps.append(time.monotonic())
        time.sleep(0.05)

    async def stop_then_edit() -> dict[str, Any]:
        task = asyncio.create_task(jobs.answer({"id": "a", "input": said(url, num_inference_steps=50)}))
        while len(steps) < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        at_cancel = len(steps)
        body = (await jobs.answer({"id": "b", "input": said(url)})).body
        assert len(steps) - at_cancel <= 1 + 2
        return body

    hook = editor._pipeline.transformer.register_forward_pre_hook(slow)
    body = asyncio.run(stop_then_edit())
    hook.remove()

    (key, _manifest) = own_bucket.keys("qwen-image-edit/results/")
    assert key == body["result"]["object_key"]
    stopped, done = (one for one in caplog.records if one.message.startswith("job "))
    assert (stopped.message, stopped.stage) == ("job cancelled", "edit")  # type: ignore[attr-defined]
    assert jobs.ledger.jobs == {("edit", "cancelled"): 1, ("edit", "success"): 1}
    assert stopped.gpu_s > 0.1  # type: ignore[attr-defined]
    assert jobs.ledger.gpu_s >= stopped.gpu_s + done.gpu_s - 0.001  # type: ignore[attr-defined]


def test_stopped_jobs_leave_no_thread_behind(jobs: Jobs, host: ImageHost) -> None:
    """Each would hold one until its host is done dripping."""

    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(300):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    host.replies["/slow.png"] = Reply(script=drip)
    good = said(host.put("/good.png", file_of(photo())))

    async def stop_all_then_edit() -> float:
        request = said(host.url("/slow.png"))
        threads: int = jobs._service._io._max_workers  # type: ignore[attr-defined]
        slow = [asyncio.create_task(jobs.answer({"id": f"slow-{n}", "input": request})) for n in range(threads)]
        while len(host.requests) < threads:
            await asyncio.sleep(0.01)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        begin = time.monotonic()
        assert (await jobs.answer({"id": "good", "input": good})).body["status"] == "success"
        return time.monotonic() - begin

    assert asyncio.run(stop_all_then_edit()) < 5


class Forgetful(Sources):
    """Sources that cannot keep anything, for a reason that nobody foresaw."""

    def keep(self, source: Source, content_type: str) -> None:
        """Fail."""
        raise RuntimeError(f"no room for {content_type} of {len(source.data)} bytes")


def test_a_source_that_cannot_be_kept_costs_no_job(
    tiny: Path, shared_bucket: LocalBucket, host: ImageHost, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, with its trace."""
    settings = settings_of(tiny, shared_bucket)
    bucket = build_bucket(settings)
    sources = Forgetful(
        Fetcher(max_bytes=10**6, timeout_s=5, private=settings.allowed_private_networks, ports=settings.ports),
        SourceCache(bucket, 10**6),
    )
    io, gpu = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
    originals, archive = Originals(sources, decoder(limits(settings)), io), Archive(bucket, {})
    jobs = Jobs(Service(originals, editor, archive, Uploader(5), io=io, gpu=gpu, max_output_pixels=10**6), RULES, dict)
    with caplog.at_level(logging.ERROR):
        body = answer(jobs, said(host.put("/a.png", file_of(photo()))))

    assert body["status"] == "success"
    assert "could not be cached" in caplog.text
    assert "no room for image/png" in caplog.text


def test_what_the_model_says_of_a_prompt_is_not_logged(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """Nor of an address, but for its host. Libraries put their arguments into what they raise."""
    prompt = "a very private wish"
    links = [host.put("/private.png", file_of(photo())), host.url("/upload")]

    def fail(*_: Any) -> None:
        raise ValueError(f"cannot encode {prompt!r} of {links}, /private.png")

    hook = editor._pipeline.transformer.register_forward_pre_hook(fail)
    with caught() as stream:
        error_of(answer(jobs, said(links[0], prompt=prompt, upload_url=links[1])))
    hook.remove()

    # The cause of the typed error is there, with its trace.
    assert "qwen_worker.errors.ModelError: the model failed" in stream.getvalue()
    address = f"{host.url('')}[hidden]"
    assert f"cannot encode '[hidden]' of ['{address}', '{address}'], [hidden]" in stream.getvalue()
    assert not any(text in stream.getvalue() for text in (prompt, *links))


@pytest.fixture
def full_jobs(tiny: Path, own_bucket: LocalBucket, editor: Editor) -> tuple[Jobs, LocalBucket]:
    """A worker with a bucket of its own, which a test may kill."""
    return assemble(settings_of(tiny, own_bucket), editor), own_bucket


@pytest.mark.slow
def test_a_result_that_cannot_be_stored_is_an_error(
    full_jobs: tuple[Jobs, LocalBucket], host: ImageHost, editor: Editor
) -> None:
    """The bucket dies while the model works."""
    jobs, bucket = full_jobs
    url = host.put("/a.png", file_of(photo()))
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: bucket.kill())
    error = error_of(answer(jobs, said(url)))
    hook.remove()
    bucket.start()

    assert error["type"] == "StorageError"
    assert (error["details"]["stage"], error["details"]["retryable"]) == ("upload", True)
    assert [key.rpartition("/")[2] for key in bucket.keys("qwen-image-edit/results/")] == ["manifest.json"]
    assert answer(jobs, said(url))["status"] == "success"


@pytest.mark.slow
def test_a_cache_that_cannot_be_read_costs_no_model_time(
    full_jobs: tuple[Jobs, LocalBucket], host: ImageHost, editor: Editor
) -> None:
    """Nor a download."""
    jobs, bucket = full_jobs
    runs: list[int] = []
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: runs.append(1))
    bucket.kill()
    error = error_of(answer(jobs, said(host.put("/a.png", file_of(photo())))))
    hook.remove()

    assert error["type"] == "CacheReadFailed"
    assert error["details"]["stage"] == "fetch"
    assert (runs, host.requests) == ([], [])


def test_the_error_of_a_timeout_is_a_model_error(tiny: Path, shared_bucket: LocalBucket, host: ImageHost) -> None:
    """From the settings down to the pipeline."""
    settings = settings_of(tiny, shared_bucket, INFERENCE_TIMEOUT_SECONDS="0.01")
    jobs = assemble(settings, build_editor(settings))
    jobs._budget = ENDLESS
    error = error_of(answer(jobs, said(host.put("/a.png", file_of(photo())))))

    assert (error["type"], error["details"]["stage"]) == ("ModelError", "edit")
    assert "fewer steps" in error["message"]


def test_limits_come_from_the_settings(tiny: Path, shared_bucket: LocalBucket, host: ImageHost, editor: Editor) -> None:
    """Bytes, pixels, steps."""
    limits = {"MAX_IMAGE_BYTES": "20000", "MAX_IMAGE_PIXELS": "10000", "MAX_INFERENCE_STEPS": "2"}
    jobs = assemble(settings_of(tiny, shared_bucket, **limits), editor)
    too_long = host.put("/long", b"x" * 20001)
    too_many = host.put("/many.png", file_of(Image.new("RGB", (101, 100))))
    fine = host.put("/fine.png", file_of(photo(100, 100)))

    assert "20000 bytes" in error_of(answer(jobs, said(too_long)))["message"]
    assert "10000 pixels" in error_of(answer(jobs, said(too_many)))["message"]
    assert answer(jobs, said(fine, num_inference_steps=9))["result"]["meta"]["num_inference_steps"] == 2


@pytest.mark.parametrize(
    ("name", "value", "said_of_it"),
    [
        ("SOURCE_PORTS", "443", "port"),
        ("SOURCE_HOSTS", "!127.0.0.1", "host is not one"),
        ("MAX_REDIRECTS", "0", "more than 0 times"),
        ("DECODE_SECONDS", "0.01", r"more than 0\.01 s"),
        ("DECODE_MEMORY_BYTES", "100000000", "too much memory"),
    ],
)
def test_limits_of_strangers_come_from_the_settings(
    tiny: Path, shared_bucket: LocalBucket, host: ImageHost, editor: Editor, name: str, value: str, said_of_it: str
) -> None:
    """Of what is dialled, and of what decoding costs."""
    large = file_of(Image.new("L", (6000, 5000)), compress_level=1)
    host.replies["/a.png"] = Reply(status=302, headers={"Location": host.put("/b.png", large)})
    jobs = assemble(settings_of(tiny, shared_bucket, **{name: value}), editor)

    error = error_of(answer(jobs, said(host.url("/a.png"))))

    assert error["type"] in {"BadInput", "DownloadFailed"}
    assert re.search(said_of_it, error["message"])


@pytest.mark.slow
def test_the_buckets_settings_reach_it(
    tiny: Path, shared_bucket: LocalBucket, host: ImageHost, editor: Editor, authority: Authority
) -> None:
    """TLS, the authority to trust, and the life of a link."""
    url = host.put("/a.png", file_of(photo()))
    with TLSForwarder(shared_bucket.port, authority.context("127.0.0.1")) as tls:
        secure = {"S3_ENDPOINT": f"127.0.0.1:{tls.port}", "S3_SECURE": "true", "PRESIGN_EXPIRY": "77"}
        trusting = settings_of(tiny, shared_bucket, **secure, SSL_CERT_FILE=str(authority.file))
        body = answer(assemble(trusting, editor), said(url))
        doubting = settings_of(tiny, shared_bucket, **secure, SSL_CERT_FILE="")

        assert body["result"]["presigned_url"].startswith("https://")
        assert "X-Amz-Expires=77&" in body["result"]["presigned_url"]
        assert body["result"]["expires_in"] == 77
        assert error_of(answer(assemble(doubting, editor), said(url)))["type"] == "CacheReadFailed"


def test_sources_over_tls_trust_the_same_authority(
    tiny: Path, shared_bucket: LocalBucket, host: ImageHost, editor: Editor, authority: Authority
) -> None:
    """And no other."""
    host.put("/a.png", file_of(photo()))
    with TLSForwarder(host.port, authority.context("localhost")) as tls:
        url = f"https://localhost:{tls.port}/a.png"
        doubting = settings_of(tiny, shared_bucket, SSL_CERT_FILE="")
        trusting = settings_of(tiny, shared_bucket, SSL_CERT_FILE=str(authority.file))

        assert error_of(answer(assemble(doubting, editor), said(url)))["type"] == "DownloadFailed"
        assert answer(assemble(trusting, editor), said(url))["status"] == "success"


@pytest.mark.slow
def test_the_time_limit_reaches_source_and_bucket(
    tiny: Path, shared_bucket: LocalBucket, host: ImageHost, editor: Editor
) -> None:
    """TIMEOUT_SECONDS and STORAGE_TIMEOUT_SECONDS."""

    def silent(_: Any) -> None:
        time.sleep(3)

    host.replies["/a.png"] = Reply(script=silent)
    quick = {"TIMEOUT_SECONDS": "0.5", "STORAGE_TIMEOUT_SECONDS": "0.5"}
    of_source = answer(assemble(settings_of(tiny, shared_bucket, **quick), editor), said(host.url("/a.png")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = {**quick, "S3_ENDPOINT": f"127.0.0.1:{server.getsockname()[1]}"}
        of_bucket = answer(assemble(settings_of(tiny, shared_bucket, **nobody), editor), said(host.url("/a.png")))

    assert "longer than 0.5 s" in error_of(of_source)["message"]
    assert "longer than 0.5 s" in error_of(of_bucket)["message"]


def test_runpods_sdk_understands_both_answers() -> None:
    """Its own code: an error is a string beside the output, and the wish for another worker stops the pod."""
    error = {"status": "error", "error": {"type": "ModelError", "message": "m", "details": {}}}

    def sick(_job: dict[str, Any]) -> dict[str, Any]:
        return Answer(error, refresh_worker=True).on_the_wire()

    def fine(_job: dict[str, Any]) -> dict[str, Any]:
        return Answer({"status": "success", "result": {"a": 1}}).on_the_wire()

    of_sick = asyncio.run(run_job(sick, {"id": "a", "input": {}}))
    of_fine = asyncio.run(run_job(fine, {"id": "a", "input": {}}))

    assert json.loads(of_sick["error"]) == error["error"]
    assert of_sick["stopPod"] is True
    assert of_fine == {"output": {"status": "success", "result": {"a": 1}}}
