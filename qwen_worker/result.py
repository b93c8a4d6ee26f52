"""The contract of an answer: where the picture is, and how it was made."""

from typing import Literal

from pydantic import BaseModel, Field

from qwen_worker.presets import PresetName
from qwen_worker.profiles import ProfileName
from qwen_worker.request import Knobs
from qwen_worker.schema import Frozen, Size

#: whether all pictures of a request came out of the bucket; None without pictures
CacheState = Literal["hit", "miss"] | None


class Picture(BaseModel):
    """What is known of one picture; width and height in pixels, after orientation."""

    model_config = Frozen

    width: int
    height: int
    format: str
    sha256: str


class Transform(BaseModel):
    """A point (x, y) of the source lies at (scale x + offset) on the picture that the model made, in pixels."""

    model_config = Frozen

    scale: tuple[float, float]
    offset: Size


class Geometry(BaseModel):
    """How source and result lie on one another.

    source: size of the upright source that set the size.
    generated: size of the picture that the model made.
    transform: None if the size that was asked for has another shape than the source: the model composes anew then.
    shift_px: how far the result slid against the source, right and down, in pixels of the result; before `align`.
    scale_percent: how much it grew. Both are None where too few parts of the pictures agree on it.
    fit: the share of the parts of the source that were found again where shift and scale say, 0 to 1.
    changed_percent: of the result's pixels, those that visibly differ from the source.
    aligned: shift and scale were undone.
    """

    model_config = Frozen

    source: Size
    generated: Size
    transform: Transform | None = None
    shift_px: tuple[float, float] | None = None
    scale_percent: float | None = None
    fit: float | None = None
    changed_percent: float | None = None
    aligned: bool = False


class Timings(BaseModel):
    """Wall time of each stage in milliseconds, from the beginning of the job until this result was delivered.

    `lookup` is the search for a stored result, or the wait for the same request that is being done; `queue` is the wait
    for the GPU. A stage that did not take place is 0.
    """

    model_config = Frozen

    validate_: float = Field(0.0, alias="validate")
    fetch: float = 0.0
    lookup: float = 0.0
    decode: float = 0.0
    queue: float = 0.0
    edit: float = 0.0
    encode: float = 0.0
    upload: float = 0.0
    total: float


class Meta(Knobs):
    """How the picture was made.

    preset: of the worker that made it, as PRESET says; with `profile`.
    cache: a hit if sources and mask all came out of the bucket.
    geometry: None for a picture that was made from nothing.
    reused: the picture was made for an earlier request that is the same, and no model ran.
    gpu_s: seconds that the GPU took for it alone.
    cost_usd: what these seconds cost in US dollars, as far as the price of the GPU is known. An estimate: a worker
        costs as much while it starts and waits.
    """

    model_id: str
    model_revision: str
    preset: PresetName
    profile: ProfileName
    warnings: tuple[str, ...]
    cache: CacheState
    reused: bool
    sources: tuple[Picture, ...]
    mask: Picture | None
    output: Picture
    geometry: Geometry | None
    gpu_s: float
    cost_usd: float | None
    timings_ms: Timings


class Link(BaseModel):
    """Where an object is. The link works for `expires_in` seconds, until `expires_at` (ISO 8601, UTC)."""

    model_config = Frozen

    presigned_url: str
    bucket: str
    object_key: str
    content_type: str
    expires_in: int
    expires_at: str


class ImageResult(Link):
    """A picture.

    data_url: the file itself, if the request asked for it.
    uploaded: whether it arrived at the caller's `upload_url`; None if there was none.
    """

    data_url: str | None
    uploaded: bool | None
    meta: Meta
