"""What is sent to RunPod: from options to exact bodies of REST v2.

Only the endpoint is made. A template would be copied into it and never looked at again.
"""

import difflib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from ops import gpu_pools
from ops.options import ImageName, ModelFrom, Said, Variables
from ops.rest import DeployError
from qwen_worker.settings import Settings

Body = dict[str, Any]

NEEDED_SECRETS = ("S3_ACCESS_KEY", "S3_SECRET_KEY")
SECRETS = (*NEEDED_SECRETS, "HF_TOKEN")
# RunPod's own, which belongs to whoever deploys and never to a worker.
NEVER = ("RUNPOD_API_KEY", "RUNPOD_AI_API_KEY")
REFERENCE = re.compile(r"\{\{ *RUNPOD_SECRET_[A-Za-z0-9_-]+ *\}\}")
ADVICE = (
    "make a secret in RunPod's console (Secrets, Create secret), leave {0} out of --env and --env-file, and say "
    "--secret {0}=NAME if the secret has another name than the variable"
)
# Where the worker's own variables name something that is only there, it cannot be looked at from here.
ELSEWHERE = ("/", ".")
SOME_COMMIT = "0" * 40

INIT_TIMEOUT_S = 1800  # of a cold start: 57.7 GB at 32 MB/s. RunPod's default is 7 minutes
EXECUTION = "EXECUTION_TIMEOUT_SECONDS"
SMALL_DISK_GB, MODEL_DISK_GB = 20, 80
IDLE_S = 5
BASE: Body = {
    "type": "QUEUE",
    "env": {"RUNPOD_INIT_TIMEOUT": str(INIT_TIMEOUT_S)},
    # torch's wheels are built for CUDA 13.0.
    "gpu": {"count": 1, "minCudaVersion": "13.0"},
    "workers": {"min": 0, "max": 3, "idleTimeout": IDLE_S},
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    "flashboot": "FLASHBOOT",
}
NESTED = ("env", "gpu", "workers")
MUTABLE = (
    "image", "registry", "env", "disk", "gpu", "workers", "scaling", "flashboot", "timeout", "dataCenterIds",
    "networkVolumes",
)  # fmt: skip


class _Told(Settings):
    """The worker's settings by what it is told, whatever this shell's environment and this folder's `.env` say."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - as the others, what pydantic calls with
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


# What a worker needs besides, where only its model is asked about.
SOME_BUCKET = {"S3_ENDPOINT": "s3.example.com", "S3_BUCKET": "pictures"}


def settings_of(env: Mapping[str, str]) -> Settings:
    """The settings of a worker with this environment; what it gets as secrets is filled in.

    Raises:
        DeployError: it would not start; with every problem.
    """
    told = {name: value for name, value in env.items() if value and name != "SSL_CERT_FILE"}
    told |= {name: "a-secret" for name in SECRETS if name in told or name in NEEDED_SECRETS}
    for model, revision in (("MODEL_ID", "MODEL_REVISION"), ("T2I_MODEL_ID", "T2I_MODEL_REVISION")):
        if told.get(model, "").startswith(ELSEWHERE):
            told[revision] = SOME_COMMIT
    try:
        return _Told(**{name.lower(): value for name, value in told.items()})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = []
        for item in error.errors():
            variable, *inside = (str(part) for part in item["loc"])
            problem = item["msg"].removeprefix("Value error, ")
            problems.append(": ".join([variable.upper(), *inside, problem]))
        raise DeployError("the worker would not start with these variables:\n" + "\n".join(problems)) from None


def variables(said: Variables) -> dict[str, str | None]:
    """The variables that are said; None: to be removed.

    Raises:
        DeployError: with every one that is unknown, has no form, or would give a secret away.
    """
    given: dict[str, str | None] = {}
    problems = []
    for file in said.env_file or []:
        given |= {key: value for key, value in dotenv_values(file, interpolate=False).items() if value}
    for pair in said.env or []:
        name, equals, value = pair.partition("=")
        if not equals:
            problems.append(f"--env {pair}: must be KEY=VALUE")
        given[name] = value
    for pair in said.secret or []:
        name, _, secret = pair.partition("=")
        if name not in SECRETS or not re.fullmatch(r"[A-Za-z0-9_-]*", secret):
            problems.append(f"--secret {pair}: must be KEY=NAME, with KEY one of {', '.join(SECRETS)}, and NAME "
                            "of letters, digits and underscores")  # fmt: skip
        given[name] = f"{{{{ RUNPOD_SECRET_{secret or name} }}}}"
    given |= dict.fromkeys(said.unset or [])
    problems += [problem for name, value in given.items() if (problem := _problem(name, value))]
    if problems:
        raise DeployError("\n".join(problems))
    return given


def _problem(name: str, value: str | None) -> str | None:
    """Why a variable is not sent."""
    if name in NEVER:
        return f"{name} is yours and not the worker's: leave it out"
    if name in SECRETS:
        plain = value and not REFERENCE.fullmatch(value)
        return f"{name} could be read by all who see the endpoint: {ADVICE.format(name)}" if plain else None
    known = {one.upper() for one in Settings.model_fields}
    if name in known or name.startswith("RUNPOD_"):
        return None
    near = difflib.get_close_matches(name.upper(), known, n=1)
    return f"{name} is no variable of the worker" + (f": is it {near[0]}?" if near else "")


def image(said: ImageName, current: str = "qwen-worker:latest") -> str:
    """An image's name, of which every part that is not said stays as it is."""
    place, name, tag = parts(current)
    place = place if said.registry is None else said.registry.rstrip("/")
    tag = said.tag or tag or "latest"
    mark = "@" if tag.startswith("sha256:") else ":"
    made = f"{place}{'/' if place else ''}{said.image_name or name}{mark}{tag}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9./_:-]*[a-z0-9]((:[\w.-]+)|(@sha256:[0-9a-f]{64}))", made):
        raise DeployError(
            f"{made} is no image's name, which is as in docker.io/you/qwen-worker:1.2.0, in small letters"
        )
    return made


