"""One arm of `python -m bench.gpu`, in a process of its own.

python -m bench.arms NAME SETTING OUT      SETTING: a file with a `Setting`; OUT: where the figures go, as JSON
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench import full_size, plain, sustained
from bench.pictures import painted
from local import edits
from qwen_worker.errors import ModelError
from qwen_worker.family import LoraSource
from qwen_worker.model import kernels, skipping
from qwen_worker.model.edit import Editor
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import load
from qwen_worker.presets import PRESETS
from qwen_worker.profiles import PROFILES
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import Rules
from qwen_worker.tuning import PLAIN, AttentionName, Tuning

# In words that the vocabulary has, each of them one token: with its picture a prompt of some 235.
PROMPT = "Describe how the text instruction should alter the color and texture of the background " * 2
OTHER_PROMPT = "Generate a new image with small objects, and explain the size and shape of the key features"
SEED = 7
CHECK_STEPS = 2
GUIDANCE = 4.0
FORWARDS = 10  # timed for each variant
Figures = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all arms have in common.

    Attributes:
        model: folder that `bench.full_size` wrote.
        tiny: its weights are tiny, and there is no GPU.
        side: of the square picture, in pixels.
        counts: work → pictures that a process makes of it.
        warm_ups: pictures of two steps before them.
        checks: folder of what is compared between arms.
    """

    model: str
    tiny: bool
    side: int
    counts: Mapping[str, int]
    warm_ups: int
    checks: str

    @property
    def matrix(self) -> int:
        """Side of the matrices whose product tells the rate."""
        return 256 if self.tiny else 8192

    def picture(self, seed: int) -> Image.Image:
        """A reference."""
        return painted((self.side, self.side), seed=seed, detail=40, grain=0.5, softness=0.6, shapes=10)

    def lora(self, steps: int) -> LoraSource:
        """The Lightning LoRA."""
        return LoraSource(name="lightning", source=self.model, weight_file=full_size.LORA.format(steps))


def flops(config: Any, image_tokens: int, text_tokens: int) -> float:
    """Of one forward of a QwenImageTransformer2DModel: matrices of the blocks, and attention.

    Two for each multiplication and addition. Norms, modulation and what is outside the blocks are some 2 % more.

    Args:
        config: of the transformer.
        image_tokens: of the result and the references.
        text_tokens: of the prompt with its pictures.
    """
    width = config.num_attention_heads * config.attention_head_dim
    tokens = image_tokens + text_tokens
    # In each block, for each token: q, k, v, out, and an MLP of four times the width.
    linear = 2 * (4 + 2 * 4) * width**2 * tokens
    attention = 4 * tokens**2 * width
    return float(config.num_layers * (linear + attention))


def matrix_rate(side: int) -> float:
    """TFLOP/s of a product of two square matrices in bfloat16, of random numbers; median of 20."""
    one, other = (torch.randn(side, side, device=_device(), dtype=torch.bfloat16) for _ in range(2))
    seconds = [timed(lambda: one @ other) for _ in range(23)][3:]
    return 2 * side**3 / float(np.median(seconds)) / 1e12


def timed(call: Callable[[], object]) -> float:
    """Seconds until all of it is done, on the GPU too."""
    _finish()
    begin = time.perf_counter()
    call()
    _finish()
    return time.perf_counter() - begin


class Counted:
    """Counts the forwards of a transformer, and what they take.

    Attributes:
        tokens: of the pictures and of the text, in the last one.
        said: how the first was called.
        first: what it made, in float32.
    """

    def __init__(self, transformer: Any) -> None:
        self.forwards, self.flops, self.tokens = 0, 0.0, (0, 0)
        self.said: dict[str, Any] = {}
        self.first: torch.Tensor | None = None
        self._config = transformer.config
        self._hook = transformer.register_forward_hook(self._see, with_kwargs=True)

    def _see(self, _module: Any, _given: Any, said: dict[str, Any], made: Any) -> None:
        batch, images, _ = said["hidden_states"].shape
        self.tokens = images, said["encoder_hidden_states"].shape[1]
        self.forwards += 1
        self.flops += batch * flops(self._config, *self.tokens)
        if self.first is None:
            self.said = dict(said)
            self.first = made[0].float().cpu()

    def end(self) -> None:
        """Count no more."""
        self._hook.remove()


