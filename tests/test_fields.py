"""Each field of a request changes what comes back: one that is accepted and ignored is a defect."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from local import copy_model, tiny_model
from local.bucket import LocalBucket
from local.web import ImageHost, Reply
from qwen_worker.build import assemble, build_editor
from qwen_worker.job import Jobs
from qwen_worker.schema import EditInput, GenerateInput
from tests.pictures import file_of, scene
from tests.test_job import answer, error_of, settings_of

pytestmark = pytest.mark.slow

PICTURES = {
    "/one": file_of(scene(320, 200)),
    "/two": file_of(scene(200, 300, seed=1)),
    "/mask": file_of(Image.linear_gradient("L").resize((320, 200)).point(lambda value: 255 if value > 128 else 0)),
}
BASE = {"prompt": "make it warm", "seed": 1, "num_inference_steps": 2, "true_cfg_scale": 2.0}
SMALL = {"width": 256, "height": 256}
ONE = {"image_url": "/one"}
TWO = {"image_urls": ["/one", "/two"]}
MASKED = {"mask_url": "/mask"}
#: field → a request, and what is added to it
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "image_url": ({**ONE, **SMALL}, {"image_url": "/two"}),
    "image_urls": ({**TWO, **SMALL}, {"image_urls": ["/two", "/one"]}),
    "size_from": (TWO, {"size_from": 1}),
    "prompt": ({**ONE, **SMALL}, {"prompt": "make it cold"}),
    "negative_prompt": ({**ONE, **SMALL}, {"negative_prompt": "blurry"}),
    "seed": ({**ONE, **SMALL}, {"seed": 2}),
    "num_inference_steps": ({**ONE, **SMALL}, {"num_inference_steps": 3}),
    "true_cfg_scale": ({**ONE, **SMALL}, {"true_cfg_scale": 7.0}),
    "guidance_scale": ({**ONE, **SMALL}, {"guidance_scale": 7.0, "true_cfg_scale": None}),
    "scheduler": ({**ONE, **SMALL}, {"scheduler": "UniPCMultistep"}),
    "mask_url": (ONE, MASKED),
    "strength": ({**ONE, **MASKED, "num_inference_steps": 4}, {"strength": 0.5}),
    "mask_feather": ({**ONE, **MASKED}, {"mask_feather": 20}),
    "size": (ONE, {"size": "native"}),
    "width": (ONE, SMALL),
    "height": (ONE, SMALL),
    "align": (ONE, {"align": True}),
    "output_format": ({**ONE, **SMALL}, {"output_format": "webp"}),
    "output_quality": ({**ONE, **SMALL, "output_format": "jpeg"}, {"output_quality": 50}),
    "operation": ({**ONE, **SMALL}, {"operation": "background_replacement"}),
    "lora": ({**ONE, **SMALL}, {"lora": {"ink": 1.0}}),
    "num_images": ({**ONE, **SMALL}, {"num_images": 2}),
    "output": ({**ONE, **SMALL}, {"output": "inline"}),
    "upload_url": ({**ONE, **SMALL}, {"upload_url": "/put"}),
    "reuse": ({**ONE, **SMALL}, {"reuse": False}),
}
#: field → what of an answer it changes, where that is not the bytes of the result
EFFECTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "num_images": lambda body: len(body["results"]),
    "output": lambda body: body["result"]["data_url"] is None,
    "upload_url": lambda body: body["result"]["uploaded"],
    "reuse": lambda body: body["result"]["meta"]["reused"],
}
ADDRESSES = {"image_url", "image_urls", "mask_url", "upload_url"}


@pytest.fixture
def served(host: ImageHost) -> ImageHost:
    """All the pictures."""
    for target, body in PICTURES.items():
        host.put(target, body)
    return host


@pytest.fixture(scope="module")
def plus_jobs(
    tiny_plus: Path, tiny_t2i: Path, shared_bucket: LocalBucket, tmp_path_factory: pytest.TempPathFactory
) -> Jobs:
    """A worker with a model of several images, a LoRA, and a model that makes pictures from nothing."""
    file = tiny_model.make_lora(tmp_path_factory.mktemp("loras") / "ink.safetensors", tiny_plus)
    loras = json.dumps([{"name": "ink", "source": str(file.parent), "weight_file": file.name}])
    settings = settings_of(tiny_plus, shared_bucket, T2I_MODEL_ID=str(tiny_t2i), LORAS=loras)
    return assemble(settings, build_editor(settings))


@pytest.fixture(scope="module")
def drifting_jobs(tmp_path_factory: pytest.TempPathFactory, shared_bucket: LocalBucket) -> Jobs:
    """A worker whose model slides the picture to the left."""
    folder = copy_model.make(tmp_path_factory.mktemp("models") / "drift", drift=(1, 0))
    settings = settings_of(folder, shared_bucket)
    return assemble(settings, build_editor(settings))


def ask(jobs: Jobs, host: ImageHost, said: dict[str, Any]) -> dict[str, Any]:
    addresses = {
        key: [host.url(target) for target in value] if isinstance(value, list) else host.url(value)
        for key, value in said.items()
        if key in ADDRESSES
    }
    return answer(jobs, {**BASE, **said, **addresses})


def sha256_of(body: dict[str, Any]) -> str:
    result: str = body["result"]["meta"]["output"]["sha256"]
    return result


@pytest.mark.parametrize("field", list(EditInput.model_fields))
def test_each_field_of_an_edit_changes_what_comes_back(
    plus_jobs: Jobs, drifting_jobs: Jobs, served: ImageHost, field: str
) -> None:
    """The bytes of the result, or what the field is about. Nothing that was made without it is reused."""
    said, change = CHANGES[field]
    jobs = drifting_jobs if field == "align" else plus_jobs
    effect = EFFECTS.get(field, sha256_of)
    ask(jobs, served, said)

    assert field in change
    assert effect(ask(jobs, served, said)) != effect(ask(jobs, served, {**said, **change}))


@pytest.mark.parametrize("field", [name for name in GenerateInput.model_fields if name != "operation"])
def test_each_field_of_a_picture_from_nothing_changes_it(plus_jobs: Jobs, served: ImageHost, field: str) -> None:
    """Likewise."""
    said, change = ({key: value for key, value in part.items() if key != "image_url"} for part in CHANGES[field])
    said = {"operation": "generate", "width": 256, "height": 320, **said}
    effect = EFFECTS.get(field, sha256_of)
    ask(plus_jobs, served, said)

    assert field in change
    assert effect(ask(plus_jobs, served, said)) != effect(ask(plus_jobs, served, {**said, **change}))


def test_the_images_of_a_job_are_fetched_at_the_same_time(plus_jobs: Jobs, host: ImageHost) -> None:
    """No host is asked after another: each answers only when all were asked."""
    targets = ["/a.png", "/b.png", "/c.png"]

    def when_all_are_asked(handler: Any) -> None:
        end = time.monotonic() + 10
        while not set(targets) <= set(host.requests) and time.monotonic() < end:
            time.sleep(0.01)
        if time.monotonic() < end:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + PICTURES["/one"])

    for target in targets:
        host.replies[target] = Reply(script=when_all_are_asked)

    sha256_of(ask(plus_jobs, host, {"image_urls": targets, **SMALL}))


def test_the_first_failure_cancels_the_other_images(plus_jobs: Jobs, host: ImageHost) -> None:
    """Their connections are shut, and the answer names the picture that failed."""
    shut = threading.Event()

    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            for _ in range(600):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            shut.set()

    def missing(handler: Any) -> None:
        while len(host.requests) < 3:
            time.sleep(0.01)
        handler.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    host.replies = {
        "/slow.png": Reply(script=drip),
        "/slow-too.png": Reply(script=drip),
        "/gone.png": Reply(script=missing),
    }
    urls = [host.url(target) for target in ("/slow.png", "/gone.png", "/slow-too.png")]
    begin = time.monotonic()
    error = error_of(answer(plus_jobs, {**BASE, "image_urls": urls}))

    assert time.monotonic() - begin < 5
    assert (error["type"], error["details"]["picture"], error["details"]["status"]) == (
        "DownloadFailed",
        "picture 2",
        404,
    )
    assert shut.wait(5)


def test_a_broken_picture_among_several_is_named(plus_jobs: Jobs, host: ImageHost) -> None:
    """And none of the others is edited."""
    urls = [host.put("/fine.png", PICTURES["/one"]), host.put("/page", b"<html>")]
    error = error_of(answer(plus_jobs, {**BASE, "image_urls": urls}))

    assert error["type"] == "BadInput"
    assert error["message"].startswith("picture 2: it is not a readable")


def test_an_untested_model_is_logged(
    tiny_plus: Path, shared_bucket: LocalBucket, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder is outside the table of models."""
    with caplog.at_level(logging.WARNING):
        build_editor(settings_of(tiny_plus, shared_bucket))

    assert "untested model" in caplog.text
