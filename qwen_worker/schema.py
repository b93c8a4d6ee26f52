"""The contract of a request.

`EditInput` is the request as a caller writes it, and `docs/request.schema.json` is its JSON Schema. `EditRequest` is
the same request understood: every default filled in, every alias resolved. Nothing after `parse` sees the former.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from qwen_worker.errors import BadInput

SchedulerName = Literal[
    "FlowMatchEuler", "UniPCMultistep", "DPMSolverMultistep", "FlowMatchHeun", "EulerAncestral"
]  # fmt: skip
OutputFormat = Literal["png", "jpeg", "webp"]
SizeName = Literal["source", "native"]
Size = tuple[int, int]

MIN_STEPS = 2
MAX_IMAGES = 3
MAX_PROBLEMS = 20
MAX_URL_LENGTH = 8192
URL_PATTERN = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\x00-\x20\x7f\\]+$"
DEFAULT_FEATHER = 4
DEFAULT_STRENGTH = 1.0

Frozen = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _whole(said: object) -> object:
    """JSON has one kind of number: 20.0 is as whole as 20."""
    return int(said) if isinstance(said, float) and said.is_integer() else said


def _words(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must say what to change")
    return text.strip()


def _address(url: str) -> str:
    if problem := _url_problem(url):
        raise PydanticCustomError("url", "{problem}", {"problem": problem})
    return url


Whole = BeforeValidator(_whole)
Seed = Annotated[int, Field(ge=0, lt=2**32), Whole]
Steps = Annotated[int, Field(ge=MIN_STEPS), Whole]
Quality = Annotated[int, Field(ge=1, le=100), Whole]
Side = Annotated[int, Field(ge=256, le=2048), Whole]
Index = Annotated[int, Field(ge=0, lt=MAX_IMAGES), Whole]
Pixels = Annotated[int, Field(ge=0, le=256), Whole]
Scale = Annotated[float, Field(ge=1, le=20)]
Strength = Annotated[float, Field(gt=0, le=1)]
Url = Annotated[
    str, Field(max_length=MAX_URL_LENGTH, json_schema_extra={"pattern": URL_PATTERN}), AfterValidator(_address)
]


def _is_given(field: str) -> dict[str, Any]:
    """JSON Schema: the field is there, and not null."""
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


@dataclass(frozen=True)
class Rules:
    """What depends on the worker and its model: limits, and the defaults of a request."""

    steps: int
    cfg_scale: float
    max_steps: int
    max_images: int
    masks: bool = True


class EditInput(BaseModel):
    """The `input` of a job. Unknown fields are refused; null is the same as leaving a field out."""

    model_config = Frozen | ConfigDict(
        json_schema_extra={
            "oneOf": [_is_given("image_url"), _is_given("image_urls")],
            "allOf": [
                {"if": _is_given(field), "then": _is_given(other)}
                for field, other in (
                    ("width", "height"), ("height", "width"), ("strength", "mask_url"), ("mask_feather", "mask_url")
                )
            ],
            "not": {"allOf": [_is_given("size"), _is_given("width")]},
        }
    )  # fmt: skip

    image_urls: Annotated[list[Url], Field(min_length=1, max_length=MAX_IMAGES)] | None = Field(
        None,
        description="instead of image_url: 1 to 3 pictures in their order, for a model that takes several; "
        "the prompt calls them Picture 1, Picture 2, Picture 3; that of Qwen-Image-2.1 `<image1>` and so on",
    )
    image_url: Url | None = Field(
        None,
        description="http or https address of the picture to edit, used byte for byte",
        examples=["https://example.com/photo.jpg"],
        validate_default=True,
    )
    size_from: Index = Field(0, description="which of image_urls sets the size, from 0")
    prompt: Annotated[str, AfterValidator(_words)] = Field(
        description="what to change, 1 to 2000 characters",
        max_length=2000,
        examples=["make the sky a warm sunset"],
        json_schema_extra={"pattern": r"\S"},
    )
    negative_prompt: str = Field(" ", description="what to avoid", max_length=2000)
    seed: Seed | None = Field(None, description="same seed and request, same bytes; default: drawn from the job id")
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
    mask_url: Url | None = Field(
        None,
        description="address of a mask of the picture, of any size: white is edited, black and transparent is kept",
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
    width: Side | None = Field(
        None, description="pixels, 256 to 2048, together with height and instead of size", validate_default=True
    )
    height: Side | None = Field(None, description="pixels, as width", validate_default=True)
    align: bool = Field(
        default=False, description="undo the shift and the growth that were measured between source and result"
    )
    output_format: OutputFormat = Field("png", description="file format of the result: png, jpeg or webp")
    output_quality: Quality = Field(95, description="1 to 100, for jpeg and webp")

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
        # A field that is refused itself is not in the data; so in all that follows.
        if "image_urls" in info.data and (url is None) == (info.data["image_urls"] is None):
            raise PydanticCustomError("images", "give either image_url or image_urls")
        return url

    @field_validator("size_from")
    @classmethod
    def _of_the_images(cls, index: int, info: ValidationInfo) -> int:
        if "image_urls" in info.data and index >= len(info.data["image_urls"] or [""]):
            raise PydanticCustomError("images", "counts from 0, and there is no such picture")
        return index

    @field_validator("num_inference_steps", mode="before")
    @classmethod
    def _enough_steps(cls, steps: object) -> object:
        if isinstance(steps, int | float) and steps < MIN_STEPS:
            raise PydanticCustomError(
                "steps", "must be 2 or more: with a single step the model's sigma schedule divides by zero"
            )
        return steps

    @field_validator("guidance_scale")
    @classmethod
    def _one_scale(cls, scale: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("true_cfg_scale") not in {None, scale}:
            raise PydanticCustomError("scale", "is an alias of true_cfg_scale and says something else: leave it out")
        return scale

    @field_validator("mask_url")
    @classmethod
    def _a_mask_that_can_be_used(cls, url: str | None, info: ValidationInfo) -> str | None:
        rules: Any = info.context
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

    @field_validator("width")
    @classmethod
    def _one_size(cls, width: int | None, info: ValidationInfo) -> int | None:
        if width is not None and info.data.get("size") is not None:
            raise PydanticCustomError("size", "goes without size: leave either out")
        return width

    @field_validator("height")
    @classmethod
    def _both_sides(cls, height: int | None, info: ValidationInfo) -> int | None:
        if "width" in info.data and (info.data["width"] is None) != (height is None):
            raise PydanticCustomError("size", "goes together with width: give both or neither")
        return height


class Knobs(BaseModel):
    """What a request turns, with every default filled in."""

    model_config = Frozen

    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    true_cfg_scale: float
    scheduler: SchedulerName
    strength: float | None
    mask_feather: int | None


class EditRequest(Knobs):
    """A request understood. `warnings` says where it differs from what the caller wrote.

    `images` and `mask` are addresses; `images[size_from]` sets the size; `strength` and `mask_feather` are None
    without a mask.
    """

    images: tuple[str, ...]
    size_from: int
    mask: str | None
    size: SizeName | Size
    align: bool
    output_format: OutputFormat
    output_quality: int
    warnings: tuple[str, ...] = ()

    @property
    def urls(self) -> tuple[str, ...]:
        """Of all pictures: the images, then the mask if there is one."""
        return self.images + ((self.mask,) if self.mask else ())

    @property
    def names(self) -> tuple[str, ...]:
        """What a caller is told each picture of `urls` is."""
        several = len(self.images) > 1
        images = [f"picture {number}" if several else "the source" for number in range(1, len(self.images) + 1)]
        return (*images, *(["the mask"] if self.mask else []))

    def digest(self, images: Sequence[str], masks: Sequence[str]) -> str:
        """sha256 (hex) of what decides the picture: the request, with each address replaced by its bytes' sha256."""
        said = self.model_copy(update={"images": tuple(images), "mask": "".join(masks), "warnings": ()})
        return hashlib.sha256(said.model_dump_json().encode()).hexdigest()


