"""What a request may say."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from qwen_worker import schema
from qwen_worker.errors import BadInput
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.request import parse as parse_request
from qwen_worker.schema import Rules

URL = "https://example.com/photo.jpg"
MASK: dict[str, Any] = {"mask_url": "https://example.com/mask.png"}
TWO: dict[str, Any] = {"image_url": None, "image_urls": [URL, "https://example.com/other.jpg"]}
RULES = Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=3)
GENERATES = replace(RULES, generate=Rules(steps=50, cfg_scale=3.0, max_steps=60, max_images=0, size=(1328, 1328)))


def parse(job_id: str = "job-1", rules: Rules = RULES, **fields: Any) -> ImageRequest:
    return parse_image({"image_url": URL, "prompt": "make it warm", **fields}, job_id=job_id, rules=rules)


def problems(raw: object, rules: Rules = RULES) -> dict[str, str]:
    with pytest.raises(BadInput) as caught:
        parse_image(raw, job_id="job-1", rules=rules)
    return {item["field"]: item["problem"] for item in caught.value.details["problems"]}


def test_defaults_are_the_documented_ones() -> None:
    """Two fields make a request; the rest has the documented defaults."""
    request = parse()

    assert request == ImageRequest(
        operation="edit",
        lora={},
        num_images=1,
        inline=False,
        upload_url=None,
        reuse=True,
        images=(URL,),
        size_from=0,
        mask=None,
        strength=None,
        mask_feather=None,
        align=False,
        prompt="make it warm",
        negative_prompt=" ",
        seed=request.seed,
        num_inference_steps=30,
        true_cfg_scale=4.0,
        scheduler="FlowMatchEuler",
        output_format="png",
        output_quality=95,
        size="source",
        warnings=(),
    )


def test_every_problem_is_named_in_one_answer() -> None:
    """A caller mends a request once."""
    found = problems(
        {
            "image_url": "ftp://example.com/a",
            "prompt": "  ",
            "seed": -1,
            "num_inference_steps": 1,
            "true_cfg_scale": 0.5,
            "scheduler": "DDIM",
            "output_format": "gif",
            "output_quality": 0,
            "width": 100,
            "height": 100,
            "steps": 20,
            "image_urls": [],
            "size_from": 3,
            "mask_url": "nope",
            "strength": 0,
            "mask_feather": -1,
            "size": "huge",
            "align": "yes",
        }
    )
    crossed = problems(
        {
            "image_url": "",
            "prompt": "",
            "true_cfg_scale": 4,
            "guidance_scale": 5,
            "width": 512,
            "size_from": 1,
            "strength": 0.5,
            "mask_feather": 3,
        }
    )

    assert set(found) == {
        "image_url", "prompt", "seed", "num_inference_steps", "true_cfg_scale", "scheduler", "output_format",
        "output_quality", "width", "height", "steps", "image_urls", "size_from", "mask_url", "strength",
        "mask_feather", "size", "align",
    }  # fmt: skip
    assert set(crossed) == {
        "image_url", "prompt", "guidance_scale", "height", "size_from", "strength", "mask_feather",
    }  # fmt: skip
    assert "'FlowMatchEuler', 'UniPCMultistep', 'DPMSolverMultistep', 'FlowMatchHeun'" in found["scheduler"]
    assert "2 or more" in found["num_inference_steps"]


@pytest.mark.parametrize("raw", [None, [], "text", 3, True])
def test_an_input_that_is_no_object_is_refused(raw: object) -> None:
    """RunPod takes any JSON value as input."""
    assert "input" in problems(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_url", ""),
        ("image_url", "example.com/a.jpg"),
        ("image_url", "file:///etc/passwd"),
        ("image_url", "https://"),
        ("image_url", "https://example.com/a b.jpg"),
        ("image_url", "https://example.com/a\r\nHost: evil"),
        ("image_url", "https://example.com\\@evil/"),
        ("image_url", "https://user:secret@example.com/"),  # pragma: allowlist secret
        ("image_url", "https://example.com:99999/"),
        ("image_url", "https://[::1/"),
        ("image_url", "https://example.com/" + "a" * 9000),
        ("image_url", "https://example.com/?\ud800"),
        ("upload_url", "https://example.com/?\ud800"),
        ("image_url", ["https://example.com/a"]),
        ("prompt", "a" * 2001),
        ("prompt", 3),
        ("prompt", "lone surrogate \ud800"),
        ("negative_prompt", "a" * 2001),
        ("seed", 2**32),
        ("seed", 1.5),
        ("seed", "1"),
        ("seed", True),
        ("num_inference_steps", 0),
        ("num_inference_steps", 20.5),
        ("true_cfg_scale", 20.1),
        ("true_cfg_scale", float("nan")),
        ("true_cfg_scale", float("inf")),
        ("guidance_scale", 0),
        ("output_quality", 101),
        ("width", 255),
        ("height", 2049),
    ],
)
def test_a_bad_value_is_refused_by_its_field(field: str, value: object) -> None:
    """The answer names the field."""
    fields = {"image_url": URL, "prompt": "x", "width": 512, "height": 512, field: value}

    assert set(problems(fields)) == {field}


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://Example.COM:443/a/../b/%7euser?X-Amz-Signature=a%2Fb%2f&x=1+2#part",
        "https://example.com/ü.jpg",
        "https://example.com?x=1",
    ],
)
def test_an_address_is_kept_byte_for_byte(url: str) -> None:
    """A signed link is valid in one spelling only."""
    assert parse(image_url=url).images == (url,)


def test_the_prompt_is_stripped() -> None:
    """White space around a prompt says nothing."""
    assert parse(prompt=" a \n").prompt == "a"


def test_null_is_the_same_as_nothing() -> None:
    """Clients that send every field send null."""
    assert parse(seed=None, width=None, negative_prompt=None, scheduler=None) == parse()


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """JSON has one kind of number, and some clients write it so."""
    request = parse(seed=7.0, num_inference_steps=20.0, width=512.0, height=512.0)

    assert (request.seed, request.num_inference_steps, request.size) == (7, 20, (512, 512))
    assert isinstance(request.seed, int)


def test_the_seed_of_a_job_that_is_run_again_is_the_same() -> None:
    """RunPod retries jobs under their id."""
    assert parse(job_id="a").seed == parse(job_id="a").seed != parse(job_id="b").seed
    assert parse(seed=7, job_id="a").seed == parse(seed=7, job_id="b").seed == 7


def test_too_many_steps_are_clamped_and_said() -> None:
    """Above the maximum the job is done with the maximum."""
    request = parse(num_inference_steps=1000, rules=replace(RULES, max_steps=40))

    assert request.num_inference_steps == 40
    assert request.warnings == ("num_inference_steps 1000 was clamped to 40",)


def test_guidance_scale_alone_is_taken_as_true_cfg_scale() -> None:
    """In this model guidance_scale does nothing; the caller means the one that works."""
    request = parse(guidance_scale=7.5)

    assert request.true_cfg_scale == 7.5
    assert "guidance_scale" in request.warnings[0]


def test_two_scales_that_disagree_are_refused() -> None:
    """Neither can be chosen for the caller."""
    assert parse(guidance_scale=5.0, true_cfg_scale=5.0).true_cfg_scale == 5.0
    assert (
        "alias"
        in problems({"image_url": URL, "prompt": "x", "guidance_scale": 4.0, "true_cfg_scale": 5.0})["guidance_scale"]
    )


def test_width_and_height_go_together() -> None:
    """One side alone does not make a size."""
    assert parse(width=512, height=768).size == (512, 768)
    for side in ("width", "height"):
        assert "together" in problems({"image_url": URL, "prompt": "x", side: 512})["height"]


def test_the_defaults_are_the_models() -> None:
    """And the request overrides them."""
    rules = replace(RULES, steps=40, cfg_scale=2.5)
    request = parse(rules=rules)
    other = parse(rules=rules, num_inference_steps=10, true_cfg_scale=1)

    assert (request.num_inference_steps, request.true_cfg_scale) == (40, 2.5)
    assert (other.num_inference_steps, other.true_cfg_scale) == (10, 1)


def test_images_are_named_one_way() -> None:
    """By one address, or by a list in its order."""
    assert parse(**TWO).images == tuple(TWO["image_urls"] or ())
    assert parse(image_url=None, image_urls=[URL]).images == (URL,)
    for both in ({"image_url": URL, "image_urls": [URL]}, {}):
        assert problems({"prompt": "x", **both}) == {"image_url": "give either image_url or image_urls"}
    assert "image_urls.1" in problems({"prompt": "x", "image_urls": [URL, "ftp://example.com/"]})
    assert "image_urls" in problems({"prompt": "x", "image_urls": [URL] * 4})


def test_a_model_of_one_image_takes_one() -> None:
    """It says so, and what would take more."""
    one = replace(RULES, max_images=1)

    assert parse(rules=one, image_url=None, image_urls=[URL]).images == (URL,)
    assert "one picture at a time" in problems({"prompt": "x", **TWO}, one)["image_urls"]


def test_the_size_comes_from_an_image_that_is_there() -> None:
    """Counted from 0."""
    assert parse(**TWO, size_from=1).size_from == 1
    assert set(problems({"prompt": "x", **TWO, "size_from": 2})) == {"size_from"}
    assert set(problems({"prompt": "x", "image_urls": [], "size_from": 1})) == {"image_urls"}


def test_what_a_mask_needs() -> None:
    """A single picture; strength and feather need a mask."""
    plain = parse(**MASK)

    assert (plain.mask, plain.strength, plain.mask_feather) == (MASK["mask_url"], 1.0, 4)
    assert (parse(**MASK, strength=0.3).strength, parse(**MASK, mask_feather=0).mask_feather) == (0.3, 0)
    assert set(problems({"prompt": "x", "image_url": URL, "strength": 0.3, "mask_feather": 0})) == {
        "strength", "mask_feather",
    }  # fmt: skip
    assert "single picture" in problems({"prompt": "x", **TWO, **MASK})["mask_url"]
    assert plain.urls == (URL, MASK["mask_url"])


def test_a_model_that_takes_no_mask_refuses_one() -> None:
    """Once, with what to do; what goes with a mask is no further problem. Without a mask nothing is."""
    rules = replace(RULES, masks=False)
    with pytest.raises(BadInput) as caught:
        parse_image({"prompt": "x", "image_url": URL, **MASK, "strength": 0.3}, job_id="a", rules=rules)
    (problem,) = caught.value.details["problems"]

    assert problem["field"] == "mask_url"
    assert "leave it out and say in the prompt" in problem["problem"]
    assert "Qwen-Image-Edit-2511" in problem["problem"]
    assert parse_image({"prompt": "x", "image_url": URL}, job_id="a", rules=rules).mask is None


def test_a_size_is_said_one_way() -> None:
    """By its name or by its sides."""
    assert parse(size="native").size == "native"
    assert "leave either out" in problems(
        {"prompt": "x", "image_url": URL, "size": "source", "width": 512, "height": 512}
    )["size"]  # fmt: skip


def test_the_digest_tells_requests_apart() -> None:
    """Whatever decides the picture is in the digest; the address that its bytes came from is not."""
    one = parse(seed=1)

    assert one.digest(["a"], [], "m") == parse(seed=1, image_url="https://elsewhere.com/").digest(["a"], [], "m")
    for other in (
        parse(seed=2),
        parse(seed=1, prompt="else"),
        parse(seed=1, negative_prompt="else"),
        parse(seed=1, num_inference_steps=31),
        parse(seed=1, true_cfg_scale=5.0),
        parse(seed=1, scheduler="FlowMatchHeun"),
        parse(seed=1, output_format="webp"),
        parse(seed=1, output_quality=90),
        parse(seed=1, width=512, height=512),
        parse(seed=1, size="native"),
        parse(seed=1, align=True),
        parse(seed=1, **TWO, size_from=1),
    ):
        assert other.digest(["a"], [], "m") != one.digest(["a"], [], "m")
    pictures: list[tuple[list[str], list[str]]] = [
        (["a"], []), (["b"], []), (["a", "b"], []), (["b", "a"], []), (["a"], ["b"]),
    ]  # fmt: skip
    assert len({one.digest(images, masks, maker) for images, masks in pictures for maker in "mn"}) == 10
    masked = {
        parse(seed=1, **MASK, **more).digest(["a"], ["b"], "m") for more in ({}, {"strength": 0.5}, {"mask_feather": 1})
    }
    assert len(masked) == 3


def test_problems_are_bounded() -> None:
    """However many fields are wrong, the answer has an ordinary size: of a crowd nothing is told but that it is one."""
    crowd = problems({f"{number}{'x' * 1000}": 1 for number in range(1000)})
    many = problems({f"field_{number}": 1 for number in range(150)})

    assert len(json.dumps(crowd)) < 1_000
    assert len(many) == 20


@pytest.mark.parametrize(
    ("fields", "valid"),
    [
        ({}, True),
        ({"seed": None, "negative_prompt": None, "scheduler": None, "width": None, "height": None}, True),
        ({"width": 512, "height": 512, "seed": 0, "true_cfg_scale": 1, "guidance_scale": 1}, True),
        ({"num_inference_steps": 2}, True),
        ({"num_inference_steps": 1}, False),
        ({"width": 512}, False),
        ({"height": 512}, False),
        ({"width": 100, "height": 512}, False),
        ({"image_url": "nope"}, False),
        ({"image_url": "https://a b"}, False),
        ({"image_url": "HTTP://example.com"}, True),
        ({"prompt": ""}, False),
        ({"prompt": "  "}, False),
        ({"seed": 1.0, "width": 512.0, "height": 512}, True),
        ({"seed": 1.5}, False),
        ({"prompt": "a" * 2001}, False),
        ({"prompt": None}, False),
        ({"scheduler": "DDIM"}, False),
        ({"seed": 2**32}, False),
        ({"unknown": 1}, False),
        ({"image_url": None}, False),
        ({"image_urls": [URL]}, False),
        ({"image_url": None, "image_urls": [URL]}, True),
        ({"image_url": None, "image_urls": [URL, URL, URL], "size_from": 2}, True),
        ({"image_url": None, "image_urls": [URL, "nope"]}, False),
        ({"image_url": None, "image_urls": []}, False),
        ({"image_url": None, "image_urls": [URL] * 4}, False),
        ({"size_from": 3}, False),
        ({"size": "native"}, True),
        ({"size": "large"}, False),
        ({"size": "source", "width": 512, "height": 512}, False),
        ({"size": None, "width": 512, "height": 512}, True),
        ({"align": True}, True),
        ({"align": 1}, False),
        ({**MASK, "strength": 0.5, "mask_feather": 0}, True),
        ({**MASK, "strength": 1, "mask_feather": 8.0}, True),
        ({"strength": 0.5}, False),
        ({"mask_feather": 5}, False),
        ({**MASK, "strength": 0}, False),
        ({**MASK, "strength": 1.1}, False),
        ({**MASK, "mask_feather": 257}, False),
        ({"mask_url": "nope"}, False),
        ({"width": 512, "height": None}, False),
        ({"width": None}, True),
        ({"strength": 0.5, "mask_url": None}, False),
        ({"strength": None, "mask_feather": None}, True),
        ({"unknown": None}, False),
        ({"prompt": " " * 1999 + "ab"}, False),
        ({"operation": "edit"}, True),
        ({"operation": None}, True),
        ({"operation": "inpaint"}, False),
        ({"operation": "inpaint", **MASK}, True),
        ({"operation": "background_replacement"}, True),
        ({"operation": "upscale"}, False),
        ({"operation": "generate"}, False),
        ({"operation": "generate", "image_url": None}, True),
        ({"operation": "generate", "image_url": None, "width": 512}, False),
        ({"operation": "generate", "image_url": None, "prompt": None}, False),
        ({"operation": "health"}, False),
        ({"operation": "presign", "object_key": "a"}, False),
        ({"num_images": 4, "output": "inline", "reuse": False}, True),
        ({"num_images": 5}, False),
        ({"output": "base64"}, False),
        ({"reuse": 1}, False),
        ({"upload_url": URL}, True),
        ({"upload_url": "data:;base64,AAAA"}, False),
        ({"image_url": "data:image/png;base64,AAAA"}, True),
        ({"image_url": "data:image/png,AAAA"}, False),
        ({"lora": {}}, True),
        ({"lora": None}, True),
        ({"lora": {"ink": 0}}, False),
        ({"lora": ["ink"]}, False),
    ],
)
def test_the_json_schema_says_what_parse_says(fields: dict[str, Any], *, valid: bool) -> None:
    """But for what it cannot say: credentials in a URL, scales that differ, an image that is not there, null pairs."""
    raw = {"image_url": URL, "prompt": "x", **fields}

    assert jsonschema.Draft202012Validator(schema.json_schema()).is_valid(raw) is valid
    if valid:
        parse_image(raw, job_id="a", rules=GENERATES)
    else:
        assert problems(raw, GENERATES)


@pytest.mark.parametrize(
    ("raw", "valid"),
    [
        ({"operation": "health"}, True),
        ({"operation": "health", "prompt": "x"}, False),
        ({"operation": "presign", "object_key": "a/b.png"}, True),
        ({"operation": "presign"}, False),
        ({"operation": "presign", "object_key": ""}, False),
    ],
)
def test_the_json_schema_of_the_other_operations(raw: dict[str, Any], *, valid: bool) -> None:
    """Likewise."""
    assert jsonschema.Draft202012Validator(schema.json_schema()).is_valid(raw) is valid
    if valid:
        parse_request(raw, job_id="a", rules=RULES)
    else:
        assert problems(raw)


DATA = "data:image/png;base64,AAAA"


def test_a_picture_may_come_in_the_request() -> None:
    """As every picture, of any length; not as the place where a result goes."""
    long = DATA + "AAAA" * 100_000

    assert parse(image_url=long, mask_url=DATA).urls == (long, DATA)
    assert parse(image_url=None, image_urls=[DATA, URL]).images == (DATA, URL)
    assert parse(image_url="DATA:;BASE64,AAAA").images == ("DATA:;BASE64,AAAA",)
    for url in (
        "data:image/png,AAAA",
        "data:base64,AAAA",
        "data:" + "x" * 300 + ";base64,AAAA",
        "data:a b;base64,AAAA",
    ):
        assert "in base64" in problems({"image_url": url, "prompt": "x"})["image_url"]
    assert set(problems({"image_url": URL, "prompt": "x", "upload_url": DATA})) == {"upload_url"}


def test_the_operation_is_understood() -> None:
    """A mask makes an edit an inpaint, whatever it was called; the rest is as it was said."""
    assert parse().operation == parse(operation="edit").operation == parse(operation=None).operation == "edit"
    assert parse(**MASK).operation == parse(operation="inpaint", **MASK).operation == "inpaint"
    assert parse(operation="edit", **MASK) == parse(**MASK)
    assert parse(operation="background_replacement", **MASK).operation == "background_replacement"
    assert "must be given" in problems({"operation": "inpaint", "image_url": URL, "prompt": "x"})["mask_url"]


@pytest.mark.parametrize("operation", ["upscale", "EDIT", "", 3, 0, ["edit"], {}, True, False])
def test_an_unknown_operation_is_refused_with_those_that_there_are(operation: object) -> None:
    """Before anything else is said of the request."""
    found = problems({"operation": operation, "nonsense": 1})

    assert found == {"operation": "must be one of edit, inpaint, background_replacement, generate, health, presign"}


def test_the_prompt_of_a_background_is_put_together() -> None:
    """As documented; a full stop is not said twice."""
    request = parse(operation="background_replacement", prompt="a beach at dusk.")

    assert request.prompt == (
        "Replace the background with a beach at dusk. Keep the main subject exactly as it is: its shape, pose, colors, "
        "details and position do not change."
    )


def test_a_picture_made_from_nothing_has_defaults_of_its_own() -> None:
    """Those of the model that makes it; and it takes no picture."""
    asked = {"operation": "generate", "prompt": "a cat"}
    request = parse_image(asked, job_id="a", rules=GENERATES)
    other = parse_image({**asked, "width": 512, "height": 768}, job_id="a", rules=GENERATES)

    assert (request.num_inference_steps, request.true_cfg_scale, request.size) == (50, 3.0, (1328, 1328))
    assert (request.images, request.urls, request.mask, request.align, request.lora) == ((), (), None, False, {})
    assert other.size == (512, 768)
    assert problems({**asked, "image_url": URL, "size": "native", "nonsense": 1}, GENERATES) == {
        "image_url": "does not go with generate: leave it out",
        "size": "does not go with generate: leave it out",
        "nonsense": "is not a field of a request: leave it out",
    }


def test_generate_is_enabled_by_the_operator() -> None:
    """And the caller is told so."""
    found = problems({"operation": "generate", "prompt": "a cat"})

    assert found == {"operation": "generate is not enabled on this worker: its operator sets T2I_MODEL_ID to enable it"}


def test_what_the_other_operations_take() -> None:
    """Nothing, and the key of a result."""
    health = parse_request({"operation": "health"}, job_id="a", rules=RULES)
    presign = parse_request({"operation": "presign", "object_key": "a/b.png"}, job_id="a", rules=RULES)

    assert isinstance(health, schema.HealthInput)
    assert isinstance(presign, schema.PresignInput)
    assert presign.object_key == "a/b.png"
    assert set(problems({"operation": "health", "prompt": "x"})) == {"prompt"}
    assert problems({"operation": "presign"}) == {"object_key": "must be given for presign"}
    assert set(problems({"operation": "presign", "object_key": "a" * 1025})) == {"object_key"}


def test_what_does_not_change_a_picture_is_not_in_its_digest() -> None:
    """The same picture is found however it is asked for."""
    plain = parse(seed=1).digest(["a"], [], "m")
    for more in ({"num_images": 3}, {"output": "inline"}, {"upload_url": URL}, {"reuse": False}):
        assert parse(seed=1, **more).digest(["a"], [], "m") == plain, more
    rules = replace(RULES, loras={"ink": ""})
    inked = {parse(seed=1, rules=rules, lora={"ink": scale}).digest(["a"], [], "m") for scale in (0.5, 1)}
    assert len(inked | {plain}) == 3


def test_results_are_counted() -> None:
    """One to four, and one if it is to go to a place of the caller's."""
    assert parse(num_images=4.0).num_images == 4
    assert parse(upload_url=URL).upload_url == URL
    for count in (0, 5, 1.5, True):
        assert set(problems({"image_url": URL, "prompt": "x", "num_images": count})) == {"num_images"}
    assert set(problems({"image_url": URL, "prompt": "x", "num_images": 2, "upload_url": URL})) == {"upload_url"}
    seeds = [parse(seed=2**32 - 1, num_images=2).numbered(number).seed for number in range(2)]
    assert seeds == [2**32 - 1, 0]


