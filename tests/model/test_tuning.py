"""Presets, profiles and kernels: each is loaded as in production and makes pictures, exact ones those of the library.

With random weights they say nothing of quality; on a real GPU: not measured.
"""

import functools
import json
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from safetensors.torch import load_file, save_file

from local import tiny_model
from local.edits import edited, plain
from qwen_worker.errors import ModelError
from qwen_worker.family import LoraSource, PipelineName
from qwen_worker.model import kernels, skipping
from qwen_worker.model.edit import Editor
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import Model
from qwen_worker.model.pipelines import prepared, sizes_kept
from qwen_worker.model.rotary import turn
from qwen_worker.presets import PRESETS
from qwen_worker.profiles import PROFILES, ProfileName
from qwen_worker.request import ImageRequest
from qwen_worker.snapshots import Origin
from qwen_worker.tuning import AttentionName, Tuning
from tests.model.conftest import load_tiny
from tests.model.test_edit import ask
from tests.model.test_loras import source
from tests.model.test_pipelines import MASK, mask_of
from tests.model.test_text_to_image import ask_words
from tests.pictures import photo

pytestmark = pytest.mark.slow

PLUS: PipelineName = "QwenImageEditPlusPipeline"
WEIGHTS: tuple[ProfileName, ...] = ("bf16", "fp8", "int4")
CANVAS = (256, 224)
STEPS = 12  # in which the tiny model skips some
BALANCED = Tuning(PRESETS["balanced"])
Load = Callable[..., Model]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny EditPlus model with blocks that may be quantized, and weights so small that steps can be skipped."""
    return tiny_model.make(tmp_path_factory.mktemp("models") / "deep", plus=True, layers=4, gain=0.7)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose VAE does not enlarge the last digit of a float32."""
    return tiny_model.make(tmp_path_factory.mktemp("models") / "calm", plus=True, layers=4, rest_gain=1)


