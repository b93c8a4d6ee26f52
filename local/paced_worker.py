"""The worker with a model that only takes its time: `python -m local.paced_worker`.

All but the model is the worker's own. An edit takes PACED_PASS_S seconds for each pass through the transformer that a
real one would make, whatever its size, and nothing beside; the picture is its first reference with a camera's grain.
PACED_TURNS names a file that gets a line for each edit: begin and end, in seconds of `time.monotonic`.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import handler
from qwen_worker.build import assemble, decoder, limits
from qwen_worker.errors import ModelError
from qwen_worker.job import Jobs
from qwen_worker.request import ImageRequest
from qwen_worker.schema import Size

GRAIN = 4  # standard deviation, of 256


class PacedEditor:
    """In the place of qwen_worker.model.edit.Editor.

    Args:
        pass_s: seconds of a pass.
        turns: where edits are written down.
    """

    model_id = "paced"
    model_revision = "local"
    grid = 16
    t2i_model = None
    loras: Mapping[str, str] = {}

    def __init__(self, pass_s: float, turns: Path) -> None:
        self._pass_s = pass_s
        self._turns = turns

    def made_by(self, _request: ImageRequest) -> tuple[str, str]:
        """As Editor."""
        return self.model_id, self.model_revision

    def check(self, request: ImageRequest, canvas: Size, references: Sequence[Size]) -> None:
        """Everything can be done."""

    def edit(
        self,
        request: ImageRequest,
        canvas: Size,
        references: Sequence[Image.Image],
        mask: Image.Image | None,  # noqa: ARG002 - as Editor
        cancelled: threading.Event,
        told: Callable[[int, int], None],
        left_s: float,  # noqa: ARG002 - as Editor
    ) -> Image.Image:
        """As Editor; the making of the picture is within its time."""
        begin = time.monotonic()
        picture = with_grain(references[0].resize(canvas), request.seed)
        step_s = self._pass_s * (2 if request.true_cfg_scale > 1 else 1)
        for step in range(1, request.num_inference_steps + 1):
            time.sleep(max(0.0, begin + step * step_s - time.monotonic()))
            told(step, request.num_inference_steps)
            if cancelled.is_set():
                raise ModelError("cancelled")
        with self._turns.open("a") as file:
            file.write(f"{begin} {time.monotonic()}\n")
        return picture


def with_grain(image: Image.Image, seed: int) -> Image.Image:
    """The same with noise: no compressor finds it simpler than a photograph."""
    pixels = np.asarray(image).astype(np.float32)
    pixels += np.random.default_rng(seed).standard_normal(pixels.shape, np.float32) * GRAIN
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@functools.cache
def worker() -> Jobs:
    """As `handler.worker`, with another editor."""
    settings = handler.settings()
    decoder(limits(settings)).warm_up()
    editor: Any = PacedEditor(float(os.environ["PACED_PASS_S"]), Path(os.environ["PACED_TURNS"]))
    return assemble(settings, editor)


if __name__ == "__main__":
    handler.worker = worker
    handler.main()
