"""Write .runpod/hub.json and .runpod/tests.json, by which RunPod's Hub lists, deploys and tests this worker.

    python -m local.hub_files

The form that a person fills in there is made of the settings. docs/hub.md says what a maintainer adds.
"""

import argparse
import base64
import json
from typing import Any

from local.worker import ROOT
from ops.bodies import INIT_TIMEOUT_S
from qwen_worker.cards import CARDS
from qwen_worker.family import EDIT
from qwen_worker.profiles import ProfileError, choose, published
from qwen_worker.settings import Settings

FOLDER = ROOT / ".runpod"
PICTURE = FOLDER / "source.png"  # drawn for this, 96 x 72 pixels

NEWEST = "Qwen/Qwen-Image-Edit-2511"
DISK_GB = 80  # no volume is mounted: each worker downloads 57.7 GB onto its own disk
CUDA = ["13.0"]  # what torch's wheels are built for
# Seconds until RunPod takes a worker for dead, if it is not ready.
INIT_TIMEOUT = {"key": "RUNPOD_INIT_TIMEOUT", "value": str(INIT_TIMEOUT_S)}
TEST_TIMEOUT_MS = 2_400_000  # of one job, the start of its worker included
TEST_GPU = "NVIDIA A100 80GB PCIe"

PRESETS = {
    "Qwen-Image-Edit": {"MODEL_ID": EDIT.id},
    "Qwen-Image-Edit-2511": {"MODEL_ID": NEWEST},
    "Fast, 4 steps": {"MODEL_ID": NEWEST, "PRESET": "fast-4"},
}
# What most people decide; the form folds everything else away.
PLAIN = {"s3_region", "s3_object_prefix", "presign_expiry", "model_id", "preset", "hf_token"}
HIDE_IT = (
    ". A secret: save it among your account's secrets and write {{ RUNPOD_SECRET_name }} here, where nobody can read it"
)
# The account that publishes has a bucket for the tests, and these secrets.
TEST_BUCKET = {
    name: f"{{{{ RUNPOD_SECRET_qwen_worker_test_{name.lower()} }}}}"
    for name in ("S3_ENDPOINT", "S3_REGION", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_BUCKET")
}


def pools() -> list[str]:
    """The pools all of whose GPUs keep the model in bf16, the smallest first."""
    numbers = published(EDIT, None)
    fits: dict[str, bool] = {}
    for one in CARDS:
        try:
            plain = numbers is not None and choose("auto", numbers, one.card).name == "bf16"
        except ProfileError:
            plain = False
        fits[one.pool] = plain and fits.get(one.pool, True)
    return [pool for pool, plain in fits.items() if plain]


def entry(name: str, said: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """One field of the form: a variable, by what the settings' JSON Schema says of it."""
    secret = HIDE_IT if said.get("format") == "password" else ""
    shown = {
        "name": name.upper(),
        "type": "string",
        "description": said["description"].replace("`", "") + secret,
        **_values(said),
        "required": required,
        "advanced": not required and name not in PLAIN,
    }
    return {"key": name.upper(), "input": shown}


def _values(said: dict[str, Any]) -> dict[str, Any]:
    """What may be chosen or typed, and what is there at first. Lists and what has no default begin empty."""
    kind, default = said.get("type"), said.get("default")
    if kind == "boolean":
        return {"type": "boolean", "default": default, "trueValue": "true", "falseValue": "false"}
    if kind in {"integer", "number"}:
        # The form has no open limits: it takes what is too small there, and the worker refuses it.
        limits = {"min": said.get("minimum"), "max": said.get("maximum")}
        return {"type": "number", "default": default, **{key: one for key, one in limits.items() if one is not None}}
    choices = [value for part in (said, *said.get("anyOf", [])) for value in part.get("enum", [])]
    if not choices:
        return {"default": default if isinstance(default, str) else ""}
    if default is None:
        choices = ["", *choices]
    options = [{"label": str(value) or "by the model", "value": str(value)} for value in choices]
    return {"options": options, "default": str(default or "")}


def hub() -> dict[str, Any]:
    """What hub.json says."""
    schema = Settings.model_json_schema()
    fields = [entry(name, said, required=name in schema["required"]) for name, said in schema["properties"].items()]
    return {
        "title": "Qwen-Image-Edit",
        "description": "Edits pictures by what a sentence says; results go to your own S3 bucket, and come as links",
        "type": "serverless",
        "category": "image",
        "config": {
            "runsOn": "GPU",
            "containerDiskInGb": DISK_GB,
            "gpuCount": 1,
            "gpuIds": ",".join(pools()),
            "allowedCudaVersions": CUDA,
            "presets": [{"name": name, "defaults": defaults} for name, defaults in PRESETS.items()],
            "env": [INIT_TIMEOUT, *fields],
        },
    }


def tests() -> dict[str, Any]:
    """What tests.json says. The picture is in the request: no host is asked for it."""
    picture = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    edit = {"image_url": picture, "prompt": "make it a winter evening with snow", "seed": 1}
    asked = {"health": {"operation": "health"}, "edit": edit}
    return {
        "tests": [{"name": name, "input": said, "timeout": TEST_TIMEOUT_MS} for name, said in asked.items()],
        "config": {
            "gpuTypeId": TEST_GPU,
            "gpuCount": 1,
            "allowedCudaVersions": CUDA,
            "env": [INIT_TIMEOUT, *({"key": name, "value": value} for name, value in TEST_BUCKET.items())],
        },
    }


def texts() -> dict[str, str]:
    """File → its content."""
    return {name: json.dumps(said, indent=2) + "\n" for name, said in (("hub.json", hub()), ("tests.json", tests()))}


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m local.hub_files", description=__doc__).parse_args()
    for file, content in texts().items():
        (FOLDER / file).write_text(content)
        print(f".runpod/{file} is written")
