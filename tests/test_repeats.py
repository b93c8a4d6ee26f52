"""The same request again, several results of one, and results in other places: the whole worker, in this process."""

import asyncio
import base64
import hashlib
import io
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from local.bucket import BUCKET, LocalBucket
from local.web import ImageHost, Reply
from qwen_worker.build import assemble, build_editor
from qwen_worker.images.encode import largest
from qwen_worker.inline import INLINE_LIMIT
from qwen_worker.job import Answer, Jobs
from qwen_worker.model.edit import Editor
from qwen_worker.request import BACKGROUND
from tests.pictures import file_of, photo
from tests.test_job import error_of, said, settings_of

pytestmark = pytest.mark.slow

STEPS = 2  # of `said`


class Worker:
    """A worker, and what it tells of its jobs: the model's passes are counted by the pipeline's own step callback."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.news: list[dict[str, Any]] = []

    @property
    def passes(self) -> int:
        """Of the model, since it was asked last."""
        count = sum("step" in news for news in self.news)
        self.news.clear()
        return count

    async def start(self, request: dict[str, Any], job_id: str) -> Answer:
        return await self.jobs.answer({"id": job_id, "input": request}, self.news.append)

    def body(self, request: dict[str, Any], job_id: str = "job") -> dict[str, Any]:
        return asyncio.run(self.start(request, job_id)).body

    def results(self, request: dict[str, Any], job_id: str = "job") -> list[dict[str, Any]]:
        body = self.body(request, job_id)
        assert body["status"] == "success", body
        assert body["result"] == body["results"][0]
        results: list[dict[str, Any]] = body["results"]
        return results

    def error(self, request: dict[str, Any]) -> dict[str, Any]:
        return error_of(self.body(request))


@pytest.fixture(scope="module")
def editor(tiny: Path, shared_bucket: LocalBucket) -> Editor:
    """The model of this module's workers."""
    return build_editor(settings_of(tiny, shared_bucket))


@pytest.fixture
def worker(tiny: Path, own_bucket: LocalBucket, editor: Editor) -> Worker:
    """With a bucket of its own."""
    return Worker(assemble(settings_of(tiny, own_bucket), editor))


@pytest.fixture
def request_(host: ImageHost) -> dict[str, Any]:
    """A small request with a seed."""
    return said(host.put("/a.png", file_of(photo())), seed=7, reuse=None)


def shas(results: list[dict[str, Any]]) -> list[str]:
    return [result["meta"]["output"]["sha256"] for result in results]


