"""What a preset asks of model, LoRA and request; wrong pairings end in one sentence."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_worker.build import build_rules
from qwen_worker.download import download
from qwen_worker.errors import BadInput
from qwen_worker.family import EDIT, EDIT_PLUS, FAMILY, IMAGE_21, TEXT, LoraSource
from qwen_worker.presets import EXACT, LIGHTNING, PRESETS, PresetName, lightning
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import Rules
from qwen_worker.settings import Settings, SettingsError, load_settings
from qwen_worker.snapshots import Origin
from qwen_worker.start import weights_of
from tests.test_settings import REQUIRED

PLUS_2511 = "Qwen/Qwen-Image-Edit-2511"
A_21 = {"MODEL_ID": IMAGE_21.id, "MODEL_REVISION": "0" * 40, "ACCEPT_RESEARCH_LICENSE": "1"}
FAST_4 = Rules(steps=4, cfg_scale=1.0, max_steps=50, max_images=3, preset="fast-4", distilled_steps=4)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment with what is required."""
    monkeypatch.chdir(tmp_path)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def settings(given: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        given.setenv(name, value)
    return load_settings()


def named(file: str = "own-4steps.safetensors", source: str = "someone/lora") -> LoraSource:
    return LoraSource(name="lightning", source=source, revision="0" * 40, weight_file=file)


def test_every_name_is_a_preset() -> None:
    """And each in the table under its own."""
    assert set(PRESETS) == set(get_args(PresetName))
    assert all(name == preset.name for name, preset in PRESETS.items())


def test_published_loras_are_pinned_and_fit_their_models() -> None:
    """Each says in its name for how many steps it is, and is refused for any other model or number."""
    for model, of_steps in LIGHTNING.items():
        for steps, lora in of_steps.items():
            assert f"{steps}steps" in lora.weight_file
            assert len(lora.revision) == 40
            assert lightning(PRESETS["fast-4" if steps == 4 else "fast-8"], model, None, "X") == lora
            for other in {EDIT.id, EDIT_PLUS.id, PLUS_2511, TEXT.id} - {model}:
                said = f"it was distilled from {model.rpartition('/')[2]}, as its name says, and the model is {other}"
                with pytest.raises(ValueError, match=said):
                    lightning(PRESETS["fast-4" if steps == 4 else "fast-8"], other, lora, "X")


@pytest.mark.parametrize(
    ("preset", "model", "lora", "problem"),
    [
        ("fast-8", PLUS_2511, None, "has no known Lightning LoRA of 8 steps for .*-2511: name it in LIGHTNING_LORA"),
        ("fast-4", "someone/model", None, "has no known Lightning LoRA of 4 steps for someone/model"),
        ("fast-8", EDIT.id, LIGHTNING[EDIT.id][4], "it was distilled to 4 steps, as its name says"),
        ("fast-8", "someone/model", LIGHTNING[EDIT.id][4], "it was distilled to 4 steps, as its name says"),
        ("fast-4", EDIT.id, named("my-8-Step.safetensors"), "it was distilled to 8 steps, as its name says"),
        ("fast-4", PLUS_2511, named("edit_2509_4steps.safetensors"), "from a 2509 model, as its name says, and"),
        (
            "fast-4",
            EDIT_PLUS.id,
            named("Qwen-Image-Edit-Lightning-4steps-V1.0.safetensors"),
            "from Qwen-Image-Edit, as",
        ),
        (
            "fast-4",
            EDIT.id,
            named("a/Qwen-Image-Lightning-4steps-V1.0.safetensors"),
            "from Qwen-Image, as its name says",
        ),
        ("exact", EDIT.id, named(), "PRESET=exact fuses no LoRA: leave LIGHTNING_LORA empty"),
        ("balanced", EDIT.id, named(), "PRESET=balanced fuses no LoRA"),
    ],
)
def test_wrong_pairings_are_refused(preset: PresetName, model: str, lora: LoraSource | None, problem: str) -> None:
    """Of preset, model and LoRA."""
    with pytest.raises(ValueError, match=problem):
        lightning(PRESETS[preset], model, lora, "LIGHTNING_LORA")


@pytest.mark.parametrize("model", [EDIT.id, "someone/model"])
@pytest.mark.parametrize("file", ["own-4steps.safetensors", "anything.safetensors", "a1024-4step.safetensors"])
def test_an_operators_own_lora_is_taken(model: str, file: str) -> None:
    """Also of a name that says nothing."""
    assert lightning(PRESETS["fast-4"], model, named(file), "X") == named(file)


def test_a_preset_brings_its_lora(given: pytest.MonkeyPatch) -> None:
    """For the worker and for the download, of both models."""
    of = settings(given, PRESET="fast-4", MODEL_ID=EDIT_PLUS.id, T2I_MODEL_ID=TEXT.id)
    assert of.tuning.preset == PRESETS["fast-4"]
    assert (of.tuning.lightning, of.tuning.t2i_lightning) == (LIGHTNING[EDIT_PLUS.id][4], LIGHTNING[TEXT.id][4])
    assert of.lora_files == (LIGHTNING[EDIT_PLUS.id][4], LIGHTNING[TEXT.id][4])

    given.delenv("T2I_MODEL_ID")
    assert settings(given, PRESET="exact").lora_files == ()
    assert load_settings().tuning.preset == EXACT


def test_an_operator_names_a_lora(given: pytest.MonkeyPatch) -> None:
    """As a JSON object, without a name."""
    said = {"source": "a/b", "revision": "1" * 40, "weight_file": "x-8steps.safetensors"}
    of = settings(given, PRESET="fast-8", MODEL_ID=PLUS_2511, LIGHTNING_LORA=json.dumps(said))
    assert of.tuning.lightning
    assert of.tuning.lightning.origin == Origin("a/b", "1" * 40)


def test_what_is_fused_is_read_ahead_and_downloaded(
    given: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the LoRAs that are offered are."""
    (tmp_path / "x-4steps.safetensors").touch()
    said = json.dumps({"source": str(tmp_path), "weight_file": "x-4steps.safetensors"})
    folder = {"MODEL_ID": str(tmp_path), "MODEL_CLASS": "QwenImageEditPlusPipeline"}
    of = settings(given, PRESET="fast-4", LIGHTNING_LORA=said, **folder)

    assert weights_of(of) == [tmp_path / "x-4steps.safetensors"]
    with caplog.at_level("INFO"):
        download(of)
    assert f"lightning: {tmp_path / 'x-4steps.safetensors'}" in caplog.text


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"PRESET": "fastest"}, "PRESET: Input should be 'exact', 'balanced', 'fast-8' or 'fast-4'"),
        ({"PRESET": "fast-8", "MODEL_ID": PLUS_2511}, "LIGHTNING_LORA: PRESET=fast-8 has no known Lightning LoRA"),
        ({"PRESET": "fast-4", "T2I_MODEL_ID": "Qwen/Qwen-Image-2512"}, "T2I_LIGHTNING_LORA: PRESET=fast-4 has no"),
        ({"PRESET": "fast-4", "LIGHTNING_LORA": "x"}, "LIGHTNING_LORA: is not JSON"),
        ({"PRESET": "fast-4", "LIGHTNING_LORA": "[]"}, "LIGHTNING_LORA: must be a JSON object"),
        ({"T2I_LIGHTNING_LORA": json.dumps({"source": "a/b", "revision": "1" * 40, "weight_file": "x.safetensors"})},
         "T2I_LIGHTNING_LORA: is for T2I_MODEL_ID, which is not set"),
        ({"PRESET": "fast-4", "LIGHTNING_LORA": '{"name": "a", "source": "a/b"}'}, "LIGHTNING_LORA: has a name, which"),
        ({"PRESET": "fast-8", "MAX_INFERENCE_STEPS": "4"}, "PRESET: is fast-8, which takes more steps than MAX"),
        ({"PROFILE": "fp4"}, "PROFILE: Input should be"),
        ({"ATTENTION": "sage"}, "ATTENTION: Input should be"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_stops_the_worker(
    given: pytest.MonkeyPatch, variables: dict[str, str], problem: str
) -> None:
    """In one sentence that names the variable."""
    with pytest.raises(SettingsError) as raised:
        settings(given, **variables)
    (said,) = raised.value.problems
    assert said.startswith(problem)


@pytest.mark.parametrize("preset", ["balanced", "fast-4"])
def test_only_qwen_image_has_presets(given: pytest.MonkeyPatch, preset: str) -> None:
    """Not the newer class."""
    with pytest.raises(SettingsError, match=f"^PRESET: is {preset}, which is not for QwenImage21Pipeline models"):
        settings(given, PRESET=preset, **A_21)


def test_attention_of_the_newer_class_is_torchs_own_choice(given: pytest.MonkeyPatch) -> None:
    """On every GPU: its text has a mask, which not every kernel takes."""
    assert settings(given, **A_21).tuning.attention == "native"
    with pytest.raises(SettingsError, match=r"^ATTENTION: is flash, which is not for QwenImage21Pipeline models"):
        settings(given, ATTENTION="flash", **A_21)


def test_compiled_blocks_do_not_go_with_offered_loras(given: pytest.MonkeyPatch) -> None:
    """They would be compiled anew for each scale."""
    lora = {"name": "a", "source": "a/b", "revision": "0" * 40, "weight_file": "a.safetensors"}
    with pytest.raises(SettingsError, match="COMPILE: must be 0 with LORAS"):
        settings(given, COMPILE="1", LORAS=json.dumps([lora]))


def test_defaults_of_a_request_are_the_presets(given: pytest.MonkeyPatch) -> None:
    """Of an edit and of a picture made from words."""
    rules = build_rules(settings(given, PRESET="fast-8", MODEL_ID=EDIT_PLUS.id, T2I_MODEL_ID=TEXT.id))
    for one in (rules, rules.generate):
        assert one
        assert (one.steps, one.cfg_scale, one.preset, one.distilled_steps) == (8, 1.0, "fast-8", 8)
    rules = build_rules(settings(given, PRESET="balanced"))
    row = FAMILY[EDIT_PLUS.id]
    assert (rules.steps, rules.cfg_scale, rules.preset, rules.distilled_steps) == (
        row.steps, row.cfg_scale, "balanced", None,
    )  # fmt: skip


def asked(rules: Rules | None = None, **fields: Any) -> ImageRequest:
    return parse_image(
        {"image_url": "https://example.com/a", "prompt": "x", **fields}, job_id="job", rules=rules or FAST_4
    )


@pytest.mark.parametrize("field", ["true_cfg_scale", "guidance_scale"])
def test_guidance_is_refused_by_a_distilled_model(field: str) -> None:
    """Together with every other problem, and not ignored."""
    with pytest.raises(BadInput) as raised:
        asked(None, **{field: 4.0}, num_inference_steps=1)
    problems = {one["field"]: one["problem"] for one in raised.value.details["problems"]}
    assert set(problems) == {field, "num_inference_steps"}
    assert "must be 1, or left out: the preset of this worker is fast-4" in problems[field]
    assert asked(None, **{field: 1.0}).true_cfg_scale == 1


def test_what_a_preset_is_not_made_for_is_done_and_told() -> None:
    """Steps, sampler, and a negative prompt that says nothing."""
    assert asked().num_inference_steps == 4
    assert asked().warnings == ()
    told = asked(num_inference_steps=6, scheduler="UniPCMultistep", negative_prompt="blurry")
    assert (told.num_inference_steps, told.scheduler) == (6, "UniPCMultistep")
    assert told.warnings == (
        "negative_prompt says nothing without guidance, at true_cfg_scale 1",
        "num_inference_steps is 6: the preset fast-4 is made for 4",
        "scheduler is UniPCMultistep: the preset fast-4 is made for FlowMatchEuler",
    )
    exact = Rules(steps=40, cfg_scale=4.0, max_steps=50, max_images=3)
    assert asked(exact, num_inference_steps=6, scheduler="UniPCMultistep", negative_prompt="blurry").warnings == ()
    assert len(asked(exact, true_cfg_scale=1, negative_prompt="blurry").warnings) == 1
