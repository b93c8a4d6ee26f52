"""A request understood: every default filled in, every alias resolved, the prompt as the model gets it."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from qwen_worker.errors import BadInput, bad_input
from qwen_worker.schema import (
    FIELDS,
    INPUTS,
    EditInput,
    Frozen,
    GenerateInput,
    HealthInput,
    Operation,
    OutputFormat,
    PresignInput,
    Rules,
    SchedulerName,
    Size,
    SizeName,
    told_name,
)

MAX_PROBLEMS = 20
MAX_FIELDS = 200  # of a request, known or not; and characters in the name of one
SEEDS = 2**32
DEFAULT_FEATHER = 4
DEFAULT_STRENGTH = 1.0
BACKGROUND = (
    "Replace the background with {}. Keep the main subject exactly as it is: its shape, pose, colors, details and "
    "position do not change."
)


class Knobs(BaseModel):
    """What a request turns, with every default filled in; `prompt` is the one that the model gets."""

    model_config = Frozen

    operation: Operation
    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    true_cfg_scale: float
    scheduler: SchedulerName
    strength: float | None
    mask_feather: int | None
    lora: dict[str, float]


class ImageRequest(Knobs):
    """A request for pictures. `warnings` says where it differs from what the caller wrote.

    `images` and `mask` are addresses, and a request to generate has none; `images[size_from]` sets the size;
    `strength` and `mask_feather` are None without a mask. What comes after `output_quality` does not change a picture.
    """

    images: tuple[str, ...]
    size_from: int
    mask: str | None
    size: SizeName | Size
    align: bool
    output_format: OutputFormat
    output_quality: int

    num_images: int
    inline: bool
    upload_url: str | None
    reuse: bool
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

    @property
    def needs_files(self) -> bool:
        """Whether the files themselves go somewhere, besides the bucket."""
        return self.inline or self.upload_url is not None

    def numbered(self, number: int) -> "ImageRequest":
        """The same request for the result of this number, from 0: each has a seed of its own."""
        return self.model_copy(update={"seed": (self.seed + number) % SEEDS})

    def digest(self, images: Sequence[str], masks: Sequence[str], maker: str) -> str:
        """What names the results of this request: sha256 (hex) of all that decides them.

        Args:
            images: sha256 of each picture's bytes, in place of its address.
            masks: the same of the mask, or nothing.
            maker: model and code.
        """
        left_out = {"num_images", "inline", "upload_url", "reuse", "warnings", "images", "mask"}
        said = self.model_dump(mode="json", exclude=left_out)
        text = json.dumps([said, list(images), list(masks), maker], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


Request = ImageRequest | HealthInput | PresignInput


def parse(raw: object, *, job_id: str, rules: Rules) -> Request:
    """Understand a job's `input`.

    Raises:
        BadInput: naming every problem, in `details["problems"]`.
    """
    if not isinstance(raw, dict):
        raise BadInput('the job needs an "input" object', problems=[{"field": "input", "problem": "not an object"}])
    # Before pydantic writes an error, with copies, for each.
    if len(raw) > MAX_FIELDS or any(isinstance(name, str) and len(name) > MAX_FIELDS for name in raw):
        problem = f"has more than {MAX_FIELDS} fields, or one of a longer name: leave out what is no field"
        raise bad_input([{"field": "input", "problem": problem}])
    operation = "edit" if raw.get("operation") is None else raw["operation"]
    kind = INPUTS.get(operation) if isinstance(operation, str) else None
    if kind is None:
        raise bad_input([{"field": "operation", "problem": f"must be one of {', '.join(INPUTS)}"}])
    if kind is GenerateInput:
        if rules.generate is None:
            problem = "generate is not enabled on this worker: its operator sets T2I_MODEL_ID to enable it"
            raise bad_input([{"field": "operation", "problem": problem}])
        rules = rules.generate
    try:
        given = {key: value for key, value in raw.items() if value is not None or key not in FIELDS}
        said = kind.model_validate(given, context=rules)
    except ValidationError as error:
        raise bad_input(_problems(error, operation)) from None
    return _understand(said, job_id, rules) if isinstance(said, EditInput | GenerateInput) else said


def parse_image(raw: object, *, job_id: str, rules: Rules) -> ImageRequest:
    """The same, of a request for pictures.

    Raises:
        BadInput: as `parse`, and if it is another request.
    """
    request = parse(raw, job_id=job_id, rules=rules)
    if not isinstance(request, ImageRequest):
        raise bad_input([{"field": "operation", "problem": "must make a picture"}])
    return request


def _understand(said: EditInput | GenerateInput, job_id: str, rules: Rules) -> ImageRequest:
    warnings = []
    scale = said.true_cfg_scale or rules.cfg_scale
    if said.guidance_scale is not None:
        scale = said.guidance_scale
        warnings.append("guidance_scale does nothing in this model: it was taken as true_cfg_scale")
    asked = said.num_inference_steps or rules.steps
    steps = min(asked, rules.max_steps)
    if steps < asked:
        # A number may have thousands of digits, more than Python writes.
        number = f" {asked}" if asked < SEEDS else ""
        warnings.append(f"num_inference_steps{number} was clamped to {steps}")
    warnings += _unusual(said, rules, steps, scale)
    edit = _edit_of(said, rules) if isinstance(said, EditInput) else _NO_EDIT | {"prompt": said.prompt}
    sides = (said.width, said.height) if said.width and said.height else None
    return ImageRequest(
        **edit,
        negative_prompt=said.negative_prompt,
        seed=_seed_of(job_id) if said.seed is None else said.seed,
        num_inference_steps=steps,
        true_cfg_scale=scale,
        scheduler=said.scheduler,
        size=sides or (said.size or "source" if isinstance(said, EditInput) else rules.size),
        output_format=said.output_format,
        output_quality=said.output_quality,
        num_images=said.num_images,
        inline=said.output == "inline",
        upload_url=said.upload_url,
        reuse=said.reuse,
        warnings=tuple(warnings),
    )


def _unusual(said: EditInput | GenerateInput, rules: Rules, steps: int, scale: float) -> list[str]:
    """What is done as it was asked for, and does not do what one would think."""
    warnings = []
    if scale == 1 and said.negative_prompt.strip():
        warnings.append("negative_prompt says nothing without guidance, at true_cfg_scale 1")
    if rules.distilled_steps not in {None, steps}:
        warnings.append(
            f"num_inference_steps is {steps}: the preset {rules.preset} is made for {rules.distilled_steps}"
        )
    if rules.distilled_steps and said.scheduler != "FlowMatchEuler":
        warnings.append(f"scheduler is {said.scheduler}: the preset {rules.preset} is made for FlowMatchEuler")
    return warnings


_NO_EDIT: dict[str, Any] = {
    "operation": "generate", "images": (), "size_from": 0, "mask": None, "strength": None, "mask_feather": None,
    "align": False, "lora": {},
}  # fmt: skip


def _edit_of(said: EditInput, rules: Rules) -> dict[str, Any]:
    """The fields that only an edit has, and its prompt."""
    masked = said.mask_url is not None
    feather = DEFAULT_FEATHER if said.mask_feather is None else said.mask_feather
    replaces = said.operation == "background_replacement"
    prompt = BACKGROUND.format(said.prompt.rstrip(". ")) if replaces else said.prompt
    words = dict.fromkeys(rules.loras[name] for name in sorted(said.lora))
    missing = [word for word in words if word and not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt)]
    return {
        "operation": "inpaint" if masked and not replaces else said.operation,
        "prompt": ", ".join([*missing, prompt]),
        "images": tuple(said.image_urls or [str(said.image_url)]),
        "size_from": said.size_from,
        "mask": said.mask_url,
        "strength": said.strength or DEFAULT_STRENGTH if masked else None,
        "mask_feather": feather if masked else None,
        "align": said.align,
        "lora": dict(sorted(said.lora.items())),
    }


def _seed_of(job_id: str) -> int:
    """A job that is run again makes the same picture."""
    return int.from_bytes(hashlib.sha256(job_id.encode(errors="replace")).digest()[:4], "big")


def _problems(error: ValidationError, operation: str) -> list[dict[str, str]]:
    items = error.errors(include_url=False, include_context=False, include_input=False)
    return [{"field": _name(item["loc"]), "problem": _problem(item, operation)} for item in items[:MAX_PROBLEMS]]


def _name(place: Sequence[int | str]) -> str:
    """The field, as the caller wrote it."""
    return ".".join(told_name(str(part)) for part in place) or "input"


def _problem(item: Any, operation: str) -> str:
    """What is wrong, and with that what to do."""
    if item["type"] == "extra_forbidden":
        here = f"does not go with {operation}" if item["loc"][0] in FIELDS else "is not a field of a request"
        return f"{here}: leave it out"
    if item["type"] == "missing":
        return f"must be given for {operation}"
    problem: str = item["msg"]
    return problem
