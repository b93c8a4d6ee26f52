"""What the documents and the layout promise."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from bench.row import Row, table
from local import schema_file
from local.worker import ROOT
from qwen_worker import errors, schema
from qwen_worker.family import FAMILY, TEXT_TO_IMAGE
from qwen_worker.presets import LIGHTNING, PRESETS
from qwen_worker.profiles import PROFILES, QWEN_IMAGE, TRANSFORMER, ProfileName
from qwen_worker.request import BACKGROUND, parse, parse_image
from qwen_worker.settings import Settings

README = (ROOT / "README.md").read_text()


def in_a_fresh_process(code: str) -> str:
    """What the code prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "room",
    [
        "schema",
        "errors",
        "settings",
        "web.session",
        "sources",
        "storage",
        "upload",
        "images.decode",
        "service",
        "job",
        "fitness",
        "build",
    ],
)
def test_a_room_is_imported_without_torch(room: str) -> None:
    """Torch lives in the model room; the others start in a moment."""
    code = f"import sys, qwen_worker.{room}; print([n for n in ('torch', 'diffusers', 'runpod') if n in sys.modules])"

    assert in_a_fresh_process(code) == "[]"


def test_importing_the_handler_starts_nothing() -> None:
    """No model, no loop; RunPod's own lines are INFO from then on."""
    code = (
        "import os, sys, threading, handler; "
        "print('torch' in sys.modules, threading.active_count(), "
        "handler.worker.cache_info().currsize, os.environ['RUNPOD_LOG_LEVEL'])"
    )

    assert in_a_fresh_process(code) == "False 1 0 INFO"


def test_the_example_environment_is_the_settings() -> None:
    """Each variable once: the required ones to fill in, the others with their defaults, commented out."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = dict(line.lstrip("# ").split("=", 1) for line in lines if re.match(r"(# )?[A-Z0-9_]+=", line))
    given = {line.split("=")[0] for line in lines if re.match(r"[A-Z0-9_]+=", line)}

    assert list(named) == [name.upper() for name in Settings.model_fields]
    assert given == {name.upper() for name, field in Settings.model_fields.items() if field.is_required()}
    for name, field in Settings.model_fields.items():
        if not field.is_required():
            assert named[name.upper()] == shown_default(name), name


def test_the_readme_lists_every_variable() -> None:
    """Name, default and meaning, as the settings have them."""
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else (f"`{shown_default(name)}`" if shown_default(name) else "")
        assert f"| `{name.upper()}` | {default} | {field.description} |" in README, name


def shown_default(name: str) -> str:
    """As a person writes it in an environment."""
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        return str(default).lower()
    shown = (
        "" if default is None else str(default.get_secret_value() if hasattr(default, "get_secret_value") else default)
    )
    return "" if shown == "()" else shown


def test_the_readme_lists_every_field() -> None:
    """Of each operation, with its description."""
    fields = [pair for kind in set(schema.INPUTS.values()) for pair in kind.model_fields.items()]
    for name, field in fields:
        assert re.search(rf"\| `{name}` \|[^|]*\| {re.escape(str(field.description))} \|", README), name


def test_the_readme_shows_what_was_measured() -> None:
    """The table of the run that is kept."""
    kept = json.loads((ROOT / "bench" / "results" / "bench.json").read_text())

    assert table([Row(**row) for row in kept["rows"]]) in README


def test_the_readme_lists_every_model() -> None:
    """Of the tables that settings and defaults speak from."""
    for row in (*FAMILY.values(), *TEXT_TO_IMAGE.values()):
        commit = f"`{row.revision[:8]}`" if row.revision else "set MODEL_REVISION"
        defaults = f"{row.steps}, {row.cfg_scale}"
        shown = f"| `{row.id}` | {row.pipeline} | {defaults} | {row.licence} | {commit} | {row.weights_gb} GB |"
        assert shown in README, row.id


def shown_lightning(model: str) -> str:
    """The row of what presets fuse into a model."""
    files = LIGHTNING[model]
    lora = next(iter(files.values()))
    names = " | ".join(
        f"`{PurePosixPath(files[steps].weight_file).name}`" if steps in files else "" for steps in (8, 4)
    )
    return f"| `{model}` | `{lora.source}`, `{lora.revision[:8]}` | {names} |"


def shown_profile(name: ProfileName) -> str:
    """The row of a profile."""
    profile = PROFILES[name]
    alone, both = (numbers.on_gpu(profile) / 1e9 for numbers in (QWEN_IMAGE, QWEN_IMAGE + TRANSFORMER))
    matrices = {"bf16": "bfloat16", "fp8": "8-bit floats", "int4": "4 bits"}[profile.weights]
    where = "on the host" if profile.offload else "on the GPU"
    return f"| `{name}` | {matrices} | {where} | {alone:.1f} GB | {both:.1f} GB |"


def test_the_readme_lists_every_preset_and_profile() -> None:
    """With the LoRAs at their commits, and the sizes that are counted."""
    assert all(f"`{name}`" in README for name in PRESETS)
    assert all(shown_lightning(model) in README for model in LIGHTNING)
    assert all(shown_profile(name) in README for name in PROFILES)


def test_the_readme_lists_every_error() -> None:
    """The taxonomy is fixed."""
    types = {kind.__name__ for kind in errors.WorkerError.__subclasses__()}

    assert types == {"BadInput", "DownloadFailed", "CacheReadFailed", "ModelError", "StorageError"}
    assert all(f"| `{name}` |" in README for name in types)


def test_the_published_schema_is_the_codes() -> None:
    """`make schema` writes it."""
    assert schema_file.PATH.read_text() == schema_file.text()


def test_the_documented_example_validates() -> None:
    """test_input.json is what a newcomer tries first; the README shows it."""
    example = json.loads((ROOT / "test_input.json").read_text())
    rules = schema.Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=1)

    assert parse_image(example["input"], job_id="a", rules=rules).scheduler == "EulerAncestral"


def test_every_request_of_the_readme_is_understood() -> None:
    """Whoever copies one gets no BadInput, but for pictures that are cut short."""
    lines = [line for line in README.splitlines() if line.startswith('{"input": ')]
    rules = schema.Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=3, loras={"ink": "ink"})
    for line in lines:
        parse(json.loads(line)["input"], job_id="a", rules=replace(rules, generate=rules))

    assert len(lines) > 6
    assert BACKGROUND.format("{prompt}") in re.sub(r"\s+", " ", README)


def test_the_readme_shows_a_request_and_its_answer_early() -> None:
    """By line 25."""
    head = "\n".join(README.splitlines()[:25])

    assert '"image_url"' in head
    assert '"presigned_url"' in head
