"""The worker with a model that only takes its time: `python -m local.paced_worker`.

All but the model is the worker's own. PACED_PASS_S is the time of a step in seconds, PACED_TURNS the file that is told
of the edits: see `local.pace`.
"""

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import handler
from local.pace import Pace
from qwen_worker.build import assemble, decoder, limits
from qwen_worker.errors import ModelError
from qwen_worker.job import Jobs
from qwen_worker.presets import PresetName
from qwen_worker.profiles import ProfileName
from qwen_worker.request import ImageRequest
from qwen_worker.schema import Size


class PacedEditor:
    """In the place of qwen_worker.model.edit.Editor."""

    model_id = "paced"
    model_revision = "local"
    grid = 16
    t2i_model = None
    loras: Mapping[str, str] = {}
    preset: PresetName = "exact"
    profile: ProfileName = "bf16"
    making: Mapping[str, Any] = {}

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def made_by(self, _request: ImageRequest) -> tuple[str, str]:
        """As Editor."""
        return self.model_id, self.model_revision

    def check(self, request: ImageRequest, canvas: Size, references: Sequence[Size]) -> None:
        """Everything can be done."""

    def ready(
        self, _request: ImageRequest, references: Sequence[Image.Image], _mask: Image.Image | None
    ) -> Sequence[Image.Image]:
        """The pictures themselves."""
        return references

    def picture(self, made: Image.Image, _ready: Sequence[Image.Image]) -> Image.Image:
        """As it was made."""
        return made

    def edit(
        self,
        request: ImageRequest,
        canvas: Size,
        ready: Sequence[Image.Image],
        cancelled: threading.Event,
        told: Callable[[int, int], None],
        left_s: float,  # noqa: ARG002 - as Editor
    ) -> Image.Image:
        """As Editor; with one pass a step, whatever the guidance."""
        steps = request.num_inference_steps

        def step(done: int) -> None:
            told(done, steps)
            if cancelled.is_set():
                raise ModelError("the job was cancelled")

        return self._pace.edit(ready[0].resize(canvas), steps, step)


@functools.cache
def worker() -> Jobs:
    """As `handler.worker`, with another editor."""
    settings = handler.settings()
    decoder(limits(settings)).warm_up()
    editor: Any = PacedEditor(Pace(float(os.environ["PACED_PASS_S"]), Path(os.environ["PACED_TURNS"])))
    return assemble(settings, editor)


if __name__ == "__main__":
    handler.worker = worker
    handler.main()