@contextmanager
def counting(transformer: Any) -> Iterator[Counted]:
    """For the time of a `with`."""
    counted = Counted(transformer)
    try:
        yield counted
    finally:
        counted.end()


def request(steps: int, scale: float, *, seed: int = SEED, prompt: str = PROMPT) -> ImageRequest:
    """An edit of one picture."""
    rules = Rules(steps=steps, cfg_scale=scale, max_steps=50, max_images=1)
    said = {"image_url": "https://bench.mark/", "prompt": prompt, "negative_prompt": " ", "seed": seed}
    return parse_image(said, job_id="bench", rules=rules)


Make = Callable[[int, float, int], Image.Image]


def by_editor(editor: Editor, image: Image.Image) -> Make:
    """Steps, guidance and seed → the picture, as this worker makes it."""
    return lambda steps, scale, seed: edits.edited(editor, request(steps, scale, seed=seed), image.size, [image])


def by_library(pipeline: Any, image: Image.Image) -> Make:
    """The same, as diffusers makes it."""
    prompt = request(4, 1.0).prompt  # as it is read: without the space at its end
    return lambda steps, scale, seed: plain.edited(pipeline, image, prompt, steps=steps, scale=scale, seed=seed)


def pictures(setting: Setting, work: str, make: Make, transformer: Any, *, skips: bool = False) -> Figures:
    """Make as many as the setting says of a work, named by its steps; with guidance if they are 40."""
    steps = int(work)
    scale = GUIDANCE if steps > 8 else 1.0
    for seed in range(setting.warm_ups):
        make(CHECK_STEPS, scale, seed)
    seconds: list[float] = []
    left_out: list[int] = []
    with counting(transformer) as counted:
        for seed in range(setting.counts[work]):
            seconds.append(timed(lambda seed=seed: make(steps, scale, seed)))  # type: ignore[misc]
            left_out += [skipping.skipped(transformer)] if skips else []
    total = counted.flops
    if skips:
        # In those only the first block is computed.
        share = 1 - skipping.COMPUTED_BLOCKS / transformer.config.num_layers
        total *= 1 - share * sum(left_out) / counted.forwards
    return {
        "seconds": seconds,
        "forwards_of_a_picture": counted.forwards // len(seconds),
        "skipped_forwards": left_out,
        "tflop_of_a_picture": total / len(seconds) / 1e12,
        "image_tokens": counted.tokens[0],
        "text_tokens": counted.tokens[1],
    }


def checked(make: Make, transformer: Any) -> tuple[dict[str, np.ndarray], Counted]:
    """What is compared: the first forward of an edit, its picture, and the same with guidance."""
    with counting(transformer) as counted:
        picture, guided = (np.asarray(make(CHECK_STEPS, scale, SEED)) for scale in (1.0, GUIDANCE))
    if counted.first is None:
        raise RuntimeError("the transformer was not called")
    return {"forward": counted.first.numpy(), "picture": picture, "guided": guided}, counted


