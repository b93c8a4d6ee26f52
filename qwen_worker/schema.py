"""The contract: what a request may say, what an answer says.

`EditInput` is the request as a caller writes it, and `docs/request.schema.json` is its JSON Schema. `EditRequest` is
the same request understood: every default filled in, every alias resolved. Nothing after `parse` sees the former.
"""

import hashlib
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
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
Size = tuple[int, int]

MIN_STEPS = 2
MAX_PROBLEMS = 20
MAX_URL_LENGTH = 8192
URL_PATTERN = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\x00-\x20\x7f\\]+$"
DEFAULT_CFG_SCALE = 4.0

Frozen = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _whole(said: object) -> object:
    """JSON has one kind of number: 20.0 is as whole as 20."""
    return int(said) if isinstance(said, float) and said.is_integer() else said


Whole = BeforeValidator(_whole)
Seed = Annotated[int, Field(ge=0, lt=2**32), Whole]
Steps = Annotated[int, Field(ge=MIN_STEPS), Whole]
Quality = Annotated[int, Field(ge=1, le=100), Whole]
Side = Annotated[int, Field(ge=256, le=2048), Whole]
Scale = Annotated[float, Field(ge=1, le=20)]


class EditInput(BaseModel):
    """The `input` of a job. Unknown fields are refused; null is the same as leaving a field out."""

    model_config = Frozen | ConfigDict(
        json_schema_extra={"dependentRequired": {"width": ["height"], "height": ["width"]}}
    )

    image_url: str = Field(
        description="http or https address of the picture to edit, used byte for byte",
        max_length=MAX_URL_LENGTH,
        json_schema_extra={"pattern": URL_PATTERN},
        examples=["https://example.com/photo.jpg"],
    )
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)] = Field(
        description="what to change, 1 to 2000 characters",
        examples=["make the sky a warm sunset"],
        json_schema_extra={"pattern": r"\S"},
    )
    negative_prompt: str = Field(" ", description="what to avoid", max_length=2000)
    seed: Seed | None = Field(None, description="same seed and request, same bytes; default: drawn from the job id")
    num_inference_steps: Steps = Field(
        30, description="denoising steps, 2 or more; above MAX_INFERENCE_STEPS (50) is clamped, with a warning"
    )
    true_cfg_scale: Scale | None = Field(
        None,
        description="classifier-free guidance, 1 to 20: strength of prompt over negative prompt; 1 turns it off; "
        "default 4.0",
    )
    guidance_scale: Scale | None = Field(None, description="alias of true_cfg_scale, taken with a warning")
    scheduler: SchedulerName = Field("FlowMatchEuler", description="sampler of the denoising steps")
    output_format: OutputFormat = Field("png", description="file format of the result: png, jpeg or webp")
    output_quality: Quality = Field(95, description="1 to 100, for jpeg and webp")
    width: Side | None = Field(
        None,
        description="pixels, 256 to 2048, together with height, rounded down to the model's grid; "
        "default: the source's aspect at about one megapixel",
    )
    height: Side | None = Field(None, description="pixels, as width", validate_default=True)

    @field_validator("image_url")
    @classmethod
    def _address(cls, url: str) -> str:
        if problem := _url_problem(url):
            raise PydanticCustomError("url", "{problem}", {"problem": problem})
        return url

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

    @field_validator("height")
    @classmethod
    def _both_sides(cls, height: int | None, info: ValidationInfo) -> int | None:
        # A width that is refused itself is not in the data.
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


class EditRequest(Knobs):
    """A request understood. `warnings` says where it differs from what the caller wrote."""

    images: tuple[str, ...]
    output_format: OutputFormat
    output_quality: int
    size: Size | None
    warnings: tuple[str, ...] = ()

    def digest(self, sources: tuple[str, ...]) -> str:
        """sha256 (hex) of what decides the picture: the request, with each address replaced by its bytes' sha256."""
        said = self.model_copy(update={"images": sources, "warnings": ()})
        return hashlib.sha256(said.model_dump_json().encode()).hexdigest()


class Picture(BaseModel):
    """What is known of one picture; width and height in pixels, after orientation."""

    model_config = Frozen

    width: int
    height: int
    format: str
    sha256: str


class Timings(BaseModel):
    """Wall time of each stage in milliseconds. `queue` is the wait for the GPU; `total` begins with the job."""

    model_config = Frozen

    validate_: float = Field(alias="validate")
    fetch: float
    decode: float
    queue: float
    edit: float
    encode: float
    upload: float
    total: float


class Meta(Knobs):
    """How the picture was made."""

    model_id: str
    model_revision: str
    warnings: tuple[str, ...]
    cache: Literal["hit", "miss"]
    source: Picture
    output: Picture
    timings_ms: Timings


class EditResult(BaseModel):
    """Where the picture is, and how it was made. The link works for `expires_in` seconds."""

    model_config = Frozen

    presigned_url: str
    bucket: str
    object_key: str
    content_type: str
    expires_in: int
    meta: Meta


def parse(raw: object, *, job_id: str, max_steps: int) -> EditRequest:
    """Understand a job's `input`.

    Raises:
        BadInput: naming every problem, in `details["problems"]`.
    """
    if not isinstance(raw, dict):
        raise BadInput('the job needs an "input" object', problems=[{"field": "input", "problem": "not an object"}])
    try:
        said = EditInput.model_validate({key: value for key, value in raw.items() if value is not None})
    except ValidationError as error:
        raise bad_input(_problems(error)) from None
    return _understand(said, job_id, max_steps)


def _understand(said: EditInput, job_id: str, max_steps: int) -> EditRequest:
    warnings = []
    scale = DEFAULT_CFG_SCALE if said.true_cfg_scale is None else said.true_cfg_scale
    if said.guidance_scale is not None:
        scale = said.guidance_scale
        warnings.append("guidance_scale does nothing in this model: it was taken as true_cfg_scale")
    steps = min(said.num_inference_steps, max_steps)
    if steps < said.num_inference_steps:
        warnings.append(f"num_inference_steps {said.num_inference_steps} was clamped to {steps}")
    return EditRequest(
        images=(said.image_url,),
        prompt=said.prompt,
        negative_prompt=said.negative_prompt,
        seed=_seed_of(job_id) if said.seed is None else said.seed,
        num_inference_steps=steps,
        true_cfg_scale=scale,
        scheduler=said.scheduler,
        output_format=said.output_format,
        output_quality=said.output_quality,
        size=None if said.width is None or said.height is None else (said.width, said.height),
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
