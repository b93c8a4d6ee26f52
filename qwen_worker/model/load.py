"""A repository or a folder → a pipeline on the GPU that encodes what it is meant to encode."""

import ctypes
import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
import transformers
from diffusers.hooks import apply_group_offloading
from transformers.processing_utils import ProcessorMixin

from qwen_worker import shards
from qwen_worker.family import LoraSource, PipelineName
from qwen_worker.images.geometry import NATIVE_AREA
from qwen_worker.model import kernels, room, skipping
from qwen_worker.model.computed import Computed, remember_pictures
from qwen_worker.model.frames import PictureVAE
from qwen_worker.model.hub import Hub, LoadError
from qwen_worker.model.loras import Lora, fuse, lay_lightning, load_loras, size_of
from qwen_worker.model.pipelines import CLASSES, Image21Pipeline, TextPipeline
from qwen_worker.model.reading import Reading
from qwen_worker.presets import EXACT, Preset
from qwen_worker.profiles import BF16, Profile
from qwen_worker.readahead import READERS, ReadAhead
from qwen_worker.schema import Size
from qwen_worker.snapshots import FILES, TEXT_TO_IMAGE_FILES, Origin
from qwen_worker.tuning import PLAIN, AttentionName, Tuning

# What Image21Processor makes of a system prompt: the same text that QwenImage21Pipeline formats by hand.
SYSTEM_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content[0].text }}<|im_end|>\n{% endfor %}"
)
# The edit class shows a picture to the text encoder at the size of the canvas. It was trained at about a megapixel,
# and has positions for 4,096 tokens: a larger canvas is shown smaller.
MAX_SEEN_PIXELS = round(1.1 * NATIVE_AREA)
# One precision everywhere: on a CPU too, where its bytes, unlike float32's, do not depend on the number of threads.
DTYPE = torch.bfloat16
# Of linux/mman.h. Older kernels than 5.14 do not know it, and nothing is lost.
MADV_POPULATE_READ = 22


class Pipeline(Protocol):
    """What the pipeline classes share and this package uses.

    QwenImage21Pipeline has no tokenizer and no template of these names, QwenImagePipeline no processor.
    """

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    processor: Any
    scheduler: Any
    vae_scale_factor: int
    num_timesteps: int
    computed: Computed
    prompt_template_encode: str
    prompt_template_encode_start_idx: int

    def __call__(self, **arguments: Any) -> Any:
        """Make a picture."""

    def text(self, prompt: str, pictures: int) -> str:
        """What the text encoder reads."""


@dataclass(frozen=True)
class TextToImage:
    """A loaded QwenImagePipeline, and where its transformer came from; `lightning` as of `Model`."""

    pipeline: Pipeline
    id: str
    revision: str
    lightning: str | None = None


@dataclass(frozen=True)
class Model:
    """A loaded pipeline, a second one on the same parts for edits with a mask, and where they came from.

    A class that takes no mask has no second one.

    Attributes:
        revision: commit of the repository; of a folder `local-` and what tells it from others.
        t2i: makes pictures from words alone, with a transformer of its own and the text encoder and VAE of `pipeline`.
        loras: name → one that lies beside the weights of the transformer of `pipeline` and `inpaint`.
        computed: what the pipelines remember.
        preset: of all of it.
        profile: of all of it.
        lightning: the LoRA that is fused into the transformer of `pipeline`: `source@revision/weight_file`.
        attention: which kernel computes it.
        compiled: the blocks of the transformers are.
    """

    pipeline: Pipeline
    inpaint: Pipeline | None
    id: str
    revision: str
    computed: Computed
    t2i: TextToImage | None = None
    loras: Mapping[str, Lora] = field(default_factory=dict)
    preset: Preset = EXACT
    profile: Profile = BF16
    lightning: str | None = None
    attention: AttentionName = "native"
    compiled: bool = False


class ImageProcessor(Reading, transformers.Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2VLProcessor without its video half, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer)

    def image_tokens(self, size: Size) -> int:
        """How many tokens a picture of this size becomes in the text."""
        width, height = size
        patches: int = self.image_processor.get_number_of_image_patches(height, width, {})
        merged: int = self.image_processor.merge_size**2
        return patches // merged


