"""Settings → a worker: the only module that knows every part."""

import functools
import logging
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from qwen_worker import start
from qwen_worker.archive import Archive
from qwen_worker.family import TEXT_TO_IMAGE_SIZE
from qwen_worker.forecast import AHEAD_S, Forecast
from qwen_worker.images.decoder import Decoder, Limits
from qwen_worker.imports import importing
from qwen_worker.intake import Intake
from qwen_worker.job import Jobs
from qwen_worker.ledger import Ledger, price_of
from qwen_worker.originals import Originals
from qwen_worker.profiles import BF16, published
from qwen_worker.schema import INPUTS, MAX_IMAGES, Rules
from qwen_worker.service import Service
from qwen_worker.settings import Settings
from qwen_worker.snapshots import Origin
from qwen_worker.sources import Sources
from qwen_worker.sources.cache import SourceCache
from qwen_worker.sources.fetch import Fetcher
from qwen_worker.storage import Bucket
from qwen_worker.upload import Uploader
from qwen_worker.versions import versions

# Torch and diffusers are imported when a model is: the bucket can be looked at in a moment.
if TYPE_CHECKING:
    from qwen_worker.model.edit import Editor

log = logging.getLogger(__name__)

# Seconds after which a thread that computes in Python gives way: by default 5 ms, which the GPU's thread would wait.
SWITCH_S = 0.0002


def build(settings: Settings) -> Jobs:
    """Load the model, warm it up, and put the worker together. The bucket is not asked anything.

    Raises:
        OSError: pictures cannot be decoded.
        qwen_worker.model.hub.LoadError: the model cannot be loaded.
        qwen_worker.errors.ModelError: the model does not work.
    """
    decoder(limits(settings)).warm_up()
    jobs = assemble(settings, build_editor(settings))
    start.done("ready")
    told = ("model_id", "model_revision", "preset", "profile", "device", "versions")
    log.info(
        "worker ready",
        extra={
            "seconds_from_process_start": start.seconds(),
            **{name: value for name, value in jobs.about().items() if name in told},
            "usd_per_second": jobs.ledger.usd_per_second,
        },
    )
    return jobs


def assemble(settings: Settings, editor: "Editor") -> Jobs:
    """Put a worker together around a loaded model."""
    from qwen_worker.model.device import device, memory  # noqa: PLC0415

    sys.setswitchinterval(SWITCH_S)
    bucket, made_with = build_bucket(settings), versions()
    intake = Intake()
    ledger = Ledger(price_of(device()["name"], settings.gpu_usd_per_second))
    forecast = Forecast(AHEAD_S if settings.prefetch == "auto" else math.inf)
    # For each job on its way: fetch its pictures, the mask too, and keep those of the job before.
    io = ThreadPoolExecutor(2 * (MAX_IMAGES + 1) * settings.slots, thread_name_prefix="io")
    service = Service(
        Originals(build_sources(settings, bucket), decoder(limits(settings)), io),
        editor,
        Archive(bucket, made_with),
        Uploader(settings.timeout_seconds, settings.allowed_private_networks, settings.ca_file, settings.ports),
        io=io,
        gpu=ThreadPoolExecutor(1, thread_name_prefix="gpu"),
        max_output_pixels=settings.max_output_pixels,
        ledger=ledger,
        intake=intake,
    )
    rules = build_rules(settings)
    tell = functools.partial(about, settings, editor, rules, made_with)
    return Jobs(
        service,
        rules,
        tell,
        budget=settings.budget,
        intake=intake,
        forecast=forecast,
        ledger=ledger,
        memory=memory,
    )


def build_rules(settings: Settings) -> Rules:
    """What the models let a request ask for."""
    row, t2i, preset = settings.model, settings.t2i, settings.tuning.preset
    steps = preset.distilled_steps
    generate = None
    if t2i:
        generate = Rules(
            steps=steps or t2i.steps,
            cfg_scale=1.0 if steps else t2i.cfg_scale,
            max_steps=settings.max_inference_steps,
            max_images=0,
            masks=False,
            size=TEXT_TO_IMAGE_SIZE,
            preset=preset.name,
            distilled_steps=steps,
        )
    return Rules(
        steps=steps or row.steps,
        cfg_scale=1.0 if steps else row.cfg_scale,
        max_steps=settings.max_inference_steps,
        max_images=MAX_IMAGES if row.takes_several else 1,
        masks=row.takes_masks,
        loras={lora.name: lora.trigger_word for lora in settings.loras},
        generate=generate,
        preset=preset.name,
        distilled_steps=steps,
    )


