"""One edit, end to end, on this machine: `make demo`."""

import argparse
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
from PIL import Image, ImageDraw, ImageFilter

from local.stack import Stack
from local.worker import ROOT

STAGES = 6
BAR = 28
SIZE = (640, 480)


class Progress:
    """A bar with what is being done beside it."""

    def __init__(self) -> None:
        self._done = 0

    def __call__(self, what: str) -> None:
        """One stage ends, the next begins."""
        self._done += 1
        self.still(what)

    def still(self, what: str) -> None:
        """More of the stage that runs."""
        filled = BAR * (self._done - 1) // STAGES
        bar = f"[{'#' * filled}{'.' * (BAR - filled)}] {what}"
        if sys.stdout.isatty():
            print(f"\r\x1b[K{bar}", end="\n" if self._done > STAGES else "", flush=True)
        else:
            print(bar, flush=True)


def example_picture() -> bytes:
    """A small landscape, as a JPEG file."""
    width, height = SIZE
    sky = Image.linear_gradient("L").resize(SIZE)
    picture = Image.composite(Image.new("RGB", SIZE, "#dfeaf5"), Image.new("RGB", SIZE, "#3d7ab8"), sky)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((430, 60, 530, 160), fill="#fff2b0")
    draw.polygon([(0, height), (0, 330), (170, 190), (360, 350), (480, 260), (width, 380), (width, height)], "#4d6b57")
    draw.polygon([(0, height), (0, 420), (260, 340), (width, 440), (width, height)], fill="#34503f")
    buffer = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(1)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def side_by_side(source: bytes, result: bytes) -> Image.Image:
    """Both pictures at the same height."""
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (source, result)]
    height = SIZE[1]
    pictures = [picture.resize((picture.width * height // picture.height, height)) for picture in pictures]
    page = Image.new("RGB", (sum(picture.width for picture in pictures), height))
    page.paste(pictures[0], (0, 0))
    page.paste(pictures[1], (pictures[0].width, 0))
    return page


def in_words(news: dict[str, Any]) -> str:
    """What /status tells of a job that runs."""
    steps = f", step {news['step']} of {news['steps']}" if "step" in news else ""
    return f"the job is running: {news['stage']}{steps}"


def run(tell: Progress) -> tuple[dict[str, Any], Image.Image, str]:
    """Do the job. Returns what the job API says of it, source and result side by side, and the worker's log.

    Raises:
        RuntimeError: the job failed, its link does not open to what was promised, or the size is not the source's.
    """
    source = example_picture()
    said = json.loads((ROOT / "test_input.json").read_text())["input"]
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), tell=tell) as stack:
        said["image_url"] = stack.host.put("/image.jpg", source)
        tell("the job is running")
        job = stack.finished(stack.submit(said), seen=lambda news: tell.still(in_words(news)))
        if job["status"] != "COMPLETED":
            raise RuntimeError(f"the job is {job['status']}: {job.get('error')}")
        result = job["output"]["result"]
        tell("opening the link")
        answer = stack.session.get(result["presigned_url"], timeout=30)
        digest = hashlib.sha256(answer.content).hexdigest()
        if answer.status_code != requests.codes.ok or digest != result["meta"]["output"]["sha256"]:
            raise RuntimeError(f"the link answers {answer.status_code} with {len(answer.content)} bytes")
        if (size := Image.open(io.BytesIO(answer.content)).size) != SIZE:
            raise RuntimeError(f"the result has {size} pixels, the source {SIZE}")
        return job, side_by_side(source, answer.content), stack.log.read_text()


def main() -> None:
    """Show it to a person."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder for demo.json, demo.png and demo.log")
    out: Path = parser.parse_args().out
    tell = Progress()
    job, picture, log = run(tell)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(job, indent=2) + "\n")
    picture.save(out / "demo.png")
    (out / "demo.log").write_text(log)
    tell("done: the link opened, and its picture is the one that was promised")
    print(json.dumps(job, indent=2))
    meta = job["output"]["result"]["meta"]
    output = meta["output"]
    sizes = (meta["geometry"]["source"], meta["geometry"]["generated"], (output["width"], output["height"]))
    source, made, result = (" x ".join(map(str, size)) for size in sizes)
    print(f"\nThe source has {source} pixels, the model worked at {made}, the result has {result}.")
    print(
        f"\n{out}/demo.json is this answer, {out}/demo.png the source and the result side by side, {out}/demo.log the"
        f"\nworker's log, which `.venv/bin/python -m ops.report {out}/demo.log` makes a page of."
        "\nThe result is noise: the model is the true pipeline with tiny random weights. For the real one, on a GPU:"
        "\nunset MODEL_ID, MODEL_CLASS (Qwen/Qwen-Image-Edit is the default) and ALLOW_CPU, and fill in .env from"
        "\n.env.example."
    )


if __name__ == "__main__":
    main()
