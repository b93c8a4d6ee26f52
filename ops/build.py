"""The commands that build the image and bring it to a registry."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ops.bodies import NEVER
from ops.options import Built, Engine
from ops.rest import DeployError

STDERR = 2
# Variables of the worker that decide what it loads, which are arguments of the Dockerfile too.
LOADS = (
    "MODEL_ID",
    "MODEL_REVISION",
    "MODEL_CLASS",
    "T2I_MODEL_ID",
    "T2I_MODEL_REVISION",
    "PRESET",
    "LIGHTNING_LORA",
    "T2I_LIGHTNING_LORA",
    "LORAS",
)
TRUE = {"1", "true", "t", "yes", "y", "on"}
ROOT = Path(__file__).parent.parent


def build_command(
    built: Built, image: str, variables: Mapping[str, str | None], *, volume: bool = False
) -> list[str]:  # fmt: skip
    """How the image is built; the Hugging Face token of this shell goes in as a secret, of which nothing stays.

    Args:
        built: options.
        image: its name.
        variables: of the worker; those that say what it loads are baked with it.
        volume: the worker has a network volume, to which only root may write.

    Raises:
        DeployError: the name is that of an image that there is already.
    """
    _refuse_digest(image)
    compiles = (variables.get("COMPILE") or "").lower() in TRUE
    said = {"MODEL_ID": built.model_id, "MODEL_REVISION": built.model_revision}
    loads = {name: said.get(name) or variables.get(name) for name in LOADS} if built.bake_model else said
    arguments = {
        "BASE_IMAGE": built.base_image,
        "BAKE_MODEL": "1" if built.bake_model else None,
        **loads,
        "COMPILER": "1" if built.compiler or compiles else None,
        "RUN_AS": built.run_as or ("root" if volume and not built.bake_model else None),
    }
    given = [part for name, value in arguments.items() if value for part in ("--build-arg", f"{name}={value}")]
    token = ["--secret", "id=HF_TOKEN,env=HF_TOKEN"] if os.environ.get("HF_TOKEN") else []
    return [built.engine, "build", "--platform", "linux/amd64", "--tag", image, *given, *token, str(ROOT)]


def push_command(engine: Engine, image: str) -> list[str]:
    """How it is pushed.

    Raises:
        DeployError: its name has no registry in it, or is that of an image that there is already.
    """
    _refuse_digest(image)
    if "/" not in image:
        raise DeployError(f"where is {image} to be pushed to? Say --registry docker.io/you, and log in there first")
    return [engine, "push", image]


def _refuse_digest(image: str) -> None:
    if "@" in image:
        raise DeployError(f"{image} names an image that is built already, by its digest: say another --tag")


def run(command: Sequence[str]) -> None:
    """Run one of them; what it prints goes to stderr.

    Raises:
        DeployError: it is not there, or failed.
    """
    if not shutil.which(command[0]):
        raise DeployError(f"there is no {command[0]} here: install it, or say --engine with another one")
    # Docker takes build secrets only by its newer builder.
    environment = {name: value for name, value in os.environ.items() if name not in NEVER}
    environment["DOCKER_BUILDKIT"] = "1"
    done = subprocess.run(command, stdout=STDERR, env=environment, check=False)
    if done.returncode:
        raise DeployError(f"`{command[0]} {command[1]}` failed with exit code {done.returncode}: it says why above")
