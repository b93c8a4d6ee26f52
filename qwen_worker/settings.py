"""The environment, read once and frozen. Each field is the variable of the same name in capitals."""

import json
import math
import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qwen_worker.budget import WALL, Budget
from qwen_worker.family import (
    EDIT,
    EDIT_PLUS,
    FAMILY,
    RESEARCH_LICENCE,
    TEXT,
    TEXT_TO_IMAGE,
    LoraSource,
    PipelineName,
    Row,
    commit_of,
    untested,
)
from qwen_worker.hosts import DEFAULT_PORTS, HostList, ports_of
from qwen_worker.presets import EXACT, PRESETS, PresetName, lightning
from qwen_worker.profiles import ProfileName
from qwen_worker.snapshots import FILES, TEXT_TO_IMAGE_FILES, Origin, own_cache
from qwen_worker.tuning import AttentionName, Tuning

RUNPOD_VOLUME = Path("/runpod-volume")
DEADLINES = {"storage_timeout_seconds", "timeout_seconds", "decode_seconds", "inference_timeout_seconds"}


class SettingsError(Exception):
    """The environment does not describe a worker; each problem names its variable."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _endpoint(said: str) -> str:
    wrong = ValueError("must be host[:port], as in s3.us-west-000.backblazeb2.com")
    scheme, separator, rest = said.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError:
        raise wrong from None
    host = f"{parts.hostname}:{port}" if port else str(parts.hostname)
    if rest.rstrip("/").lower() != host or not re.fullmatch(r"[a-z0-9.:-]+", host):
        raise wrong
    return f"{scheme.lower()}{separator}{host}"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d", value) else value


def _networks(value: Any) -> Any:
    return [ip_network(part.strip()) for part in value.split(",")] if isinstance(value, str) else value


def _ports(said: str) -> str:
    ports_of(said)
    return said


def _hosts(said: str) -> str:
    HostList.parse(said)
    return said


def _json(value: str, kind: type, called: str) -> Any:
    try:
        said = json.loads(value)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(said, kind):
        raise ValueError(f"must be a JSON {called}")  # noqa: TRY004 - what pydantic listens to
    return said


def _list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(_json(value, list, 'list, as in [{"name": ..., "source": ..., "weight_file": ...}]'))


def _of_different_names(loras: tuple[LoraSource, ...]) -> tuple[LoraSource, ...]:
    names = [lora.name for lora in loras]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"has more than one LoRA of the name {twice[0]}")
    return loras


def _given(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value():
        raise ValueError("must not be blank")
    return secret


def _bucket(name: str) -> str:
    if not re.fullmatch(r"(?!.*(\.\.|\.-|-\.))(?!\d+(\.\d+){3}$)[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", name):
        raise ValueError("is not a bucket's name: 3 to 63 letters, digits, dots and hyphens")
    return name


def budget_of(deadlines: Mapping[str, float], execution_s: float) -> Budget:
    """The time of a job; raises ValueError if the deadlines, by their variables, do not fit."""
    return Budget.of(
        storage_s=deadlines["storage_timeout_seconds"],
        download_s=deadlines["timeout_seconds"],
        decode_s=WALL * deadlines["decode_seconds"],
        inference_s=deadlines["inference_timeout_seconds"],
        execution_s=execution_s,
    )


def _object(value: Any) -> Any:
    """The one LoRA of its kind needs no name."""
    if not isinstance(value, str):
        return value
    said = _json(value, dict, 'object, as in {"source": ..., "revision": ..., "weight_file": ...}')
    if other := said.keys() & {"name", "trigger_word"}:
        raise ValueError(f"has a {min(other)}, which only a LoRA in LORAS has: leave it out")
    return {"name": "lightning", **said}


Lightning = Annotated[LoraSource | None, NoDecode, BeforeValidator(_object)]
Secret = Annotated[SecretStr, BeforeValidator(lambda said: said.strip() if isinstance(said, str) else said)]


def volume_home(volume: Path) -> Path | None:
    """HF_HOME on a mounted volume: the place where RunPod puts the models that it caches itself."""
    return volume / "huggingface-cache" if volume.is_dir() else None


class Settings(BaseSettings):
    """Everything that can be set from outside. Unset and empty variables mean the default."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    s3_endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        description="the bucket's S3 endpoint, host[:port]; https:// in front is accepted"
    )
    s3_access_key: Annotated[Secret, AfterValidator(_given)] = Field(description="Backblaze key id")
    s3_secret_key: Annotated[Secret, AfterValidator(_given)] = Field(description="Backblaze application key")
    s3_bucket: Annotated[str, AfterValidator(_bucket)] = Field(description="bucket for cached sources and results")
    s3_region: str = Field(
        "us-west-000", description="the bucket's region, as in its endpoint", min_length=1, validate_default=True
    )
    s3_secure: bool = Field(
        True, description="https to the bucket; false only for a bucket on your own network", validate_default=True
    )
    s3_object_prefix: str = Field(
        "qwen-image-edit/", description="put before every object key", pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*$"
    )
    presign_expiry: int = Field(86400, description="life of a result's link in seconds, 1 to 604800", ge=1, le=604800)
    max_image_bytes: int = Field(26214400, description="largest source in bytes", ge=1)
    max_image_pixels: int = Field(50_000_000, description="largest source in pixels", ge=1)
    decode_memory_bytes: int = Field(
        512_000_000,
        description="memory that decoding one source may take in bytes, the decoding process and its result together",
        ge=100_000_000,
    )
    decode_seconds: float = Field(
        1.5,
        description="computing time that decoding one source may take in seconds; a quarter more, in proportion to its "
        "pixels, for its colours",
        gt=0,
        le=60,
    )
    timeout_seconds: float = Field(
        120, description="total time of one download, or of one upload to `upload_url`, in seconds", gt=0, le=3600
    )
    storage_timeout_seconds: float = Field(
        10,
        description="total time of one operation on the bucket in seconds, tries and pauses included; a result that is "
        "written or read has a second more for each 4 MB",
        gt=0,
        le=600,
    )
    inference_timeout_seconds: float = Field(
        300, description="time of one edit on the GPU in seconds, checked after each step", gt=0, le=86400
    )
    execution_timeout_seconds: float = Field(
        600,
        description="RunPod's execution timeout of this endpoint in seconds, from when a job is taken: each job is "
        "answered 30 s before it at the latest, and the deadlines above must fit into what is left",
        gt=30,
        le=604800,
        validate_default=True,
    )
    computed_cache_bytes: int = Field(
        256_000_000,
        description="GPU memory in bytes for what has been computed of prompts and pictures, and is found again when a "
        "request has the same ones; a picture and its prompt take about 30 MB; 0: none",
        ge=0,
    )
    max_inference_steps: int = Field(50, description="more steps than this are clamped, with a warning", ge=2)
    max_output_pixels: int = Field(
        50_000_000, description="largest result in pixels; a request for a larger one is refused", ge=1
    )
    model_id: str = Field(EDIT.id, description="repository on the Hugging Face Hub, or a local folder", min_length=1)
    model_class: PipelineName | None = Field(
        None,
        description="the pipeline's class, QwenImageEditPipeline, QwenImageEditPlusPipeline or QwenImage21Pipeline; "
        "required for a model that is not in the table of models, a folder too",
        validate_default=True,
    )
    model_revision: str = Field(
        "",
        description="commit of the repository, 40 hex digits; default: the pinned one of a known model",
        validate_default=True,
    )
    accept_research_license: bool = Field(
        False,
        description=f"1: the {RESEARCH_LICENCE} is accepted, which a QwenImage21Pipeline model is under: "
        "no commercial use",
        validate_default=True,
    )
    t2i_model_id: str = Field(
        "",
        description="a text-to-image model, which `generate` needs: repository on the Hugging Face Hub, or a local "
        "folder; its text encoder and VAE must be those of MODEL_ID, and are shared",
        validate_default=True,
    )
    t2i_model_revision: str = Field(
        "",
        description="commit of that repository, 40 hex digits; default: the pinned one of a known model",
        validate_default=True,
    )
    loras: Annotated[tuple[LoraSource, ...], NoDecode, BeforeValidator(_list), AfterValidator(_of_different_names)] = (
        Field(
            (),
            description="LoRAs that requests may name, a JSON list: "
            '`[{"name": "...", "source": "org/repo or folder", "revision": "40 hex digits, none for a folder", '
            '"weight_file": "path/in/it.safetensors", "trigger_word": "..., optional"}]`',
        )
    )
    preset: PresetName = Field(
        "exact",
        description="exact: every step in full; balanced: steps in which little changes are shortened; fast-8, fast-4: "
        "a Lightning LoRA is fused into the model, which then takes 8 or 4 steps and no guidance",
    )
    lightning_lora: Lightning = Field(
        None,
        description="the LoRA that fast-8 and fast-4 fuse, a JSON object with source, revision and weight_file as in "
        "LORAS; default: the published one of a known model",
        validate_default=True,
    )
    t2i_lightning_lora: Lightning = Field(None, description="the same for T2I_MODEL_ID", validate_default=True)
    profile: Literal[ProfileName, "auto"] = Field(
        "auto",
        description="how the model is kept in the GPU's memory: bf16, bf16-offload, fp8, fp8-offload, int4, "
        "int4-offload; auto: the first of these with room for a large edit, or else for a usual one. fp8 and int4 "
        "change pictures, -offload takes time for each new prompt",
    )
    attention: Literal[AttentionName, "auto"] = Field(
        "auto",
        description="which kernel computes attention: native, flash, cudnn or efficient; auto: by the GPU",
        validate_default=True,
    )
    compile: bool = Field(
        False,
        description="1: the transformer's blocks are compiled at the start, for any size; what was compiled is kept on "
        "the volume, if one is mounted",
        validate_default=True,
    )
    gpu_usd_per_second: float | None = Field(
        None,
        description="price of a second of this worker in US dollars, for the estimates of cost; default: the published "
        "one of a flex worker, if this kind of GPU has one",
        ge=0,
        allow_inf_nan=False,
    )
    hf_token: Secret = Field(SecretStr(""), description="Hugging Face token, for private repositories")
    hf_home: Path | None = Field(
        None,
        description="where models are looked for first, and downloaded to; after it `/runpod-volume/huggingface-cache` "
        "if a volume is mounted, and the library's own cache",
    )
    ssl_cert_file: FilePath | None = Field(
        None, description="certificates of the authorities to trust, PEM; default: the public ones"
    )
    allow_cpu: bool = Field(False, description="run without CUDA: for tests and the demo only")
    allowed_private_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)] = (
        Field(
            (),
            description="comma-separated networks that sources may be fetched from, and results sent to, although "
            "they are not public",
        )
    )
    source_ports: Annotated[str, AfterValidator(_ports)] = Field(
        DEFAULT_PORTS,
        description="ports that sources may be fetched from, and results sent to: comma-separated, with ranges such as "
        "`8000-9000`",
    )
    source_hosts: Annotated[str, AfterValidator(_hosts)] = Field(
        "",
        description="hosts that sources may be fetched from, redirects too: comma-separated, `example.com`, "
        "`*.example.com` (its subdomains), `!bad.example.com` (refused, whatever else is said); default: all that are "
        "not refused. `upload_url` is not bound by it",
    )
    max_redirects: int = Field(3, description="redirects of a source that are followed, 0 to 10", ge=0, le=10)
    prefetch: Annotated[Literal["auto", 0, 1, 2, 3, 4], BeforeValidator(_number)] = Field(
        "auto",
        description="jobs taken ahead while one is on the GPU, 0 to 4; auto: the next one when the GPU is soon free",
    )
    warmup: bool = Field(True, description="one small edit before the first job is taken")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe line logged")

    @field_validator("s3_region")
    @classmethod
    def _one_region(cls, region: str, info: ValidationInfo) -> str:
        """A wrong region makes wrong signatures, which Backblaze alone would notice."""
        said = re.search(r"(?:^|//)s3\.([a-z0-9-]+)\.backblazeb2\.com", info.data.get("s3_endpoint", ""))
        if said and said[1] != region:
            raise ValueError(f"is {region}, but S3_ENDPOINT says {said[1]}")
        return region

    @field_validator("s3_secure")
    @classmethod
    def _one_scheme(cls, secure: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's signature
        scheme, separator, _ = info.data.get("s3_endpoint", "").rpartition("://")
        if separator and scheme != ("https" if secure else "http"):
            raise ValueError(f"is {str(secure).lower()}, but S3_ENDPOINT says {scheme}://")
        return secure

    @field_validator("execution_timeout_seconds")
    @classmethod
    def _time_enough(cls, seconds: float, info: ValidationInfo) -> float:
        """RunPod loses a job that it ends itself: the worker must be the first."""
        if info.data.keys() >= DEADLINES:  # else one of them is refused itself
            budget_of(info.data, seconds)
        return seconds

    @field_validator("model_id")
    @classmethod
    def _edits(cls, model: str) -> str:
        if model in TEXT_TO_IMAGE:
            raise ValueError(
                f"is {model}, which makes pictures from words alone: name it in T2I_MODEL_ID, and here a model that "
                f"edits, such as {EDIT.id}"
            )
        return model

    @field_validator("model_class")
    @classmethod
    def _known_class(cls, said: PipelineName | None, info: ValidationInfo) -> PipelineName | None:
        """Fill in the class of a known model."""
        if "model_id" not in info.data:  # refused itself
            return said
        model = info.data["model_id"]
        known = cast("PipelineName", FAMILY[model].pipeline) if model in FAMILY else said
        if known is None:
            raise ValueError(f"must name the class of {model}, which is not in the table of models")
        if said not in {None, known}:
            raise ValueError(f"is {said}, but {model} is a {known}")
        return known

    @field_validator("model_revision")
    @classmethod
    def _pinned(cls, revision: str, info: ValidationInfo) -> str:
        """Fill in the pinned commit of a known model; a folder has none."""
        model = info.data.get("model_id", "")
        return commit_of(model, revision, FAMILY[model].revision if model in FAMILY else None)

    @field_validator("accept_research_license")
    @classmethod
    def _accepted(cls, accepted: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's signature
        """Nobody uses weights of restricted use without having said so."""
        model, pipeline = info.data.get("model_id", ""), info.data.get("model_class")
        row = FAMILY.get(model) or (untested(model, pipeline) if pipeline else None)
        if row and row.research_only and not accepted:
            raise ValueError(
                f"must be 1 to use {model}: {row.pipeline} models are under the {RESEARCH_LICENCE}, which forbids "
                "commercial use; read it in the model's repository, and set this if you keep to it"
            )
        return accepted

    @field_validator("t2i_model_id")
    @classmethod
    def _shares(cls, model: str, info: ValidationInfo) -> str:
        """A text-to-image model whose text encoder and VAE the edit model has."""
        if model in FAMILY:
            raise ValueError(f"is {model}, which edits pictures: name it in MODEL_ID, and here one such as {TEXT.id}")
        if model and info.data.get("model_class") == "QwenImage21Pipeline":
            raise ValueError(
                "does not go with a QwenImage21Pipeline model, whose text encoder and VAE are others: leave it empty, "
                f"or use a MODEL_ID such as {EDIT_PLUS.id}"
            )
        return model

    @field_validator("t2i_model_revision")
    @classmethod
    def _t2i_pinned(cls, revision: str, info: ValidationInfo) -> str:
        """As of the edit model; without a model there is nothing to pin."""
        model = info.data.get("t2i_model_id", "")
        if not model:
            return ""
        return commit_of(model, revision, TEXT_TO_IMAGE[model].revision if model in TEXT_TO_IMAGE else None)

    @field_validator("preset")
    @classmethod
    def _goes_with_the_model(cls, name: PresetName, info: ValidationInfo) -> PresetName:
        preset = PRESETS[name]
        if preset != EXACT and info.data.get("model_class") == "QwenImage21Pipeline":
            raise ValueError(f"is {name}, which is not for QwenImage21Pipeline models: set it to exact")
        if (preset.distilled_steps or 0) > (most := info.data.get("max_inference_steps", math.inf)):
            raise ValueError(f"is {name}, which takes more steps than MAX_INFERENCE_STEPS allows: {most}")
        return name

    @field_validator("attention")
    @classmethod
    def _takes_masks(cls, name: str, info: ValidationInfo) -> str:
        """The text of QwenImage21Pipeline has a mask, which only torch's own choice of a kernel is sure to take."""
        if info.data.get("model_class") != "QwenImage21Pipeline":
            return name
        if name not in {"auto", "native"}:
            raise ValueError(f"is {name}, which is not for QwenImage21Pipeline models: leave it at auto")
        return "native"

    @field_validator("lightning_lora")
    @classmethod
    def _fits_the_model(cls, named: LoraSource | None, info: ValidationInfo) -> LoraSource | None:
        """Fill in the published one, if the preset wants one."""
        if not info.data.keys() >= {"preset", "model_id", "model_class"}:  # refused themselves
            return named
        return lightning(PRESETS[info.data["preset"]], info.data["model_id"], named, "LIGHTNING_LORA")

    @field_validator("t2i_lightning_lora")
    @classmethod
    def _fits_the_t2i_model(cls, named: LoraSource | None, info: ValidationInfo) -> LoraSource | None:
        """The same of the text-to-image model, if there is one."""
        if not info.data.keys() >= {"preset", "t2i_model_id"}:
            return named
        if not info.data["t2i_model_id"]:
            if named:
                raise ValueError("is for T2I_MODEL_ID, which is not set: leave it empty")
            return None
        return lightning(PRESETS[info.data["preset"]], info.data["t2i_model_id"], named, "T2I_LIGHTNING_LORA")

    @field_validator("compile")
    @classmethod
    def _compiles_once(cls, wanted: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's signature
        if wanted and info.data.get("loras"):
            raise ValueError("must be 0 with LORAS: every scale of one would be compiled anew, while a job waits")
        return wanted

    @property
    def tuning(self) -> Tuning:
        """What is given for speed and memory."""
        return Tuning(
            preset=PRESETS[self.preset],
            profile=self.profile,
            lightning=self.lightning_lora,
            t2i_lightning=self.t2i_lightning_lora,
            attention=self.attention,
            compile=self.compile,
            compile_cache=RUNPOD_VOLUME / "compiled" if os.access(RUNPOD_VOLUME, os.W_OK) else None,
        )

    @property
    def lora_files(self) -> tuple[LoraSource, ...]:
        """Of all LoRAs that are loaded: those that are offered, and those that are fused."""
        return (*self.loras, *filter(None, (self.lightning_lora, self.t2i_lightning_lora)))

    @property
    def budget(self) -> Budget:
        """The time of a job."""
        return budget_of(self.model_dump(include=DEADLINES), self.execution_timeout_seconds)

    @property
    def slots(self) -> int:
        """Jobs that may be in the worker at the same time."""
        # With auto those that need the GPU are few by themselves; the others are results on their way, which on a busy
        # machine take longer than an edit. With two slots bench.throughput had the GPU idle for a seventh of the time.
        return 1 + (4 if self.prefetch == "auto" else self.prefetch)

    @property
    def pipeline(self) -> PipelineName:
        """The class of the edit model: validation fills it in for every model."""
        return self.model_class or "QwenImageEditPipeline"

    @property
    def model(self) -> Row:
        """What is known of the edit model."""
        return FAMILY.get(self.model_id) or untested(self.model_id, self.pipeline)

    @property
    def t2i(self) -> Row | None:
        """What is known of the text-to-image model, if there is one."""
        if not self.t2i_model_id:
            return None
        return TEXT_TO_IMAGE.get(self.t2i_model_id) or untested(self.t2i_model_id, "QwenImagePipeline")

    @property
    def ports(self) -> tuple[range, ...]:
        """Of strangers' servers."""
        return ports_of(self.source_ports)

    @property
    def hosts(self) -> HostList:
        """Of sources."""
        return HostList.parse(self.source_hosts)

    @property
    def s3_host(self) -> str:
        """The endpoint as host[:port]."""
        return self.s3_endpoint.rpartition("://")[2]

    @property
    def ca_file(self) -> str | None:
        """As the HTTP libraries want it."""
        return str(self.ssl_cert_file) if self.ssl_cert_file else None

    @property
    def origins(self) -> dict[Origin, tuple[str, ...]]:
        """Models → patterns of those of their files that are needed."""
        models: dict[Origin, tuple[str, ...]] = {Origin(self.model_id, self.model_revision): FILES}
        if self.t2i_model_id:
            models[Origin(self.t2i_model_id, self.t2i_model_revision)] = TEXT_TO_IMAGE_FILES
        return models

    @property
    def hub_caches(self) -> tuple[Path, ...]:
        """Folders where models may lie, in the order of looking; what is in none is downloaded into the first."""
        homes = filter(None, (self.hf_home, volume_home(RUNPOD_VOLUME)))
        return tuple(dict.fromkeys([*(home / "hub" for home in homes), own_cache()]))

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be logged."""
        values = (self.s3_access_key, self.s3_secret_key, self.hf_token)
        return tuple(value.get_secret_value() for value in values if value.get_secret_value())


def load_settings(**given: Any) -> Settings:
    """Read the environment, and `.env` below it.

    Args:
        given: fields that neither of them is asked for.

    Raises:
        SettingsError: with every problem.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError([_problem(item) for item in error.errors()]) from None


def _problem(item: Any) -> str:
    """The variable, which entry and field of a list, and what is wrong."""
    message = item["msg"].removeprefix("Value error, ")
    variable, *inside = item["loc"]
    where = [f"entry {part + 1}" if isinstance(part, int) else part for part in inside]
    return ": ".join([str(variable).upper(), *where, message])
