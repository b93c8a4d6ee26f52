"""Pictures from words alone, on the text encoder and the VAE of the edit model."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file

from local.edits import edited
from qwen_worker import schema
from qwen_worker.errors import BadInput, ModelError
from qwen_worker.model.edit import TEXT_TO_IMAGE_TOKENS, Editor
from qwen_worker.model.hub import LoadError, local_revision
from qwen_worker.model.load import Model, load
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import SchedulerName, Size
from qwen_worker.snapshots import Origin
from tests.model.conftest import load_tiny
from tests.model.test_edit import ask, edit

pytestmark = pytest.mark.slow

SCHEDULERS = get_args(SchedulerName)


def load_both(tiny: Path, tiny_t2i: Path) -> Model:
    return load_tiny(tiny, t2i=Origin(str(tiny_t2i), ""))


@pytest.fixture(scope="module")
def both(tiny: Path, tiny_t2i: Path) -> Model:
    """An edit model and a text-to-image model. Tests leave them as they found them."""
    return load_both(tiny, tiny_t2i)


@pytest.fixture(scope="module")
def two(both: Model) -> Editor:
    """An editor over both."""
    return Editor(both, timeout_s=60)


@pytest.fixture
def copy(tiny_t2i: Path, tmp_path: Path) -> Path:
    """A tiny text-to-image model to break."""
    return Path(shutil.copytree(tiny_t2i, tmp_path / "text-to-image"))


def ask_words(**fields: Any) -> ImageRequest:
    said = {"operation": "generate", "prompt": "a red barn", "seed": 1, "num_inference_steps": 3}
    rules = schema.Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=1)
    return parse_image(
        {**said, **fields},
        job_id="job",
        rules=schema.Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=1, generate=rules),
    )


def generate(editor: Editor, canvas: Size = (128, 128), **fields: Any) -> bytes:
    return edited(editor, ask_words(**fields), canvas, []).tobytes()


def t2i(model: Model) -> Any:
    assert model.t2i
    return model.t2i.pipeline


def test_both_pipelines_hold_the_same_parts(two: Editor, both: Model) -> None:
    """A second text encoder would take 17 GB; the transformers are each its own."""
    pipeline = t2i(both)

    assert isinstance(pipeline, QwenImagePipeline)
    for part in ("vae", "text_encoder", "tokenizer"):
        assert getattr(two._t2i, part) is getattr(two._pipeline, part)
    assert pipeline.transformer is not both.pipeline.transformer
    assert {weight.dtype for weight in pipeline.transformer.parameters()} == {torch.bfloat16}
    assert pipeline.scheduler is not both.pipeline.scheduler


def test_the_tiny_models_hold_the_same_text_encoder_and_vae(tiny: Path, tiny_t2i: Path) -> None:
    """As the published ones do, or sharing them would make another picture."""
    for file in ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        assert (tiny / file).read_bytes() == (tiny_t2i / file).read_bytes()
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (tiny / file).read_bytes() != (tiny_t2i / file).read_bytes()


def test_the_system_prompt_is_what_the_pipeline_drops(both: Model) -> None:
    """The tiny tokenizer must cut where Qwen's does."""
    pipeline = t2i(both)
    ids = pipeline.tokenizer(pipeline.prompt_template_encode.format("words")).input_ids

    assert pipeline.prompt_template_encode_start_idx == 34
    assert pipeline.tokenizer.decode(ids[34:]) == "words<|im_end|>\n<|im_start|>assistant\n"


def test_whatever_is_asked_changes_the_picture(two: Editor) -> None:
    """And the same request makes the same bytes."""
    base = generate(two)
    others = {
        "prompt": generate(two, prompt="a blue barn"),
        "negative_prompt": generate(two, negative_prompt="blurry"),
        "true_cfg_scale": generate(two, true_cfg_scale=7.0),
        "no guidance": generate(two, true_cfg_scale=1.0),
        "seed": generate(two, seed=2),
        "num_inference_steps": generate(two, num_inference_steps=4),
        "canvas": generate(two, canvas=(256, 64)),
        **{name: generate(two, scheduler=name) for name in SCHEDULERS[1:]},
    }

    assert generate(two) == base
    assert len({base, *others.values()}) == 1 + len(others)


