"""LoRAs: each lies beside the transformer's weights, and is on for the requests that name it."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load, save_file

from local import tiny_model
from local.tiny_model import LORA_RANK
from qwen_worker import schema
from qwen_worker.errors import ModelError
from qwen_worker.family import LoraSource
from qwen_worker.model.edit import Editor
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import Model
from qwen_worker.request import ImageRequest, parse_image
from tests.model.conftest import load_tiny
from tests.model.test_edit import before_the_transformer, edit, made
from tests.model.test_pipelines import mask_of
from tests.pictures import photo

pytestmark = pytest.mark.slow

#: offered by the workers of this file: name → how its file is made
OFFERED: dict[str, dict[str, Any]] = {
    "warm": {"seed": 1},
    "cold": {"seed": 2},
    "warm-lightning": {"seed": 1, "style": "lightning", "alpha": LORA_RANK},
    "warm-nameless-lightning": {"seed": 1, "style": "lightning"},
    "warm-twice": {"seed": 1, "alpha": 2 * LORA_RANK},
    "warm-twice-lightning": {"seed": 1, "style": "lightning", "alpha": 2 * LORA_RANK},
    "keys": {"seed": 3},  # names that torch and peft use themselves
    "lora_A": {"seed": 4},
    "attn": {"seed": 5},
}


def source(file: Path, name: str = "style", **fields: Any) -> LoraSource:
    return LoraSource(name=name, source=str(file.parent), weight_file=file.name, **fields)


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of all that is offered."""
    folder = tmp_path_factory.mktemp("loras")
    for name, how in OFFERED.items():
        tiny_model.make_lora(folder / f"{name}.safetensors", tiny, **how)
    return folder


@pytest.fixture(scope="module")
def styled(tiny: Path, folder: Path) -> Model:
    """The tiny Edit model with LoRAs. Tests leave it as they found it."""
    return load_tiny(tiny, loras=[source(folder / f"{name}.safetensors", name) for name in OFFERED])


@pytest.fixture(scope="module")
def stylist(styled: Model) -> Editor:
    """An editor over it."""
    return Editor(styled, timeout_s=60)


@pytest.fixture(scope="module")
def plain(tiny: Path) -> bytes:
    """What a worker without LoRAs makes."""
    return edit(Editor(load_tiny(tiny), timeout_s=60))


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA to break."""
    return tiny_model.make_lora(tmp_path / "style.safetensors", tiny)


def ask_style(lora: dict[str, float], **fields: Any) -> ImageRequest:
    said = {"image_url": "https://example.com/a", "prompt": "make it warm", "seed": 1, "num_inference_steps": 3}
    rules = schema.Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=3, loras=dict.fromkeys(OFFERED, ""))
    return parse_image({**said, "lora": lora, **fields}, job_id="job", rules=rules)


def in_style(editor: Editor, lora: dict[str, float], **fields: Any) -> bytes:
    return made(editor, ask_style(lora, **fields)).tobytes()


def layers(model: Model) -> list[Any]:
    return [module for module in model.pipeline.transformer.modules() if isinstance(module, LoraLayer)]


def test_without_a_name_the_edit_is_that_of_a_worker_without_loras(stylist: Editor, plain: bytes) -> None:
    """To the byte: also where several are offered."""
    assert edit(stylist) == plain


@pytest.mark.parametrize("name", OFFERED)
def test_what_one_request_switches_on_the_next_never_sees(stylist: Editor, plain: bytes, name: str) -> None:
    """Each of them changes the picture, the same each time, and nothing stays."""
    first = in_style(stylist, {name: 1.0})
    assert edit(stylist) == plain

    assert first != plain
    assert in_style(stylist, {name: 1.0}) == first


def test_only_those_named_are_on(stylist: Editor) -> None:
    """Each alone, both together, in either order, and whatever was on before."""
    warm, cold = in_style(stylist, {"warm": 1.0}), in_style(stylist, {"cold": 1.0})
    both = in_style(stylist, {"warm": 1.0, "cold": 1.0})

    assert len({warm, cold, both}) == 3
    assert in_style(stylist, {"cold": 1.0, "warm": 1.0}) == both
    assert in_style(stylist, {"warm": 1.0}) == warm
    assert in_style(stylist, {"cold": 1.0}) == cold


def test_the_scale_matters_and_is_forgotten(stylist: Editor) -> None:
    """Each of two has its own; a scale is not multiplied by the one before."""
    once = in_style(stylist, {"warm": 1.0})
    scales = [0.5, 1.5, 2.0]
    others = [in_style(stylist, {"warm": scale}) for scale in scales]
    mixed = [in_style(stylist, {"warm": one, "cold": other}) for one, other in ((0.5, 1.5), (1.5, 0.5))]

    assert len({once, *others, *mixed}) == 6
    assert in_style(stylist, {"warm": 1.0}) == once


def test_the_styles_of_names_say_the_same(stylist: Editor) -> None:
    """The same weights by peft's names and by those of Lightning make the same bytes."""
    expected = in_style(stylist, {"warm": 1.0})

    assert in_style(stylist, {"warm-lightning": 1.0}) == expected
    assert in_style(stylist, {"warm-nameless-lightning": 1.0}) == expected


