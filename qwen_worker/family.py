"""The models that this worker knows: README, settings and defaults of a request all speak from these tables."""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from qwen_worker.snapshots import Origin

PipelineName = Literal["QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImage21Pipeline"]
TextPipelineName = Literal["QwenImagePipeline"]

RESEARCH_LICENCE = "Qwen Research License"
# What stands for the revision of a folder until it is loaded.
LOCAL_REVISION = "local"


@dataclass(frozen=True)
class Row:
    """One model.

    Args:
        id: repository on the Hugging Face Hub.
        pipeline: the class in diffusers that its `model_index.json` names.
        licence: of the weights.
        steps: denoising steps of a request that names none.
        cfg_scale: true_cfg_scale of a request that names none.
        revision: the commit that is loaded; None: the operator names one.
        weights_gb: of all parts that are loaded, in bfloat16, in 10^9 bytes.
        tested: whether this worker was made for it.
    """

    id: str
    pipeline: PipelineName | TextPipelineName
    licence: str
    steps: int
    cfg_scale: float
    revision: str | None
    weights_gb: float | None = 57.7
    tested: bool = True

    @property
    def takes_several(self) -> bool:
        """Whether a request may have several images."""
        return self.pipeline != "QwenImageEditPipeline"

    @property
    def takes_masks(self) -> bool:
        """Whether a request may have a mask: diffusers has no inpaint pipeline for the parts of QwenImage21Pipeline."""
        return self.pipeline != "QwenImage21Pipeline"

    @property
    def research_only(self) -> bool:
        """Whether the weights are under RESEARCH_LICENCE: of a model outside the table, what its class came with."""
        return self.pipeline == "QwenImage21Pipeline"


EDIT = Row(
    # Steps: 30 instead of the 50 of the model's card, which MAX_INFERENCE_STEPS still allows.
    "Qwen/Qwen-Image-Edit", "QwenImageEditPipeline", "Apache-2.0", 30, 4.0, "ac7f9318f633fc4b5778c59367c8128225f1e3de"
)  # fmt: skip
EDIT_PLUS = Row(
    "Qwen/Qwen-Image-Edit-2509", "QwenImageEditPlusPipeline", "Apache-2.0", 40, 4.0,
    "d3968ef930e841f4c73640fb8afa3b306a78167e",
)  # fmt: skip
IMAGE_21 = Row(
    # Weights: the parameters of the classes with their published sizes (7.12, 0.34 and 8.77 billion), at two bytes.
    "Qwen/Qwen-Image-2.1", "QwenImage21Pipeline", RESEARCH_LICENCE, 40, 1.0, None, weights_gb=32.4
)  # fmt: skip
#: model id → what is known of it
FAMILY = {
    row.id: row
    for row in (
        EDIT,
        EDIT_PLUS,
        replace(EDIT_PLUS, id="Qwen/Qwen-Image-Edit-2511", revision="6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9"),
        replace(EDIT_PLUS, id="FireRedTeam/FireRed-Image-Edit-1.0", revision=None),
        replace(EDIT_PLUS, id="FireRedTeam/FireRed-Image-Edit-1.1", revision=None),
        IMAGE_21,
    )
}

TEXT = Row(
    # Weights: of the transformer alone. Text encoder and VAE are those of the edit model, which has loaded them.
    "Qwen/Qwen-Image", "QwenImagePipeline", "Apache-2.0", 50, 4.0, "75e0b4be04f60ec59a75f475837eced720f823b6",
    weights_gb=40.9,
)  # fmt: skip
#: id of a text-to-image model → what is known of it
TEXT_TO_IMAGE = {
    row.id: row
    for row in (TEXT, replace(TEXT, id="Qwen/Qwen-Image-2512", revision="25468b98e3276ca6700de15c6628e51b7de54a26"))
}
# Width and height of a picture that is made from words alone, in pixels: what the card of Qwen-Image names for squares.
TEXT_TO_IMAGE_SIZE = (1328, 1328)


def untested(model_id: str, pipeline: PipelineName | TextPipelineName) -> Row:
    """The row of a model outside the tables: the defaults are those of its class."""
    (like,) = (row for row in (EDIT, EDIT_PLUS, IMAGE_21, TEXT) if row.pipeline == pipeline)
    return replace(like, id=model_id, licence="unknown", revision=None, weights_gb=None, tested=False)


def commit_of(source: str, revision: str, pinned: str | None = None) -> str:
    """The commit of a repository that is to be loaded, or LOCAL_REVISION of a folder, which has none.

    Args:
        source: repository on the Hub, or a folder.
        revision: what the operator says, or empty.
        pinned: what is taken then, if it is known.

    Raises:
        ValueError: it is no commit (a branch moves: code and weights that nobody looked at), or another model's, as of
            an image in which another one is baked.
    """
    if Path(source).is_dir():
        return LOCAL_REVISION
    revision = revision or pinned or ""
    if not re.fullmatch("[0-9a-f]{40}", revision):
        missing = " (there is no folder of this name)" if source.startswith(("/", ".")) else ""
        raise ValueError(f"must name a commit of {source} by its 40 hex digits{missing}")
    others = (row.id for row in (*FAMILY.values(), *TEXT_TO_IMAGE.values()) if row.revision == revision)
    if (other := next(others, source)) != source:
        raise ValueError(
            f"is a commit of {other}, not of {source}: name one of its own, or none if it is a known model"
        )
    return revision


class LoraSource(BaseModel):
    """A LoRA that the operator offers: one file of a repository on the Hub, or of a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    source: str = Field(min_length=1)
    revision: str = Field("", validate_default=True)
    weight_file: str
    trigger_word: str = Field("", max_length=200)

    @property
    def origin(self) -> Origin:
        """Where the file is."""
        return Origin(self.source, self.revision)

    @field_validator("source")
    @classmethod
    def _somewhere(cls, source: str) -> str:
        if Path(source).is_dir():
            return source
        if source.startswith(("/", ".")):
            raise ValueError("there is no folder of this name")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise ValueError("must be a repository, as in org/repo, or a folder")
        return source

    @field_validator("revision")
    @classmethod
    def _pinned(cls, revision: str, info: ValidationInfo) -> str:
        # A source that is refused itself is not in the data.
        return commit_of(info.data["source"], revision) if "source" in info.data else revision

    @field_validator("weight_file")
    @classmethod
    def _inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
            raise ValueError("must be the path of a file inside the source, as in folder/name.safetensors")
        if path.suffix != ".safetensors":
            raise ValueError("must be a .safetensors file: other kinds run code when they are read")
        return name

    @field_validator("trigger_word")
    @classmethod
    def _trimmed(cls, word: str) -> str:
        return word.strip()
