"""What RunPod's Hub reads: it fits the worker, and the format."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from local import hub_files
from local.worker import ROOT
from qwen_worker import cards, schema
from qwen_worker.request import parse
from qwen_worker.schema import Rules
from qwen_worker.settings import Settings, SettingsError, load_settings
from tests.test_settings import REQUIRED

HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
FORM: dict[str, dict[str, Any]] = {one["key"]: one["input"] for one in HUB["config"]["env"] if "input" in one}
FIXED = {one["key"]: one["value"] for one in HUB["config"]["env"] if "value" in one}
PRESETS = {one["name"]: one["defaults"] for one in HUB["config"]["presets"]}
CATEGORIES = {"audio", "embedding", "language", "video", "image"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of this shell and no `.env` of this checkout reaches a test."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def typed(value: object) -> str:
    """A value of the form as a variable."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_files_are_those_of_the_settings() -> None:
    """`python -m local.hub_files` writes them anew."""
    assert {name: (ROOT / ".runpod" / name).read_text() for name in hub_files.texts()} == hub_files.texts()


def test_what_the_hub_asks_for_is_there() -> None:
    """By RunPod's publishing guide; there is no schema."""
    assert HUB["type"] == "serverless"
    assert HUB["category"] in CATEGORIES
    assert HUB["title"]
    assert HUB["description"]
    assert HUB["config"]["runsOn"] == "GPU"
    assert HUB["config"]["containerDiskInGb"] == 80
    assert HUB["config"]["gpuCount"] == TESTS["config"]["gpuCount"] == 1
    assert HUB["config"]["allowedCudaVersions"] == TESTS["config"]["allowedCudaVersions"] == ["13.0"]
    assert all((ROOT / name).exists() for name in ("handler.py", "Dockerfile", "README.md"))
    for key, field in FORM.items():
        assert field["name"] == key
        assert field["type"] in {"string", "number", "boolean"}, key
        assert len(field["description"]) > 10, key
        assert isinstance(field["required"], bool)
        assert isinstance(field["advanced"], bool)


def test_every_setting_is_in_the_form_once() -> None:
    """In the order of the settings."""
    assert [one["key"] for one in HUB["config"]["env"] if "input" in one] == [
        name.upper() for name in Settings.model_fields
    ]
    assert {key for key, field in FORM.items() if field["required"]} == set(REQUIRED)
    assert not any(field["advanced"] for field in FORM.values() if field["required"])
    assert not FIXED.keys() & FORM.keys()


def test_a_secret_is_said_to_be_one() -> None:
    """And has no value."""
    secret = {key for key, field in FORM.items() if "A secret" in field["description"]}

    assert secret == {"S3_ACCESS_KEY", "S3_SECRET_KEY", "HF_TOKEN"}
    assert {FORM[key]["default"] for key in secret} == {""}


@pytest.mark.parametrize("preset", [{}, *PRESETS.values()], ids=["none", *PRESETS])
def test_a_form_that_is_sent_as_it_is_makes_a_worker(monkeypatch: pytest.MonkeyPatch, preset: dict[str, str]) -> None:
    """With the bucket filled in: the same as without any variable but the preset's."""
    assert preset.keys() <= FORM.keys()
    for key, value in {**REQUIRED, **preset}.items():
        monkeypatch.setenv(key, value)
    bare = load_settings()
    for key, field in FORM.items():
        if key not in {**REQUIRED, **preset}:
            monkeypatch.setenv(key, typed(field["default"]))

    assert load_settings() == bare
    assert bare.model_id == preset.get("MODEL_ID", "Qwen/Qwen-Image-Edit")
    assert bare.preset == preset.get("PRESET", "exact")


@pytest.mark.parametrize("key", [key for key, field in FORM.items() if field.keys() & {"min", "max", "options"}])
def test_what_the_form_offers_is_a_value_of_its_variable(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Each choice, and each number from end to end. Whether it goes with the others is said when a worker starts."""
    field = FORM[key]
    offered = [one["value"] for one in field.get("options", [])]
    ends = [field[end] for end in ("min", "max") if end in field]
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    for value in (*offered, *ends):
        assert not problems(monkeypatch, key, value)
    for beyond in [end + (0.5 if end == field.get("max") else -0.5) for end in ends] or ["nonsense"]:
        assert problems(monkeypatch, key, beyond)


def problems(monkeypatch: pytest.MonkeyPatch, key: str, value: object) -> list[str]:
    """What is wrong with a value by itself."""
    monkeypatch.setenv(key, typed(value))
    try:
        load_settings()
    except SettingsError as error:
        return [one for one in error.problems if one.startswith(f"{key}: Input should be")]
    return []


def test_the_gpus_have_room_for_the_plain_model() -> None:
    """All of them, the one of the tests too."""
    pools = HUB["config"]["gpuIds"].split(",")
    listed = {card.name for card in cards.CARDS if card.pool in pools}
    tested = cards.of_driver(TESTS["config"]["gpuTypeId"])

    assert {"A100 80GB", "H100", "H200"} <= listed
    assert not listed & {"A40", "L40S", "RTX A6000"}
    assert tested is not None
    assert (tested.pool in pools, tested.sold_gb) == (True, 80)


def test_the_jobs_of_the_tests_are_requests() -> None:
    """For the schema and for the worker; the picture is in them, and nothing is fetched."""
    rules = Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=1)
    names = [one["name"] for one in TESTS["tests"]]

    assert sorted(names) == ["edit", "health"]
    for one in TESTS["tests"]:
        jsonschema.Draft202012Validator(schema.json_schema()).validate(one["input"])
        parse(one["input"], job_id="a", rules=rules)
        assert one["timeout"] > 1000 * int(FIXED["RUNPOD_INIT_TIMEOUT"])
    assert "http" not in json.dumps([one["input"] for one in TESTS["tests"]])
    (edit,) = (one["input"] for one in TESTS["tests"] if one["name"] == "edit")
    picture = Image.open(io.BytesIO(base64.b64decode(edit["image_url"].partition(",")[2])))
    assert picture.size == (96, 72)


def test_no_secret_is_in_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the tests are named, as docs/hub.md tells; if nobody fills them in, the worker says so."""
    given = {one["key"]: one["value"] for one in TESTS["config"]["env"]}
    guide = (ROOT / "docs" / "hub.md").read_text()

    assert set(given) == {*FIXED, *REQUIRED, "S3_REGION"}
    for key in (*REQUIRED, "S3_REGION"):
        assert re.fullmatch(r"\{\{ RUNPOD_SECRET_\w+ \}\}", given[key])
        assert f"_{key.lower()}`" in guide
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert any(problem.startswith("S3_ENDPOINT") for problem in caught.value.problems)
