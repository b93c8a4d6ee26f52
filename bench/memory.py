"""What an edit takes of a GPU's memory beside the weights, computed without a GPU.

    python -m bench.memory        writes bench/results/memory.json

The worker's own editor makes whole edits of two steps with the networks of Qwen-Image-Edit at their published sizes, on
torch's meta device: every operator is seen with the shapes that it has, and what it returns is counted until it is
freed. Attention counts as on CUDA, where its weights are never in memory all at a time. On a GPU: not measured.
"""

import argparse
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import published
from bench.weightless import AttentionOfCuda, Counted, Weightless
from local import tiny_model
from qwen_worker.family import EDIT, EDIT_PLUS, PipelineName
from qwen_worker.model.computed import Computed, remember_pictures
from qwen_worker.model.edit import Editor, untold
from qwen_worker.model.load import MAX_SEEN_PIXELS, Model, give_image_positions, load
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import Rules, Size

OUT = Path(__file__).parent / "results" / "memory.json"
STEPS = 2  # the second has all that lives from one to the next
SQUARE, LARGE = (1024, 1024), (2048, 2048)
PROMPT = "make the colors of this picture warmer, and add the grain of an old film to all of it"
SMALLEST_SEEN = 56 * 56  # pixels; processor/preprocessor_config.json of the family
# In the order in which an edit asks them.
STAGES = ("prompt", "references", "steps", "picture")


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
        name: as people say it.
        model: id.
        references: their sizes.
        canvas: of the result.
        guided: two passes a step.
    """

    name: str
    model: str
    references: tuple[Size, ...]
    canvas: Size
    guided: bool = True

    @property
    def pipeline(self) -> PipelineName:
        """The class that does it."""
        return "QwenImageEditPlusPipeline" if self.model == EDIT_PLUS.id else "QwenImageEditPipeline"


SMALLEST = "1 picture of 1 megapixel"
CASES = (
    Case(SMALLEST, EDIT.id, (SQUARE,), SQUARE),
    Case("1 picture of 1 megapixel, without guidance", EDIT.id, (SQUARE,), SQUARE, guided=False),
    Case("3 pictures of 1 megapixel", EDIT_PLUS.id, (SQUARE,) * 3, SQUARE),
    Case("1 picture of 2048 x 2048", EDIT.id, (LARGE,), LARGE),
)
LEFT_OUT = (
    "the CUDA context (about 0.5 GB, which is not free any more when a worker asks how much is)",
    "workspaces of cuDNN and cuBLAS, and copies that a kernel makes for itself",
    "what the allocator cannot use since it lies in pieces",
    "what is kept of earlier prompts and pictures (COMPUTED_CACHE_BYTES, 0.256 GB)",
    "what PRESET=balanced remembers from step to step",
    "the matrix that fp8 and int4 write out before they multiply with it, and 8-bit copies of what goes into one",
)


def measured(case: Case) -> dict[str, Any]:
    """By stage the most bytes at a time, beside the weights, and which kernels of attention were counted how often."""
    with tempfile.TemporaryDirectory() as folder, weightless() as attention:
        stages = peaks(at_published_sizes(tiny(Path(folder), case.pipeline)), case)
    return {"bytes": stages, "attention": dict(attention.calls)}


def tiny(folder: Path, pipeline: PipelineName) -> Model:
    """A tiny model: its tokenizer and processor are those of all sizes."""
    tiny_model.make(folder, plus=pipeline == "QwenImageEditPlusPipeline")
    return load(str(folder), "", pipeline=pipeline, token="", caches=(), allow_cpu=True)


def at_published_sizes(model: Model) -> Model:
    """The same with other networks, on the meta device."""
    own, computed = model.pipeline, Computed(0)
    ids = {f"{name}_token_id": getattr(own.text_encoder.config, f"{name}_token_id") for name in ("image", "video")}
    text_encoder, vae = published.text_encoder(**ids), published.vae()
    vae.leave_time_out()
    text_encoder.register_forward_pre_hook(give_image_positions, with_kwargs=True)
    remember_pictures(text_encoder, computed)
    # The same object in the pipeline: its limits are those of the published processor, as the loader sets them.
    size = own.processor.image_processor.size
    size.shortest_edge, size.longest_edge = SMALLEST_SEEN, MAX_SEEN_PIXELS
    parts: Any = own
    networks = {"transformer": published.transformer(), "vae": vae, "text_encoder": text_encoder}
    pipeline = type(parts)(**{**parts.components, **networks})
    pipeline.set_progress_bar_config(disable=True)
    pipeline.adapt(computed)
    return replace(model, pipeline=pipeline, inpaint=None, computed=computed)


@contextmanager
def weightless() -> Iterator[AttentionOfCuda]:
    """In it, networks on the meta device compute."""
    with AttentionOfCuda() as attention, Weightless():  # type: ignore[no-untyped-call]
        yield attention


def peaks(model: Model, case: Case) -> dict[str, int]:
    """Stage → most bytes at a time, of an edit with a model."""
    editor = Editor(model, timeout_s=3600)
    request = asked(case)
    ready = editor.ready(request, pictures(case.references))
    with counted(model) as counter:
        editor.edit(request, case.canvas, ready, threading.Event(), untold)
    return {stage: counter.peaks[stage] for stage in STAGES}


def asked(case: Case) -> ImageRequest:
    """As a job asks for it."""
    rules = Rules(steps=STEPS, cfg_scale=4.0, max_steps=STEPS, max_images=1)
    said: dict[str, Any] = {"image_url": "https://example.com/picture.png", "prompt": PROMPT}
    return parse_image(said if case.guided else said | {"true_cfg_scale": 1}, job_id="memory", rules=rules)


def pictures(sizes: Sequence[Size]) -> list[Image.Image]:
    """All different."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@contextmanager
def counted(model: Model) -> Iterator[Counted]:
    """Counts what a model takes in it, by the network that was asked last."""
    pipeline = model.pipeline
    networks = (pipeline.text_encoder, pipeline.vae.encoder, pipeline.transformer, pipeline.vae.decoder)
    with Counted(STAGES[0]) as counter:
        hooks = [
            network.register_forward_pre_hook(partial(_enter, counter, stage), prepend=True)
            for stage, network in zip(STAGES, networks, strict=True)
        ]
        try:
            yield counter
        finally:
            for hook in hooks:
                hook.remove()


def _enter(counter: Counted, stage: str, *_: object) -> None:
    counter.stage = stage


def report() -> dict[str, Any]:
    """As it is written to the file."""
    rows = []
    for case in CASES:
        found = measured(case)
        stages = found["bytes"]
        most = max(stages, key=lambda stage: stages[stage])
        rows.append({**asdict(case), **found, "peak_stage": most, "peak_bytes": stages[most]})
        print(f"{case.name}: {stages[most] / 1e9:.2f} GB, while {most}", flush=True)
    return {
        "setting": {
            "command": "python -m bench.memory",
            "how": "networks of published sizes on torch's meta device, in bfloat16: the bytes of all tensors that are "
            "alive, beside the weights; attention by flash or memory-efficient kernels",
            "on a GPU": "not measured",
            "left_out": LEFT_OUT,
            "stages": "prompt: text encoder; references: encoder of the VAE; steps: transformer; picture: decoder of "
            "the VAE",
            "steps": STEPS,
            "libraries": {library: version(library) for library in ("torch", "diffusers", "transformers")},
        },
        "cases": rows,
    }


def main() -> None:
    """Compute, and write the file."""
    OUT.write_text(json.dumps(report(), indent=1) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__).parse_args()
    main()
