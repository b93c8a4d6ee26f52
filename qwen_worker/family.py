"""The models that this worker knows: README, settings and defaults of a request all speak from this table."""

from dataclasses import dataclass, replace
from typing import Literal

PipelineName = Literal["QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImage21Pipeline"]

RESEARCH_LICENCE = "Qwen Research License"


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
        weights_gb: of all parts together in bfloat16, in 10^9 bytes.
        tested: whether this worker was made for it.
    """

    id: str
    pipeline: PipelineName
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


def untested(model_id: str, pipeline: PipelineName) -> Row:
    """The row of a model outside the table: the defaults are those of its class."""
    (like,) = (row for row in (EDIT, EDIT_PLUS, IMAGE_21) if row.pipeline == pipeline)
    return replace(like, id=model_id, licence="unknown", weights_gb=None, tested=False)