def names_image(said: ImageName) -> bool:
    """Whether any part of an image's name is said."""
    return bool(said.image_name or said.tag or said.registry is not None)


def parts(name: str) -> tuple[str, str, str]:
    """Registry, name and tag (or digest) of an image."""
    place, _, rest = name.rpartition("/")
    short, _, tag = rest.partition("@") if "@" in rest else rest.partition(":")
    return place, short, tag


def fields(said: Said) -> Body:
    """The part of a body that is said, without the image, whose name needs what there was.

    Raises:
        DeployError: options that exclude one another, and as `variables` has it.
    """
    if said.queue_delay is not None and said.request_count is not None:
        raise DeployError("--queue-delay and --request-count exclude one another: choose one")
    if said.idle_timeout is not None and said.request_count is not None:
        raise DeployError("--idle-timeout is not for --request-count: RunPod ends idle workers by itself then")
    made: Body = {
        "env": variables(said),
        "gpu": _given(pools=said.gpu_pool, minCudaVersion=said.min_cuda_version),
        "workers": _given(min=said.workers_min, max=said.workers_max, idleTimeout=said.idle_timeout),
    }
    made = {name: part for name, part in made.items() if part}
    made |= _given(registry=said.registry_auth_id, disk=said.disk)
    for name, listed in (("networkVolumes", said.network_volume), ("dataCenterIds", said.data_center)):
        if listed:
            made[name] = [one for one in listed if one]
    if said.flashboot is not None:
        made["flashboot"] = "FLASHBOOT" if said.flashboot else "OFF"
    if said.queue_delay is not None:
        made["scaling"] = {"type": "QUEUE_DELAY", "queueDelay": said.queue_delay}
    if said.request_count is not None:
        made["scaling"] = {"type": "REQUEST_COUNT", "requestCount": said.request_count}
    return made


def _given(**parts: Any) -> Body:
    return {name: part for name, part in parts.items() if part not in (None, [])}


def to_create(said: Said, name: str) -> Body:
    """The body of POST /v2/serverless.

    Raises:
        DeployError: with what cannot be.
    """
    made = _merged(BASE, fields(said))
    secrets = {one: f"{{{{ RUNPOD_SECRET_{one} }}}}" for one in NEEDED_SECRETS}
    made["env"] = secrets | made["env"]
    settings = _settled(made)
    if "pools" in made["gpu"]:
        gpu_pools.refuse_unfit(made["gpu"]["pools"], settings)
    else:
        made["gpu"]["pools"] = gpu_pools.defaults(settings)
    made.setdefault("disk", disk_gb(said, settings))
    if "/" not in (pulled := image(said)):
        raise DeployError(f"where do workers pull {pulled} from? Say --registry docker.io/you")
    return {"name": name, "image": pulled, **made}