def about(settings: Settings, editor: "Editor", rules: Rules, made_with: dict[str, str]) -> dict[str, Any]:
    """What `health` tells of the worker: nothing secret, and without any GPU time."""
    from qwen_worker.model.device import device  # noqa: PLC0415

    operations = [name for name in INPUTS if name != "generate" or rules.generate]
    return {
        "model_id": editor.model_id,
        "model_revision": editor.model_revision,
        "model_class": settings.model.pipeline,
        "t2i_model_id": editor.t2i_model and editor.t2i_model[0],
        "t2i_model_revision": editor.t2i_model and editor.t2i_model[1],
        "operations": [name for name in operations if name != "inpaint" or rules.masks],
        "loras": dict(rules.loras),
        "preset": editor.preset,
        "profile": editor.profile,
        "device": device(),
        "versions": made_with,
    }


def build_bucket(settings: Settings) -> Bucket:
    """The bucket of sources and results."""
    return Bucket(
        settings.s3_host,
        settings.s3_access_key.get_secret_value(),
        settings.s3_secret_key.get_secret_value(),
        name=settings.s3_bucket,
        region=settings.s3_region,
        secure=settings.s3_secure,
        prefix=settings.s3_object_prefix,
        timeout_s=settings.storage_timeout_seconds,
        expires_s=settings.presign_expiry,
        ca_file=settings.ca_file,
    )


def build_sources(settings: Settings, bucket: Bucket) -> Sources:
    """URL → bytes."""
    fetcher = Fetcher(
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.timeout_seconds,
        private=settings.allowed_private_networks,
        ca_file=settings.ca_file,
        ports=settings.ports,
        hosts=settings.hosts,
        max_redirects=settings.max_redirects,
    )
    return Sources(fetcher, SourceCache(bucket, settings.max_image_bytes))


def limits(settings: Settings) -> Limits:
    """Of decoding one picture."""
    return Limits(settings.max_image_pixels, settings.decode_memory_bytes, settings.decode_seconds)


@functools.cache
def decoder(of: Limits) -> Decoder:
    """The decoder of this process with these limits: its own processes serve all."""
    return Decoder(of)


def build_editor(settings: Settings) -> "Editor":
    """The models, warm."""
    with importing():
        from qwen_worker.model.edit import Editor  # noqa: PLC0415
        from qwen_worker.model.load import load  # noqa: PLC0415
        from qwen_worker.model.room import chosen  # noqa: PLC0415

    start.done("imports")
    begin = time.perf_counter()
    if known := published(settings.model, settings.t2i):
        # Nothing is downloaded that does not fit.
        chosen(settings.profile, known, settings.computed_cache_bytes)
    model = load(
        settings.model_id,
        settings.model_revision,
        pipeline=settings.pipeline,
        token=settings.hf_token.get_secret_value(),
        caches=settings.hub_caches,
        allow_cpu=settings.allow_cpu,
        t2i=Origin(settings.t2i_model_id, settings.t2i_model_revision) if settings.t2i else None,
        loras=settings.loras,
        computed_bytes=settings.computed_cache_bytes,
        tuning=settings.tuning,
    )
    loaded = time.perf_counter()
    start.done("load")
    for row in filter(None, (settings.model, settings.t2i)):
        if not row.tested:
            log.warning("untested model: it is not in the table of models", extra={"model_id": row.id})
    if settings.profile == "auto" and model.profile != BF16:
        log.warning(
            "there is no room for the plain model: another profile was chosen", extra={"profile": model.profile.name}
        )
    if model.profile.weights == "fp8" and not model.compiled:
        log.warning("fp8 is slower than bf16 unless it is compiled: set COMPILE=1")
    editor = Editor(model, timeout_s=settings.inference_timeout_seconds)
    if settings.warmup:
        editor.warm_up()
        start.done("warm_up")
    log.info(
        "model ready",
        extra={
            "model_id": model.id,
            "model_revision": model.revision,
            "model_class": settings.pipeline,
            "t2i_model_id": model.t2i.id if model.t2i else None,
            "t2i_model_revision": model.t2i.revision if model.t2i else None,
            "loras": {name: lora.origin for name, lora in model.loras.items()},
            "preset": model.preset.name,
            "lightning": model.lightning,
            "profile": model.profile.name,
            "attention": model.attention,
            "compiled": model.compiled,
            "load_s": round(loaded - begin, 1),
            "warm_up_s": round(time.perf_counter() - loaded, 1),
        },
    )
    return editor