def parse(raw: object, *, job_id: str, rules: Rules) -> EditRequest:
    """Understand a job's `input`.

    Raises:
        BadInput: naming every problem, in `details["problems"]`.
    """
    if not isinstance(raw, dict):
        raise BadInput('the job needs an "input" object', problems=[{"field": "input", "problem": "not an object"}])
    try:
        given = {key: value for key, value in raw.items() if value is not None or key not in EditInput.model_fields}
        said = EditInput.model_validate(given, context=rules)
    except ValidationError as error:
        raise bad_input(_problems(error)) from None
    return _understand(said, job_id, rules)


def _understand(said: EditInput, job_id: str, rules: Rules) -> EditRequest:
    warnings = []
    scale = said.true_cfg_scale or rules.cfg_scale
    if said.guidance_scale is not None:
        scale = said.guidance_scale
        warnings.append("guidance_scale does nothing in this model: it was taken as true_cfg_scale")
    asked = said.num_inference_steps or rules.steps
    steps = min(asked, rules.max_steps)
    if steps < asked:
        warnings.append(f"num_inference_steps {asked} was clamped to {steps}")
    masked = said.mask_url is not None
    feather = DEFAULT_FEATHER if said.mask_feather is None else said.mask_feather
    return EditRequest(
        images=tuple(said.image_urls or [str(said.image_url)]),
        size_from=said.size_from,
        prompt=said.prompt,
        negative_prompt=said.negative_prompt,
        seed=_seed_of(job_id) if said.seed is None else said.seed,
        num_inference_steps=steps,
        true_cfg_scale=scale,
        scheduler=said.scheduler,
        mask=said.mask_url,
        strength=said.strength or DEFAULT_STRENGTH if masked else None,
        mask_feather=feather if masked else None,
        size=(said.width, said.height) if said.width and said.height else said.size or "source",
        align=said.align,
        output_format=said.output_format,
        output_quality=said.output_quality,
        warnings=tuple(warnings),
    )


def _seed_of(job_id: str) -> int:
    """A job that is run again makes the same picture."""
    return int.from_bytes(hashlib.sha256(job_id.encode(errors="replace")).digest()[:4], "big")


def _url_problem(url: str) -> str | None:
    if re.search(r"[\x00-\x20\x7f\\]", url):
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


def bad_input(problems: list[dict[str, str]]) -> BadInput:
    """The error that names these problems: `field` and `problem` each."""
    return BadInput("; ".join(f"{item['field']}: {item['problem']}" for item in problems), problems=problems)


def _problems(error: ValidationError) -> list[dict[str, str]]:
    items = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"field": ".".join(str(part) for part in item["loc"])[:100] or "input", "problem": item["msg"]}
        for item in items[:MAX_PROBLEMS]
    ]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job's `input`; null is accepted wherever a field may be left out."""
    said = EditInput.model_json_schema()
    for name, field in said["properties"].items():
        if name not in said["required"] and "anyOf" not in field:
            rule = {key: field.pop(key) for key in list(field) if key not in {"title", "description", "default"}}
            field["anyOf"] = [rule, {"type": "null"}]
    return said