class Image21Processor(Reading, transformers.Qwen3VLProcessor):  # type: ignore[misc]
    """Qwen3VLProcessor without its video half, which needs torchvision.

    The pipeline formats its prompts itself. Of the chat template it wants to know one thing, how many tokens a system
    prompt takes; so the one here says that and no more, and none is read from the repository.
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=SYSTEM_TEMPLATE)


class TextEncoder21(transformers.Qwen3VLModel):  # type: ignore[misc]
    """What QwenImage21Pipeline takes for Qwen3VLForConditionalGeneration: all of it that the pipeline uses."""

    @property
    def model(self) -> Any:
        """The network without the head that makes words: this one has none."""
        return self


def load(
    model_id: str,
    revision: str,
    *,
    pipeline: PipelineName,
    token: str,
    caches: Sequence[Path],
    allow_cpu: bool,
    t2i: Origin | None = None,
    loras: Sequence[LoraSource] = (),
    computed_bytes: int = 0,
    tuning: Tuning = PLAIN,
) -> Model:
    """Load a model in bfloat16, on CUDA.

    Args:
        model_id: repository on the Hub, or a folder.
        pipeline: the class that its `model_index.json` must name.
        revision: commit of the repository; says nothing of a folder.
        token: of the Hub, or empty.
        caches: folders of downloaded repositories, as `Hub` takes them.
        allow_cpu: without CUDA, load on the CPU instead of failing.
        t2i: a text-to-image model, if pictures are to be made from words alone.
        loras: what requests may switch on.
        computed_bytes: what may be kept of what was computed of prompts and pictures.
        tuning: preset, profile and kernels.

    Raises:
        LoadError: no CUDA, too little memory on the GPU, no model, another class, missing weights, parts that do not
            go together, or a LoRA that does not fit.
    """
    if not (torch.cuda.is_available() or allow_cpu):
        raise LoadError("no CUDA device: this worker needs a GPU (ALLOW_CPU=1 is for tests and the demo)")
    kernels.check(tuning)
    hub = Hub(token, caches)
    folder, loaded = hub.folder(Origin(model_id, revision), FILES)
    needed = room.numbers(folder)
    if t2i:
        needed += room.numbers(hub.folder(t2i, TEXT_TO_IMAGE_FILES)[0], transformer_alone=True)
    beside = computed_bytes + size_of(loras, hub) + (skipping.BYTES if tuning.preset.skips else 0)
    profile = room.chosen(tuning.profile, needed, beside)
    edit_class, inpaint_class = CLASSES[pipeline]
    parts = _image_21_parts if edit_class is Image21Pipeline else _edit_parts
    networks = _Networks(profile, tuning.lightning, hub)
    edit = _build(folder, edit_class, lambda where: parts(where, networks), pipeline)
    offered = load_loras(edit.transformer, loras, hub)
    inpaint = inpaint_class(**edit.components) if inpaint_class else None
    text = _text_to_image(t2i, edit, hub, _Networks(profile, tuning.t2i_lightning, hub)) if t2i else None
    computed = Computed(computed_bytes)
    remember_pictures(edit.text_encoder, computed)
    for one in filter(None, (edit, inpaint, text and text.pipeline)):
        one.set_progress_bar_config(disable=True)
        one.adapt(computed)
    attention = kernels.use([one.transformer for one in (edit, text and text.pipeline) if one], tuning)
    return Model(
        edit,
        inpaint,
        model_id,
        loaded,
        computed,
        t2i=text,
        loras=offered,
        preset=tuning.preset,
        profile=profile,
        lightning=networks.fused,
        attention=attention,
        compiled=tuning.compile,
    )


def _build(folder: Path, pipeline_class: Any, parts: Callable[[Path], dict[str, Any]], wanted: str) -> Any:
    """Build the pipeline from its parts, each of a class named here: nothing in the folder chooses code to run."""
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
        if name != wanted:
            raise LoadError(f"model_index.json names {name}, not {wanted}")
        scheduler = _read(diffusers.FlowMatchEulerDiscreteScheduler, folder / "scheduler")
        return pipeline_class(scheduler=scheduler, **parts(folder))
    except LoadError:
        raise
    except Exception as error:  # whatever a damaged file makes the libraries raise
        raise LoadError(f"the model in {folder} cannot be loaded: {error}") from error


def _text_to_image(origin: Origin, edit: Any, hub: Hub, networks: "_Networks") -> TextToImage:
    """A pipeline on the text encoder and the VAE of the edit pipeline: the same objects, not copies."""

    def parts(folder: Path) -> dict[str, Any]:
        transformer = networks.transformer(diffusers.QwenImageTransformer2DModel, folder)
        _check_fit(transformer.config, edit)
        shared = {name: getattr(edit, name) for name in ("vae", "text_encoder", "tokenizer")}
        return {"transformer": transformer, **shared}

    folder, revision = hub.folder(origin, TEXT_TO_IMAGE_FILES)
    pipeline = _build(folder, TextPipeline, parts, "QwenImagePipeline")
    return TextToImage(pipeline, origin.id, revision, networks.fused)


def _check_fit(config: Any, edit: Any) -> None:
    """The transformer of a text-to-image model reads and makes what the parts of the edit model make and read.

    Raises:
        LoadError: it is not so.
    """
    encoder, vae = edit.text_encoder.config.get_text_config().hidden_size, edit.vae.config.z_dim
    for what, wanted, given in (
        ("text encoder has a width of", config.joint_attention_dim, encoder),
        ("VAE has as many channels as", config.in_channels // 4, vae),  # four latents are one token
    ):
        if wanted != given:
            raise LoadError(
                f"the text-to-image model does not go with this edit model, whose {what} {given}: it wants {wanted}"
            )


def _edit_parts(folder: Path, networks: "_Networks") -> dict[str, Any]:
    transformer = networks.transformer(diffusers.QwenImageTransformer2DModel, folder)
    vae = network(PictureVAE, folder / "vae")
    vae.leave_time_out()
    text_encoder = networks.text_encoder(transformers.Qwen2_5_VLModel, folder)
    text_encoder.register_forward_pre_hook(give_image_positions, with_kwargs=True)
    image_processor = _read(transformers.Qwen2VLImageProcessorPil, folder / "processor")
    image_processor.size.longest_edge = min(image_processor.size.longest_edge, MAX_SEEN_PIXELS)
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": _tokenizer(folder / "tokenizer"),
        "processor": ImageProcessor(image_processor, _tokenizer(folder / "processor")),
    }


def _image_21_parts(folder: Path, networks: "_Networks") -> dict[str, Any]:
    """Without the `sample_sigmas` of model_index.json, which would win over the steps that a request asks for."""
    image_processor = _read(transformers.Qwen2VLImageProcessorPil, folder / "processor")
    # The transformer puts the VAE's latents in the places of the image tokens, four to one: the text encoder must see
    # a picture at the size at which the VAE does. The processor's own limits would move it, under 256 x 256 pixels too.
    image_processor.do_resize = False
    return {
        "transformer": networks.transformer(diffusers.QwenImage21Transformer2DModel, folder),
        "vae": network(diffusers.AutoencoderKLQwenImage21, folder / "vae"),
        # Its pipeline passes on which tokens are image tokens: no hook is needed.
        "text_encoder": networks.text_encoder(TextEncoder21, folder),
        "processor": Image21Processor(image_processor, _tokenizer(folder / "processor")),
    }


def _read(part: Any, folder: Path, **options: Any) -> Any:
    """Read one part of a model from its folder.

    The libraries take the name of a folder that is not there, as `model/vae`, for that of a repository on the Hub.
    """
    if not folder.is_dir():
        raise LoadError(f"there is no folder {folder}")
    return part.from_pretrained(folder, local_files_only=True, **options)


def _tokenizer(folder: Path) -> Any:
    """Read a tokenizer. Without a vocabulary transformers makes one to which every text is empty."""
    tokenizer = _read(transformers.Qwen2Tokenizer, folder)
    if not tokenizer("words").input_ids:
        raise LoadError(f"{folder} has no vocabulary")
    return tokenizer


class _Networks:
    """Loads the large networks of one model.

    Args:
        profile: how they are kept.
        lightning: what is fused into the transformer.
        hub: where that is.

    Attributes:
        fused: what was.
    """

    def __init__(self, profile: Profile, lightning: LoraSource | None, hub: Hub) -> None:
        self.fused: str | None = None
        self._profile = profile
        self._lightning = lightning
        self._hub = hub

    def transformer(self, model_class: Any, folder: Path) -> Any:
        """Load it, fuse into it and quantize it, block by block: what it was before never lies whole on the GPU."""
        transformer = _on_the_host(model_class, folder / "transformer")
        weights = self._profile.weights
        if weights == "bf16" and not self._lightning:
            return _onto_the_gpu(transformer)
        if self._lightning:
            self.fused = lay_lightning(transformer, self._lightning, self._hub)
        if weights != "bf16":
            # Imported where they are used: the libraries take most of a second.
            from qwen_worker.model.quantize import quantize  # noqa: PLC0415
        for number, block in enumerate(transformer.transformer_blocks):
            fuse(block.to(device()))
            if weights != "bf16":
                quantize(transformer, weights, number)
        fuse(transformer.to(device()))
        if self._lightning:
            transformer.unload_lora()
        return transformer

    def text_encoder(self, model_class: Any, folder: Path) -> Any:
        """Load it; it stays on the host if the profile says so, and its layers are on the GPU while they compute."""
        encoder = _on_the_host(model_class, folder / "text_encoder")
        if not self._profile.offload:
            return _onto_the_gpu(encoder)
        for part in encoder.children():
            # With a stream the next layer arrives while this one computes; the host's copy is pinned for that. Which
            # is the next one is learnt from the first call: so what looks at pictures, which not every prompt has,
            # is apart from what reads words.
            apply_group_offloading(
                part,
                onload_device=torch.device(device()),
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=torch.cuda.is_available(),
            )
        return encoder


def network(model_class: Any, folder: Path) -> Any:
    """Load one network onto the GPU.

    Raises:
        LoadError: it lacks weights.
    """
    return _onto_the_gpu(_on_the_host(model_class, folder))


def _on_the_host(model_class: Any, folder: Path) -> Any:
    """Load one network. The libraries fill missing weights with random ones and only warn; here it is an error.

    Those that an index names and no file holds, diffusers leaves without a value, and does not tell.
    """
    ReadAhead(shards.files(folder)).wait()
    model, info = _read(model_class, folder, dtype=DTYPE, use_safetensors=True, output_loading_info=True)
    empty = [name for name, weight in model.named_parameters() if weight.is_meta]
    if missing := sorted({*info["missing_keys"], *empty}):
        raise LoadError(f"{folder.name} lacks {len(missing)} weights, the first is {missing[0]}")
    _map(model)
    return model.eval()


def _map(model: Any) -> None:
    """Have the kernel map the pages of the weights, in parallel: else each is waited for when it is first looked at."""
    page = mmap.PAGESIZE
    madvise = ctypes.CDLL(None).madvise
    with ThreadPoolExecutor(READERS) as threads:
        for weight in model.parameters():
            begin, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
            threads.submit(
                madvise,
                ctypes.c_void_p(begin // page * page),
                ctypes.c_size_t(end - begin // page * page),
                MADV_POPULATE_READ,
            )


def device() -> str:
    """Where models compute."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _onto_the_gpu(model: Any) -> Any:
    """Copy one weight after the other from the page cache; without a GPU they stay there, mapped and not copied."""
    if not torch.cuda.is_available():
        return model
    # torch keeps what is given back, and cuts the weights out of it: asking CUDA for each of them takes seconds.
    torch.empty(sum(weight.nbytes for weight in model.parameters()), dtype=torch.uint8, device="cuda")
    return model.to("cuda")


def give_image_positions(module: Any, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of the text encoder: tell it which tokens are image tokens.

    transformers 5 reads the two-dimensional positions of image tokens from `mm_token_type_ids`, which diffusers'
    edit pipelines do not pass on; without it the picture is encoded as a row of words, silently
    (huggingface/diffusers#14194).
    """
    if named.get("pixel_values") is not None and named.get("mm_token_type_ids") is None:
        named["mm_token_type_ids"] = (named["input_ids"] == module.config.image_token_id).int()
    return positional, named
