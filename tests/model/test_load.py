"""A folder → a pipeline that encodes what it is meant to encode."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from pydantic import SecretStr
from safetensors.torch import load_file, save_file

from local import tiny_model, worker
from local.edits import edited
from local.web import ImageHost, Reply
from qwen_worker import shards
from qwen_worker.build import build_editor
from qwen_worker.errors import ModelError
from qwen_worker.model.edit import Editor
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import MAX_SEEN_PIXELS, Model, give_image_positions, load
from qwen_worker.settings import Settings
from tests.model.conftest import load_tiny
from tests.model.test_edit import ask
from tests.pictures import photo


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A tiny model to break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_the_class_is_the_one_that_the_index_names(model: Model, plus_model: Model) -> None:
    """The wrong class makes edits that do nothing."""
    assert isinstance(model.pipeline, QwenImageEditPipeline)
    assert isinstance(plus_model.pipeline, QwenImageEditPlusPipeline)


def test_nothing_needs_torchvision(model: Model) -> None:
    """The video half of the processor is what would want it."""
    assert model.pipeline.processor.image_processor is not None
    assert not hasattr(model.pipeline.processor, "video_processor")


def test_every_weight_is_bfloat16(model: Model) -> None:
    """A part that is loaded without its dtype is twice as large and many times slower."""
    for part in (model.pipeline.transformer, model.pipeline.vae, model.pipeline.text_encoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}


def test_what_cannot_read_the_prompt_is_a_model_error(copy: Path) -> None:
    """It is not the request's fault, although the GPU was not asked."""
    settings = copy / "processor" / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "image_mean": [0.5]}))
    editor = Editor(load_tiny(copy), timeout_s=60)

    with pytest.raises(ModelError, match="the model failed"):
        edited(editor, ask(), (256, 256), [photo(256, 256)])


def test_nothing_else_is_loaded(copy: Path) -> None:
    """Only the class that was asked for; never code that a repository brings."""
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "SomethingElse"}))

    with pytest.raises(LoadError, match="names SomethingElse, not QwenImageEditPipeline"):
        load_tiny(copy)


def test_without_cuda_the_worker_does_not_start(tiny: Path) -> None:
    """A CPU would take an hour for each picture."""
    assert not torch.cuda.is_available()
    with pytest.raises(LoadError, match="needs a GPU"):
        load(str(tiny), "local", pipeline="QwenImageEditPipeline", token="", caches=(), allow_cpu=False)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "processor/preprocessor_config.json",
        "processor/tokenizer.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_missing_file_is_named(copy: Path, file: str) -> None:
    """As an error of loading, whatever the library raises."""
    (copy / file).unlink()

    with pytest.raises(LoadError):
        load_tiny(copy)


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("transformer", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_missing_weights_are_an_error(copy: Path, part: str, file: str) -> None:
    """The libraries fill them with random numbers and warn."""
    weights = load_file(copy / part / file)
    del weights[min(weights.keys() - {shards.UNUSED})]
    save_file(weights, copy / part / file, metadata={"format": "pt"})

    with pytest.raises(LoadError, match=f"{part} lacks 1 weights"):
        load_tiny(copy)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_half_a_file_is_an_error(copy: Path, part: str) -> None:
    """As a download that was cut leaves it."""
    (file,) = (copy / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(LoadError, match="cannot be loaded"):
        load_tiny(copy)


def without_a_shard(transformer: Path) -> None:
    min(transformer.glob("*.safetensors")).unlink()


def without_the_index(transformer: Path) -> None:
    next(transformer.glob("*.index.json")).unlink()


def with_an_index_of_something_else(transformer: Path) -> None:
    next(transformer.glob("*.index.json")).write_text("[]")


def with_one_shard_twice(transformer: Path) -> None:
    first, second = sorted(transformer.glob("*.safetensors"))
    shutil.copy(first, second)


def with_a_pointer_for_a_shard(transformer: Path) -> None:
    min(transformer.glob("*.safetensors")).write_text("version https://git-lfs.github.com/spec/v1\n")


def with_half_a_shard(transformer: Path) -> None:
    file = min(transformer.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        without_a_shard,
        without_the_index,
        with_an_index_of_something_else,
        with_one_shard_twice,
        with_a_pointer_for_a_shard,
        with_half_a_shard,
    ],
)
def test_a_damaged_set_of_files_is_an_error(model: Model, copy: Path, damage: Callable[[Path], None]) -> None:
    """Large networks come in several files and an index, and a download may have left any of them behind."""
    transformer = copy / "transformer"
    shutil.rmtree(transformer)
    model.pipeline.transformer.save_pretrained(transformer, max_shard_size="100KB")
    load_tiny(copy)
    damage(transformer)

    with pytest.raises(LoadError):
        load_tiny(copy)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ],
)
def test_a_pickle_is_not_opened(copy: Path, part: str, name: str) -> None:
    """A pickle runs code when it is read: not even one of the right weights is."""
    (weights,) = (copy / part).glob("*.safetensors")
    torch.save(load_file(weights), copy / part / name)
    weights.unlink()

    with pytest.raises(LoadError):
        load_tiny(copy)


