"""What happens to a picture's size, shape and place on its way through an edit: in this worker, and in diffusers.

    python -m bench.geometry        writes bench/results/geometry.json

Shapes: of 1,000 sizes from 64 x 64 to 6000 x 4000, how far the picture that diffusers makes is from the shape of its
source, without a model. Places: the copying model of `local/` through the real pipelines; whatever moves, moved on the
way. No time is measured.
"""

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from PIL import Image

from local import copy_model
from local.edits import edited, plain
from qwen_worker import schema
from qwen_worker.images import drift
from qwen_worker.images.deliver import deliver
from qwen_worker.images.geometry import NATIVE_AREA, plan
from qwen_worker.model.edit import Editor
from qwen_worker.model.load import load
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import Size

OUT = Path(__file__).parent / "results" / "geometry.json"
SIZES: list[Size] = [
    (1280, 720), (720, 1280), (1170, 1560), (1000, 1000), (1200, 800), (801, 1203), (1111, 999), (640, 480),
    (333, 777), (1920, 1080), (3000, 2000), (1001, 251),
]  # fmt: skip
STEPS = 2


def request(**fields: Any) -> ImageRequest:
    """A plain one."""
    rules = schema.Rules(steps=STEPS, cfg_scale=1.0, max_steps=STEPS, max_images=1)
    return parse_image({"image_url": "https://a/", "prompt": "x", **fields}, job_id="bench", rules=rules)


def shapes() -> dict[str, Any]:
    """How far width / height of the picture that is made is from its source's, in percent."""
    draw = np.random.default_rng(0)
    theirs, ours, same, kept = [], [], 0, 0
    for _ in range(1000):
        height = int(draw.integers(64, 4001))
        width = int(np.clip(height * np.exp(draw.uniform(-np.log(4), np.log(4))), 64, 6000))
        made = calculate_dimensions(NATIVE_AREA, width / height)[:2]
        theirs.append(abs(made[0] / made[1] * height / width - 1) * 100)
        same += made == (width, height)
        delivered = plan(request(), [(width, height)], grid=16, max_output_pixels=10**8).delivered
        kept += delivered == (width, height)
        ours.append(abs(delivered[0] / delivered[1] * height / width - 1) * 100)
    return {
        "sizes": len(theirs),
        "diffusers_ratio_error_percent": {
            "median": round(statistics.median(theirs), 3),
            "p95": round(float(np.percentile(theirs, 95)), 3),
            "worst": round(max(theirs), 3),
        },
        "diffusers_size_kept": same,
        "worker_size_kept": kept,
        "worker_ratio_error_percent_worst": max(ours),
    }


def scene(size: Size) -> Image.Image:
    """A picture with content of every fineness."""
    draw = np.random.default_rng(0)
    pixels = np.zeros((size[1], size[0], 3))
    for details in (4, 9, 20, 60):
        rows, columns = (max(2, side * details // max(size)) for side in (size[1], size[0]))
        layer = Image.fromarray(draw.integers(0, 256, (rows, columns, 3), dtype=np.uint8))
        pixels += np.asarray(layer.resize(size, Image.Resampling.BICUBIC)) / details**0.5
    return Image.fromarray((pixels * (255 / pixels.max())).astype(np.uint8))


def places(editor: Editor, pipeline: Any, size: Size) -> dict[str, Any]:
    """Where the picture comes out: through the worker, and through diffusers when asked for the source's size."""
    source = scene(size)
    asked = request()
    planned = plan(asked, [size], grid=editor.grid, max_output_pixels=10**8)
    reference = planned.reference.prepare(source)
    made = edited(editor, asked, planned.target.canvas, [reference])
    delivered = deliver(asked, planned, source, None, made)
    theirs = pipeline(
        image=source,
        prompt="x",
        width=size[0],
        height=size[1],
        num_inference_steps=STEPS,
        true_cfg_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    found, fit = drift.measure(source.resize(theirs.size, Image.Resampling.LANCZOS), theirs)
    return {
        "source": size,
        "worker": {
            "output": delivered.image.size,
            "shift_px": delivered.geometry.shift_px,
            "scale_percent": delivered.geometry.scale_percent,
            "fit": delivered.geometry.fit,
        },
        "diffusers": {
            "output": theirs.size,
            "shift_px": found and [round(one, 2) for one in found.shift],
            "scale_percent": found and round(found.growth * 100, 3),
            "fit": round(fit, 3),
        },
    }


def main() -> None:
    """Measure, and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        copier = copy_model.make(Path(folder) / "model")
        model = load(str(copier), "local", pipeline="QwenImageEditPipeline", token="", caches=(), allow_cpu=True)
        editor = Editor(model, timeout_s=3600)
        rows = [places(editor, plain(model.pipeline), size) for size in SIZES]
    setting = {
        "command": "python -m bench.geometry",
        "device": "cpu",
        "dtype": "bfloat16",
        "steps": STEPS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "opencv": cv2.__version__,
    }
    OUT.write_text(json.dumps({"setting": setting, "shapes": shapes(), "places": rows}, indent=1) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bench.geometry", description=__doc__).parse_args()
    main()