def distance(made: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Of a forward relative to its length, and of the pictures as PSNR in dB; None: they are the same.

    Raises:
        ModelError: numbers are not finite.
    """
    if not all(np.isfinite(one).all() for one in (*made.values(), *wanted.values())):
        raise ModelError("what was made is not finite")
    forward = np.linalg.norm(made["forward"] - wanted["forward"]) / np.linalg.norm(wanted["forward"])
    errors = {name: np.mean((made[name].astype(float) - wanted[name]) ** 2) for name in ("picture", "guided")}
    psnr = {f"{name}_db": float(10 * np.log10(255**2 / one)) if one else None for name, one in errors.items()}
    return {"forward": float(forward), **psnr}


def memory() -> Figures:
    """Peak of this process on the GPU, in GB; nothing without one."""
    if not torch.cuda.is_available():
        return {}
    return {
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def ours(setting: Setting, tuning: Tuning) -> tuple[Editor, Any, Figures]:
    """The editor of a worker, warm and seen to compute as it says; its model; and what is known by then."""
    begin = time.perf_counter()
    model = load(
        setting.model, "", pipeline="QwenImageEditPlusPipeline", token="", caches=(), allow_cpu=setting.tiny,
        tuning=tuning,
    )  # fmt: skip
    loaded = time.perf_counter() - begin
    editor = Editor(model, timeout_s=600)
    editor.warm_up()
    known = {"load_s": loaded, "attention": model.attention, "profile": model.profile.name, "preset": model.preset.name}
    return editor, model, known


def exact(setting: Setting) -> Figures:
    """40 steps with guidance."""
    editor, model, known = ours(setting, PLAIN)
    make, transformer = by_editor(editor, setting.picture(0)), model.pipeline.transformer
    known["works"] = {"40": pictures(setting, "40", make, transformer)}
    return known | {"memory": memory()}


def balanced(setting: Setting) -> Figures:
    """The same with steps left out."""
    editor, model, known = ours(setting, Tuning(preset=PRESETS["balanced"]))
    make, transformer = by_editor(editor, setting.picture(0)), model.pipeline.transformer
    known["works"] = {"40": pictures(setting, "40", make, transformer, skips=True)}
    return known | {"memory": memory()}


def fast(setting: Setting) -> Figures:
    """8 steps, and then 4: the same weights, by another editor."""
    editor, model, known = ours(setting, Tuning(preset=PRESETS["fast-8"], lightning=setting.lora(8)))
    works = {}
    for name, its in (("8", editor), ("4", Editor(replace(model, preset=PRESETS["fast-4"]), timeout_s=600))):
        works[name] = pictures(setting, name, by_editor(its, setting.picture(0)), model.pipeline.transformer)
    return known | {"works": works, "memory": memory()}


def library(setting: Setting) -> Figures:
    """All of these by diffusers."""
    begin = time.perf_counter()
    pipeline = plain.load(Path(setting.model))
    known: Figures = {"load_s": time.perf_counter() - begin}
    make = by_library(pipeline, setting.picture(0))
    seen = kernels.Seen(pipeline.transformer, lambda: make(CHECK_STEPS, 1.0, SEED))
    known["operators"] = sorted(one for one in seen.operators if one.startswith(kernels.PREFIX))
    _keep(setting, "library", checked(make, pipeline.transformer)[0])
    works = {"40": pictures(setting, "40", make, pipeline.transformer)}
    known["memory"] = memory()
    plain.fuse(pipeline, Path(setting.model) / full_size.LORA.format(4))
    works |= {name: pictures(setting, name, make, pipeline.transformer) for name in ("8", "4")}
    return known | {"works": works}


def variants(setting: Setting) -> Figures:
    """Each way of computing the same, compared with diffusers on the same weights; and what a forward takes."""
    # Its own choice of a kernel is that of the machine.
    editor, model, known = ours(setting, PLAIN)
    image, transformer = setting.picture(0), model.pipeline.transformer
    kernels.use([transformer], Tuning(attention="native"))
    pipeline = edits.plain(model.pipeline)
    wanted, _ = checked(by_library(pipeline, image), transformer)
    _keep(setting, "wanted", wanted)
    other = plain_other(setting, pipeline)
    known["control"] = distance(checked(other, transformer)[0], wanted)
    found: dict[str, Figures] = {}
    names: tuple[AttentionName, ...] = (
        ("native", "flash") if setting.tiny else ("native", "flash", "cudnn", "efficient")
    )
    ways: dict[str, Tuning] = {name: Tuning(attention=name) for name in names}
    ways["compiled"] = Tuning(attention=known["attention"], compile=True)  # last: it stays
    for name, tuning in ways.items():
        try:
            found[name] = variant(tuning, by_editor(editor, image), transformer, wanted)
        except (LoadError, ModelError, RuntimeError) as error:
            found[name] = {"error": " because ".join(str(one)[:300] for one in (error, error.__cause__) if one)}
        if name == names[-1]:
            kernels.use([transformer], Tuning(attention=known["attention"]))
            known |= steps_alone(by_editor(editor, image), transformer)
    return known | {"variants": found, "memory": memory()}


def plain_other(setting: Setting, pipeline: Any) -> Make:
    """By diffusers: another picture and another prompt, from the same noise."""
    image = setting.picture(1)
    return lambda steps, scale, seed: plain.edited(pipeline, image, OTHER_PROMPT, steps=steps, scale=scale, seed=seed)


def variant(tuning: Tuning, make: Make, transformer: Any, wanted: Mapping[str, np.ndarray]) -> Figures:
    """One way of computing: how near it comes, and what a forward takes.

    Raises:
        LoadError: it fell back to another.
        ModelError: what it makes is not finite.
    """
    kernels.check(tuning)
    used = kernels.use([transformer], tuning)
    first_s = timed(lambda: make(CHECK_STEPS, GUIDANCE, SEED))
    kernels.Seen(transformer, lambda: make(CHECK_STEPS, 1.0, SEED)).check(used, compiled=tuning.compile)
    made, counted = checked(make, transformer)
    return {
        "first_s": first_s,
        "distance": distance(made, wanted),
        "forward_s": forwards(transformer, counted.said),
        "tflop_of_a_forward": flops(transformer.config, *counted.tokens) / 1e12,
    }


@torch.no_grad()
def forwards(transformer: Any, said: Mapping[str, Any]) -> list[float]:
    """Seconds of each."""
    return [timed(lambda: transformer(**said)) for _ in range(FORWARDS + 2)][2:]


def steps_alone(make: Make, transformer: Any) -> Figures:
    """Both halves of the guidance at once and one after the other; and what the host does between the kernels."""
    _, counted = checked(make, transformer)
    said = counted.said
    twice = {
        name: torch.cat([value] * 2)
        if isinstance(value, torch.Tensor)
        else value * 2
        if isinstance(value, list)
        else value
        for name, value in said.items()
    }
    kinds = [0] * (counted.tokens[0] // 2) + [1] * (counted.tokens[0] // 2)

    def listed() -> torch.Tensor:
        return torch.tensor([[int(kind) for kind in kinds]], device=_device(), dtype=torch.int)

    return {
        "forward_batch_1_s": forwards(transformer, said),
        "forward_batch_2_s": forwards(transformer, twice),
        # zero_cond_t: each forward makes a list with an element a token, and brings it to the GPU.
        "index_list_ms": [1000 * timed(listed) for _ in range(FORWARDS)],
        "synchronising_calls_a_step": synchronising(make),
    }


def synchronising(make: Make) -> float | None:
    """Calls that wait for the GPU, in one step with guidance; None without one.

    By the difference between edits of six steps and of two.
    """
    if not torch.cuda.is_available():
        return None
    counts = []
    for steps in (2, 6):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                make(steps, GUIDANCE, SEED)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing" in str(one.message) for one in told))
    return (counts[1] - counts[0]) / 4


def profile(setting: Setting, name: str) -> Figures:
    """One way of keeping the weights."""
    editor, model, known = ours(setting, Tuning(profile=PROFILES[name].name))  # type: ignore[index]
    make, transformer = by_editor(editor, setting.picture(0)), model.pipeline.transformer
    if PROFILES[name].weights == "bf16":  # type: ignore[index]
        _keep(setting, name, checked(make, transformer)[0])
    works = {"4": pictures(setting, "4", make, transformer)}
    return known | {"works": works, "memory": memory()}


def measured(name: str, setting: Setting) -> Figures:
    """The figures of an arm.

    Args:
        name: with the number of its turn, as in `exact/1`.
        setting: of all.
    """
    kind, _, _ = name.partition("/")
    if kind in {"worker", "plain-worker"}:
        sources, tiny = setting.counts["jobs"], setting.tiny
        return sustained.measured(Path(setting.model), sources, tiny=tiny, plain=kind == "plain-worker")
    arm = {"exact": exact, "balanced": balanced, "fast": fast, "plain": library, "variants": variants}.get(kind)
    made = arm(setting) if arm else profile(setting, kind)
    return made | {"matrix_tflops": matrix_rate(setting.matrix)}


def _keep(setting: Setting, name: str, check: Mapping[str, np.ndarray]) -> None:
    np.savez(Path(setting.checks) / f"{name}.npz", **check)  # type: ignore[arg-type]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measure, and write the figures."""
    name, setting, out = sys.argv[1:]
    figures = measured(name, Setting(**json.loads(Path(setting).read_text())))
    Path(out).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
