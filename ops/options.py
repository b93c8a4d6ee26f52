"""What the commands that make and change an endpoint can be told: each field is an option of the same name."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Option

IMAGE, BUILD, WHERE, SCALE = "Image", "Build", "Where it runs", "Scaling"


class ModelFrom(StrEnum):
    """Where a worker finds its model."""

    DOWNLOAD = "download"
    VOLUME = "volume"
    CACHED = "cached"
    IMAGE = "image"


class Engine(StrEnum):
    """What builds images."""

    DOCKER = "docker"
    PODMAN = "podman"
    BUILDAH = "buildah"


@dataclass(frozen=True)
class ImageName:
    """Parts of an image's name. None: as it was, or qwen-worker:latest."""

    registry: Annotated[str | None, Option(help="as in docker.io/you or ghcr.io/you", rich_help_panel=IMAGE)] = None
    image_name: Annotated[str | None, Option(help="qwen-worker", rich_help_panel=IMAGE)] = None
    tag: Annotated[
        str | None, Option(help="as in 1.2.0, or sha256:...; give each build one of its own", rich_help_panel=IMAGE)
    ] = None


@dataclass(frozen=True)
class Built:
    """How the image is built. None: as the Dockerfile has it."""

    base_image: Annotated[str | None, Option(help="as in python@sha256:...", rich_help_panel=BUILD)] = None
    bake_model: Annotated[bool, Option("--bake-model", help="the model in the image", rich_help_panel=BUILD)] = False
    model_id: Annotated[str | None, Option(help="the model that is baked", rich_help_panel=BUILD)] = None
    model_revision: Annotated[str | None, Option(help="its commit", rich_help_panel=BUILD)] = None
    compiler: Annotated[bool, Option("--compiler", help="for COMPILE=1, which sets it", rich_help_panel=BUILD)] = False
    run_as: Annotated[
        str | None, Option(help="root, for workers with a network volume; `up` sees to that", rich_help_panel=BUILD)
    ] = None
    engine: Annotated[Engine, Option(help="that builds and pushes", rich_help_panel=BUILD)] = Engine.DOCKER


@dataclass(frozen=True)
class Meant:
    """Which endpoint."""

    endpoint_id: Annotated[
        str | None, Option(help="of the endpoint; RUNPOD_ENDPOINT_ID, where neither this nor --name is said")
    ] = None
    name: Annotated[str | None, Option(help="of the endpoint, which is looked for by it; qwen-image-edit")] = None


@dataclass(frozen=True)
class Variables:
    """Of the worker."""

    env: Annotated[list[str] | None, Option(help="KEY=VALUE, a variable of the worker; repeat it")] = None
    env_file: Annotated[
        list[Path] | None,
        Option(help="variables, as in .env.example, without the secrets", exists=True, dir_okay=False),
    ] = None
    unset: Annotated[list[str] | None, Option(help="KEY, a variable that is to have its default")] = None
    secret: Annotated[
        list[str] | None,
        Option(help="KEY=NAME: the value of KEY is RunPod's secret NAME. S3_ACCESS_KEY and S3_SECRET_KEY: by default "
                    "the secrets of these names"),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Said(Variables, ImageName):
    """Options of `create`, `update` and `up`. None, or empty: not said; `update` changes nothing of that."""

    registry_auth_id: Annotated[
        str | None, Option(help="id of a private registry's credentials at RunPod", rich_help_panel=IMAGE)
    ] = None
    gpu_pool: Annotated[
        list[str] | None,
        Option(help="repeat it; default: all on which the model fits as PROFILE says", rich_help_panel=WHERE),
    ] = None
    min_cuda_version: Annotated[str | None, Option(help="of the driver; 13.0", rich_help_panel=WHERE)] = None
    model_from: Annotated[
        ModelFrom | None,
        Option(help="default: volume with --network-volume, else download; sets the disk", rich_help_panel=WHERE),
    ] = None
    network_volume: Annotated[list[str] | None, Option(help="id; repeat it; '': none", rich_help_panel=WHERE)] = None
    data_center: Annotated[list[str] | None, Option(help="id; repeat it; '': any", rich_help_panel=WHERE)] = None
    disk: Annotated[
        int | None, Option(help="GB of each worker; 20, or room for the model if it downloads it", min=1,
                           rich_help_panel=WHERE)
    ] = None  # fmt: skip
    flashboot: Annotated[bool | None, Option(help="faster starts; on", rich_help_panel=SCALE)] = None
    workers_min: Annotated[int | None, Option(help="always on, and paid for; 0", min=0, rich_help_panel=SCALE)] = None
    workers_max: Annotated[int | None, Option(help="3; 0 stops the endpoint", min=0, rich_help_panel=SCALE)] = None
    idle_timeout: Annotated[
        int | None,
        Option(help="seconds until an idle worker ends; 5", min=1, max=3600, rich_help_panel=SCALE),
    ] = None
    queue_delay: Annotated[
        float | None, Option(help="another worker when jobs wait for so many seconds; 4", min=0.5,
                             rich_help_panel=SCALE)
    ] = None  # fmt: skip
    request_count: Annotated[
        int | None, Option(help="instead: a worker for each so many jobs", min=1, rich_help_panel=SCALE)
    ] = None