@pytest.fixture(scope="module")
def distilling(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> LoraSource:
    """In the style of the Lightning LoRAs."""
    folder = tmp_path_factory.mktemp("lightning")
    return source(tiny_model.make_lora(folder / "tiny-4steps.safetensors", deep, seed=7, style="lightning", alpha=1))


@pytest.fixture(scope="module")
def loaded(deep: Path) -> Load:
    """Loads the deep model."""
    return functools.partial(load_tiny, deep, PLUS)


def picture(model: Model, **fields: Any) -> bytes:
    return made(Editor(model, timeout_s=60), ask(**fields)).tobytes()


def made(editor: Editor, request: ImageRequest) -> Image.Image:
    mask = mask_of(CANVAS, (32, 32, 128, 128)) if request.mask else None
    return edited(editor, request, CANVAS, [photo(*CANVAS)], mask)


def with_style(request: ImageRequest, scale: float) -> ImageRequest:
    return request.model_copy(update={"lora": {"style": scale}})


def distance(one: bytes, other: bytes) -> float:
    """The mean difference of their pixels."""
    both = [np.frombuffer(data, np.uint8).astype(float) for data in (one, other)]
    return float(np.abs(both[0] - both[1]).mean())


@pytest.fixture(scope="module")
def exact(loaded: Load) -> bytes:
    """What the model makes as it is."""
    return picture(loaded(tuning=Tuning()))


@pytest.mark.parametrize("name", get_args(ProfileName))
def test_every_profile_makes_pictures(loaded: Load, exact: bytes, name: ProfileName) -> None:
    """Where the text encoder waits is not to be seen; 8 bits move a picture less than 4, and both little."""
    model = loaded(tuning=Tuning(profile=name))
    editor = Editor(model, timeout_s=60)
    editor.warm_up()
    apart = distance(made(editor, ask()).tobytes(), exact)

    assert model.profile == PROFILES[name]
    assert (editor.profile, editor.making["weights"]) == (name, PROFILES[name].weights)
    assert apart == 0 if PROFILES[name].weights == "bf16" else 0 < apart < 8


def test_fewer_bits_are_fewer_bytes(loaded: Load) -> None:
    """And what is sensitive, and the first and the last block, are as they were."""
    sizes, kinds = {}, {}
    for name in WEIGHTS:
        blocks = loaded(tuning=Tuning(profile=name)).pipeline.transformer.transformer_blocks
        middle = blocks[1]
        sizes[name] = sum(one.numel() * one.element_size() for one in middle.state_dict().values() if one.dim() > 1)
        layers = (middle.attn.to_q, middle.txt_mlp.net[2], middle.img_mod[1], middle.img_mlp.net[2])
        kinds[name] = [type(layer.weight).__name__ for layer in layers]
        for block in (blocks[0], blocks[3]):
            assert {type(weight) for weight in block.parameters()} == {torch.nn.Parameter}

    assert kinds["bf16"] == ["Parameter"] * 4
    assert kinds["fp8"] == ["Float8Tensor", "Float8Tensor", "Int8Tensor", "Parameter"]
    assert kinds["int4"] == ["Params4bit", "Params4bit", "Int8Tensor", "Int8Tensor"]


def test_the_text_encoder_waits_outside(loaded: Load) -> None:
    """Its layers come and go by themselves: without the profile nothing is hooked."""
    waiting: dict[ProfileName, bool] = {"bf16": False, "bf16-offload": True, "int4-offload": True}
    for name, waits in waiting.items():
        layer = loaded(tuning=Tuning(profile=name)).pipeline.text_encoder.language_model.layers[0].self_attn.q_proj
        assert hasattr(layer, "_diffusers_hook") == waits


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_lightning_lora_is_fused_once(loaded: Load, distilling: LoraSource, weights: ProfileName) -> None:
    """The model is the one that has it switched on, up to its precision; and nothing of peft is left in it."""
    fast = replace(Tuning(PRESETS["fast-4"], profile=weights), lightning=distilling)
    model = loaded(tuning=fast)
    editor = Editor(model, timeout_s=60)
    editor.warm_up()
    fused = made(editor, ask(num_inference_steps=4, true_cfg_scale=1))
    switched = loaded(tuning=Tuning(), loras=[distilling])
    beside = Editor(switched, timeout_s=60)
    beside._scheduler = editor._scheduler
    laid = made(beside, with_style(ask(num_inference_steps=4, true_cfg_scale=1), 1.0)).tobytes()
    without = made(beside, ask(num_inference_steps=4, true_cfg_scale=1)).tobytes()

    assert distance(fused.tobytes(), laid) < distance(fused.tobytes(), without) / (1.5 if weights == "int4" else 3)
    assert re.fullmatch(rf"{distilling.source}@local-[0-9a-f]+/{distilling.weight_file}", model.lightning or "")
    assert editor.making["lightning"] == [model.lightning, None]
    assert not hasattr(model.pipeline.transformer, "peft_config")
    assert not any("lora" in name for name, _ in model.pipeline.transformer.named_modules())


def test_distilled_steps_are_those_of_the_lora(loaded: Load, distilling: LoraSource) -> None:
    """At every size the four sigmas are 1, 0.9, 0.75, 0.5: those of a shift of 3."""
    model = loaded(tuning=Tuning(PRESETS["fast-4"], lightning=distilling))
    editor = Editor(model, timeout_s=60)
    for canvas in (CANVAS, (512, 512)):
        edited(editor, ask(num_inference_steps=4, true_cfg_scale=1), canvas, [photo(*canvas)])
        assert editor._pipeline.scheduler.sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_a_lora_of_another_transformer_stops_the_worker(loaded: Load, tmp_path: Path, distilling: LoraSource) -> None:
    """By its shapes, or by what it lacks or has too much; in one sentence that names it."""
    weights = load_file(Path(distilling.source) / distilling.weight_file)
    wide = {name: torch.cat([one, one], dim=-1) if ".lora_down." in name else one for name, one in weights.items()}
    more = weights | {name.replace("blocks.1.", "blocks.9."): one.clone() for name, one in weights.items()}
    for number, wrong in enumerate((wide, more, {"lora.weight": torch.ones(2, 2)})):
        file = tmp_path / f"{number}-4steps.safetensors"
        save_file(wrong, file)
        with pytest.raises(LoadError, match=r"the LoRA lightning cannot be loaded: "):
            loaded(tuning=Tuning(PRESETS["fast-4"], lightning=source(file, "lightning")))


def test_skipped_steps_are_those_of_the_request_alone(loaded: Load) -> None:
    """Whatever was done before, in whatever order, with guidance and without, and after an edit that was cancelled."""
    model = loaded(tuning=BALANCED)
    editor = Editor(model, timeout_s=60)
    asked = [
        ask(num_inference_steps=STEPS, prompt="make it warm"),
        ask(num_inference_steps=STEPS, prompt="another one altogether", true_cfg_scale=1),
        ask(num_inference_steps=STEPS + 3, seed=5, scheduler="FlowMatchHeun"),
        ask(num_inference_steps=STEPS, seed=9, **MASK),
    ]
    skipped = []
    alone = [made(Editor(loaded(tuning=BALANCED), timeout_s=60), request).tobytes() for request in asked]
    for request, wanted in zip(asked, alone, strict=True):
        assert made(editor, request).tobytes() == wanted
        skipped.append(skipping.skipped(model.pipeline.transformer))
    for request, wanted in reversed(list(zip(asked, alone, strict=True))):
        cancel_in_the_middle(editor, asked[0])
        assert made(editor, request).tobytes() == wanted

    assert skipped[0] == 2 * skipped[1] > 0  # in two passes a step, and in one
    assert all(skipped)
    assert picture(loaded(tuning=Tuning()), num_inference_steps=STEPS) != alone[0]


def cancel_in_the_middle(editor: Editor, request: ImageRequest) -> None:
    cancelled = threading.Event()

    def told(done: int, _of: int) -> None:
        if done == STEPS // 2:
            cancelled.set()

    with pytest.raises(ModelError, match="cancelled"):
        edited(editor, request, CANVAS, [photo(*CANVAS)], cancelled=cancelled, told=told)


def test_presets_are_for_pictures_from_words_too(deep: Path, tmp_path: Path) -> None:
    """Schedule, LoRA, skipped steps and kernel are those of the preset."""
    words = tiny_model.make_t2i(tmp_path / "words")
    edit_model = tiny_model.make(tmp_path / "edit")
    own = source(tiny_model.make_lora(tmp_path / "own-4steps.safetensors", words, seed=3, style="lightning", alpha=1))
    its = source(tiny_model.make_lora(tmp_path / "its-4steps.safetensors", words, seed=4, style="lightning", alpha=1))
    request = ask_words(prompt="x", seed=1, num_inference_steps=4, true_cfg_scale=1)
    pictures = []
    for lightning in (own, its):
        tuning = Tuning(PRESETS["fast-4"], lightning=its, t2i_lightning=lightning, attention="flash")
        editor = Editor(load_tiny(edit_model, t2i=Origin(str(words), ""), tuning=tuning), timeout_s=60)
        pictures.append(edited(editor, request, CANVAS, []).tobytes())
        pipeline: Any = editor._t2i
        assert pipeline.scheduler.sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
        assert re.search(f"/{lightning.weight_file}$", editor.making["lightning"][1])
        ran = kernels.Seen(pipeline.transformer, functools.partial(edited, editor, request, CANVAS, []))
        ran.check("flash", compiled=False)
    assert pictures[0] != pictures[1]

    deep_words = shutil.copytree(words, tmp_path / "deep words")
    shutil.rmtree(deep_words / "transformer")
    shutil.copytree(deep / "transformer", deep_words / "transformer")
    model = load_tiny(edit_model, t2i=Origin(str(deep_words), ""), tuning=BALANCED)
    edited(Editor(model, timeout_s=60), ask_words(prompt="x", num_inference_steps=STEPS), CANVAS, [])
    assert model.t2i
    assert skipping.skipped(model.t2i.pipeline.transformer) > 0


def test_what_skipping_remembers_is_forgotten(loaded: Load) -> None:
    """With the picture: it is large. Also where memory has run out."""
    model = loaded(tuning=BALANCED)
    editor = Editor(model, timeout_s=60)
    transformer = model.pipeline.transformer

    def kept() -> list[Any]:
        manager, names = transformer._context_manager, transformer._context_names
        return [tensor for name in names for tensor in manager.get_context(name).buffers.values()]

    def out_of_memory(*_: Any) -> None:
        assert kept()
        raise torch.OutOfMemoryError

    made(editor, ask(num_inference_steps=STEPS))
    assert not kept()
    hook = model.pipeline.vae.decoder.register_forward_pre_hook(out_of_memory)
    with pytest.raises(ModelError, match="out of memory"):
        made(editor, ask(num_inference_steps=STEPS))
    hook.remove()
    assert not kept()


def test_a_distilled_schedule_is_the_same_for_every_model(deep: Path, tmp_path: Path, distilling: LoraSource) -> None:
    """Whatever its own says."""
    model = shutil.copytree(deep, tmp_path / "model")
    file = model / "scheduler" / "scheduler_config.json"
    strange = {"use_dynamic_shifting": False, "time_shift_type": "linear", "use_karras_sigmas": True, "shift": 2.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | strange))
    tuning = Tuning(PRESETS["fast-4"], lightning=distilling)
    editor = Editor(load_tiny(model, PLUS, tuning=tuning), timeout_s=60)
    made(editor, ask(num_inference_steps=4, true_cfg_scale=1))
    assert editor._pipeline.scheduler.sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_offered_loras_stay_with_their_requests_beside_a_fused_one(
    loaded: Load, deep: Path, distilling: LoraSource, tmp_path: Path
) -> None:
    """In every profile, in either order."""
    offered = source(tiny_model.make_lora(tmp_path / "style.safetensors", deep, seed=8))
    for weights in WEIGHTS:
        fast = Tuning(PRESETS["fast-4"], profile=weights, lightning=distilling)
        editor = Editor(loaded(tuning=fast, loras=[offered]), timeout_s=60)
        said: dict[str, Any] = {"num_inference_steps": 2, "true_cfg_scale": 1}
        asked = [ask(**said), with_style(ask(**said), 0.5), with_style(ask(**said), 1.0)]
        forth = [made(editor, one).tobytes() for one in asked]
        back = [made(editor, one).tobytes() for one in reversed(asked)]
        assert forth == back[::-1]
        assert len(set(forth)) == 3