def test_code_of_a_repository_is_not_run(copy: Path, tmp_path: Path) -> None:
    """Wherever a configuration names it, and whatever it says of trust."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\nclass Own: pass\n"
    named = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor"), "own.Own")
    classes = {**named, "AutoTokenizer": ["own.Own", "own.Own"]}
    own = {"auto_map": classes, "trust_remote_code": True, "custom_pipeline": "own"}
    for part in filter(Path.is_dir, [copy, *copy.iterdir()]):
        (part / "own.py").write_text(code)
        (part / "pipeline.py").write_text(code)
        for config in part.glob("*config.json"):
            config.write_text(json.dumps({**json.loads(config.read_text()), **own}))

    load_tiny(copy)
    assert not (tmp_path / "mark").exists()


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Told by its name and revision."""
    with pytest.raises(LoadError, match="someone/model at 0000"):
        load("someone/model", "0" * 40, pipeline="QwenImageEditPipeline", token="", caches=[tmp_path], allow_cpu=True)


DOWNLOAD = """
from qwen_worker.build import build_editor
from qwen_worker.errors import ModelError
from qwen_worker.model.edit import Editor
from qwen_worker.model.hub import LoadError
from qwen_worker.settings import load_settings
try:
    build_editor(load_settings())
except LoadError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_download_that_breaks_is_an_error(host: ImageHost, tmp_path: Path) -> None:
    """Whatever the Hub's client raises: it is refused, or what comes cannot be unpacked. The token is sent."""
    bucket = {"S3_ENDPOINT": "s3", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b", "S3_BUCKET": "pictures"}
    model = {
        "MODEL_ID": "someone/model",
        "MODEL_CLASS": "QwenImageEditPipeline",
        "MODEL_REVISION": "0" * 40,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(tmp_path),
    }
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": host.url("")}
    variables = worker.environment(Path(), bucket, model, hub)

    def download() -> str:
        done = subprocess.run(
            [sys.executable, "-c", DOWNLOAD], env=variables, capture_output=True, text=True, check=True, timeout=120
        )
        return str(done.stdout)

    refused = download()
    host.replies = dict.fromkeys(host.requests, Reply(b"nothing packed", headers={"Content-Encoding": "gzip"}))
    broken = download()

    assert "Bearer hf_test" in {headers["Authorization"] for headers in host.headers}
    assert refused.startswith("someone/model at 0000")
    assert broken.startswith("someone/model at 0000")
    assert broken.strip().endswith("DecodingError")


def test_a_downloaded_model_is_found_where_hf_home_says(tiny: Path, tmp_path: Path) -> None:
    """In the layout of the Hub's cache, which is that of RunPod's cached models; nothing is asked of the Hub."""
    snapshot = tmp_path / "hub" / "models--someone--model" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny, snapshot)
    settings = Settings(
        _env_file=None,
        s3_endpoint="s3",
        s3_access_key=SecretStr("a"),
        s3_secret_key=SecretStr("b"),
        s3_bucket="pictures",
        model_id="someone/model",
        model_class="QwenImageEditPipeline",
        model_revision="0" * 40,
        hf_home=tmp_path,
        allow_cpu=True,
        warmup=False,
    )
    editor = build_editor(settings)

    assert (editor.model_id, editor.model_revision) == ("someone/model", "0" * 40)