def test_a_files_own_strength_is_heeded(stylist: Editor) -> None:
    """An alpha of twice the rank is a scale of two, in the header as beside the weights."""
    expected = in_style(stylist, {"warm": 2.0})

    assert in_style(stylist, {"warm-twice": 1.0}) == expected
    assert in_style(stylist, {"warm-twice-lightning": 1.0}) == expected


def test_a_masked_edit_uses_them_too(stylist: Editor) -> None:
    """Both pipelines share the transformer."""
    fields: dict[str, Any] = {"mask_url": "https://example.com/mask"}
    mask = mask_of((256, 256), (64, 64, 192, 192))

    def masked(lora: dict[str, float]) -> bytes:
        return made(stylist, ask_style(lora, **fields), photo(256, 256), mask=mask).tobytes()

    before = masked({})
    assert masked({"warm": 1.0}) != before
    assert masked({}) == before


def fails(_cancelled: threading.Event) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def interrupts(_cancelled: threading.Event) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("act", "raised"),
    [(fails, ModelError), (threading.Event.set, ModelError), (interrupts, KeyboardInterrupt)],
    ids=["a failure", "a cancel", "an interrupt"],
)
def test_after_a_request_that_fails_all_are_off(
    stylist: Editor, styled: Model, plain: bytes, act: Callable[[threading.Event], None], raised: type[BaseException]
) -> None:
    """In the middle of its edit, whatever ends it."""
    cancelled = threading.Event()
    on: list[bool] = []

    def in_the_middle() -> None:
        on.append(not any(layer.disable_adapters for layer in layers(styled)))
        if len(on) == 3:
            act(cancelled)

    with before_the_transformer(styled, in_the_middle), pytest.raises(raised):
        made(stylist, ask_style({"warm": 1.0}, num_inference_steps=10), cancelled=cancelled)

    assert all(on)
    assert all(layer.disable_adapters for layer in layers(styled))
    assert edit(stylist) == plain


def test_they_lie_where_the_model_lies_in_its_precision(styled: Model, tiny: Path, tmp_path: Path) -> None:
    """A file in float32 too; nothing is fused."""
    file = tiny_model.make_lora(tmp_path / "style.safetensors", tiny)
    save_file({name: tensor.float() for name, tensor in load(file.read_bytes()).items()}, file)
    model = load_tiny(tiny, loras=[source(file)])
    for one in (styled, model):
        transformer = one.pipeline.transformer
        found = {(weight.dtype, weight.device) for layer in layers(one) for weight in layer.parameters()}

        assert found == {(torch.bfloat16, transformer.device)}
        assert not any(layer.merged for layer in layers(one))
    assert len(layers(styled)) == 6


def test_it_is_told_what_is_offered(styled: Model, stylist: Editor, folder: Path) -> None:
    """Trigger words, and what each file is."""
    told = styled.loras["warm"]

    assert list(styled.loras) == list(OFFERED)
    assert told.trigger_word == ""
    assert told.origin.startswith(f"{folder}@local-")
    assert told.origin.endswith("/warm.safetensors")
    assert stylist.loras["warm"] == told.origin


def test_a_changed_file_is_another_lora(tiny: Path, file: Path) -> None:
    """So that no stored result of the one is taken for the other's."""
    before = load_tiny(tiny, loras=[source(file, trigger_word="sketch")]).loras["style"]
    tiny_model.make_lora(file, tiny, seed=9)
    after = load_tiny(tiny, loras=[source(file, trigger_word="sketch")]).loras["style"]

    assert before.trigger_word == after.trigger_word == "sketch"
    assert before.origin != after.origin