@pytest.mark.parametrize("name", ["flash", "native"])
def test_the_kernel_of_attention_is_the_one_that_was_asked_for(loaded: Load, exact: bytes, name: AttentionName) -> None:
    """And was seen to run."""
    model = loaded(tuning=Tuning(attention=name))
    editor = Editor(model, timeout_s=60)
    editor.warm_up()

    assert model.attention == name
    assert distance(made(editor, ask()).tobytes(), exact) < 1


def test_a_kernel_that_did_not_run_is_found_out(loaded: Load) -> None:
    """Though the text encoder uses it; or one that a CPU does not have."""
    model = loaded(tuning=Tuning(attention="flash"))
    model.pipeline.transformer.set_attention_backend("_native_math")
    with pytest.raises(LoadError, match=r"^ATTENTION=flash was asked for, but what ran is _scaled_dot_product_.*math$"):
        Editor(model, timeout_s=60).warm_up()
    with pytest.raises(LoadError, match=r"^ATTENTION=cudnn cannot be computed on this cpu: choose another, or auto$"):
        loaded(tuning=Tuning(attention="cudnn"))


def test_what_was_not_compiled_is_found_out() -> None:
    """Told to be, and is not."""
    ran = kernels.Seen(torch.nn.Identity(), lambda: None)
    ran.graphs = 0
    with pytest.raises(LoadError, match=r"^COMPILE=1 was asked for, but nothing was compiled$"):
        ran.check("native", compiled=True)