def failing_at(editor: Editor, edit: int, error: Exception) -> Any:
    """A hook of the transformer that raises in the edit of this number, from 1."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) == (edit - 1) * STEPS + 1:
            raise error

    return editor._pipeline.transformer.register_forward_pre_hook(hook)


def test_the_same_request_is_answered_from_the_bucket(
    worker: Worker, request_: dict[str, Any], host: ImageHost
) -> None:
    """With zero passes of the model; the link opens, and all that was said of the picture is said again."""
    (first,) = worker.results(request_, "a")
    made = worker.passes
    (again,) = worker.results(request_, "b")

    assert (made, worker.passes) == (STEPS, 0)
    assert (first["meta"]["reused"], again["meta"]["reused"]) == (False, True)
    assert again["object_key"] == first["object_key"]
    own = {"reused", "timings_ms", "cache", "gpu_s", "cost_usd"}
    assert {k: v for k, v in again["meta"].items() if k not in own} == {
        k: v for k, v in first["meta"].items() if k not in own
    }
    assert (again["meta"]["cache"], again["meta"]["timings_ms"]["edit"]) == ("hit", 0)
    assert hashlib.sha256(requests.get(again["presigned_url"], timeout=5).content).hexdigest() == shas([first])[0]
    assert host.requests == ["/a.png"]


def test_a_job_that_is_run_again_finds_its_own_result(worker: Worker, request_: dict[str, Any]) -> None:
    """Its seed is drawn from its id; another job draws another."""
    request_["seed"] = None
    keys = [worker.results(request_, job_id)[0]["object_key"] for job_id in ("a", "a", "b")]

    assert worker.passes == 2 * STEPS
    assert keys[0] == keys[1] != keys[2]


def test_reuse_can_be_declined(worker: Worker, request_: dict[str, Any]) -> None:
    """The same bytes are made once more, in a place of their own, and found by the next."""
    first, anew, found = (
        worker.results({**request_, "reuse": reuse}, job_id)[0]
        for job_id, reuse in (("a", True), ("b", False), ("c", True))
    )

    assert worker.passes == 2 * STEPS
    assert [one["meta"]["reused"] for one in (first, anew, found)] == [False, False, True]
    assert first["object_key"] != anew["object_key"] == found["object_key"]
    assert shas([first]) == shas([anew])


def test_other_words_or_another_source_are_another_request(
    worker: Worker, request_: dict[str, Any], host: ImageHost
) -> None:
    """Nothing is reused that was not asked for."""
    worker.results(request_)
    other = host.put("/b.png", file_of(photo(seed=1)))
    for change in ({"prompt": "else"}, {"image_url": other}, {"output_format": "webp"}, {"seed": 8}):
        assert not worker.results({**request_, **change})[0]["meta"]["reused"], change


def test_of_five_copies_in_flight_one_runs_the_model(worker: Worker, request_: dict[str, Any]) -> None:
    """The others wait for it, and answer with what it made."""

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(worker.start(request_, f"job-{number}") for number in range(5)))

    metas = [answer.body["result"]["meta"] for answer in asyncio.run(all_at_once())]

    assert worker.passes == STEPS
    assert sorted(meta["reused"] for meta in metas) == [False, True, True, True, True]
    assert len({meta["output"]["sha256"] for meta in metas}) == 1


def test_a_copy_does_the_work_of_one_that_was_stopped(worker: Worker, request_: dict[str, Any]) -> None:
    """Whoever waited goes on."""
    request_["num_inference_steps"] = 50

    async def stop_the_first() -> Answer:
        first = asyncio.create_task(worker.start(request_, "a"))
        while not any("step" in news for news in worker.news):
            await asyncio.sleep(0.001)
        second = asyncio.create_task(worker.start(request_, "b"))
        first.cancel()
        return await second

    body = asyncio.run(stop_the_first()).body

    assert not body["result"]["meta"]["reused"]
    assert body["result"]["object_key"].endswith("/b.png")


def test_a_result_that_is_gone_is_made_again(worker: Worker, request_: dict[str, Any], own_bucket: LocalBucket) -> None:
    """No link to nothing is given."""
    (first,) = worker.results(request_, "a")
    own_bucket.client.remove_object(BUCKET, first["object_key"])
    (again,) = worker.results(request_, "b")

    assert not again["meta"]["reused"]
    assert requests.get(again["presigned_url"], timeout=5).ok


def test_four_results_have_four_seeds(worker: Worker, request_: dict[str, Any], own_bucket: LocalBucket) -> None:
    """Consecutive ones; each is what a request with that seed alone would get."""
    results = worker.results({**request_, "num_images": 4, "seed": 2**32 - 2})
    worker.news.clear()
    alone = [worker.results({**request_, "seed": seed})[0] for seed in (2**32 - 2, 2**32 - 1, 0, 1)]

    assert [result["meta"]["seed"] for result in results] == [2**32 - 2, 2**32 - 1, 0, 1]
    assert len(set(shas(results))) == 4
    assert shas(results) == shas(alone)
    assert worker.passes == 3 * STEPS  # the first is the same request
    names = [result["object_key"].rsplit("/", 1)[1] for result in results]
    assert names[1:] == [f"{names[0].removesuffix('.png')}-{number}.png" for number in (1, 2, 3)]
    assert set(own_bucket.keys("qwen-image-edit/results/")) >= {result["object_key"] for result in results}


def test_a_stored_file_that_is_damaged_is_made_again(
    worker: Worker, request_: dict[str, Any], own_bucket: LocalBucket
) -> None:
    """Where its bytes are needed: for the answer, or for another place."""
    (first,) = worker.results(request_)
    worker.news.clear()
    told = {"sha256": first["meta"]["output"]["sha256"]}
    size = own_bucket.client.stat_object(BUCKET, first["object_key"]).size or 0
    bad = io.BytesIO(b"x" * size)
    own_bucket.client.put_object(BUCKET, first["object_key"], bad, size, metadata=dict(told))
    (again,) = worker.results({**request_, "output": "inline"}, "other")

    assert worker.passes == STEPS
    assert hashlib.sha256(file_in(again["data_url"])).hexdigest() == first["meta"]["output"]["sha256"]


def test_more_results_of_a_request_begin_with_those_that_are_there(worker: Worker, request_: dict[str, Any]) -> None:
    """And fewer are found whole."""
    worker.results(request_)
    three = worker.results({**request_, "num_images": 3})
    passes = worker.passes
    two = worker.results({**request_, "num_images": 2})

    assert [result["meta"]["reused"] for result in three] == [True, False, False]
    assert passes == 3 * STEPS
    assert shas(two) == shas(three)[:2]
    assert worker.passes == 0


@pytest.mark.parametrize(
    ("error", "refreshes"),
    [(ValueError("broken"), False), (RuntimeError("CUDA error: sick"), True), (EOFError("unforeseen"), False)],
)
def test_a_failure_at_the_third_delivers_two(
    tiny: Path,
    own_bucket: LocalBucket,
    worker: Worker,
    request_: dict[str, Any],
    editor: Editor,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    *,
    refreshes: bool,
) -> None:
    """It is said; what failed is made by the same request again, and a sick GPU is told of all the same."""
    four = {**request_, "num_images": 4}
    hook = failing_at(editor, 3, error)
    found = asyncio.run(worker.start(four, "a"))
    hook.remove()
    worker.news.clear()
    counted = worker.body({"operation": "health"})["result"]["jobs"]
    other = Worker(assemble(settings_of(tiny, own_bucket), editor)) if refreshes else worker
    rest = other.results(four, "b")

    assert counted == {"partial": 1}
    assert found.refresh_worker is refreshes
    assert found.on_the_wire()["status"] == "success"
    assert [result["meta"]["seed"] for result in found.body["results"]] == [7, 8]
    for result in found.body["results"]:
        (warning,) = result["meta"]["warnings"]
        assert warning.startswith("only 2 of the pictures were delivered, then ModelError: ")
        assert "same request with seed 7" in warning
    # One line, which tells both what it brought and why there is no more.
    (line,) = (one for one in caplog.records if one.message in {"job done", "job failed"} and "status" in vars(one)
               and one.status == "partial")  # type: ignore[attr-defined]  # fmt: skip
    assert (line.type, line.stage, len(line.reused)) == ("ModelError", "edit", 2)  # type: ignore[attr-defined]
    assert str(error) in caplog.text
    assert [result["meta"]["reused"] for result in rest] == [True, True, False, False]
    assert [result["meta"]["warnings"] for result in rest] == [[]] * 4
    assert other.passes == 2 * STEPS


def test_a_failure_at_the_first_is_an_error(worker: Worker, request_: dict[str, Any], editor: Editor) -> None:
    """There is nothing to deliver."""
    hook = failing_at(editor, 1, ValueError("broken"))
    error = worker.error({**request_, "num_images": 4})
    hook.remove()

    assert error["type"] == "ModelError"


def test_a_bucket_that_dies_between_two_results_delivers_the_first(
    worker: Worker, request_: dict[str, Any], editor: Editor, own_bucket: LocalBucket
) -> None:
    """Its link works as soon as the bucket does."""
    calls: list[int] = []

    def kill(*_: Any) -> None:
        calls.append(1)
        if len(calls) == STEPS + 1:
            own_bucket.kill()

    hook = editor._pipeline.transformer.register_forward_pre_hook(kill)
    (result,) = worker.results({**request_, "num_images": 2})
    hook.remove()
    own_bucket.start()

    assert "only 1 of the pictures were delivered, then StorageError" in result["meta"]["warnings"][0]
    assert requests.get(result["presigned_url"], timeout=5).ok


def file_in(url: str) -> bytes:
    head, _, text = url.partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(text, validate=True)


def test_a_file_in_the_answer(worker: Worker, request_: dict[str, Any]) -> None:
    """It is the stored one, when it was made and when it is found again."""
    for reused in (False, True):
        (result,) = worker.results({**request_, "output": "inline"})
        data = file_in(result["data_url"])
        assert result["meta"]["reused"] is reused
        assert hashlib.sha256(data).hexdigest() == result["meta"]["output"]["sha256"]
        assert requests.get(result["presigned_url"], timeout=5).content == data
    (by_link,) = worker.results(request_)
    assert by_link["data_url"] is None


def test_an_answer_is_as_long_as_runpod_keeps(worker: Worker, request_: dict[str, Any]) -> None:
    """At the limit it comes, over it the request is refused before the model runs; what was counted was enough."""
    side = max(side for side in range(256, 2049) if (8 / 3) * largest((side, side), "png", 95) + 20_000 < INLINE_LIMIT)
    inline = {**request_, "output": "inline"}
    body = worker.body({**inline, "width": side, "height": side})
    worker.news.clear()
    error = worker.error({**inline, "width": side + 16, "height": side + 16})

    assert body["status"] == "success"
    assert 0.7 * INLINE_LIMIT < len(json.dumps(body)) < INLINE_LIMIT
    assert error["details"]["problems"][0]["field"] == "output"
    assert "ask for url" in error["message"]
    assert worker.passes == 0


def test_what_was_stored_is_too_long_for_an_answer_by_its_own_size(worker: Worker, request_: dict[str, Any]) -> None:
    """Not by what it might have had."""
    big = {**request_, "width": 1600, "height": 1600}
    worker.results(big)
    small = {**big, "output_format": "jpeg", "output_quality": 30}
    worker.results(small)

    assert worker.error({**big, "output": "inline"})["type"] == "BadInput"
    assert worker.results({**small, "output": "inline"})[0]["data_url"].startswith("data:image/jpeg;base64,")


def test_a_picture_can_come_in_the_request(
    worker: Worker, request_: dict[str, Any], host: ImageHost, own_bucket: LocalBucket
) -> None:
    """It is the same request as that of an address with the same bytes; it is kept, and nobody is asked."""
    data = file_of(photo(seed=5))
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    (first,) = worker.results({**request_, "image_url": url})
    (second,) = worker.results({**request_, "image_url": url, "seed": 8})
    assert host.requests == []
    (by_link,) = worker.results({**request_, "image_url": host.put("/same.png", data)})

    assert first["meta"]["sources"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert [one["meta"]["cache"] for one in (first, second)] == ["miss", "hit"]
    assert by_link["meta"]["reused"]
    # It is kept by that address too; no job waits for that.
    end = time.monotonic() + 5
    while len(own_bucket.keys("qwen-image-edit/sources/")) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert worker.results({**request_, "image_url": host.url("/same.png")})[0]["meta"]["cache"] == "hit"


def test_a_mask_can_come_in_the_request(worker: Worker, request_: dict[str, Any]) -> None:
    """As the images can, several in all."""
    mask = Image.linear_gradient("L").point(lambda value: 255 if value > 128 else 0)
    url = f"data:image/png;base64,{base64.b64encode(file_of(mask)).decode()}"
    del request_["width"], request_["height"]
    (result,) = worker.results({**request_, "mask_url": url})

    assert result["meta"]["operation"] == "inpaint"
    assert result["meta"]["mask"]["width"] == mask.width


def test_a_picture_in_the_request_has_the_same_caps(tiny: Path, own_bucket: LocalBucket, editor: Editor) -> None:
    """Bytes and pixels; and what is none is told by name."""
    limits = {"MAX_IMAGE_BYTES": "3000", "MAX_IMAGE_PIXELS": "10000"}
    worker = Worker(assemble(settings_of(tiny, own_bucket, **limits), editor))
    texts = {
        "3000 bytes": b"x" * 3001,
        "10000 pixels": file_of(Image.new("RGB", (101, 100))),
        "the source: it is not a readable": b"<html>",
    }
    for message, data in texts.items():
        error = worker.error(said(f"data:;base64,{base64.b64encode(data).decode()}"))
        assert (error["type"], message in error["message"]) == ("BadInput", True), error
    assert own_bucket.keys() == []


def test_a_result_goes_to_the_callers_own_place_too(worker: Worker, request_: dict[str, Any], host: ImageHost) -> None:
    """When it is made, and when it is found again."""
    for target in ("/put?signature=1", "/again?signature=2"):
        (result,) = worker.results({**request_, "upload_url": host.url(target)})
        assert result["uploaded"] is True
        assert hashlib.sha256(host.uploads[target]).hexdigest() == result["meta"]["output"]["sha256"]
        assert requests.get(result["presigned_url"], timeout=5).content == host.uploads[target]
    assert result["meta"]["reused"]
    assert result["meta"]["timings_ms"]["upload"] > 0
    assert worker.results(request_)[0]["uploaded"] is None


def test_a_slow_place_of_one_caller_delays_no_other(worker: Worker, request_: dict[str, Any], host: ImageHost) -> None:
    """Whoever asks for the same gets it as soon as it is stored; the time it took is told."""
    let_go, waited = threading.Event(), []

    def slow(handler: Any) -> None:
        waited.append(let_go.wait(10))
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    host.replies["/slow"] = Reply(script=slow)

    async def both() -> tuple[Answer, Answer]:
        first = asyncio.create_task(worker.start({**request_, "upload_url": host.url("/slow")}, "a"))
        while "/slow" not in host.requests:
            await asyncio.sleep(0.01)
        second = await worker.start(request_, "b")
        await asyncio.sleep(0.2)
        let_go.set()
        return await first, second

    uploaded, plain = (answer.body["result"] for answer in asyncio.run(both()))

    assert waited == [True]
    assert (uploaded["uploaded"], plain["uploaded"]) == (True, None)
    assert (uploaded["meta"]["reused"], plain["meta"]["reused"]) == (False, True)
    assert uploaded["meta"]["timings_ms"]["upload"] > 200


def test_what_does_not_arrive_there_is_said_and_not_lost(
    worker: Worker, request_: dict[str, Any], host: ImageHost
) -> None:
    """The link of the answer opens all the same."""
    host.replies["/closed"] = Reply(b"no", 403)
    (result,) = worker.results({**request_, "upload_url": host.url("/closed")})

    assert result["uploaded"] is False
    assert "403" in result["meta"]["warnings"][0]
    assert requests.get(result["presigned_url"], timeout=5).ok


def test_a_place_that_may_not_be_dialled_costs_no_model_time(worker: Worker, request_: dict[str, Any]) -> None:
    """As for sources."""
    error = worker.error({**request_, "upload_url": "http://169.254.169.254/latest/meta-data"})

    assert (error["type"], worker.passes) == ("BadInput", 0)
    assert "public internet" in error["message"]


def test_the_background_is_replaced_by_a_prompt_that_is_told(worker: Worker, request_: dict[str, Any]) -> None:
    """The same picture as that of an edit with this prompt."""
    (result,) = worker.results({**request_, "operation": "background_replacement", "prompt": "a beach at dusk."})
    prompt = BACKGROUND.format("a beach at dusk")
    (plain,) = worker.results({**request_, "prompt": prompt})

    assert (result["meta"]["operation"], result["meta"]["prompt"]) == ("background_replacement", prompt)
    assert shas([result]) == shas([plain])


def test_health_tells_how_it_is(worker: Worker, request_: dict[str, Any]) -> None:
    """Without any pass of the model, and without a secret."""
    worker.results(request_)
    worker.results({**request_, "num_images": 2})
    worker.error({**request_, "seed": -1})
    worker.news.clear()
    time.sleep(0.1)
    health = worker.body({"operation": "health"})["result"]

    assert worker.news == []
    worker.body({"operation": "health"})
    assert health["jobs"] == {"success": 2, "BadInput": 1}
    assert worker.body({"operation": "health"})["result"]["jobs"] == health["jobs"]
    assert (health["t2i_model_id"], health["t2i_model_revision"]) == (None, None)
    assert health["pictures"] == {"made": 2, "reused": 1}
    assert 0.1 < health["uptime_s"] < 60
    assert health["model_class"] == "QwenImageEditPipeline"
    assert health["model_revision"].startswith("local")
    assert health["operations"] == ["edit", "inpaint", "background_replacement", "health", "presign"]
    assert health["device"]["name"] == "cpu"
    assert health["device"]["memory_peak"] > 10**8
    assert {"worker", "code", "torch", "diffusers"} <= set(health["versions"])
    assert not any(secret in str(health) for secret in ("local-access-key", "local-secret-key", "127.0.0.1"))


def test_a_picture_costs_what_the_gpu_took_for_it(
    tiny: Path, own_bucket: LocalBucket, editor: Editor, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One that is found again costs nothing; the line of the job, and `health`, tell the sum."""
    caplog.set_level(logging.INFO, "qwen_worker.job")
    settings = settings_of(tiny, own_bucket).model_copy(update={"gpu_usd_per_second": 0.5})
    worker = Worker(assemble(settings, editor))
    (first,) = worker.results(request_)
    reused, made = worker.results({**request_, "num_images": 2}, "other")
    (line,) = (one for one in caplog.records if one.message == "job done" and getattr(one, "reused", None) == [1, 0])
    health = worker.body({"operation": "health"})["result"]

    assert 0 < first["meta"]["gpu_s"] <= first["meta"]["timings_ms"]["edit"] / 1000
    for one in (first, made):
        assert one["meta"]["cost_usd"] == pytest.approx(0.5 * one["meta"]["gpu_s"], abs=3e-4)
    assert (reused["meta"]["gpu_s"], reused["meta"]["cost_usd"]) == (0, 0)
    assert line.gpu_s == made["meta"]["gpu_s"]  # type: ignore[attr-defined]
    assert line.cost_usd == made["meta"]["cost_usd"]  # type: ignore[attr-defined]
    assert line.bytes_in > 0 < line.bytes_out  # type: ignore[attr-defined]
    assert health["gpu_s"] == pytest.approx(first["meta"]["gpu_s"] + made["meta"]["gpu_s"], abs=2e-3)
    assert health["cost_usd"] == pytest.approx(first["meta"]["cost_usd"] + made["meta"]["cost_usd"], abs=1e-5)
    assert (health["sources"], health["cache_hits"]) == (2, 1)


