"""What is sent to RunPod: from options to exact bodies of REST v2.

Only the endpoint is made. A template would be copied into it and never looked at again.
"""

import difflib
import math
import re
from collections.abc import Mapping
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
# A registry may have a port, and may be missing; a tag, a digest or both.
PART = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
IMAGE = re.compile(
    rf"({PART}(:[0-9]+)?/)?({PART}/)*{PART}(?=[:@])(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"
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


# Stand in for what is only known to the worker, and for what it needs besides where only its model is asked about.
SOME_BUCKET = {"S3_ENDPOINT": "s3.example.com", "S3_BUCKET": "pictures", **dict.fromkeys(SECRETS, "a-secret")}


def settings_of(env: Mapping[str, str]) -> Settings:
    """The settings of a worker with this environment; references to secrets are not looked into.

    Raises:
        DeployError: it would not start; with every problem.
    """
    told = {name: value for name, value in env.items() if value and name != "SSL_CERT_FILE"}
    hidden = {name for name, value in told.items() if name in SECRETS or REFERENCE.fullmatch(value)}
    if "S3_REGION" in hidden:
        hidden |= told.keys() & {"S3_ENDPOINT"}  # which says a region too
    told = {name: value for name, value in told.items() if name not in hidden}
    told |= {name: SOME_BUCKET[name] for name in hidden & SOME_BUCKET.keys()}
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
        try:
            given |= {key: value for key, value in dotenv_values(file, interpolate=False).items() if value}
        except UnicodeDecodeError:
            problems.append(f"--env-file {file} is not in UTF-8: save it so")
    for pair in said.env or []:
        name, equals, value = pair.partition("=")
        if not equals:
            problems.append("an --env has no =: it must be KEY=VALUE")  # not what it has, which may be a secret
            continue
        given[name] = value
    for pair in said.secret or []:
        name, _, secret = pair.partition("=")
        if name not in SECRETS or not re.fullmatch(r"[A-Za-z0-9_-]*", secret):
            problems.append(f"--secret must be KEY=NAME, with KEY one of {', '.join(SECRETS)}, and NAME that of a "
                            "secret in RunPod's console, of letters, digits, hyphens and underscores")  # fmt: skip
            continue
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
    if name == EXECUTION and value and REFERENCE.fullmatch(value):
        return f"{name} sets the endpoint's own timeout too: say seconds, and no secret"
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
    if not IMAGE.fullmatch(made):
        raise DeployError(
            f"{made} is no image's name, which is as in docker.io/you/qwen-worker:1.2.0, in small letters"
        )
    return made


def names_image(said: ImageName) -> bool:
    """Whether any part of an image's name is said."""
    return bool(said.image_name or said.tag or said.registry is not None)


def parts(name: str) -> tuple[str, str, str]:
    """Registry, name and tag of an image; in place of the tag, or after it, its digest."""
    place, _, rest = name.rpartition("/")
    short, *tag = re.split("[:@]", rest, maxsplit=1)
    return place, short, "".join(tag)


def wanted(said: Said, current: Mapping[str, Any] | None) -> Body:
    """All of an endpoint as it is to be, but for its image; None: there is none yet."""
    base = BASE if current is None else {name: current[name] for name in MUTABLE if current.get(name) is not None}
    made = _merged(base, fields(said))
    made.setdefault("env", {})
    return made


def fields(said: Said) -> Body:
    """The part of a body that is said, without the image, whose name needs what there was.

    Raises:
        DeployError: options that exclude one another, and as `variables` has it.
    """
    if said.queue_delay is not None and said.request_count is not None:
        raise DeployError("--queue-delay and --request-count exclude one another: choose one")
    if said.idle_timeout is not None and said.request_count is not None:
        raise DeployError("--idle-timeout is not for --request-count: RunPod ends idle workers by itself then")
    if said.queue_delay is not None and not math.isfinite(said.queue_delay):
        raise DeployError("--queue-delay must be a number of seconds")
    if said.min_cuda_version is not None and not re.fullmatch(r"[0-9]+\.[0-9]+", said.min_cuda_version):
        raise DeployError("--min-cuda-version must be as in 13.0")
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
    if not name:
        raise DeployError("--name must not be empty")
    made = wanted(said, None)
    secrets = {one: f"{{{{ RUNPOD_SECRET_{one} }}}}" for one in NEEDED_SECRETS}
    made["env"] = secrets | made["env"]
    settings = settings_of(made["env"])
    _set_timeout(made, settings)
    _check_workers(made)
    if "pools" in made["gpu"]:
        gpu_pools.refuse_unfit(made["gpu"]["pools"], settings)
    else:
        made["gpu"]["pools"] = gpu_pools.defaults(settings)
    made.setdefault("disk", disk_gb(_place(said, made), settings))
    return {"name": name, "image": _pulled(image(said)), **made}


def to_update(said: Said, current: Mapping[str, Any]) -> Body:
    """The body of PATCH /v2/serverless/{id}: the fields that differ from what there is; empty: none does.

    Raises:
        DeployError: with what cannot be, also together with what there is.
    """
    new, made = fields(said), wanted(said, current)
    _check_workers(made, scaled="scaling" in new)
    # How many workers there are can be changed all the same, as to stop an endpoint whose workers do not start.
    if new.keys() & {"env", "gpu", "networkVolumes"} or said.model_from or names_image(said):
        _refit(made, new, said, current)
    if names_image(said):
        made["image"] = _pulled(image(said, current.get("image") or ""))
    if "minCudaVersion" in new.get("gpu", {}) and (current.get("gpu") or {}).get("allowedCudaVersions"):
        made["gpu"]["allowedCudaVersions"] = []  # RunPod takes one or the other
    changed = {name: value for name, value in made.items() if value != current.get(name)}
    if "gpu" in changed:
        # Of these RunPod changes what is named and nothing else; pools also clear what was excluded of them.
        gpu = current.get("gpu") or {}
        changed["gpu"] = {name: value for name, value in changed["gpu"].items() if value != gpu.get(name)}
    return changed


def _refit(made: Body, new: Body, said: Said, current: Mapping[str, Any]) -> None:
    """See to it that a worker with other variables, GPUs or volumes starts, and has the disk for it."""
    env, was = made["env"], current.get("env") or {}
    if EXECUTION in new.get("env", {}):
        settings = settings_of(env)
        _set_timeout(made, settings)
    else:
        settings = settings_of({EXECUTION: str(current["timeout"] / 1000), **env})
    if pools := made.get("gpu", {}).get("pools"):
        gpu_pools.refuse_unfit(pools, settings)
    place = _place(said, made)
    moved = bool(made.get("networkVolumes")) != bool(current.get("networkVolumes"))
    other = any((env.get(name) or "") != (was.get(name) or "") for name in ("MODEL_ID", "T2I_MODEL_ID"))
    if said.disk is None and (said.model_from or moved or other):
        made["disk"] = disk_gb(place, settings)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Body:
    """The one with the other over it; a variable of None is taken out."""
    made = {name: dict(value) if name in NESTED else value for name, value in base.items()}
    for name, value in over.items():
        together = {**made.get(name, {}), **value} if name in NESTED else value
        made[name] = {one: kept for one, kept in together.items() if kept is not None} if name == "env" else together
    return made


def _set_timeout(body: Body, settings: Settings) -> None:
    """Make the endpoint's own timeout, in milliseconds, and the worker's variable say the same."""
    seconds = settings.execution_timeout_seconds
    body["timeout"] = round(seconds * 1000)
    body["env"][EXECUTION] = str(int(seconds) if seconds.is_integer() else seconds)


def _check_workers(body: Body, *, scaled: bool = True) -> None:
    """Refuse a minimum above the maximum; idle workers have a timeout as the scaling has it, where that is said."""
    if scaled and body["scaling"]["type"] == "REQUEST_COUNT":
        body["workers"].pop("idleTimeout", None)
    elif scaled:
        body["workers"].setdefault("idleTimeout", IDLE_S)
    if body["workers"]["min"] > body["workers"]["max"]:
        raise DeployError("--workers-min is more than --workers-max")


def _pulled(name: str) -> str:
    if "/" not in name:
        raise DeployError(f"where do workers pull {name} from? Say --registry docker.io/you")
    return name


def _place(said: Said, body: Body) -> ModelFrom:
    """Where workers find their model."""
    volumes = body.get("networkVolumes")
    if said.model_from == ModelFrom.VOLUME and not volumes:
        raise DeployError("--model-from volume: the endpoint has none: say --network-volume ID")
    return said.model_from or (ModelFrom.VOLUME if volumes else ModelFrom.DOWNLOAD)


def disk_gb(place: ModelFrom, settings: Settings) -> int:
    """Of a worker: models that are downloaded lie there."""
    if place != ModelFrom.DOWNLOAD:
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
    return "none" if value is None else str(hidden(value, field))


def hidden(made: Any, field: str = "") -> Any:
    """What may be printed of an answer: where a secret is to be, a reference to it, or that there is one."""
    if isinstance(made, dict):
        of = str(made.get("field", ""))  # a change of it, in a release
        return {name: hidden(value, of if of and name in {"old", "new"} else name) for name, value in made.items()}
    if isinstance(made, list):
        return [hidden(one) for one in made]
    secret = field.removeprefix("env.") in {*SECRETS, *NEVER} and made and not REFERENCE.fullmatch(str(made))
    return "(a secret)" if secret else made
