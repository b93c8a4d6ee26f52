"""A model that does nothing but take its time, and writes down when."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

GRAIN = 4  # standard deviation, of 256


@dataclass(frozen=True)
class Pace:
    """How fast the model is; `turns` gets a line for each edit: begin and end, in seconds of `time.monotonic`."""

    pass_s: float
    turns: Path

    def edit(self, image: Image.Image, passes: int, told: Callable[[int], None] = lambda _: None) -> Image.Image:
        """The picture with a camera's grain, which no compressor finds simpler than a photograph.

        It takes `pass_s` for each pass, and nothing beside. Of each that is done the number is told, from 1; what that
        raises ends the edit.
        """
        begin = time.monotonic()
        pixels = np.asarray(image).astype(np.float32)
        pixels += np.random.default_rng(0).standard_normal(pixels.shape, np.float32) * GRAIN
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        for done in range(1, passes + 1):
            time.sleep(max(0.0, begin + done * self.pass_s - time.monotonic()))
            told(done)
        with self.turns.open("a") as file:
            file.write(f"{begin} {time.monotonic()}\n")
        return picture
