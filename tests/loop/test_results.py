"""Results through RunPod's real loop: several of them, progress, and jobs that come again after a kill."""

import base64
import hashlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from local.runpod_api import Job
from local.stack import Stack
from tests.loop.test_jobs import error_of, result_of, said
from tests.pictures import file_of, photo

pytestmark = pytest.mark.slow

RESULTS = "qwen-image-edit/results/"


@pytest.fixture(scope="module")
def stack(tiny: Path, tiny_t2i: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A worker that also makes pictures from nothing, and takes four jobs ahead."""
    more = {"T2I_MODEL_ID": str(tiny_t2i), "PREFETCH": "4"}
    with Stack(tmp_path_factory.mktemp("results"), model=tiny, more=more) as running:
        yield running


def results_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    assert job["status"] == "COMPLETED", job
    results: list[dict[str, Any]] = job["output"]["results"]
    assert job["output"]["result"] == results[0]
    return results


def steps_of(job: Job) -> list[int]:
    return [news["step"] for _, news in job.progress if "step" in news]


def test_a_picture_of_the_request_comes_back_in_the_answer(stack: Stack) -> None:
    """In and out without a host: a data: URL each way, and the link opens to the same bytes."""
    url = f"data:image/png;base64,{base64.b64encode(file_of(photo(seed=9))).decode()}"
    asked = len(stack.host.requests)
    result = result_of(stack.run({**said(stack, "data"), "image_url": url, "output": "inline"}))
    data = base64.b64decode(result["data_url"].partition(",")[2])

    assert hashlib.sha256(data).hexdigest() == result["meta"]["output"]["sha256"]
    assert requests.get(result["presigned_url"], timeout=10).content == data
    assert len(stack.host.requests) == asked


def test_an_answer_that_would_be_lost_is_refused(stack: Stack) -> None:
    """Before the model runs."""
    error = error_of(stack.run(said(stack, "huge", width=2048, height=2048, output="inline")))

    assert (error["type"], error["details"]["stage"]) == ("BadInput", "decode")


def test_four_results_with_four_seeds(stack: Stack) -> None:
    """Each with a link of its own."""
    results = results_of(stack.run(said(stack, "four", num_images=4, seed=10)))

    assert [result["meta"]["seed"] for result in results] == [10, 11, 12, 13]
    assert len({requests.get(result["presigned_url"], timeout=10).content for result in results}) == 4


def test_five_copies_in_flight_run_the_model_once(stack: Stack) -> None:
    """Taken at the same time by one worker."""
    request = said(stack, "copies", seed=3, num_inference_steps=50)
    jobs = [stack.finished(job) for job in [stack.submit(request) for _ in range(5)]]
    results = [result_of(job) for job in jobs]

    assert sorted(result["meta"]["reused"] for result in results) == [False, True, True, True, True]
    assert len({result["object_key"] for result in results}) == 1
    assert sum(bool(steps_of(stack.api.jobs[job["id"]])) for job in jobs) <= 1
    health = stack.run({"operation": "health"})["output"]["result"]
    assert health["pictures"]["reused"] >= 4


def test_progress_is_told_in_order_and_never_after_the_result(stack: Stack) -> None:
    """Over fifty steps: at most two a second, and /status shows it."""
    job_id = stack.submit(said(stack, "progress", width=1536, height=1536, num_inference_steps=50))
    seen = []
    while (job := stack.status(job_id))["status"] not in {"COMPLETED", "FAILED"}:
        seen.append((job.get("output") or {}).get("step", 0))
        time.sleep(0.05)
    result_of(job)
    time.sleep(1)
    told = stack.api.jobs[job_id]
    steps = steps_of(told)
    gaps = [later - earlier for (earlier, _), (later, _) in zip(told.progress, told.progress[1:], strict=False)]

    assert len(steps) >= 4
    assert steps == sorted(set(steps))
    assert all(news["steps"] == 50 for _, news in told.progress if "step" in news)
    assert len({news["stage"] for _, news in told.progress}) > 1
    assert min(gaps) > 0.4
    assert told.late == []
    assert max(seen) > 0
    assert told.status == "COMPLETED"


def test_a_job_that_comes_again_after_a_kill_finds_what_was_finished(stack: Stack) -> None:
    """Of four results two were stored when the worker died: the same job makes the other two."""
    request = said(stack, "kill", num_images=4, num_inference_steps=50, width=512, height=512)
    before = set(stack.bucket.keys(RESULTS))
    job_id = stack.submit(request)
    while len(new := set(stack.bucket.keys(RESULTS)) - before) < 3 or not any("manifest" in key for key in new):
        time.sleep(0.02)
    stack.stop_worker(signal.SIGKILL)
    stored = {key for key in set(stack.bucket.keys(RESULTS)) - before if key.endswith(".png")}
    stack.api.requeue(job_id)
    stack.start_worker()
    results = results_of(stack.finished(job_id))
    reused = [result["object_key"] for result in results if result["meta"]["reused"]]

    assert 1 <= len(reused) < 4
    assert set(reused) <= stored
    assert [result["meta"]["reused"] for result in results] == [True] * len(reused) + [False] * (4 - len(reused))
    seeds = [result["meta"]["seed"] for result in results]
    assert seeds == [(seeds[0] + number) % 2**32 for number in range(4)]
    again = results_of(stack.run({**request, "seed": seeds[0]}))
    assert all(result["meta"]["reused"] for result in again)
    assert [result["object_key"] for result in again] == [result["object_key"] for result in results]


def test_a_picture_is_made_from_nothing(stack: Stack) -> None:
    """By the other model; and an edit before and after it is the same."""
    request = said(stack, "around", seed=5)
    before = result_of(stack.run(request))["meta"]["output"]["sha256"]
    made = result_of(
        stack.run({"operation": "generate", "prompt": "a cat", "num_inference_steps": 2, "width": 320, "height": 256})
    )
    after = result_of(stack.run({**request, "reuse": False}))["meta"]["output"]["sha256"]

    assert before == after
    assert (made["meta"]["output"]["width"], made["meta"]["output"]["height"]) == (320, 256)
    assert (made["meta"]["operation"], made["meta"]["sources"], made["meta"]["geometry"]) == ("generate", [], None)
    assert made["meta"]["cache"] is None
    assert made["meta"]["model_id"] != result_of(stack.run(request))["meta"]["model_id"]
    assert requests.get(made["presigned_url"], timeout=10).ok


def test_health_and_fresh_links_over_the_api(stack: Stack) -> None:
    """A foreign key is refused."""
    result = result_of(stack.run(said(stack, "link")))
    health = stack.run({"operation": "health"})["output"]["result"]
    fresh = stack.run({"operation": "presign", "object_key": result["object_key"]})["output"]["result"]
    error = error_of(stack.run({"operation": "presign", "object_key": "other/results/" + "0" * 64 + "/a.png"}))

    assert "generate" in health["operations"]
    assert health["jobs"]["success"] > 0
    assert requests.get(fresh["presigned_url"], timeout=10).ok
    assert error["type"] == "BadInput"
