"""A worker as most public ones are, around the same paced model: `python -m bench.plain_worker`.

With PLAIN_MODEL, a folder, it is that model instead, with the LoRA of PLAIN_LORA fused into it.

A plain `def handler` in RunPod's own loop does one thing after the other: download, decode and resize with Pillow, the
model, Pillow's PNG as it comes, a client of its own for the bucket, a link.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import runpod
from minio import Minio
from PIL import Image

from local.pace import Pace

SIDE = os.environ.get("PLAIN_SIDE")
SIZE = (int(SIDE), int(SIDE)) if SIDE else (1184, 880)  # pixels: a megapixel of the shape 4:3


def _model() -> Callable[[Image.Image, str, int], Image.Image]:
    """Picture, prompt and steps → a picture."""
    if "PLAIN_MODEL" not in os.environ:
        pace = Pace(float(os.environ["PACED_PASS_S"]), Path(os.environ["PACED_TURNS"]))
        return lambda image, _prompt, steps: pace.edit(image, steps)
    from bench import plain  # noqa: PLC0415 - takes seconds, and the paced one needs no torch

    pipeline = plain.load(Path(os.environ["PLAIN_MODEL"]))
    plain.fuse(pipeline, Path(os.environ["PLAIN_LORA"]))
    return lambda image, prompt, steps: plain.edited(pipeline, image, prompt, steps=steps, scale=1.0, seed=0)


EDIT = _model()


def handler(job: dict[str, Any]) -> dict[str, Any]:
    """One job."""
    said = job["input"]
    data = requests.get(said["image_url"], timeout=60).content
    image = Image.open(io.BytesIO(data)).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    edited = EDIT(image, said["prompt"], said["num_inference_steps"])
    file = io.BytesIO()
    edited.save(file, "PNG")
    size = file.tell()
    file.seek(0)
    client = Minio(
        os.environ["S3_ENDPOINT"],
        access_key=os.environ["S3_ACCESS_KEY"],
        secret_key=os.environ["S3_SECRET_KEY"],
        region=os.environ["S3_REGION"],  # many leave it out, which costs them another request
        secure=False,
    )
    bucket, key = os.environ["S3_BUCKET"], f"{job['id']}.png"
    client.put_object(bucket, key, file, size, content_type="image/png")
    return {"image_url": client.presigned_get_object(bucket, key)}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