def to_update(said: Said, current: Mapping[str, Any]) -> Body:
    """The body of PATCH /v2/serverless/{id}: the fields that differ from what there is; empty: none does.

    Raises:
        DeployError: with what cannot be, also together with what there is.
    """
    new = fields(said)
    wanted = _merged({name: current[name] for name in MUTABLE if current.get(name) is not None}, new)
    wanted.setdefault("env", {})
    settings = _settled(wanted)
    if new.keys() & {"gpu", "env"} and (pools := wanted.get("gpu", {}).get("pools")):
        gpu_pools.refuse_unfit(pools, settings)
    if said.model_from and said.disk is None:
        wanted["disk"] = disk_gb(said, settings)
    if names_image(said):
        wanted["image"] = image(said, str(current.get("image", "")))
    if "minCudaVersion" in new.get("gpu", {}) and (current.get("gpu") or {}).get("allowedCudaVersions"):
        wanted["gpu"]["allowedCudaVersions"] = []  # RunPod takes one or the other
    changed = {name: value for name, value in wanted.items() if value != current.get(name)}
    if "gpu" in changed:
        # Of these RunPod changes what is named and nothing else; pools also clear what was excluded of them.
        was = current.get("gpu") or {}
        changed["gpu"] = {name: value for name, value in changed["gpu"].items() if value != was.get(name)}
    return changed


def to_show(said: Said) -> Body:
    """As `to_update`, of an endpoint that nobody looked at: what is said. A PATCH repeats its other variables."""
    body = fields(said)
    if "env" in body:
        body["env"] = {name: value for name, value in body["env"].items() if value is not None}
        with suppress(ValueError, KeyError):
            body["timeout"] = _milliseconds(float(body["env"][EXECUTION]))
    if said.model_from not in {None, ModelFrom.DOWNLOAD}:
        body.setdefault("disk", SMALL_DISK_GB)
    if names_image(said):
        body["image"] = image(said)
    return body


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Body:
    """The one with the other over it; a variable of None is taken out."""
    made = {name: dict(value) if name in NESTED else value for name, value in base.items()}
    for name, value in over.items():
        together = {**made.get(name, {}), **value} if name in NESTED else value
        made[name] = {one: kept for one, kept in together.items() if kept is not None} if name == "env" else together
    return made


def _settled(body: Body) -> Settings:
    """Make parts of a body agree that say the same thing, and return what the worker makes of it."""
    settings = settings_of(body["env"])
    seconds = settings.execution_timeout_seconds
    body["timeout"] = _milliseconds(seconds)
    body["env"][EXECUTION] = str(int(seconds) if seconds.is_integer() else seconds)
    if body["scaling"]["type"] == "REQUEST_COUNT":
        body["workers"].pop("idleTimeout", None)
    else:
        body["workers"].setdefault("idleTimeout", IDLE_S)
    if body["workers"]["min"] > body["workers"]["max"]:
        raise DeployError("--workers-min is more than --workers-max")
    return settings


def _milliseconds(seconds: float) -> int:
    """As RunPod counts an endpoint's timeout."""
    return round(seconds * 1000)


def disk_gb(said: Said, settings: Settings) -> int:
    """Of a worker: models that are downloaded lie there."""
    if (said.model_from or (ModelFrom.VOLUME if said.network_volume else ModelFrom.DOWNLOAD)) != ModelFrom.DOWNLOAD:
        return SMALL_DISK_GB
    weights = sum(row.weights_gb or 0 for row in (settings.model, settings.t2i) if row)
    return max(MODEL_DISK_GB, math.ceil((weights + SMALL_DISK_GB) / 10) * 10)


@dataclass(frozen=True)
class Change:
    """One field that gets another value; None: it had or gets none."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.field, self.old)} -> {_shown(self.field, self.new)}"


def changes(current: Mapping[str, Any], body: Mapping[str, Any]) -> list[Change]:
    """What a PATCH changes, variable by variable."""
    made = []
    for name, new in body.items():
        old = current.get(name)
        if name not in NESTED:
            made.append(Change(name, old, new))
            continue
        was = old or {}
        # Of `gpu` what is not sent stays; of the others what is not sent goes.
        parts = new if name == "gpu" else {**was, **new}
        made += [Change(f"{name}.{part}", was.get(part), new.get(part)) for part in parts
                 if was.get(part) != new.get(part)]  # fmt: skip
    return made


def _shown(field: str, value: Any) -> str:
    if value is None:
        return "none"
    if field.removeprefix("env.") in (*SECRETS, *NEVER) and not REFERENCE.fullmatch(str(value)):
        return "(a secret)"
    return str(value)