def test_without_a_compiler_nothing_is_loaded(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reads what the image lacks."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LoadError, match=r"^COMPILE=1 needs a C compiler, and there is no c\+\+: build the image with"):
        loaded(tuning=Tuning(compile=True))


def test_real_positions_turn_as_complex_ones() -> None:
    """Of a batch, of any number of tokens."""
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.polar(torch.ones(7, 4), torch.arange(28.0).reshape(7, 4))
    wanted = torch.view_as_real(torch.view_as_complex(x.reshape(2, 7, 3, 4, 2)) * positions[:, None]).flatten(3)

    assert torch.allclose(turn(x, torch.view_as_real(positions)), wanted, rtol=0, atol=1e-6)
    assert turn(x.bfloat16(), torch.view_as_real(positions)).dtype == torch.bfloat16


def in_float32(model: Model) -> Model:
    """The same numbers with more room: what is left of a difference is the order of sums."""
    for part in (model.pipeline.transformer, model.pipeline.vae, model.pipeline.text_encoder):
        part.to(torch.float32)
    return model


def ours(model: Model, references: Sequence[Image.Image], **said: Any) -> torch.Tensor:
    """3 x height x width, as the pipeline makes it."""
    request = ask()
    ready = Editor(model, timeout_s=60).ready(request, references)
    with prepared(model.pipeline, ready):
        return call(model.pipeline, references, **said)


def call(pipeline: Any, references: Sequence[Image.Image], **said: Any) -> torch.Tensor:
    images: torch.Tensor = pipeline(
        image=list(references), prompt="make it warm", negative_prompt=" ", width=CANVAS[0], height=CANVAS[1],
        true_cfg_scale=4.0, num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="pt", **said,
    ).images  # fmt: skip
    return images[0]


def theirs(model: Model, folder: Path, references: Sequence[Image.Image]) -> torch.Tensor:
    """The library's, with its VAE for films."""
    own = plain(model.pipeline)
    own.vae = AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    with sizes_kept(own, references):
        return call(own, references)


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(),
        Tuning(attention="flash"),
        Tuning(profile="bf16-offload"),
        Tuning(compile=True),
    ],
    ids=lambda tuning: f"{tuning.profile} {tuning.attention} {tuning.compile}",
)
@pytest.mark.parametrize("which", ["2509", "2511"])
def test_exact_ways_make_the_pictures_of_the_library(calm: Path, tuning: Tuning, which: str) -> None:
    """In float32, to 1e-5; and what is shown counts, a hundred times more."""
    config = calm / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"zero_cond_t": which == "2511"}))
    references = [photo(*CANVAS), photo(224, 256, seed=2)]
    wanted = theirs(in_float32(load_tiny(calm, PLUS)), calm, references)
    model = in_float32(load_tiny(calm, PLUS, tuning=tuning))

    assert wanted.shape == (3, CANVAS[1], CANVAS[0])
    assert torch.allclose(ours(model, references), wanted, rtol=0, atol=1e-5)
    assert (ours(model, references[:1]) - wanted).abs().max() > 1e-3


def test_what_is_compiled_serves_every_size_and_is_kept(loaded: Load, tmp_path: Path) -> None:
    """Another canvas, another prompt, another number of pictures: nothing is compiled anew. Files are left behind."""
    model = loaded(tuning=Tuning(compile=True, compile_cache=tmp_path / "compiled"))
    editor = Editor(model, timeout_s=60)
    editor.warm_up()
    made(editor, ask())
    graphs = kernels.graphs()
    for canvas, prompt in (((512, 256), "x"), ((288, 304), "quite another thing than before"), (CANVAS, "make it red")):
        edited(editor, ask(prompt=prompt), canvas, [photo(*canvas), photo(*CANVAS)][: 1 + (canvas == CANVAS)])

    assert graphs > 0
    assert kernels.graphs() == graphs
    assert any((tmp_path / "compiled").rglob("*"))