def test_a_link_can_be_had_again(worker: Worker, request_: dict[str, Any]) -> None:
    """To a result, and to nothing else."""
    (result,) = worker.results(request_)
    fresh = worker.body({"operation": "presign", "object_key": result["object_key"]})["result"]
    error = worker.error({"operation": "presign", "object_key": "qwen-image-edit/sources/" + "0" * 64})

    assert {key: fresh[key] for key in ("bucket", "object_key", "content_type", "expires_in")} == {
        key: result[key] for key in ("bucket", "object_key", "content_type", "expires_in")
    }
    assert Image.open(io.BytesIO(requests.get(fresh["presigned_url"], timeout=5).content)).size == (256, 256)
    assert fresh["expires_at"] >= result["expires_at"]
    assert (error["type"], error["details"]["problems"][0]["field"]) == ("BadInput", "object_key")


def test_the_news_of_a_job_are_in_order(worker: Worker, request_: dict[str, Any]) -> None:
    """Every stage, and every pass of each picture."""
    worker.results({**request_, "num_images": 2, "num_inference_steps": 3, "scheduler": "FlowMatchHeun"})
    steps = [(news["image"], news["step"], news["steps"]) for news in worker.news if "step" in news]
    stages = [news["stage"] for news in worker.news if "step" not in news]

    assert steps == [(image, step, 5) for image in (1, 2) for step in range(1, 6)]
    one = ["queue", "edit", "encode", "upload"]
    assert stages == ["fetch", "lookup", "decode", *one, *one]
