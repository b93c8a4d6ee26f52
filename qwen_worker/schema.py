"""The contract of a request as a caller writes it: one model an operation, which `operation` tells apart.

docs/request.schema.json is their JSON Schema. Nothing after `qwen_worker.request.parse` sees these models.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

SchedulerName = Literal[
    "FlowMatchEuler", "UniPCMultistep", "DPMSolverMultistep", "FlowMatchHeun", "EulerAncestral"
]  # fmt: skip
EditOperation = Literal["edit", "inpaint", "background_replacement"]
Operation = EditOperation | Literal["generate"]
OutputFormat = Literal["png", "jpeg", "webp"]
OutputName = Literal["url", "inline"]
SizeName = Literal["source", "native"]
Size = tuple[int, int]

MIN_STEPS = 2
MAX_IMAGES = 3
MAX_RESULTS = 4
MAX_URL_LENGTH = 8192
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
MAX_LORAS = 100
URL_PATTERN = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\x00-\x20\x7f\\]+$"
DATA_PATTERN = r"^[Dd][Aa][Tt][Aa]:[^,\x00-\x20\x7f]{0,200};[Bb][Aa][Ss][Ee]64,"

Frozen = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _whole(said: object) -> object:
    """JSON has one kind of number: 20.0 is as whole as 20."""
    return int(said) if isinstance(said, float) and said.is_integer() else said


def told_name(made_up: str) -> str:
    """What the caller called something, if it is a name: links, keys and prompts come in the place of one too."""
    return made_up if _NAME.fullmatch(made_up) else "?"


def _words(text: str) -> str:
    # Of background_replacement's words the last dots are taken away.
    if not text.replace(".", "").strip():
        raise PydanticCustomError("blank", "must say what to change, or what to make")
    return text.strip()


def _address(url: str) -> str:
    if problem := _url_problem(url):
        raise PydanticCustomError("url", "{problem}", {"problem": problem})
    return url


def is_data(url: str) -> bool:
    """Whether the address is the picture itself."""
    return url[:5].lower() == "data:"


def _picture(url: str) -> str:
    if not is_data(url):
        return _address(url)
    if not re.match(DATA_PATTERN, url):
        raise PydanticCustomError(
            "url", "is not a data: URL of a picture in base64: it must begin as data:image/png;base64, does"
        )
    return url


Whole = BeforeValidator(_whole)
Seed = Annotated[int, Field(ge=0, lt=2**32), Whole]
Steps = Annotated[int, Field(ge=MIN_STEPS), Whole]
Quality = Annotated[int, Field(ge=1, le=100), Whole]
Side = Annotated[int, Field(ge=256, le=2048), Whole]
Index = Annotated[int, Field(ge=0, lt=MAX_IMAGES), Whole]
Count = Annotated[int, Field(ge=1, le=MAX_RESULTS), Whole]
Pixels = Annotated[int, Field(ge=0, le=256), Whole]
Scale = Annotated[float, Field(ge=1, le=20)]
Strength = Annotated[float, Field(gt=0, le=1)]
LoraScale = Annotated[float, Field(gt=0, le=2)]
Url = Annotated[
    str, Field(json_schema_extra={"pattern": URL_PATTERN, "maxLength": MAX_URL_LENGTH}), AfterValidator(_address)
]
PictureUrl = Annotated[
    str,
    Field(
        json_schema_extra={"anyOf": [{"pattern": URL_PATTERN, "maxLength": MAX_URL_LENGTH}, {"pattern": DATA_PATTERN}]}
    ),
    AfterValidator(_picture),
]


def _is_given(field: str) -> dict[str, Any]:
    """JSON Schema: the field is there, and not null."""
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


def _together(*pairs: tuple[str, str]) -> list[Any]:
    """JSON Schema: the second of each two is given if the first is."""
    return [{"if": _is_given(one), "then": _is_given(other)} for one, other in pairs]


#: JSON Schema: what holds between the fields of PictureInput
BETWEEN_FIELDS = [
    *_together(("width", "height"), ("height", "width")),
    {"if": _is_given("upload_url"), "then": {"properties": {"num_images": {"enum": [1, None]}}}},
]


@dataclass(frozen=True)
class Rules:
    """What depends on the worker and its model: limits, and the defaults of a request.

    Attributes:
        steps: default of num_inference_steps.
        cfg_scale: default of true_cfg_scale.
        max_steps: more are clamped.
        max_images: sources of one request.
        masks: whether the model takes them.
        loras: name → trigger word, which may be empty.
        size: of a picture that is made from nothing, in pixels.
        generate: the rules of `generate`; None if the worker has no model for it.
        preset: of the worker.
        distilled_steps: that its model is made for; it takes no guidance then.
    """

    steps: int
    cfg_scale: float
    max_steps: int
    max_images: int
    masks: bool = True
    loras: Mapping[str, str] = field(default_factory=dict)
    size: Size = (1024, 1024)
    generate: "Rules | None" = None
    preset: str = "exact"
    distilled_steps: int | None = None


class PictureInput(BaseModel):
    """What the operations share that make a picture. Unknown fields are refused; null is the same as leaving out."""

    model_config = Frozen | ConfigDict(json_schema_extra={"allOf": BETWEEN_FIELDS})

    prompt: Annotated[str, AfterValidator(_words)] = Field(
        description="what to change, or what to make, 1 to 2000 characters; of background_replacement: the background",
        max_length=2000,
        examples=["make the sky a warm sunset"],
        json_schema_extra={"pattern": r"[^\s.]"},
    )
    negative_prompt: str = Field(" ", description="what to avoid", max_length=2000)
    seed: Seed | None = Field(None, description="same seed and request, same picture; default: drawn from the job id")
    num_images: Count = Field(
        1, description="pictures to make, 1 to 4, one after the other; each has a seed of its own: seed, seed + 1, ..."
    )
    num_inference_steps: Steps | None = Field(
        None,
        description="denoising steps, 2 or more; above MAX_INFERENCE_STEPS (50) is clamped, with a warning; "
        "default: the model's",
    )
    true_cfg_scale: Scale | None = Field(
        None,
        description="classifier-free guidance, 1 to 20: strength of prompt over negative prompt; 1 turns it off; "
        "default: the model's",
    )
    guidance_scale: Scale | None = Field(None, description="alias of true_cfg_scale, taken with a warning")
    scheduler: SchedulerName = Field("FlowMatchEuler", description="sampler of the denoising steps")
    width: Side | None = Field(None, description="pixels, 256 to 2048, together with height and instead of size")
    height: Side | None = Field(None, description="pixels, as width", validate_default=True)
    output_format: OutputFormat = Field("png", description="file format of the result: png, jpeg or webp")
    output_quality: Quality = Field(95, description="1 to 100, for jpeg and webp")
    output: OutputName = Field(
        "url",
        description="url: a link; inline: the file too, as a data: URL, if the whole answer is sure to stay under the "
        "10 MB that RunPod keeps",
    )
    upload_url: Url | None = Field(
        None, description="presigned PUT link of your own, to which the result is sent as well; for a single result"
    )
    reuse: bool = Field(
        default=True, description="answer with the stored result of the same request, if there is one; false: make anew"
    )

    @field_validator("guidance_scale")
    @classmethod
    def _one_scale(cls, scale: float | None, info: ValidationInfo) -> float | None:
        # A field that is refused itself is not in the data; so in all that follows.
        if info.data.get("true_cfg_scale") not in {None, scale}:
            raise PydanticCustomError("scale", "is an alias of true_cfg_scale and says something else: leave it out")
        return scale

    @field_validator("true_cfg_scale", "guidance_scale")
    @classmethod
    def _no_guidance(cls, scale: float | None, info: ValidationInfo) -> float | None:
        rules: Any = info.context
        if scale is not None and scale > 1 and rules.distilled_steps:
            raise PydanticCustomError(
                "distilled",
                "must be 1, or left out: the preset of this worker is {preset}, whose model has its guidance in "
                "it; one with PRESET=exact or balanced can be guided",
                {"preset": rules.preset},
            )
        return scale

    @field_validator("num_inference_steps", mode="before")
    @classmethod
    def _enough_steps(cls, steps: object) -> object:
        if isinstance(steps, int | float) and steps < MIN_STEPS:
            raise PydanticCustomError(
                "steps", "must be 2 or more: with a single step the model's sigma schedule divides by zero"
            )
        return steps

    @field_validator("height")
    @classmethod
    def _both_sides(cls, height: int | None, info: ValidationInfo) -> int | None:
        if "width" in info.data and (info.data["width"] is None) != (height is None):
            raise PydanticCustomError("size", "goes together with width: give both or neither")
        return height

    @field_validator("upload_url")
    @classmethod
    def _one_result(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is not None and info.data.get("num_images", 1) > 1:
            raise PydanticCustomError("upload", "takes a single result: leave num_images out, or this")
        return url


class EditInput(PictureInput):
    """An edit of a picture: the operation of a request that names none."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [_is_given("image_url"), _is_given("image_urls")],
            "allOf": [
                *BETWEEN_FIELDS,
                *_together(("strength", "mask_url"), ("mask_feather", "mask_url")),
                {"if": _is_given("mask_url"), "then": {"properties": {"image_urls": {"maxItems": 1}}}},
                {
                    "if": {"required": ["operation"], "properties": {"operation": {"const": "inpaint"}}},
                    "then": _is_given("mask_url"),
                },
            ],
            "not": {"allOf": [_is_given("size"), _is_given("width")]},
        }
    )

    operation: EditOperation = Field(
        "edit",
        description="edit (the default), inpaint (which mask_url makes of an edit), or background_replacement: an edit "
        "whose prompt is put together from yours; meta.prompt tells it",
    )
    image_urls: Annotated[list[PictureUrl], Field(min_length=1, max_length=MAX_IMAGES)] | None = Field(
        None,
        description="instead of image_url: 1 to 3 pictures in their order, for a model that takes several; "
        "the prompt calls them Picture 1, Picture 2, Picture 3; that of Qwen-Image-2.1 `<image1>` and so on",
    )
    image_url: PictureUrl | None = Field(
        None,
        description="address of the picture to edit: http or https, used byte for byte, or a data: URL in base64",
        examples=["https://example.com/photo.jpg"],
        validate_default=True,
    )
    size_from: Index = Field(0, description="which of image_urls sets the size, from 0")
    mask_url: PictureUrl | None = Field(
        None,
        description="address of a mask of the picture, of any size: white is edited, black and transparent is kept",
        validate_default=True,
    )
    strength: Strength | None = Field(
        None,
        description="with mask_url: how far the edit may go from what was there, above 0 to 1; default: 1",
        validate_default=True,
    )
    mask_feather: Pixels | None = Field(
        None,
        description="with mask_url: pixels inside its edge over which the edit fades in, 0 to 256; default: 4",
        validate_default=True,
    )
    size: SizeName | None = Field(
        None,
        description="of the result: source (exactly the source's, the default) or native (as the model makes it, about "
        "one megapixel in the source's shape)",
    )
    align: bool = Field(
        default=False, description="undo the shift and the growth that were measured between source and result"
    )
    lora: dict[str, LoraScale] = Field(
        {},
        description="name of a LoRA that the worker offers → its scale, above 0 to 2; its trigger word is put before "
        "the prompt, if it is not there",
    )

    @field_validator("image_urls")
    @classmethod
    def _not_too_many(cls, urls: list[str] | None, info: ValidationInfo) -> list[str] | None:
        rules: Any = info.context
        if urls and len(urls) > rules.max_images:
            raise PydanticCustomError(
                "images", "this worker's model takes one picture at a time: send one, or use a worker with an EditPlus "
                "model such as Qwen/Qwen-Image-Edit-2511"
            )  # fmt: skip
        return urls

    @field_validator("image_url")
    @classmethod
    def _one_way_of_naming_images(cls, url: str | None, info: ValidationInfo) -> str | None:
        if "image_urls" in info.data and (url is None) == (info.data["image_urls"] is None):
            raise PydanticCustomError("images", "give either image_url or image_urls")
        return url

    @field_validator("size_from")
    @classmethod
    def _of_the_images(cls, index: int, info: ValidationInfo) -> int:
        if "image_urls" in info.data and index >= len(info.data["image_urls"] or [""]):
            raise PydanticCustomError("images", "counts from 0, and there is no such picture")
        return index

    @field_validator("mask_url")
    @classmethod
    def _a_mask_that_can_be_used(cls, url: str | None, info: ValidationInfo) -> str | None:
        rules: Any = info.context
        if url is None and info.data.get("operation") == "inpaint":
            raise PydanticCustomError("mask", "must be given for inpaint: white where the picture is to be edited")
        if url is not None and not rules.masks:
            raise PydanticCustomError(
                "mask", "this worker's model takes no mask: leave it out and say in the prompt what is to change, or "
                "use a worker with a model such as Qwen/Qwen-Image-Edit-2511"
            )  # fmt: skip
        if url is not None and len(info.data.get("image_urls") or []) > 1:
            raise PydanticCustomError("mask", "goes with a single picture: leave the mask out, or the other pictures")
        return url

    @field_validator("strength", "mask_feather")
    @classmethod
    def _of_a_mask(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("mask_url", "refused") is None:
            raise PydanticCustomError("mask", "goes together with mask_url: give that too, or leave this out")
        return value

    @field_validator("size")
    @classmethod
    def _one_size(cls, size: str | None, info: ValidationInfo) -> str | None:
        if size is not None and info.data.get("width") is not None:
            raise PydanticCustomError("size", "goes without width and height: leave either out")
        return size

    @field_validator("lora", mode="before")
    @classmethod
    def _not_too_many_loras(cls, scales: object) -> object:
        # Before each is looked at.
        if not isinstance(scales, dict):
            return scales
        if len(scales) > MAX_LORAS or any(isinstance(name, str) and len(name) > MAX_LORAS for name in scales):
            raise PydanticCustomError(
                "lora", "names more LoRAs than any worker has, or one of a longer name: leave it out"
            )
        return scales

    @field_validator("lora")
    @classmethod
    def _offered(cls, scales: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        rules: Any = info.context
        if unknown := [name for name in scales if name not in rules.loras]:
            offered = f"it offers {', '.join(rules.loras)}" if rules.loras else "it offers none: leave this out"
            problem = f"this worker has no LoRA {told_name(unknown[0])!r}: {offered}"
            raise PydanticCustomError("lora", "{problem}", {"problem": problem})
        return scales


class GenerateInput(PictureInput):
    """A picture made from nothing but words."""

    operation: Literal["generate"] = Field(
        description="generate: a picture from the prompt alone, if T2I_MODEL_ID is set"
    )


class HealthInput(BaseModel):
    """How the worker is; no GPU time."""

    model_config = Frozen

    operation: Literal["health"] = Field(description="health: how this worker is, without any GPU time")


class PresignInput(BaseModel):
    """A fresh link to a result."""

    model_config = Frozen

    operation: Literal["presign"] = Field(description="presign: a fresh link to a result that this worker stored")
    object_key: str = Field(
        description="as it was in the answer",
        min_length=1,
        max_length=1024,
        examples=["qwen-image-edit/results/9f/a.png"],
    )


AnyInput = EditInput | GenerateInput | HealthInput | PresignInput
#: operation → what a request of it may say
INPUTS: dict[str, type[AnyInput]] = {
    name: kind for kind in get_args(AnyInput) for name in get_args(kind.model_fields["operation"].annotation)
}
#: of all operations: each may be null in any
FIELDS = tuple(dict.fromkeys(name for kind in get_args(AnyInput) for name in kind.model_fields))


def _url_problem(url: str) -> str | None:
    if len(url) > MAX_URL_LENGTH:
        return f"is longer than {MAX_URL_LENGTH} characters"
    if re.search(r"[\x00-\x20\x7f\\\ud800-\udfff]", url):
        return "must not contain spaces, control characters or backslashes: percent-encode them"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        return "is not a valid address"
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return "must be an http:// or https:// address"
    if parts.username is not None or parts.password is not None:
        return "must not carry a user name or a password"
    return None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job's `input`; null is accepted wherever a field may be left out."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "input",
        "oneOf": [_schema_of(kind) for kind in get_args(AnyInput)],
    }


def _schema_of(kind: type[AnyInput]) -> dict[str, Any]:
    said = kind.model_json_schema()
    said["properties"] |= {name: {"type": "null"} for name in FIELDS if name not in said["properties"]}
    for name, rules in said["properties"].items():
        if name in kind.model_fields and name not in said["required"] and "anyOf" not in rules:
            rule = {key: rules.pop(key) for key in list(rules) if key not in {"title", "description", "default"}}
            rules["anyOf"] = [rule, {"type": "null"}]
    return said
