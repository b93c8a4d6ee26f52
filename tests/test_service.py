"""The way of a request: what reaches the model, and what is kept."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from local import tiny_model
from local.bucket import LocalBucket
from local.web import ImageHost
from qwen_worker import schema
from qwen_worker.build import assemble, build_editor
from qwen_worker.images.decoder import Decoded
from qwen_worker.images.geometry import plan
from qwen_worker.job import Jobs
from qwen_worker.model.edit import Editor
from qwen_worker.originals import Original
from qwen_worker.prepared import prepare
from qwen_worker.request import parse_image
from qwen_worker.sources import Source
from tests.pictures import file_of, scene
from tests.test_job import answer, error_of, settings_of

QUICK = {"prompt": "x", "num_inference_steps": 2, "true_cfg_scale": 1.0, "seed": 1}
RULES = schema.Rules(steps=2, cfg_scale=1.0, max_steps=50, max_images=3)


@pytest.fixture(scope="module")
def editor(tiny_plus: Path, shared_bucket: LocalBucket) -> Editor:
    """Of a model of several images."""
    return build_editor(settings_of(tiny_plus, shared_bucket))


@pytest.fixture
def jobs(tiny_plus: Path, shared_bucket: LocalBucket, editor: Editor) -> Jobs:
    """A worker."""
    return assemble(settings_of(tiny_plus, shared_bucket), editor)


def left_third(size: tuple[int, int]) -> Image.Image:
    """White in its left third, and nothing but transparent white besides."""
    mask = Image.new("RGBA", size, (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, size[0] // 3, size[1]))
    return mask


def original(image: Image.Image) -> Original:
    return Original(Source("https://a/", b"", "0", hit=False), Decoded(image, "PNG"))


def test_the_mask_lies_where_it_lies_on_the_source() -> None:
    """On the canvas, in squares of half a grid, and not a square further."""
    source, mask = scene(1281, 721), Image.new("RGB", (1281, 721))
    mask.paste("white", (100, 200, 300, 260))
    request = parse_image({**QUICK, "image_url": "https://a/", "mask_url": "https://m/"}, job_id="a", rules=RULES)
    planned = plan(request, [source.size], grid=32, max_output_pixels=10**8)
    prepared = prepare(request, planned, [original(source), original(mask)], 32)
    (across, down), (left, top) = planned.reference.scale, planned.reference.offset
    assert prepared.cells
    cells = np.asarray(prepared.cells) > 0
    rows, columns = np.nonzero(cells)
    expected = [round(side) for side in (left + 100 * across, top + 200 * down, left + 300 * across, top + 260 * down)]

    assert cells.shape[::-1] == planned.target.canvas
    assert [columns.min(), rows.min()] == [side // 16 * 16 for side in expected[:2]]
    assert [columns.max() + 1, rows.max() + 1] == [-(-side // 16) * 16 for side in expected[2:]]
    assert cells.mean() == pytest.approx(
        (columns.max() + 1 - columns.min()) * (rows.max() + 1 - rows.min()) / cells.size
    )
    assert prepared.mask
    assert (np.asarray(prepared.mask) == np.asarray(mask)[..., 0]).all()


def test_a_mask_is_fetched_kept_and_part_of_the_key(jobs: Jobs, host: ImageHost) -> None:
    """What is transparent in it is kept in the picture, whatever colour it has."""
    source = scene(320, 200)
    said = {**QUICK, "width": 320, "height": 256, "image_url": host.put("/source", file_of(source.resize((320, 256))))}
    plain = answer(jobs, said)["result"]
    first = answer(jobs, {**said, "mask_url": host.put("/mask", file_of(left_third((320, 256))))})["result"]
    again = answer(jobs, {**said, "mask_url": host.url("/mask")})["result"]
    other = answer(jobs, {**said, "mask_url": host.put("/other", file_of(left_third((300, 240))))})["result"]

    assert [one["meta"]["cache"] for one in (plain, first, again, other)] == ["miss", "miss", "hit", "miss"]
    assert host.requests == ["/source", "/mask", "/other"]
    assert len({one["object_key"] for one in (plain, first, other)}) == 3
    assert again["object_key"] == first["object_key"]
    assert 20 < first["meta"]["geometry"]["changed_percent"] < 36


def test_an_empty_mask_costs_no_model_time(jobs: Jobs, host: ImageHost, editor: Editor) -> None:
    """The source comes back, and it is said."""
    runs: list[int] = []
    hook = editor._pipeline.transformer.register_forward_pre_hook(lambda *_: runs.append(1))
    source = host.put("/source", file_of(scene(320, 200)))
    empty = host.put("/empty", file_of(Image.new("L", (320, 200))))
    result = answer(jobs, {**QUICK, "image_url": source, "mask_url": empty})["result"]
    hook.remove()

    assert runs == []
    assert "empty" in result["meta"]["warnings"][0]
    assert result["meta"]["geometry"]["changed_percent"] == 0


def test_a_mask_that_vanishes_is_empty(jobs: Jobs, host: ImageHost) -> None:
    """On the canvas nothing is left of a few faint pixels: that the source comes back is said."""
    faint = np.zeros((2400, 3200), dtype=np.uint8)
    faint[::400, ::400] = 12
    source = host.put("/large", file_of(scene(3200, 2400), "JPEG"))
    said = {**QUICK, "image_url": source, "mask_url": host.put("/faint", file_of(Image.fromarray(faint)))}
    result = answer(jobs, {**said, "output_format": "jpeg"})["result"]

    assert "the mask is empty: nothing was edited" in result["meta"]["warnings"]


def test_whatever_decides_a_picture_is_in_its_digest(
    tiny_plus: Path, tiny_t2i: Path, shared_bucket: LocalBucket, tmp_path: Path
) -> None:
    """The model, of which a generated picture uses parts too; the LoRAs; preset and profile; code and libraries."""
    words = {"operation": "generate", "prompt": "x", "seed": 1}
    edit = {"image_url": "https://a/", "prompt": "x", "seed": 1}
    inked = {**edit, "lora": {"ink": 1}}
    file = tiny_model.make_lora(tmp_path / "ink.safetensors", tiny_plus)
    loras = json.dumps([{"name": "ink", "source": str(tmp_path), "weight_file": file.name}])

    def digests(model: Path, **settings: str) -> list[str]:
        jobs = assemble(
            made := settings_of(model, shared_bucket, T2I_MODEL_ID=str(tiny_t2i), **settings), build_editor(made)
        )
        jobs._service._archive = dataclasses.replace(jobs._service._archive, versions=versions)
        requests = [parse_image(said, job_id="a", rules=jobs._rules) for said in (words, edit, inked)]
        sources = [Source("k", b"", "0", hit=True)]
        return [jobs._service._digest(one, sources[: len(one.images)]) for one in requests]

    versions = {"code": "1"}
    first = digests(tiny_plus, LORAS=loras)
    assert digests(tiny_plus, LORAS=loras) == first
    file.touch()
    other_lora = digests(tiny_plus, LORAS=loras)
    other_model = digests(shutil.copytree(tiny_plus, tmp_path / "copy"), LORAS=loras)
    other_preset = digests(tiny_plus, LORAS=loras, PRESET="balanced")
    assert digests(tiny_plus, LORAS=loras, PROFILE="bf16-offload") == other_lora  # which makes the same pictures
    versions = {"code": "2"}
    other_code = digests(tiny_plus, LORAS=loras)

    assert len(set(first)) == 3
    assert other_lora[:2] == first[:2]
    assert other_lora[2] != first[2]
    assert not set(other_model) & set(first)
    assert not set(other_preset) & {*first, *other_lora}
    assert not set(other_code) & {*first, *other_lora}


def test_the_image_that_sets_the_size_is_compared_with(jobs: Jobs, host: ImageHost) -> None:
    """Whichever it is."""
    urls = [host.put("/one", file_of(scene(64, 48))), host.put("/two", file_of(scene(48, 80)))]
    geometry = answer(jobs, {**QUICK, "image_urls": urls, "size_from": 1})["result"]["meta"]["geometry"]

    assert geometry["source"] == [48, 80]


def test_an_address_that_is_named_twice_is_fetched_once(jobs: Jobs, host: ImageHost) -> None:
    """As two images, or as image and mask."""
    url = host.put("/same", file_of(scene(256, 256)))
    small = {**QUICK, "width": 256, "height": 256}
    twice = answer(jobs, {**small, "image_urls": [url, url]})["result"]["meta"]
    answer(jobs, {**small, "image_url": url, "mask_url": url})

    assert host.requests == ["/same"]
    assert len(twice["sources"]) == 2


def test_what_is_wrong_with_a_picture_names_it(jobs: Jobs, host: ImageHost) -> None:
    """In the message and in the details: one of several, or the mask; where there is one only, the source."""
    fine, page = host.put("/fine", file_of(scene(64, 64))), host.put("/page", b"<html>")
    narrow = host.put("/narrow", file_of(Image.new("RGB", (4000, 3))))
    gone = host.url("/gone")
    for said, picture, message in (
        ({"image_url": page}, "the source", "it is not a readable"),
        ({"image_url": gone}, "the source", "its host answered 404"),
        ({"image_urls": [fine, narrow]}, "picture 2", "it has 4000 x 3 pixels, too narrow"),
        ({"image_urls": [gone, gone]}, "picture 1", "its host answered 404"),
        ({"image_url": fine, "mask_url": page}, "the mask", "it is not a readable"),
        ({"image_url": fine, "mask_url": "http://*.a/x"}, "the mask", "its address is not valid"),
    ):
        error = error_of(answer(jobs, {**QUICK, **said}))
        assert error["message"].startswith(f"{picture}: {message}")
        assert error["details"]["picture"] == picture


def test_what_is_kept_and_no_picture_is_fetched_anew(jobs: Jobs, host: ImageHost) -> None:
    """Whoever wrote it, and however well: once. If the host has no better, that is told."""
    url = host.put("/kept", file_of(scene(256, 256)))
    key = hashlib.sha256(url.encode()).hexdigest()
    small = {**QUICK, "image_url": url, "width": 256, "height": 256}
    answer(jobs, small)
    for seed in (2, 3):
        if seed == 3:
            host.put("/kept", b"<html>")
        jobs._service._archive.bucket.put(f"sources/{key}", b"no picture", "image/png")
        found = answer(jobs, {**small, "seed": seed})
        again = answer(jobs, {**small, "seed": seed + 10})
        if seed == 2:
            assert found["result"]["meta"]["cache"] == "miss"
            assert again["result"]["meta"]["cache"] == "hit"
        else:
            assert error_of(found)["details"]["picture"] == "the source"

    assert host.requests[:2] == ["/kept", "/kept"]


def test_the_cause_of_a_failure_is_not_lost(jobs: Jobs, host: ImageHost, caplog: pytest.LogCaptureFixture) -> None:
    """The log holds what the library raised."""
    urls = [host.put("/fine", file_of(scene(64, 64))), host.put("/page", b"<html>")]
    error_of(answer(jobs, {**QUICK, "image_urls": urls}))

    assert "UnidentifiedImageError" in caplog.text


def test_a_job_of_four_pictures_does_not_wait_for_its_own_threads(
    tiny_plus: Path, shared_bucket: LocalBucket, editor: Editor
) -> None:
    """There is one for each picture of each job on its way, and one to keep it."""
    for prefetch, jobs in (("0", 1), ("4", 5), ("auto", 5)):
        service = assemble(settings_of(tiny_plus, shared_bucket, PREFETCH=prefetch), editor)._service
        assert service._io._max_workers >= 2 * 4 * jobs  # type: ignore[attr-defined]


def test_a_result_that_would_be_too_large_is_refused(
    tiny_plus: Path, shared_bucket: LocalBucket, host: ImageHost, editor: Editor
) -> None:
    """By the operator's limit, before the GPU's turn."""
    jobs = assemble(settings_of(tiny_plus, shared_bucket, MAX_OUTPUT_PIXELS="100000"), editor)
    url = host.put("/large", file_of(scene(400, 300)))
    whole = error_of(answer(jobs, {**QUICK, "image_url": url}))
    small = answer(jobs, {**QUICK, "image_url": url, "width": 300, "height": 300})

    assert whole["details"]["problems"][0]["field"] == "size"
    assert small["status"] == "success"