def test_a_file_that_changes_later_changes_nothing(tiny: Path, file: Path) -> None:
    """What is loaded is a copy, not a view of the file."""
    editor = Editor(load_tiny(tiny, loras=[source(file, "warm")]), timeout_s=60)
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    after = in_style(editor, {"warm": 1.0})
    tiny_model.make_lora(file, tiny)

    assert after == in_style(Editor(load_tiny(tiny, loras=[source(file, "warm")]), timeout_s=60), {"warm": 1.0})


def test_qwen_image_21_takes_them(tiny_21: Path, tmp_path: Path) -> None:
    """Its transformer has layers of the same names."""
    file = tiny_model.make_lora(tmp_path / "style.safetensors", tiny_21)
    editor = Editor(load_tiny(tiny_21, "QwenImage21Pipeline", loras=[source(file, "warm")]), timeout_s=60)
    before = edit(Editor(load_tiny(tiny_21, "QwenImage21Pipeline"), timeout_s=60))

    assert edit(editor) == before
    assert in_style(editor, {"warm": 1.0}) != before
    assert edit(editor) == before


def test_a_downloaded_lora_is_found_in_the_cache(tiny: Path, file: Path, tmp_path: Path) -> None:
    """In the layout of the Hub's; nothing is asked of the Hub."""
    snapshot = tmp_path / "models--someone--style" / "snapshots" / ("0" * 40) / "in"
    snapshot.mkdir(parents=True)
    shutil.copy(file, snapshot)
    lora = LoraSource(name="style", source="someone/style", revision="0" * 40, weight_file=f"in/{file.name}")
    model = load_tiny(tiny, loras=[lora], caches=[tmp_path])

    assert model.loras["style"].origin == f"someone/style@{'0' * 40}/in/style.safetensors"


def refused(tiny: Path, file: Path) -> str:
    with pytest.raises(LoadError, match="the LoRA style cannot be loaded: ") as caught:
        load_tiny(tiny, loras=[source(file)])
    return str(caught.value)


def test_a_missing_file_is_an_error(tiny: Path, tmp_path: Path) -> None:
    """In a folder, and on the Hub."""
    assert "there is no file style.safetensors" in refused(tiny, tmp_path / "style.safetensors")

    lora = LoraSource(name="style", source="someone/style", revision="0" * 40, weight_file="a.safetensors")
    with pytest.raises(LoadError, match="the LoRA style cannot be loaded: someone/style at 0000"):
        load_tiny(tiny, loras=[lora], caches=[tmp_path])


@pytest.mark.parametrize("share", [0, 0.001, 0.5])
def test_half_a_file_is_an_error(tiny: Path, file: Path, share: float) -> None:
    """As a copy that was cut leaves it."""
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    refused(tiny, file)


def test_a_pickle_is_not_opened(tiny: Path, file: Path) -> None:
    """Whatever its name: a pickle runs code when it is read."""
    torch.save(load(file.read_bytes()), file)

    refused(tiny, file)


def with_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    save_file(
        {name: tensor.contiguous() for name, tensor in change(load(file.read_bytes())).items()}, file, metadata=header
    )


def first(tensors: dict[str, torch.Tensor], end: str) -> str:
    return min(name for name in tensors if name.endswith(end))


