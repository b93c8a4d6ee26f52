"""Settings → models, and what they let a request ask for."""

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from local import tiny_model
from qwen_worker.build import build_editor, build_rules
from qwen_worker.family import LoraSource
from qwen_worker.settings import Settings


def settings_of(**fields: Any) -> Settings:
    required: dict[str, Any] = {
        "s3_endpoint": "s3",
        "s3_access_key": SecretStr("a"),
        "s3_secret_key": SecretStr("b"),
        "s3_bucket": "pictures",
    }
    return Settings(_env_file=None, **required, **fields)


def test_a_worker_is_built_with_all_that_is_set(
    tiny: Path, tiny_t2i: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each untested model is logged as such, and what was loaded is told."""
    file = tiny_model.make_lora(tmp_path / "style.safetensors", tiny)
    lora = LoraSource(name="sketch", source=str(tmp_path), weight_file=file.name, trigger_word="pencil sketch")
    settings = settings_of(
        model_id=str(tiny),
        model_class="QwenImageEditPipeline",
        t2i_model_id=str(tiny_t2i),
        loras=(lora,),
        allow_cpu=True,
        max_inference_steps=45,
    )
    with caplog.at_level(logging.INFO):
        editor = build_editor(settings)
    rules = build_rules(settings)
    lines: list[Any] = list(caplog.records)
    (ready,) = (line for line in lines if line.message == "model ready")

    assert [line.model_id for line in lines if "untested" in line.message] == [str(tiny), str(tiny_t2i)]
    assert ready.t2i_model_id == str(tiny_t2i)
    assert ready.loras == editor.loras == {"sketch": editor.loras["sketch"]}
    assert rules.loras == {"sketch": "pencil sketch"}
    assert rules.generate
    assert (rules.generate.steps, rules.generate.cfg_scale, rules.generate.max_steps) == (50, 4.0, 45)
    assert (rules.generate.max_images, rules.generate.masks, rules.generate.size) == (0, False, (1328, 1328))


def test_without_them_there_is_nothing_to_ask_for() -> None:
    """As the settings stand when nobody sets them."""
    rules = build_rules(settings_of())

    assert rules.generate is None
    assert rules.loras == {}
    assert (rules.steps, rules.max_images, rules.masks) == (30, 1, True)
