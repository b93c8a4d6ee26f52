"""What computes a model: the kernel of attention, chosen by the GPU, and compiled blocks. Both are seen to have run."""

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.autograd import profiler_legacy
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwen_worker.model import skipping
from qwen_worker.model.device import device
from qwen_worker.model.hub import LoadError
from qwen_worker.model.rotary import make_real
from qwen_worker.tuning import AttentionName, Tuning

# The names of diffusers; each but the first allows torch a single kernel, and fails where that one cannot run.
BACKENDS: dict[AttentionName, str] = {
    "native": "native", "flash": "_native_flash", "cudnn": "_native_cudnn", "efficient": "_native_efficient",
}  # fmt: skip
KERNELS: dict[AttentionName, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# Operators of torch, as its profiler calls them.
OPERATORS: dict[AttentionName, set[str]] = {
    "flash": {"aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"},
    "cudnn": {"aten::_scaled_dot_product_cudnn_attention"},
    "efficient": {"aten::_scaled_dot_product_efficient_attention"},
}
PREFIX = "aten::_scaled_dot_product_"  # of the operators that do the work
HOPPER = (9, 0)
HEAD = 128  # numbers of a head of the published transformers


def check(tuning: Tuning) -> None:
    """That this machine can compile, if it is to.

    Raises:
        LoadError: it cannot.
    """
    compiler = "cc" if torch.cuda.is_available() else "c++"  # Triton's for its launchers, and Inductor's for a CPU
    if tuning.compile and not shutil.which(compiler):
        raise LoadError(f"COMPILE=1 needs a C compiler, and there is no {compiler}: build the image with COMPILER=1")


def use(transformers: Sequence[Any], tuning: Tuning) -> AttentionName:
    """Prepare transformers, whose weights are in their place; returns the kernel of attention.

    Raises:
        LoadError: this device has no such kernel.
    """
    attention = _by_gpu() if tuning.attention == "auto" else tuning.attention
    if not _computes(attention):
        raise LoadError(f"ATTENTION={attention} cannot be computed on this {device()['name']}: choose another, or auto")
    for transformer in transformers:
        transformer.set_attention_backend(BACKENDS[attention])
        if tuning.preset.skips:
            skipping.enable(transformer)
        if tuning.compile:
            if tuning.compile_cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tuning.compile_cache)
            make_real(transformer)
            # Of any size: a new canvas, or a longer prompt, is not compiled anew.
            transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    return attention


def _by_gpu() -> AttentionName:
    """The fastest that this device has. Between GPUs: not measured."""
    if not torch.cuda.is_available():
        return "native"
    # On Hopper and newer cuDNN's kernel uses what torch's own flash attention, of the generation before, does not know.
    newest = torch.cuda.get_device_capability() >= HOPPER
    wanted: tuple[AttentionName, ...] = ("cudnn", "flash") if newest else ("flash",)
    return next((name for name in wanted if _computes(name)), "native")


def _computes(name: AttentionName) -> bool:
    """Whether this device has a kernel: tried on numbers of a head's size, in the precision of the model."""
    if name == "native":
        return True
    sample = torch.zeros(1, 2, 64, HEAD, dtype=torch.bfloat16, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        with sdpa_kernel(KERNELS[name]):
            torch.nn.functional.scaled_dot_product_attention(sample, sample, sample)
    except RuntimeError:
        return False
    return True


def graphs() -> int:
    """How many have been compiled in this process."""
    compiled: int = counters["stats"]["unique_graphs"]
    return compiled


class Seen:
    """What ran in a call, as torch tells it: in the first pass of a transformer, since telling takes time.

    Attributes:
        operators: of torch.
        graphs: compiled by then.
    """

    def __init__(self, transformer: Any, call: Callable[[], object]) -> None:
        self.operators: set[str] = set()
        with contextlib.ExitStack() as stack:
            begin = transformer.register_forward_pre_hook(lambda *_: self._begin(stack))
            end = transformer.register_forward_hook(lambda *_: stack.close())
            stack.callback(end.remove)
            stack.callback(begin.remove)
            call()
        self.graphs = graphs()

    def _begin(self, stack: contextlib.ExitStack) -> None:
        # The newer profiler writes lines of its own kind to stderr.
        record: Any = profiler_legacy.profile()  # type: ignore[no-untyped-call]
        stack.callback(lambda: self.operators.update(one.name for one in record.function_events))
        stack.enter_context(record)

    def check(self, attention: AttentionName, *, compiled: bool) -> None:
        """That nothing fell back.

        Raises:
            LoadError: another kernel computed the attention, or nothing was compiled.
        """
        ran = {one for one in self.operators if one.startswith(PREFIX)}
        if attention != "native" and not (ran and ran <= OPERATORS[attention]):
            told = ", ".join(sorted(one.removeprefix("aten::") for one in ran)) or "none"
            raise LoadError(f"ATTENTION={attention} was asked for, but what ran is {told}")
        if compiled and not self.graphs:
            raise LoadError("COMPILE=1 was asked for, but nothing was compiled")