FIRST = "transformer_blocks.0.attn.to_out.0"
BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "empty": (lambda _: {}, "of its 0 tensors only 0"),
    "another model's names": (
        lambda said: {name.replace("transformer_blocks", "double_blocks"): one for name, one in said.items()},
        "",
    ),
    "one name without a place": (
        lambda said: {name.replace("blocks.1.attn.to_q", "blocks.9.attn.to_q"): one for name, one in said.items()},
        "2 of its 12 weights have no place in the transformer: transformer_blocks.9.attn.to_q.lora_A.weight",
    ),
    "a text encoder's beside": (
        lambda said: {**said, "text_encoder.layers.0.q.lora_A.weight": torch.zeros(4, 32)},
        "1 of its 13 weights have no place in the transformer: text_encoder",
    ),
    "a tensor of another kind beside": (
        lambda said: {**said, "transformer.transformer_blocks.0.attn.to_q.diff": torch.zeros(32, 32)},
        "1 of its 13 weights have no place",
    ),
    "weights of DoRA": (
        lambda said: {**said, f"transformer.{FIRST}.dora_scale": torch.zeros(32)},
        "of its 13 tensors only 12 are weights of a LoRA",
    ),
    "half a pair": (
        lambda said: {name: one for name, one in said.items() if name != first(said, "lora_B.weight")},
        "",
    ),
    "another half of a pair": (
        lambda said: {name: one for name, one in said.items() if name != first(said, "lora_A.weight")},
        "it lacks 1 weights, the first is transformer_blocks.0.attn.to_out.0.lora_A.weight",
    ),
    "a layer of another width": (
        lambda said: {
            name: torch.zeros(4, 48) if name == first(said, "lora_A.weight") else one for name, one in said.items()
        },
        "size mismatch",
    ),
    "two ranks in a pair": (
        lambda said: {
            name: torch.zeros(2, 32) if name == first(said, "lora_A.weight") else one for name, one in said.items()
        },
        "size mismatch",
    ),
    "a layer that takes none": (
        lambda said: {
            **said,
            "transformer.transformer_blocks.0.attn.norm_q.lora_A.weight": torch.zeros(4, 16),
            "transformer.transformer_blocks.0.attn.norm_q.lora_B.weight": torch.zeros(16, 4),
        },
        "",
    ),
    "numbers that are none": (
        lambda said: {name: one / 0 if name == first(said, "lora_B.weight") else one for name, one in said.items()},
        "it holds numbers that are not finite",
    ),
    "a product of another kind": (
        lambda said: {name.replace("lora_A.weight", "lokr_w1").replace("lora_B.weight", "lokr_w2"): one
                      for name, one in said.items()},
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_lora_that_does_not_fit_is_an_error(tiny: Path, file: Path, what: str) -> None:
    """It is named, whether diffusers and peft raise, warn, or say nothing."""
    change, said = BROKEN[what]
    with_tensors(file, change)

    assert said in refused(tiny, file)


@pytest.mark.parametrize("gone", ["lora_up.weight", "lora_down.weight"])
def test_half_a_pair_of_lightning_is_an_error(tiny: Path, tmp_path: Path, gone: str) -> None:
    """As of peft."""
    file = tiny_model.make_lora(tmp_path / "style.safetensors", tiny, style="lightning", alpha=4)
    with_tensors(file, lambda said: {name: one for name, one in said.items() if name != first(said, gone)})

    refused(tiny, file)


@pytest.mark.parametrize(
    "header", ["[", "[1]", json.dumps({"transformer.r": 7}), json.dumps({"transformer.r": "many"})]
)
def test_a_header_that_says_nonsense_is_an_error(tiny: Path, file: Path, header: str) -> None:
    """Of the strength of its weights."""
    save_file(load(file.read_bytes()), file, metadata={LORA_ADAPTER_METADATA_KEY: header})

    refused(tiny, file)


def test_a_header_changes_no_weight_of_the_model(tiny: Path, file: Path, plain: bytes) -> None:
    """Settings of training can: how weights begin is one of them."""
    header = {
        "transformer.r": LORA_RANK,
        "transformer.lora_alpha": LORA_RANK,
        "transformer.init_lora_weights": "pissa",
        "transformer.modules_to_save": ["proj_out"],
        "transformer.bias": "all",
        "transformer.target_modules": ["to_q", "to_k"],
    }
    bare = Editor(load_tiny(tiny, loras=[source(file, "warm")]), timeout_s=60)
    save_file(load(file.read_bytes()), file, metadata={LORA_ADAPTER_METADATA_KEY: json.dumps(header)})
    editor = Editor(load_tiny(tiny, loras=[source(file, "warm")]), timeout_s=60)

    assert edit(editor) == plain
    assert in_style(editor, {"warm": 1.0}) == in_style(bare, {"warm": 1.0}) != plain


def test_a_tiny_lora_is_the_same_each_time(tiny: Path, file: Path, tmp_path: Path) -> None:
    """To the byte; and another seed makes another."""
    again, other = (tiny_model.make_lora(tmp_path / f"{seed}.safetensors", tiny, seed=seed) for seed in (0, 1))

    assert again.read_bytes() == file.read_bytes() != other.read_bytes()
