"""What measures on a GPU, tried without one on tiny weights: nothing here says how fast anything is."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from bench import arms, full_size, gpu, plain
from local.edits import edited
from local.worker import ROOT
from qwen_worker import shards
from qwen_worker.errors import ModelError
from qwen_worker.family import LoraSource
from qwen_worker.model.edit import Editor
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import Model, load
from qwen_worker.presets import PRESETS
from qwen_worker.request import parse_image
from qwen_worker.schema import Rules
from qwen_worker.tuning import Tuning
from tests.pictures import photo


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one in several shards."""
    return full_size.write(tmp_path_factory.mktemp("models") / "small", full_size.SMALL, shard=100_000)


def numbers(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_the_full_model_has_the_published_sizes() -> None:
    """Nothing of it is in memory."""
    made = full_size.networks(full_size.FULL)

    assert numbers(made["transformer"]) == 20_430_401_088
    assert numbers(made["text_encoder"]) == 8_292_166_656
    assert numbers(made["vae"]) == 126_892_531
    assert all(weight.is_meta for network in made.values() for weight in network.parameters())


def test_the_worker_loads_what_was_written(model: Path) -> None:
    """With the LoRA in it, and another prompt, picture or LoRA makes another result."""
    assert len(shards.files(model / "transformer")) > 2
    lora = LoraSource(name="lightning", source=str(model), weight_file=full_size.LORA.format(4))
    works = [("a b", photo(256, 256)), ("c d", photo(256, 256)), ("a b", Image.new("RGB", (256, 256)))]
    made = []
    for tuning in (Tuning(), Tuning(preset=PRESETS["fast-4"], lightning=lora)):
        loaded = load(
            str(model), "", pipeline="QwenImageEditPlusPipeline", token="", caches=(), allow_cpu=True, tuning=tuning
        )
        editor = Editor(loaded, timeout_s=60)
        for prompt, picture in works:
            rules = Rules(steps=4, cfg_scale=1.0, max_steps=4, max_images=1)
            request = parse_image({"image_url": "https://a/", "prompt": prompt, "seed": 1}, job_id="a", rules=rules)
            made.append(edited(editor, request, (256, 256), [picture]).tobytes())

    assert len(set(made)) == len(made)


def test_shards_are_no_larger_than_asked(model: Path) -> None:
    """But for a weight that is larger by itself."""
    index = json.loads((model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    for file in shards.files(model / "transformer"):
        sizes = [end - begin for begin, end in shards.places(file).values()]
        assert sum(sizes) <= 100_000 or len(sizes) == 1
        assert all(index["weight_map"][name] == file.name for name in shards.places(file))


@pytest.fixture(scope="module")
def setting(model: Path, tmp_path_factory: pytest.TempPathFactory) -> arms.Setting:
    """Of arms in this process."""
    checks = tmp_path_factory.mktemp("checks")
    counts = dict.fromkeys(gpu.COUNTS, 1)
    return arms.Setting(model=str(model), tiny=True, side=256, counts=counts, warm_ups=1, checks=str(checks))


@pytest.fixture(scope="module")
def loaded(setting: arms.Setting) -> tuple[arms.Make, Model]:
    """What makes pictures by this worker, and its model."""
    editor, model, _ = arms.ours(setting, Tuning(attention="native"))
    return arms.by_editor(editor, setting.picture(0)), model


def test_a_forward_of_the_full_model_takes_167_tflop() -> None:
    """Of a picture and a reference of a megapixel each, and a prompt with what the text encoder saw."""
    config = SimpleNamespace(num_layers=60, num_attention_heads=24, attention_head_dim=128)
    assert arms.flops(config, 8192, 235) == pytest.approx(166.9e12, rel=5e-4)


def test_the_matrices_that_are_counted_are_those_of_the_blocks(loaded: tuple[arms.Make, Model]) -> None:
    """Each with as many rows as it gets; attention is what remains."""
    make, model = loaded
    transformer = model.pipeline.transformer
    counted = 0

    def count(layer: torch.nn.Linear, given: Any, _made: Any) -> None:
        nonlocal counted
        counted += 2 * layer.weight.numel() * given[0].shape[:-1].numel()

    hooks = [
        layer.register_forward_hook(count)
        for name, layer in transformer.transformer_blocks.named_modules()
        if isinstance(layer, torch.nn.Linear) and "_mod." not in name
    ]
    with arms.counting(transformer) as seen:
        make(4, 1.0, 0)
    for hook in hooks:
        hook.remove()
    tokens, width = sum(seen.tokens), 32

    assert seen.forwards == 4
    assert seen.tokens[0] == 2 * (256 // 32) ** 2
    assert counted + seen.forwards * 4 * 4 * tokens**2 * width == seen.flops


def test_an_edit_is_compared_with_that_of_the_library(setting: arms.Setting, loaded: tuple[arms.Make, Model]) -> None:
    """From its own load of the same files, but for the VAE: the same to the bit. Another picture is told from it."""
    make, model = loaded
    pipeline = plain.load(Path(setting.model))
    pipeline.vae = model.pipeline.vae
    wanted, _ = arms.checked(arms.by_library(pipeline, setting.picture(0)), pipeline.transformer)
    made, _ = arms.checked(make, model.pipeline.transformer)
    other, _ = arms.checked(arms.plain_other(setting, pipeline), pipeline.transformer)
    control = arms.distance(other, wanted)

    assert arms.distance(made, wanted) == {"forward": 0.0, "picture_db": None, "guided_db": None}
    assert (control["forward"] or 0) > 2 * gpu.FORWARD
    assert (control["picture_db"] or 99.0) < 30
    wanted["forward"][0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        arms.distance(made, wanted)


def test_a_kernel_that_cannot_run_is_an_error(loaded: tuple[arms.Make, Model]) -> None:
    """CuDNN's is not for a CPU. Nothing else computes in its place."""
    make, model = loaded
    wanted, _ = arms.checked(make, model.pipeline.transformer)
    with pytest.raises(LoadError, match="ATTENTION=cudnn cannot be computed"):
        arms.variant(Tuning(attention="cudnn"), make, model.pipeline.transformer, wanted)


NEAR: dict[str, Any] = {"forward": 0.02, "picture_db": 35.0, "guided_db": 20.0}
SAME: dict[str, Any] = {"forward": 0.0, "picture_db": None, "guided_db": None}
FAR: dict[str, Any] = {"forward": 0.5, "picture_db": 18.0, "guided_db": 15.0}


def works(seconds: float, *, skipped: int = 0) -> dict[str, Any]:
    return {
        "seconds": [seconds] * 3, "tflop_of_a_picture": seconds * 400, "forwards_of_a_picture": 80,
        "skipped_forwards": [skipped] * 3 if skipped else [],
    }  # fmt: skip


def arms_with(change: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "variants": {
            "control": dict(FAR),
            "variants": {"native": {"distance": dict(SAME)}, "compiled": {"distance": dict(NEAR)}},
        },
        "plain/1": {
            "distance": dict(SAME),
            "works": {"40": works(35.0), "8": works(4.0), "4": works(2.0)},
            "memory": {},
            "matrix_tflops": 800.0,
        },
    }
    change(made)
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda all_: all_.pop("variants"), "nothing was compared"),
        (lambda all_: all_["variants"].update(control={**FAR, "forward": 0.02}), "blind"),
        (lambda all_: all_["variants"]["variants"].update(cudnn={"error": "what ran is flash"}), "what ran is flash"),
        (lambda all_: all_["variants"]["variants"]["compiled"].update(distance=FAR), "compiled is not what diffusers"),
        (lambda all_: all_["plain/1"].update(distance={**SAME, "guided_db": 18.0}), "plain/1 is not what diffusers"),
        (lambda all_: all_["plain/1"].update(distance={**NEAR, "forward": 0.06}), "plain/1 is not what diffusers"),
        (lambda all_: all_["plain/1"].update(distance={**NEAR, "picture_db": 21.0}), "plain/1 is not what diffusers"),
        (lambda all_: all_.update({"exact/1": {"error": "it ended with 1"}}), "exact/1: it ended with 1"),
    ],
)
def test_a_run_that_says_nothing_is_not_valid(change: Callable[[dict[str, Any]], None], said: str) -> None:
    """And says why."""
    assert not list(gpu.problems(arms_with()))
    (problem,) = gpu.problems(arms_with(change))
    assert said in problem


def test_the_readme_claims_nothing_that_was_not_measured() -> None:
    """Its rows are those of the program, and without a run on a GPU none has a figure."""
    readme = (ROOT / "README.md").read_text()
    kept = ROOT / "bench" / "results" / "gpu.json"
    report = json.loads(kept.read_text()) if kept.exists() else {"arms": {}}
    for row in gpu.rows(report):
        assert f"| {row['what']} | {row['goal']} | {row['plain']} | {row['ours']} |" in readme


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    """Of what is there; a run that is not valid passes nothing, and tiny weights have no figures."""
    measured = arms_with() | {
        "exact/1": {"works": {"40": works(25.0)}, "memory": {"reserved_gb": 70.0}, "matrix_tflops": 800.0},
        "balanced/1": {"works": {"40": works(12.5, skipped=50)}, "matrix_tflops": 800.0},
    }
    setting: dict[str, Any] = {"arms": {"tiny": False}, "machine": gpu.machine()}
    lines = gpu.table(gpu.write(tmp_path / "gpu.json", setting, measured)).splitlines()
    exact, balanced, eight, *_, memory, _ = lines[-7:]

    assert "35.00 s (35.00 to 35.00, n = 3) | 25.00 s" in exact
    assert exact.endswith("| plain 50.0 %, ours 50.0 % | PASS |")
    # 12.5 s saved by 50 passes: a quarter of a second each, and 14 s are to be saved.
    assert "50 of 80 passes left out, which random weights decide; within the goal from 56 on" in balanced
    assert balanced.endswith("FAIL |")
    assert eight.endswith("4.00 s (4.00 to 4.00, n = 3) | not measured | plain 50.0 % | not measured |")
    assert memory.endswith("FAIL |")
    broken = gpu.table(gpu.write(tmp_path / "gpu.json", setting, measured | {"fp8": {"error": "it ended"}}))
    assert "NOT VALID: fp8: it ended" in broken
    assert "PASS" not in broken
    tiny = gpu.table(gpu.write(tmp_path / "gpu.json", {**setting, "arms": {"tiny": True}}, measured))
    assert gpu.TINY in tiny
    assert "PASS" not in tiny
    assert "25.00" not in tiny


def test_what_was_measured_in_the_same_setting_is_kept(tmp_path: Path) -> None:
    """But for what failed."""
    file = tmp_path / "gpu.json"
    setting: dict[str, Any] = {"arms": {"tiny": False, "side": (1024,)}, "machine": gpu.machine()}
    assert gpu.kept(file, setting) == {}
    gpu.write(file, setting, arms_with() | {"fp8": {"error": "it ended"}})

    assert gpu.kept(file, setting) == arms_with()
    assert gpu.kept(file, {**setting, "arms": {"tiny": False, "side": (512,)}}) == {}


def bench_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.slow
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    """It ends with one sentence, and leaves nothing."""
    done = bench_gpu("--out", str(tmp_path / "out" / "gpu.json"))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("there is no CUDA device")
    assert not done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_arms_are_measured_once(model: Path, tmp_path: Path) -> None:
    """In processes of their own, from the model to the table; a second run goes on where the first ended."""
    file = tmp_path / "gpu.json"
    said = ("--tiny", "--out", str(file), "--model", str(model), "--only")
    first = bench_gpu(*said, "exact/1")
    before = json.loads(file.read_text())["arms"]
    second = bench_gpu(*said, "exact/1", "fast/1")
    report = json.loads(file.read_text())

    assert first.stdout.startswith("exact/1: ")
    assert second.stdout.startswith("fast/1: ")
    assert report["arms"].keys() == {"exact/1", "fast/1"}
    assert report["arms"]["exact/1"] == before["exact/1"]
    assert report["arms"]["exact/1"]["works"]["40"]["forwards_of_a_picture"] == 80
    assert len(report["arms"]["fast/1"]["works"]["4"]["seconds"]) == 2
    assert report["note"] == gpu.TINY
    # Nothing was compared in this run.
    assert second.returncode == 1
    assert not report["valid"]
    assert second.stdout.count("| not measured | not measured |  | not measured |") == len(report["rows"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["worker", "plain-worker"])
def test_whole_workers_do_jobs_with_the_model(setting: arms.Setting, kind: str) -> None:
    """Ours and the plain form, through RunPod's loop."""
    found = arms.measured(f"{kind}/1", replace(setting, counts={"jobs": 3}))

    assert found["jobs"] == 3
    assert found["first_picture_s"] > 0
    assert found["jobs_an_hour"] > 0
    assert len(found["between_answers_s"]) == 2