def test_the_text_encoder_sees_no_more_than_it_has_positions_for(copy: Path, model: Model) -> None:
    """A processor's own limit may be far higher, as the published ones are; a lower one is kept."""
    config = copy / "processor" / "preprocessor_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "size": {"shortest_edge": 3136, "longest_edge": 12_845_056}}))
    processor = load_tiny(copy).pipeline.processor

    assert processor.image_processor.size.longest_edge == MAX_SEEN_PIXELS
    assert processor.image_tokens((2048, 2048)) < 1500
    assert model.pipeline.processor.image_processor.size.longest_edge == 224 * 224


@pytest.mark.parametrize("which", ["model", "plus_model"])
def test_the_text_encoder_gets_the_positions_of_the_image_tokens(which: str, request: pytest.FixtureRequest) -> None:
    """What the pipeline encodes equals what the encoder makes of everything that the processor made."""
    pipeline: Any = request.getfixturevalue(which).pipeline
    picture = photo(384, 288)
    prompt = "make it warm"
    text = pipeline.prompt_template_encode.format(
        prompt if which == "model" else f"Picture 1: <|vision_start|><|image_pad|><|vision_end|>{prompt}"
    )
    inputs = pipeline.processor(text=[text], images=[picture], padding=True, return_tensors="pt")
    assert "mm_token_type_ids" in inputs
    with torch.no_grad():
        intended = pipeline.text_encoder(**inputs, output_hidden_states=True).hidden_states[-1][0]
        encoded, _ = pipeline.encode_prompt(image=[picture], prompt=prompt)

    start = pipeline.prompt_template_encode_start_idx
    assert torch.equal(encoded[0], intended[start:])


def test_without_the_hook_the_positions_are_lost(tiny: Path) -> None:
    """Else the hook would be dead weight: diffusers would have mended it."""
    pipeline: Any = load_tiny(tiny).pipeline
    picture = photo(384, 288)
    with torch.no_grad():
        mended, _ = pipeline.encode_prompt(image=[picture], prompt="make it warm")
        pipeline.text_encoder._forward_pre_hooks.clear()
        broken, _ = pipeline.encode_prompt(image=[picture], prompt="make it warm")

    assert not torch.equal(mended, broken)


def test_the_hook_marks_image_tokens_only_where_there_is_a_picture(model: Model) -> None:
    """A text alone is left as it is, and what a caller says himself stays."""
    encoder = model.pipeline.text_encoder
    ids = torch.tensor([[1, encoder.config.image_token_id, 2]])

    _, named = give_image_positions(encoder, (), {"input_ids": ids, "pixel_values": torch.zeros(1)})
    assert named["mm_token_type_ids"].tolist() == [[0, 1, 0]]

    _, named = give_image_positions(encoder, (), {"input_ids": ids, "pixel_values": None})
    assert "mm_token_type_ids" not in named


def test_the_system_prompt_is_what_the_pipelines_drop(model: Model, plus_model: Model) -> None:
    """The tiny tokenizer must cut where Qwen's does, else the tests look at another text than production."""
    for pipeline, rest in (
        (model.pipeline, "<|vision_start|><|image_pad|><|vision_end|>words<|im_end|>\n<|im_start|>assistant\n"),
        (plus_model.pipeline, "words<|im_end|>\n<|im_start|>assistant\n"),
    ):
        ids = pipeline.tokenizer(pipeline.prompt_template_encode.format("words")).input_ids

        assert pipeline.tokenizer.decode(ids[pipeline.prompt_template_encode_start_idx :]) == rest


def test_a_tiny_model_is_small_and_the_same_each_time(tiny: Path, tmp_path: Path) -> None:
    """Under a megabyte, to the byte."""
    again = tiny_model.make(tmp_path / "again")
    files = sorted(path.relative_to(tiny) for path in tiny.rglob("*") if path.is_file())

    assert sum((tiny / file).stat().st_size for file in files) < 1_000_000
    assert all((tiny / file).read_bytes() == (again / file).read_bytes() for file in files)