@pytest.mark.parametrize("made_up", ["https://a.b/c?token=hidden", "make me young", "x" * 41, "prompt\n", "Bär", ""])
def test_what_is_no_name_is_not_told(made_up: str) -> None:
    """A link, a key or a prompt may stand in the place of one, and an error is logged."""
    base = {"prompt": "make it warm", "image_url": "https://a.b/c"}

    assert problems({**base, made_up: 1}) == {"?": "is not a field of a request: leave it out"}
    assert problems({**base, "lora": {made_up: 1}}) == {
        "lora": "this worker has no LoRA '?': it offers none: leave this out"
    }
    assert set(problems({**base, "lora": {made_up: "x"}})) == {"lora.?"}


@pytest.mark.parametrize("prompt", ["", " ", "...", ". . .\n"])
@pytest.mark.parametrize("operation", ["edit", "background_replacement"])
def test_a_prompt_says_something(prompt: str, operation: str) -> None:
    """Dots at the end are taken off a background."""
    said = {"operation": operation, "prompt": prompt, "image_url": "https://a.b/c"}

    assert problems(said)["prompt"] == "must say what to change, or what to make"


def test_a_lora_is_one_that_is_offered() -> None:
    """By its name, in any order; its trigger word is in the prompt, once."""
    rules = replace(RULES, loras={"ink": "ink style", "fast": ""})
    request = parse(rules=rules, lora={"ink": 1, "fast": 0.5})

    assert request.prompt == "ink style, make it warm"
    assert request.lora == {"fast": 0.5, "ink": 1}
    assert request == parse(rules=rules, lora={"fast": 0.5, "ink": 1.0})
    assert parse(rules=rules, lora={"ink": 1}, prompt="warm, ink style").prompt == "warm, ink style"
    assert parse(rules=rules, lora={"ink": 1}, prompt="pink styles").prompt == "ink style, pink styles"
    alike = replace(RULES, loras={"a": "art", "b": "art"})
    assert parse(rules=alike, lora={"a": 1, "b": 1}, prompt="a party").prompt == "art, a party"
    assert parse(rules=rules, lora={}).prompt == "make it warm"
    base = {"image_url": URL, "prompt": "x"}
    assert "it offers ink, fast" in problems({**base, "lora": {"else": 1}}, rules)["lora"]
    assert "it offers none" in problems({**base, "lora": {"ink": 1}})["lora"]
    assert set(problems({**base, "lora": {"ink": 0}}, rules)) == {"lora.ink"}
    assert set(problems({**base, "lora": {"ink": 2.1}}, rules)) == {"lora.ink"}
    assert set(problems({**base, "lora": "ink"}, rules)) == {"lora"}