@pytest.mark.parametrize("canvas", [(128, 256), (224, 96)])
def test_the_size_is_the_canvas(two: Editor, canvas: Size) -> None:
    """On the same grid as an edit."""
    picture = edited(two, ask_words(num_inference_steps=2), canvas, [])

    assert (picture.size, picture.mode) == (canvas, "RGB")


def test_it_is_the_picture_that_the_whole_repository_makes(two: Editor, tiny_t2i: Path) -> None:
    """To the byte: diffusers loads its parts, encodes the same prompts and walks the same steps.

    Of the VAE for films tests/model/test_computed.py says that it makes the same, up to the order of sums.
    """
    whole = QwenImagePipeline.from_pretrained(tiny_t2i, dtype=torch.bfloat16, use_safetensors=True)
    whole.vae = two._t2i.vae  # type: ignore[union-attr]
    whole.set_progress_bar_config(disable=True)
    request = ask_words(negative_prompt="blurry")
    with torch.no_grad():
        intended, _ = whole.encode_prompt(request.prompt)
        encoded, _ = two._t2i.encode_prompt(request.prompt)  # type: ignore[union-attr]
    picture = whole(
        prompt=request.prompt,
        negative_prompt="blurry",
        true_cfg_scale=request.true_cfg_scale,
        num_inference_steps=request.num_inference_steps,
        width=128,
        height=128,
        generator=torch.Generator().manual_seed(request.seed),
    ).images[0]

    assert torch.equal(encoded, intended)
    assert generate(two, negative_prompt="blurry") == picture.tobytes()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_samplers_walk_the_schedule_of_its_own_scheduler(
    two: Editor, tiny: Path, copy: Path, name: SchedulerName
) -> None:
    """Not that of the edit model, which keeps its own."""
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_shift": 3.0}))
    other = Editor(load_both(tiny, copy), timeout_s=60)

    assert generate(other, scheduler=name) != generate(two, scheduler=name)
    assert edit(other, scheduler=name) == edit(two, scheduler=name)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_neither_model_leaves_anything_to_the_other(two: Editor, name: SchedulerName) -> None:
    """Whatever is done in between."""
    edited, made = edit(two), generate(two)
    generate(two, scheduler=name)
    assert edit(two) == edited
    edit(two, scheduler=name)
    assert generate(two) == made


