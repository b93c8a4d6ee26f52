"""A worker with a distilled model: what a caller sees of it."""

import json
from collections.abc import Iterator

import pytest

from local import tiny_model
from local.stack import Stack
from tests.loop.test_jobs import error_of, result_of, said

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fast_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """In the smallest profile, too."""
    folder = tmp_path_factory.mktemp("fast")
    model = tiny_model.make(folder / "model", layers=3)
    file = tiny_model.make_lora(folder / "own-4steps.safetensors", model, style="lightning", alpha=1)
    lora = json.dumps({"source": str(folder), "weight_file": file.name})
    more = {"PRESET": "fast-4", "LIGHTNING_LORA": lora, "PROFILE": "int4-offload"}
    with Stack(folder / "stack", model=model, more=more) as running:
        yield running


def test_a_distilled_worker_answers_in_its_own_steps(fast_stack: Stack) -> None:
    """And tells preset and profile, as `health` does; a request that wants guidance is told that there is none."""
    asked = said(fast_stack, "fast", num_inference_steps=None, true_cfg_scale=None)
    meta = result_of(fast_stack.run(asked))["meta"]
    refused = error_of(fast_stack.run({**asked, "true_cfg_scale": 4.0}))
    health = fast_stack.run({"operation": "health"})["output"]["result"]

    assert (meta["preset"], meta["profile"]) == ("fast-4", "int4-offload") == (health["preset"], health["profile"])
    assert (meta["num_inference_steps"], meta["true_cfg_scale"], meta["warnings"]) == (4, 1.0, [])
    assert (refused["type"], refused["details"]["problems"][0]["field"]) == ("BadInput", "true_cfg_scale")