def test_a_worker_with_a_second_model_edits_as_one_without(two: Editor, tiny: Path) -> None:
    """To the byte."""
    assert edit(two) == edit(Editor(load_tiny(tiny), timeout_s=60))


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_is_refused_exactly_where_it_would_be_cut(two: Editor, both: Model, field: str) -> None:
    """The pipeline would leave the rest out, and say nothing; the last that fits is encoded whole."""
    room = two._spare_tokens("")
    word = " the"  # of the system prompt: one token
    fits = ask_words(num_inference_steps=2).model_copy(update={field: word * room})
    too_long = fits.model_copy(update={field: word * (room + 1)})
    lengths: list[int] = []
    hook = t2i(both).transformer.register_forward_pre_hook(
        lambda _module, _args, named: lengths.append(named["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    try:
        two.check(fits, (64, 64), [])
        for request in (fits, too_long):
            edited(two, request, (64, 64), [])
    finally:
        hook.remove()
    with pytest.raises(BadInput, match=f"{field}: is 1 tokens too long for the model: shorten it"):
        two.check(too_long, (64, 64), [])

    assert max(lengths) == TEXT_TO_IMAGE_TOKENS
    assert lengths[:4] == lengths[4:]


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_control_token_in_a_prompt_is_refused(two: Editor, field: str) -> None:
    """The tokenizer would obey it."""
    with pytest.raises(BadInput, match=f"{field}: holds"):
        two.check(ask_words(**{field: "a <|im_end|> barn"}), (64, 64), [])


def test_it_is_told_which_model_made_a_picture(two: Editor, both: Model, tiny: Path, tiny_t2i: Path) -> None:
    """By its id and revision."""
    assert two.made_by(ask()) == (str(tiny), both.revision)
    assert two.made_by(ask_words()) == (str(tiny_t2i), local_revision(tiny_t2i))
    assert two.made_by(ask())[1] != two.made_by(ask_words())[1]


def test_broken_weights_make_no_picture(two: Editor, both: Model) -> None:
    """The checks of what comes out are those of an edit."""
    weight = next(t2i(both).transformer.parameters())
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="not finite"):
            generate(two)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_time_runs_out_between_steps(both: Model) -> None:
    """As of an edit."""
    with pytest.raises(ModelError, match="longer than 0 s") as caught:
        generate(Editor(both, timeout_s=0))

    assert caught.value.details["steps_done"] == 1


def test_each_pass_is_told(two: Editor) -> None:
    """As of an edit."""
    told: list[tuple[int, int]] = []
    edited(two, ask_words(), (64, 64), [], told=lambda done, of: told.append((done, of)))

    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_warm_up_makes_a_picture_too(two: Editor, both: Model) -> None:
    """With both passes of guidance, by each model."""
    passes: list[Any] = []
    parts = (both.pipeline.transformer, t2i(both).transformer)
    hooks = [part.register_forward_pre_hook(lambda module, *_: passes.append(module)) for part in parts]
    two.warm_up()
    for hook in hooks:
        hook.remove()

    assert passes == [parts[0]] * 4 + [parts[1]] * 4


@pytest.mark.parametrize("gone", ["text_encoder", "vae", "tokenizer"])
def test_nothing_of_the_shared_parts_is_read(tiny: Path, copy: Path, gone: str) -> None:
    """They need not be there: they are not downloaded."""
    shutil.rmtree(copy / gone)

    assert load_both(tiny, copy).t2i


def test_another_class_is_not_loaded(tiny: Path) -> None:
    """An edit model is no text-to-image model."""
    with pytest.raises(LoadError, match="names QwenImageEditPipeline, not QwenImagePipeline"):
        load_both(tiny, tiny)


def test_missing_weights_are_an_error(tiny: Path, copy: Path) -> None:
    """The library fills them with random numbers and warns."""
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file, metadata={"format": "pt"})

    with pytest.raises(LoadError, match="transformer lacks 1 weights"):
        load_both(tiny, copy)


@pytest.mark.parametrize("file", ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"])
def test_a_missing_file_is_an_error(tiny: Path, copy: Path, file: str) -> None:
    """As an error of loading, whatever the library raises."""
    (copy / file).unlink()

    with pytest.raises(LoadError):
        load_both(tiny, copy)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"joint_attention_dim": 48}, "whose text encoder has a width of 32: it wants 48"),
        ({"in_channels": 32, "out_channels": 8}, "whose VAE has as many channels as 16: it wants 8"),
    ],
)
def test_a_transformer_of_other_parts_is_an_error(tiny: Path, copy: Path, other: dict[str, int], said: str) -> None:
    """Before the first job fails by it."""
    config = json.loads((copy / "transformer" / "config.json").read_text())
    QwenImageTransformer2DModel.from_config({**config, **other}).to(torch.bfloat16).save_pretrained(
        copy / "transformer"
    )

    with pytest.raises(LoadError, match=said):
        load_both(tiny, copy)


def test_a_model_that_is_not_there_is_an_error(tiny: Path, tmp_path: Path) -> None:
    """Told by its name and revision."""
    with pytest.raises(LoadError, match="someone/words at 0000"):
        load(
            str(tiny),
            "",
            pipeline="QwenImageEditPipeline",
            token="",
            caches=[tmp_path],
            allow_cpu=True,
            t2i=Origin("someone/words", "0" * 40),
        )
